from hypothesis import given
from hypothesis import strategies as st

from inference.events import Delta, Event
from inference.merging import MERGE_MAX_TOKENS
from server.streams.coalescing import Coalescer
from server.streams.events import Sequenced
from tests.inference.deltas import HEAD, MORE, NEXT, calling, logprob, thought
from tests.server.streams.parts import FINISHED, OPENING, at, delta


def test_the_first_text_of_each_sequence_passes_at_once() -> None:
    coalescer = Coalescer()
    for index in (0, 1):
        assert coalescer.add(at(OPENING[0], index)) == [at(OPENING[0], index)]
        held_back = Delta(text="", tokens=(5,))
        assert coalescer.add(at(held_back, index)) == [at(held_back, index)]
        assert coalescer.add(at(delta("a"), index)) == [at(delta("a"), index)]
        assert coalescer.add(at(delta("b"), index)) == []
    assert coalescer.waiting
    assert coalescer.flush() == [at(delta("b"), 0), at(delta("b"), 1)]
    assert not coalescer.waiting
    assert coalescer.flush() == []


def test_what_is_no_delta_passes_at_once_behind_its_own_sequence_only() -> None:
    coalescer = Coalescer()
    for index in (0, 1):
        coalescer.add(at(delta("a"), index))
        coalescer.add(at(delta("b"), index))
        coalescer.add(at(delta("c"), index))
    assert coalescer.add(at(FINISHED, 0)) == [at(delta("bc"), 0), at(FINISHED, 0)]
    assert coalescer.flush() == [at(delta("bc"), 1)]


def test_a_burst_becomes_several_events_of_bounded_size() -> None:
    coalescer = Coalescer()
    ready = [each for _ in range(3 * MERGE_MAX_TOKENS) for each in coalescer.add(at(delta("x")))]
    ready += coalescer.flush()
    sizes = [len(event.event.tokens) for event in ready if isinstance(event.event, Delta)]
    assert sizes == [1, MERGE_MAX_TOKENS, MERGE_MAX_TOKENS, MERGE_MAX_TOKENS - 1]


def test_the_first_piece_of_each_call_passes_at_once() -> None:
    coalescer = Coalescer()
    assert coalescer.add(at(thought("a"))) == [at(thought("a"))]
    assert coalescer.add(at(delta("b"))) == []
    assert coalescer.add(at(calling(HEAD))) == [at(delta("b")), at(calling(HEAD))]
    assert coalescer.add(at(calling(MORE))) == []
    assert coalescer.add(at(calling(NEXT))) == [at(calling(MORE)), at(calling(NEXT))]
    assert not coalescer.waiting


events = st.one_of(
    st.builds(thought, st.text("ab", min_size=1, max_size=2)),
    st.builds(calling, st.sampled_from([HEAD, MORE, NEXT])),
    st.builds(Delta, text=st.text("ab", max_size=2), tokens=st.just((1,))),
    st.builds(
        Delta, text=st.text("ab", max_size=2), tokens=st.just((1,)), logprobs=st.just((logprob(1),))
    ),
    st.sampled_from([*OPENING, FINISHED]),
)


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 2), events)), max_size=60))
def test_whatever_comes_each_sequence_says_the_same(given: list[tuple[int, Event] | None]) -> None:
    coalescer = Coalescer()
    ready: list[Sequenced] = []
    for each in given:
        ready += coalescer.flush() if each is None else coalescer.add(at(each[1], each[0]))
    ready += coalescer.flush()
    for index in range(3):
        before = [each[1] for each in given if each is not None and each[0] == index]
        after = [each.event for each in ready if each.index == index]
        assert spread(after) == spread(before)


def spread(events: list[Event]) -> list[object]:
    """The events with each run of deltas as one, whatever its pieces were."""
    runs: list[object] = []
    for event in events:
        if not isinstance(event, Delta):
            runs.append(event)
            continue
        if not (runs and isinstance(runs[-1], list)):
            runs.append([[], (), ()])
        run = runs[-1]
        assert isinstance(run, list)
        run[0] += said(event)
        run[1] += event.tokens
        run[2] += (None,) * len(event.tokens) if event.logprobs is None else event.logprobs
    return runs


def said(event: Delta) -> list[tuple[str, object]]:
    """What a delta says, character by character, in its order."""
    pieces: list[tuple[str, object]] = [("reasoning", char) for char in event.reasoning]
    pieces += [("text", char) for char in event.text]
    for call in event.calls:
        if call.id is not None:
            pieces.append(("call", call.id))
        pieces += [(f"call {call.index}", char) for char in call.arguments]
    return pieces
