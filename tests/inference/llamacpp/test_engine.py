"""The llama.cpp engine end to end: the real process, the real model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from inference.errors import (
    ContextLengthExceeded,
    EngineOverloaded,
    InvalidRequest,
    ModelLoadError,
)
from inference.events import Accepted, Delta, Event, Finished, FinishReason, Started, TokenLogprob
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.requests import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0.0)
# Batch shape moves logits of the default model by up to half a unit, so two candidates
# closer than this may change places.
NEAR_TIE = 1.0


@dataclass(slots=True)
class Answer:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    finished: Finished | None = None


def chat(*texts: str) -> ChatPrompt:
    roles = ("user", "assistant")
    return ChatPrompt(
        messages=tuple(ChatMessage(role=roles[n % 2], content=text) for n, text in enumerate(texts))
    )


def request(
    id: str, prompt: Prompt, *, max_tokens: int = 16, **fields: object
) -> GenerationRequest:
    fields.setdefault("sampling", GREEDY)
    return GenerationRequest(id=id, prompt=prompt, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


async def answer(engine: LlamaCppEngine, asked: GenerationRequest) -> Answer:
    result = Answer()
    async with aclosing(engine.generate(asked)) as events:
        async for event in events:
            match event:
                case Started():
                    result.started.append(event)
                case Delta():
                    result.text += event.text
                    result.tokens += event.tokens
                    result.logprobs += event.logprobs or ()
                case Finished():
                    assert result.finished is None
                    result.finished = event
                case Accepted():
                    assert not result.tokens
    assert result.finished is not None
    return result


def assert_equal_up_to_near_ties(one: Answer, other: Answer) -> None:
    """Where the texts part, `other` took the second best token of `one`, about as good."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    parting = next((number for number, (x, y) in pairs if x != y), None)
    if parting is not None:
        best, second = one.logprobs[parting].top
        assert best.logprob - second.logprob < NEAR_TIE
        assert other.tokens[parting] == second.token


