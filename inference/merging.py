"""Deltas of one sequence that come close together, as one. Pure."""

from __future__ import annotations

from inference.events import Delta, ToolCallDelta

MERGE_MAX_TOKENS = 64
"""Tokens of one merged delta: a burst becomes several events of bounded size."""


def merged(one: Delta, two: Delta) -> Delta | None:
    """Both as one delta.

    None where that would be too large, lose log probabilities, or say things in another
    order than they came in: within a delta reasoning is first, then text, then calls.
    """
    tokens = one.tokens + two.tokens
    if len(tokens) > MERGE_MAX_TOKENS or _out_of_order(one, two):
        return None
    logprobs = None
    if one.logprobs is not None or two.logprobs is not None:
        logprobs = (one.logprobs or ()) + (two.logprobs or ())
        if len(logprobs) != len(tokens):
            return None
    return Delta(
        text=one.text + two.text,
        tokens=tokens,
        logprobs=logprobs,
        reasoning=one.reasoning + two.reasoning,
        calls=_joined(one.calls, two.calls) if one.calls else two.calls,
    )


def _out_of_order(one: Delta, two: Delta) -> bool:
    if one.calls:
        return bool(two.reasoning or two.text)
    return bool(one.text and two.reasoning)


def _joined(
    one: tuple[ToolCallDelta, ...], two: tuple[ToolCallDelta, ...]
) -> tuple[ToolCallDelta, ...]:
    """The pieces in their order, those of the same call that touch as one."""
    pieces = list(one)
    for piece in two:
        last = pieces[-1]
        if piece.id is None and piece.index == last.index:
            pieces[-1] = ToolCallDelta(
                index=last.index,
                id=last.id,
                name=last.name,
                arguments=last.arguments + piece.arguments,
            )
        else:
            pieces.append(piece)
    return tuple(pieces)
