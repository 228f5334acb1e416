"""An engine's events with reasoning and calls told from text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from msgspec.structs import replace

from inference.dialects.parser import Parser
from inference.events import Accepted, Delta, Event, Finished, FinishReason


async def spoken(
    events: AsyncGenerator[Event, None], parser: Parser
) -> AsyncGenerator[Event, None]:
    """Pass on `events`, their text divided by `parser`.

    Each delta keeps its tokens and log probabilities, even where its text is held back;
    what no longer fits into one delta follows in others without tokens. An answer that
    ended by itself and made calls finishes with `TOOL_CALLS`. Tokens count as reasoning
    from the one that begins it to the one that ends it.

    Closing this closes `events`; a caller that may never start it closes them itself.
    """
    reasoning = 0
    logprobs = False
    async with aclosing(events):
        async for event in events:
            match event:
                case Accepted(thinking=thinking):
                    parser.begin(thinking=thinking)
                    yield event
                case Delta():
                    logprobs = event.logprobs is not None
                    thinking = parser.thinking
                    deltas = parser.push(event.text)
                    if thinking or parser.thinking or any(each.reasoning for each in deltas):
                        reasoning += len(event.tokens)
                    for delta in _with_tokens(event, deltas):
                        yield delta
                case Finished():
                    for delta in parser.flush():
                        yield replace(delta, logprobs=() if logprobs else None)
                    yield _finished(event, parser, reasoning)
                case _:
                    yield event


def _with_tokens(event: Delta, deltas: list[Delta]) -> Iterator[Delta]:
    """The first carries what the engine's delta carried, the others nothing of it."""
    first, *others = deltas or [Delta(text="", tokens=())]
    yield replace(first, tokens=event.tokens, logprobs=event.logprobs)
    for other in others:
        yield replace(other, logprobs=None if event.logprobs is None else ())


def _finished(event: Finished, parser: Parser, reasoning: int) -> Finished:
    reason = event.reason
    if reason is FinishReason.STOP and parser.called:
        reason = FinishReason.TOOL_CALLS
    return replace(event, reason=reason, usage=replace(event.usage, reasoning_tokens=reasoning))
