"""Deltas that are joined say the same, in the same order."""

from __future__ import annotations

from inference.events import Delta, ToolCallDelta
from inference.merging import MERGE_MAX_TOKENS, merged
from tests.inference.deltas import HEAD, MORE, NEXT, calling, logprob, thought


def delta(text: str) -> Delta:
    return Delta(text=text, tokens=(7,))


def test_merging_keeps_text_tokens_and_log_probabilities() -> None:
    one = Delta(text="a", tokens=(1,), logprobs=(logprob(1),))
    two = Delta(text="bc", tokens=(2, 3), logprobs=(logprob(2), logprob(3)))
    rest = Delta(text="d", tokens=())
    both = merged(one, two)
    assert both == Delta(text="abc", tokens=(1, 2, 3), logprobs=tuple(map(logprob, (1, 2, 3))))
    assert merged(both, rest) == Delta(text="abcd", tokens=both.tokens, logprobs=both.logprobs)
    assert merged(one, delta("x")) is None  # its token would have no log probability


def test_reasoning_text_and_calls_merge_in_this_order_only() -> None:
    both = merged(thought("a"), delta("b"))
    assert both == Delta(text="b", reasoning="a", tokens=(1, *delta("b").tokens))
    assert merged(delta("b"), thought("a")) is None
    assert merged(calling(HEAD), delta("b")) is None
    assert merged(calling(HEAD), thought("a")) is None
    with_call = merged(delta("b"), calling(MORE))
    assert with_call is not None
    assert (with_call.text, with_call.calls) == ("b", (MORE,))


def test_pieces_of_one_call_become_one_piece() -> None:
    both = merged(calling(HEAD), calling(MORE))
    assert both is not None
    whole = ToolCallDelta(index=0, id="call_0", name="weather", arguments="{}")
    assert both.calls == (whole,)
    several = merged(both, calling(NEXT))
    assert several is not None
    assert several.calls == (whole, NEXT)


def test_no_delta_grows_beyond_the_limit() -> None:
    most = Delta(text="a", tokens=(1,) * MERGE_MAX_TOKENS)
    assert merged(most, delta("b")) is None
    assert merged(most, Delta(text="b", tokens=())) is not None
