import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.streams.events import Entry
from server.streams.window import Window
from tests.server.streams.parts import at, delta


def entry(number: int) -> Entry:
    return Entry(number=number, event=at(delta("x")))


@given(st.lists(st.one_of(st.none(), st.integers(1, 50)), max_size=80))
def test_it_agrees_with_plain_lists(steps: list[int | None]) -> None:
    window = Window()
    sizes: list[int] = []
    base = 0
    for step in steps:
        if step is not None:
            window.push(entry(len(sizes)), step)
            sizes.append(step)
        elif base < len(sizes):
            window.drop()
            base += 1
        assert (window.base, window.end, len(window)) == (base, len(sizes), len(sizes) - base)
        assert window.size == sum(sizes[base:])
        for number in range(-1, len(sizes) + 2):
            assert window.bytes_from(number) == sum(sizes[max(number, base) :])
            held = window.entry(number)
            assert (held is not None) is (base <= number < len(sizes))
            assert held is None or held.number == number
        assert [each.number for each in window.slice(base, 3)] == [*range(base, len(sizes))][:3]


def test_what_has_left_memory_cannot_be_sliced() -> None:
    window = Window()
    window.push(entry(0), 1)
    window.drop()
    with pytest.raises(IndexError, match="entry 0 has left memory"):
        window.slice(0, 1)
