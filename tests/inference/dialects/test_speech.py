"""Events of an engine, divided into reasoning, text and calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from inference.dialects import Offer, dialect_of, spoken
from inference.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Queued,
    Restarted,
    Started,
    TokenLogprob,
    Usage,
)
from tests.inference.dialects.answers import THINK, TOOLS

CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


class Engine:
    """Plays events; says when it was closed."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self.closed = False

    async def generate(self) -> AsyncGenerator[Event, None]:
        try:
            for event in self._events:
                yield event
        finally:
            self.closed = True


def deltas(*texts: str, logprobs: bool = False) -> list[Event]:
    """One token each, numbered from 0."""
    return [
        Delta(
            text=text,
            tokens=(token,),
            logprobs=(TokenLogprob(token=token, piece=b"", logprob=-0.5),) if logprobs else None,
        )
        for token, text in enumerate(texts)
    ]


def finished(reason: FinishReason = FinishReason.STOP, stop: str | None = None) -> Finished:
    usage = Usage(prompt_tokens=5, completion_tokens=9, cached_tokens=1)
    return Finished(reason=reason, usage=usage, stop=stop)


async def heard(
    events: Sequence[Event], *, offer: Offer | None = None, thinking: bool = False
) -> list[Event]:
    engine = Engine([Accepted(prompt_tokens=5, thinking=thinking), *events])
    parser = dialect_of("hermes").parser(offer or Offer(tools=TOOLS), THINK, new_id=lambda: "id")
    async with aclosing(spoken(engine.generate(), parser)) as said:
        result = [event async for event in said]
    assert engine.closed
    return result


def run(events: Sequence[Event], **kwargs: bool) -> tuple[list[Delta], Finished]:
    result = asyncio.run(heard(events, **kwargs))  # type: ignore[arg-type]
    last = result[-1]
    assert isinstance(last, Finished)
    return [event for event in result if isinstance(event, Delta)], last


def test_every_token_and_its_log_probability_stays_where_it_was() -> None:
    texts = ["<th", "ink>", "a", "", "</think>", "b ", "<tool", *CALL[5:], " c"]
    said, last = run([*deltas(*texts, logprobs=True), finished()])
    assert [token for delta in said for token in delta.tokens] == list(range(len(texts)))
    assert all(
        delta.logprobs is not None and [each.token for each in delta.logprobs] == list(delta.tokens)
        for delta in said
    )
    assert "".join(delta.reasoning for delta in said) == "a"
    assert "".join(delta.text for delta in said) == "b c"
    assert last.reason is FinishReason.TOOL_CALLS


def test_without_log_probabilities_there_are_none() -> None:
    said, _ = run([*deltas(f"<think>a</think>b{CALL}c", "<tool"), finished()])
    assert {delta.logprobs for delta in said} == {None}
    assert [delta.tokens for delta in said] == [(0,), (), (1,), ()]


@pytest.mark.parametrize("restarted", [False, True])
def test_other_events_pass_and_a_restart_changes_nothing(restarted: bool) -> None:
    others: list[Event] = [
        Queued(position=1, expected_seconds=1.0),
        Started(cached_tokens=0, queue_seconds=0.0),
    ]
    again: list[Event] = (
        [Restarted(replayed_tokens=1, paused_seconds=0.1), *others] if restarted else []
    )
    first, *rest = deltas(CALL[:30], CALL[30:])
    result = asyncio.run(heard([*others, first, *again, *rest, finished()]))
    assert result[1:3] == others
    assert [each for each in result if isinstance(each, Restarted)] == again[:1]
    calls = [call for each in result if isinstance(each, Delta) for call in each.calls]
    assert "".join(call.arguments for call in calls) == "{}"
    assert [call.name for call in calls if call.name] == ["now"]


def test_tokens_of_reasoning_are_counted() -> None:
    _, last = run([*deltas("<think>", "a", "", "</think>", "b"), finished()])
    assert last.usage == Usage(
        prompt_tokens=5, completion_tokens=9, cached_tokens=1, reasoning_tokens=4
    )
    _, last = run([*deltas("a", "</think>", "b", "c"), finished()], thinking=True)
    assert last.usage.reasoning_tokens == 2
    _, last = run([*deltas("a", "</think>"), finished()])
    assert last.usage.reasoning_tokens == 0


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (CALL, FinishReason.STOP, FinishReason.TOOL_CALLS),
        (CALL, FinishReason.LENGTH, FinishReason.LENGTH),
        (CALL + CALL[:41], FinishReason.STOP, FinishReason.STOP),
        ("now", FinishReason.STOP, FinishReason.STOP),
    ],
)
def test_reasons_to_finish(text: str, reason: FinishReason, expected: FinishReason) -> None:
    _, last = run([*deltas(*text), finished(reason)])
    assert last.reason is expected


def test_what_was_held_back_comes_before_the_end() -> None:
    said, _ = run([*deltas("a", " <tool_c", logprobs=True), finished(stop="x")])
    assert [(delta.text, delta.tokens) for delta in said] == [
        ("a", (0,)),
        ("", (1,)),
        (" <tool_c", ()),
    ]
    assert said[-1].logprobs == ()


def test_closing_it_closes_the_engine() -> None:
    async def scenario() -> None:
        engine = Engine([Accepted(prompt_tokens=1), *deltas("a", "b"), finished()])
        parser = dialect_of("generic").parser(None, None)
        async with aclosing(spoken(engine.generate(), parser)) as said:
            async for event in said:
                if isinstance(event, Delta):
                    break
        assert engine.closed

    asyncio.run(scenario())


def test_without_offer_and_marks_text_is_text() -> None:
    async def scenario() -> str:
        engine = Engine([*deltas(f"<think>a</think>{CALL}"), finished()])
        parser = dialect_of("hermes").parser(None, None)
        async with aclosing(spoken(engine.generate(), parser)) as said:
            return "".join([each.text async for each in said if isinstance(each, Delta)])

    assert asyncio.run(scenario()) == f"<think>a</think>{CALL}"