@asynccontextmanager
async def running(path: Path, **config: object) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(
        # One thread: two that spin for each other crawl beside any other busy process.
        WorkerConfig(model_id="default", model_path=str(path), context=2048, threads=1, **config)  # type: ignore[arg-type]
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def settled(engine: LlamaCppEngine) -> None:
    """Wait until nothing runs or waits. An idle engine says so only when it is asked something."""
    async with asyncio.timeout(30):
        while engine.stats().running or engine.stats().waiting:
            poke = request(f"poke-{os.urandom(4).hex()}", TextPrompt(text="a"), max_tokens=1)
            await answer(engine, poke)


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_a_generation_ends_with_usage_and_the_next_turn_reuses_it(
    default_model_path: Path, layout: str
) -> None:
    async def scenario() -> None:
        async with running(default_model_path, layout=layout) as engine:
            first = await answer(engine, request("a", chat("What is water?"), max_tokens=24))
            assert first.finished is not None
            usage = first.finished.usage
            assert usage.completion_tokens == len(first.tokens) == 24
            assert first.finished.reason is FinishReason.LENGTH
            assert usage.cached_tokens == 0
            turns = chat("What is water?", first.text, "And ice?")
            second = await answer(engine, request("b", turns, max_tokens=4))
            assert second.finished is not None
            assert second.finished.usage.cached_tokens >= usage.prompt_tokens

    asyncio.run(scenario())


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_sixteen_together_equal_each_alone_up_to_near_ties(
    default_model_path: Path, layout: str
) -> None:
    """At temperature 0 the texts agree until two candidates are as good as equal."""
    prompts = [chat(f"Tell me about the number {n} in one sentence.") for n in range(16)]

    async def scenario() -> None:
        async with running(default_model_path, layout=layout) as engine:
            alone = [
                await answer(engine, request(f"alone-{n}", p, max_tokens=24, logprobs=2))
                for n, p in enumerate(prompts)
            ]
            together = await asyncio.gather(
                *(
                    answer(engine, request(f"together-{n}", p, max_tokens=24, logprobs=2))
                    for n, p in enumerate(prompts)
                )
            )
        for one, other in zip(alone, together, strict=True):
            assert_equal_up_to_near_ties(one, other)

    asyncio.run(scenario())


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_a_request_alone_is_repeatable(default_model_path: Path, layout: str) -> None:
    async def scenario() -> None:
        async with running(default_model_path, layout=layout, speculation="off") as engine:
            await answer(engine, request("warm", chat("Name three rivers.")))
            texts = {
                (await answer(engine, request(f"r{n}", chat("Name three rivers.")))).text
                for n in range(3)
            }
            assert len(texts) == 1
            seeded = SamplingParams(temperature=1.0, seed=7)
            drawn = {
                (
                    await answer(engine, request(f"s{n}", chat("Name a colour."), sampling=seeded))
                ).text
                for n in range(3)
            }
            assert len(drawn) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_drafts_change_nothing_but_near_ties(default_model_path: Path, layout: str) -> None:
    """A text that is copied: most drafts are right, some are not, and the answer is the same."""
    lines = "".join(f"{n}. The {n * n} boats of harbour {n} leave at {n + 5}.\n" for n in range(12))
    prompt = TextPrompt(text=f"{lines}\nThe same list again:\n\n{lines[:120]}")

    async def scenario() -> None:
        async with running(default_model_path, layout=layout, speculation="off") as engine:
            plain = await answer(engine, request("plain", prompt, max_tokens=64, logprobs=2))
            assert engine.stats().draft_tokens == 0
        async with running(default_model_path, layout=layout) as engine:
            drafted = [
                await answer(engine, request(f"{n}", prompt, max_tokens=64, logprobs=2))
                for n in range(2)
            ]
            stats = engine.stats()
        for each in drafted:
            assert each.finished is not None
            assert each.finished.usage.completion_tokens == len(each.tokens) == 64
            assert_equal_up_to_near_ties(plain, each)
        assert 0 < stats.draft_tokens_accepted <= stats.draft_tokens

    asyncio.run(scenario())


def test_a_stop_string_ends_the_text_before_itself(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path) as engine:
            plain = await answer(engine, request("plain", chat("Count to five."), max_tokens=32))
            cut = plain.text[len(plain.text) // 2 :][:6]
            stopped = await answer(
                engine, request("stop", chat("Count to five."), max_tokens=32, stop=(cut,))
            )
            assert stopped.finished is not None
            assert stopped.finished.stop == cut
            assert stopped.text == plain.text[: plain.text.index(cut)]

    asyncio.run(scenario())


def test_the_end_token_is_held_back_on_request(default_model_path: Path) -> None:
    """A bias makes the model end at once, unless `min_tokens` or `ignore_eos` is against it."""

    async def scenario() -> None:
        async with running(default_model_path) as engine:
            (end,) = await engine.tokenize("<|im_end|>")
            eager = SamplingParams(temperature=0.0, logit_bias=((end, 100.0),))
            for fields, expected in (
                ({}, (FinishReason.STOP, 1)),
                ({"min_tokens": 5}, (FinishReason.STOP, 6)),
                ({"ignore_eos": True}, (FinishReason.LENGTH, 9)),
            ):
                asked = request("a", chat("Hi"), max_tokens=9, sampling=eager, **fields)
                finished = (await answer(engine, asked)).finished
                assert finished is not None
                assert (finished.reason, finished.usage.completion_tokens) == expected

    asyncio.run(scenario())


def test_logprobs_name_the_chosen_token_first_at_temperature_zero(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path) as engine:
            result = await answer(engine, request("a", chat("Hello"), logprobs=3))
            assert len(result.logprobs) == len(result.tokens)
            for entry in result.logprobs:
                assert entry.token == entry.top[0].token
                assert entry.logprob <= 0.0
                assert [t.logprob for t in entry.top] == sorted(
                    (t.logprob for t in entry.top), reverse=True
                )

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("prompt", "fields", "error"),
    [
        (TextPrompt(text="a " * 3000), {}, ContextLengthExceeded),
        (TextPrompt(text="a"), {"max_tokens": 2048}, ContextLengthExceeded),
        (TextPrompt(text=""), {}, InvalidRequest),
        (TokensPrompt(tokens=(10**6,)), {}, InvalidRequest),
        (TokensPrompt(tokens=(-1,)), {}, InvalidRequest),
        (
            TextPrompt(text="a"),
            {"sampling": SamplingParams(logit_bias=((10**6, 1.0),))},
            InvalidRequest,
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused_before_it_is_queued(
    default_model_path: Path, prompt: Prompt, fields: dict[str, object], error: type[Exception]
) -> None:
    async def scenario() -> None:
        async with running(default_model_path, lanes=2) as engine:
            with pytest.raises(error):
                await answer(engine, request("a", prompt, **fields))  # type: ignore[arg-type]
            assert engine.stats().running == 0

    asyncio.run(scenario())


async def read_until(events: AsyncIterator[Event], kind: type[Event] | None) -> None:
    """Read up to the first event of `kind`; None reads nothing."""
    async for event in events:
        if kind is None or isinstance(event, kind):
            return


@pytest.mark.parametrize("phase", [Accepted, Started, Delta])
def test_closing_the_iterator_frees_the_lane(default_model_path: Path, phase: type[Event]) -> None:
    """Queued (`Accepted` behind a full engine), in prefill (`Started`), between tokens."""
    prompt = TextPrompt(text="The river " * 400)

    async def scenario() -> None:
        async with running(default_model_path, lanes=1) as engine:
            ahead = engine.generate(
                request("ahead", chat("Go on."), max_tokens=400, ignore_eos=True)
            )
            if phase is Accepted:
                await read_until(ahead, Delta)
            async with aclosing(engine.generate(request("a", prompt, max_tokens=400))) as events:
                await read_until(events, phase)
                steps = engine.stats().steps
            await ahead.aclose()
            await settled(engine)
            stats = engine.stats()
            assert (stats.running, stats.waiting, stats.parked) == (0, 0, 0)
            # The 400 tokens it could have had were not generated.
            assert stats.steps < steps + 100

    asyncio.run(scenario())


def test_a_cache_too_small_for_all_preempts_and_everyone_finishes(default_model_path: Path) -> None:
    async def scenario() -> None:
        # Nobody may be through before the last has begun: the prompts, 482 tokens each, are
        # computed first, and without drafts, nearly all of which would be right here, all
        # four go at the same pace. So they are all there when the 120 cells left run out.
        async with running(
            default_model_path,
            lanes=4,
            cache_tokens=2048,
            speculation="off",
            target_itl_seconds=60.0,
        ) as engine:
            results = await asyncio.gather(
                *(
                    answer(
                        engine,
                        request(
                            f"r{n}",
                            TextPrompt(text=f"{n} " + f"word{n} " * 240),
                            max_tokens=64,
                            ignore_eos=True,
                        ),
                    )
                    for n in range(4)
                )
            )
            assert [r.finished.usage.completion_tokens for r in results if r.finished] == [64] * 4
            assert engine.stats().preemptions > 0
            assert any(len(r.started) > 1 for r in results)

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once(default_model_path: Path) -> None:
    async def scenario() -> None:
        async with running(default_model_path, lanes=1, max_waiting=1) as engine:
            first = engine.generate(request("a", chat("Go on."), max_tokens=400, ignore_eos=True))
            await read_until(first, Delta)
            second = engine.generate(request("b", chat("Go on.")))
            await read_until(second, Accepted)
            with pytest.raises(EngineOverloaded):
                await answer(engine, request("c", chat("Go on.")))
            await first.aclose()
            await second.aclose()

    asyncio.run(scenario())


def test_a_file_that_is_no_model_fails_the_start(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)

    async def scenario() -> None:
        with pytest.raises(ModelLoadError):
            async with running(path):
                pass

    asyncio.run(scenario())


def test_tokens_that_are_gathered_say_the_same_in_fewer_pieces(
    default_model_path: Path,
) -> None:
    asked = request("one", chat("Count from one to twenty."), max_tokens=40, logprobs=1)

    async def pieces(gather_seconds: float) -> tuple[Answer, list[int]]:
        async with running(
            default_model_path, gather_seconds=gather_seconds, speculation="off"
        ) as engine:
            async with aclosing(engine.generate(asked)) as events:
                sizes = [len(event.tokens) async for event in events if isinstance(event, Delta)]
            return await answer(engine, asked), sizes

    async def scenario() -> None:
        each, singles = await pieces(0.0)
        gathered, sizes = await pieces(60.0)
        assert each.finished is not None
        assert set(singles) <= {0, 1}
        assert sizes[0] == 1  # the first is not kept waiting
        assert len(sizes) <= 3 < sum(sizes) == each.finished.usage.completion_tokens
        assert (gathered.text, gathered.tokens) == (each.text, each.tokens)
        assert [score.token for score in gathered.logprobs] == gathered.tokens

    asyncio.run(scenario())
