"""Deltas for tests: reasoning, pieces of calls, log probabilities."""

from __future__ import annotations

from inference.events import Delta, TokenLogprob, ToolCallDelta

HEAD = ToolCallDelta(index=0, id="call_0", name="weather", arguments="{")
MORE = ToolCallDelta(index=0, arguments="}")
NEXT = ToolCallDelta(index=1, id="call_1", name="weather")


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token=token, piece=b"x", logprob=-0.5)


def thought(text: str) -> Delta:
    return Delta(text="", reasoning=text, tokens=(1,))


def calling(*calls: ToolCallDelta) -> Delta:
    return Delta(text="", calls=calls, tokens=(1,))
