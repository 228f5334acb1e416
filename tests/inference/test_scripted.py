"""The scripted engine keeps every promise of the `Engine` protocol, and its script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine import Engine
from inference.errors import (
    ContextLengthExceeded,
    DecodeFailed,
    EngineDied,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    ModelLoadError,
    TemplateError,
)
from inference.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Queued,
    Restarted,
    Started,
)
from inference.requests import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)
from inference.scripted import (
    Die,
    Fail,
    Fault,
    Hang,
    RefuseTemplate,
    Restart,
    Rule,
    Script,
    ScriptedEngine,
    ScriptError,
    Wait,
    load_script,
    pieces,
)
from inference.status import EngineState

GREEDY = SamplingParams(temperature=0.0)


def request(
    text: str = "hello",
    *,
    id: str = "r",
    max_tokens: int | None = 8,
    min_tokens: int = 0,
    ignore_eos: bool = False,
    stop: tuple[str, ...] = (),
    logprobs: int | None = None,
    sampling: SamplingParams = GREEDY,
    priority: int = 0,
) -> GenerationRequest:
    return GenerationRequest(
        id=id,
        prompt=TextPrompt(text=text),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
        stop=stop,
        logprobs=logprobs,
        sampling=sampling,
        priority=priority,
    )


async def collect(engine: Engine, asked: GenerationRequest) -> list[Event]:
    async with aclosing(engine.generate(asked)) as events:
        return [event async for event in events]


def run(script: Script, scenario: Callable[[ScriptedEngine], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = ScriptedEngine(script)
        await engine.start()
        try:
            await scenario(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def play(script: Script, asked: GenerationRequest) -> list[Event]:
    played: list[Event] = []

    async def scenario(engine: ScriptedEngine) -> None:
        played.extend(await collect(engine, asked))

    run(script, scenario)
    return played


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def last_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def replying(text: str) -> Script:
    return Script(rules=(Rule(reply=text),))


@given(st.text())
def test_tokenizer_is_reversible(text: str) -> None:
    tokens = pieces.tokenize(text)
    assert pieces.detokenize(tokens) == text.encode("utf-8", "replace").decode()
    assert pieces.known(tokens)


def test_events_come_in_their_order() -> None:
    events = play(Script(), request(max_tokens=3))
    kinds = [type(event) for event in events]
    assert kinds == [Accepted, Started, Delta, Delta, Delta, Finished]
    assert last_of(events).reason is FinishReason.LENGTH
    assert last_of(events).usage.prompt_tokens == 5
    assert last_of(events).usage.completion_tokens == 3


def test_same_request_same_answer_and_seed_matters_only_when_warm() -> None:
    warm = [SamplingParams(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (tokens_of(play(Script(), request(sampling=params))) for params in warm)
    assert one == again != other
    cold = [SamplingParams(temperature=0.0, seed=seed) for seed in (1, 2)]
    assert len({tuple(tokens_of(play(Script(), request(sampling=p)))) for p in cold}) == 1


def test_prompt_with_first_tokens_of_an_answer_is_continued() -> None:
    whole = tokens_of(play(Script(), request(max_tokens=8)))
    prompt = TokensPrompt(tokens=(*pieces.tokenize("hello"), *whole[:3]))
    asked = GenerationRequest(id="r", prompt=prompt, max_tokens=5, sampling=GREEDY)
    assert tokens_of(play(Script(), asked)) == whole[3:]


def test_reply_ends_with_stop_and_characters_are_whole() -> None:
    events = play(replying("né 日本"), request(max_tokens=None))
    assert text_of(events) == "né 日本"
    assert all("\ufffd" not in event.text for event in events if isinstance(event, Delta))
    assert last_of(events).reason is FinishReason.STOP
    assert last_of(events).usage.completion_tokens == 10


def test_reply_cut_within_a_character_shows_what_there_is() -> None:
    events = play(replying("日本"), request(max_tokens=4))
    assert text_of(events) == "日\ufffd"
    assert last_of(events).reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("max_tokens", "min_tokens", "ignore_eos", "length"),
    [(None, 0, False, 2), (10, 0, False, 2), (10, 5, False, 5), (10, 0, True, 10), (1, 5, True, 1)],
)
def test_length_of_a_reply(
    max_tokens: int | None, min_tokens: int, ignore_eos: bool, length: int
) -> None:
    asked = request(max_tokens=max_tokens, min_tokens=min_tokens, ignore_eos=ignore_eos)
    assert len(tokens_of(play(replying("ok"), asked))) == length


def test_answer_without_reply_and_limit_ends_by_itself() -> None:
    events = play(Script(), request(max_tokens=None))
    assert len(tokens_of(events)) == 64
    assert last_of(events).reason is FinishReason.STOP


@given(st.text("ab"), st.lists(st.text("ab", min_size=1), max_size=3))
def test_stop_strings_never_leak(reply: str, stops: list[str]) -> None:
    events = play(replying(reply), request(max_tokens=None, stop=tuple(stops)))
    text, end = text_of(events), last_of(events)
    assert reply.startswith(text)
    assert not any(stop in text for stop in stops)
    assert (end.stop is None) == (text == reply)


def test_min_tokens_holds_stop_strings_back() -> None:
    events = play(replying("xaxa!"), request(stop=("a",), min_tokens=3))
    assert text_of(events) == "xax"
    assert last_of(events).stop == "a"
    assert last_of(events).usage.completion_tokens == 4


def test_logprobs_are_made_up_alike_for_each_token() -> None:
    events = play(replying("ab"), request(logprobs=2))
    deltas = [event for event in events if isinstance(event, Delta)]
    for delta in deltas:
        assert delta.logprobs is not None
        (entry,) = delta.logprobs
        assert entry.token == entry.top[0].token == delta.tokens[0]
        assert [round(top.logprob, 3) for top in entry.top] == [-0.693, -1.386]
    assert all(
        event.logprobs is None for event in play(Script(), request()) if isinstance(event, Delta)
    )


def test_context_length_is_checked_with_both_counts() -> None:
    script = Script(context_length=10)
    with pytest.raises(
        ContextLengthExceeded, match=r"10 tokens.*5 tokens and max_tokens is 6"
    ) as refused:
        play(script, request(max_tokens=6))
    assert refused.value.param == "max_tokens"
    with pytest.raises(ContextLengthExceeded, match="10 tokens"):
        play(script, request("0123456789", max_tokens=None))
    assert len(tokens_of(play(script, request(max_tokens=None, ignore_eos=True)))) == 5


@pytest.mark.parametrize("max_tokens", [None, 1, 6])
def test_a_prompt_that_fills_the_context_by_itself_is_what_is_at_fault(
    max_tokens: int | None,
) -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        play(Script(context_length=10), request("0123456789", max_tokens=max_tokens))
    assert refused.value.param == "prompt"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        play(Script(), request(sampling=SamplingParams(logit_bias=((99_999, 1.0),))))
    assert refused.value.param == "logit_bias"
    with pytest.raises(InvalidRequest):
        play(Script(), GenerationRequest(id="r", prompt=TokensPrompt(tokens=(99_999,))))


def test_rule_is_chosen_by_the_last_user_text() -> None:
    script = Script(rules=(Rule(match="(?i)rain", reply="wet"), Rule(reply="dry")))

    def ask(*texts: str) -> str:
        messages = tuple(ChatMessage(role="user", content=text) for text in texts)
        prompt = ChatPrompt(messages=messages)
        return text_of(play(script, GenerationRequest(id="r", prompt=prompt)))

    assert ask("sun", "RAIN?") == "wet"
    assert ask("rain", "sun") == "dry"


def test_lanes_queue_by_priority_and_free_on_close() -> None:
    async def scenario(engine: ScriptedEngine) -> None:
        holder = engine.generate(request(id="holder"))
        await anext(holder)
        await anext(holder)
        order: list[str] = []
        accepted = asyncio.Semaphore(0)

        async def queue(name: str, priority: int) -> None:
            async with aclosing(engine.generate(request(id=name, priority=priority))) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        accepted.release()
                    if isinstance(event, Started):
                        order.append(name)

        async with asyncio.TaskGroup() as tasks:
            for name, priority in (("low", 0), ("high", 5), ("low2", 0)):
                tasks.create_task(queue(name, priority))
                await accepted.acquire()
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.lanes_total) == (1, 3, 1)
            with pytest.raises(EngineOverloaded):
                await collect(engine, request(id="too-many"))
            await holder.aclose()
        assert order == ["high", "low", "low2"]
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0)
        assert stats.generation_tokens == 24
        assert engine.requests_seen == 5

    run(Script(lanes=1, max_waiting=3), scenario)


def test_places_in_the_queue_can_be_scripted() -> None:
    rule = Rule(queued=(Wait(position=3, expected_seconds=1.5), Wait(position=1)))
    events = play(Script(rules=(rule,)), request(max_tokens=1))
    assert events[1:3] == [
        Queued(position=3, expected_seconds=1.5),
        Queued(position=1, expected_seconds=0.0),
    ]
    assert [type(event) for event in events[3:]] == [Started, Delta, Finished]


def test_who_has_to_wait_is_told_its_place() -> None:
    async def scenario(engine: ScriptedEngine) -> None:
        async with aclosing(engine.generate(request(id="holder"))) as holder:
            await anext(holder)
            for number, priority, position in ((1, 0, 1), (2, 0, 2), (3, 1, 1)):
                asked = request(id=str(number), priority=priority)
                waiting = engine.generate(asked)
                assert await anext(waiting) == Accepted(prompt_tokens=5)
                assert await anext(waiting) == Queued(position=position, expected_seconds=0.0)
                stats = engine.stats()
                assert stats.waiting_tokens == 5 * number
                assert stats.expected_wait_seconds == 2.5

    run(Script(lanes=1, expected_wait_seconds=2.5), scenario)


def test_cancelled_while_waiting_leaves_the_queue() -> None:
    async def scenario(engine: ScriptedEngine) -> None:
        holder = engine.generate(request(id="holder"))
        await anext(holder)
        waiter = asyncio.ensure_future(collect(engine, request(id="waiter")))
        while engine.stats().waiting == 0:
            await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert engine.stats().waiting == 0
        await holder.aclose()

    run(Script(lanes=1), scenario)


def test_ids_in_use_are_refused_and_free_afterwards() -> None:
    async def scenario(engine: ScriptedEngine) -> None:
        holder = engine.generate(request())
        await anext(holder)
        with pytest.raises(InvalidRequest):
            await collect(engine, request())
        await holder.aclose()
        assert await collect(engine, request())

    run(Script(), scenario)


def test_death_takes_every_sequence_and_the_engine_comes_back() -> None:
    die = Die(after_tokens=2, restart_seconds=0.001)
    script = Script(rules=(Rule(match="die", fault=die), Rule(token_seconds=60)))

    async def scenario(engine: ScriptedEngine) -> None:
        bystander = asyncio.ensure_future(collect(engine, request(id="bystander")))
        while engine.stats().running == 0:
            await asyncio.sleep(0)
        events = engine.generate(request("die"))
        seen = [await anext(events) for _ in range(4)]
        assert len(tokens_of(seen)) == 2
        with pytest.raises(EngineDied):
            await anext(events)
        assert engine.health().state is EngineState.RESTARTING
        with pytest.raises(EngineUnavailable):
            await collect(engine, request(id="meanwhile"))
        with pytest.raises(EngineDied):
            await bystander
        while engine.health().state is not EngineState.READY:
            await engine.state_changed()
        assert engine.health().restarts == 1
        assert engine.stats().running == 0

    run(script, scenario)


def test_after_a_restart_every_sequence_goes_on() -> None:
    restart = Restart(after_tokens=2, restart_seconds=0.001)
    script = Script(rules=(Rule(match="restart", fault=restart),))

    async def scenario(engine: ScriptedEngine) -> None:
        plain = await collect(engine, request(id="plain"))
        bystander = engine.generate(request(id="bystander"))
        before = [await anext(bystander) for _ in range(3)]
        events = engine.generate(request("restart"))
        seen = [await anext(events) for _ in range(4)]
        following = asyncio.ensure_future(anext(events))
        while engine.health().state is EngineState.READY:
            await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable):
            await collect(engine, request(id="meanwhile"))
        for soon, number in ((following, 2), (anext(bystander), 1)):
            restarted = await soon
            assert isinstance(restarted, Restarted)
            assert restarted.replayed_tokens == number
        seen += [event async for event in events]
        assert len(tokens_of(seen)) == 8
        before += [event async for event in bystander]
        assert tokens_of(before) == tokens_of(plain)
        assert isinstance(before[-1], Finished)
        health = engine.health()
        assert (health.restarts, health.replays) == (1, 2)

    run(script, scenario)


def test_a_death_with_a_restart_error_is_for_good() -> None:
    die = Die(restart_seconds=0.0, restart_error="no memory")

    async def scenario(engine: ScriptedEngine) -> None:
        with pytest.raises(EngineDied):
            await collect(engine, request())
        await engine.state_changed()
        health = engine.health()
        assert (health.state, health.reason) == (EngineState.FAILED, "no memory")

    run(Script(rules=(Rule(fault=die),)), scenario)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fail(after_tokens=1), DecodeFailed), (RefuseTemplate(), TemplateError)],
)
def test_faults_of_one_sequence(fault: Fault, error: type[Exception]) -> None:
    script = Script(rules=(Rule(fault=fault, fault_times=1),))

    async def scenario(engine: ScriptedEngine) -> None:
        with pytest.raises(error):
            await collect(engine, request())
        assert len(tokens_of(await collect(engine, request()))) == 8
        assert engine.stats().running == 0

    run(script, scenario)


def test_hang_ends_with_close() -> None:
    async def scenario(engine: ScriptedEngine) -> None:
        events = engine.generate(request())
        seen = [await anext(events) for _ in range(3)]
        assert len(tokens_of(seen)) == 1
        hung = asyncio.ensure_future(anext(events))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not hung.done()
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await hung
        assert engine.health().state is EngineState.CLOSED

    run(Script(rules=(Rule(fault=Hang(after_tokens=1)),)), scenario)


def test_calls_and_info() -> None:
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="hi"),))

    async def scenario(engine: ScriptedEngine) -> None:
        tokens = await engine.tokenize("the water")
        assert await engine.detokenize(tokens) == "the water"
        with pytest.raises(InvalidRequest):
            await engine.detokenize([-1])
        assert await engine.apply_template(chat) == "user: hi\nassistant:"
        text = TextPrompt(text="user: hi\nassistant:")
        assert await engine.count_tokens(chat) == await engine.count_tokens(text)
        assert engine.info.context_length == 8192

    run(Script(), scenario)


def test_loading_shows_progress_and_may_fail() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Script(load_seconds=0.01, load_error="no such weights"))
        assert engine.health().state is EngineState.STARTING
        with pytest.raises(EngineUnavailable):
            engine.info  # noqa: B018
        with pytest.raises(EngineUnavailable):
            await collect(engine, request())
        with pytest.raises(ModelLoadError, match="no such weights"):
            await engine.start()
        assert engine.health().state is EngineState.FAILED
        await engine.close()

    asyncio.run(main())


def test_script_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text(
        'lanes = 2\n[[rules]]\nmatch = "x"\nreply = "y"\n'
        'fault = { kind = "die", after_tokens = 3, restart_seconds = 0.5 }\n'
    )
    fault = Die(after_tokens=3, restart_seconds=0.5)
    assert load_script(path) == Script(lanes=2, rules=(Rule(match="x", reply="y", fault=fault),))


@pytest.mark.parametrize(
    "text",
    ["lanes = 0", "unknown = 1", "lanes =", '[[rules]]\nmatch = "("', "[[rules]]\nfault = {}"],
)
def test_bad_scripts_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text)
    with pytest.raises(ScriptError, match=r"script\.toml"):
        load_script(path)


def test_a_script_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as refused:
        load_script(tmp_path / "absent.toml")
    assert str(refused.value) == f"{tmp_path / 'absent.toml'}: No such file or directory"
