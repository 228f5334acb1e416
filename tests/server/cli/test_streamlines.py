"""Lines of a stream, wherever its parts are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.streamlines import LINE_MAX_BYTES, Data, LineTooLong, Remark, lines

STREAM = ': queued\n\ndata: {"a": "\u2028\x85"}\n\n:\r\ndata: [DONE]\r\n\nid: 3\nrest'.encode()
FOUND = [
    Remark("queued"),
    Data('{"a": "\u2028\x85"}'.encode()),
    Remark(""),
    Data(b"[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_it_does_not_matter_where_the_parts_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert list(lines(parts)) == FOUND


def test_a_line_without_an_end_is_not_gathered_for_ever() -> None:
    part = bytes(1024 * 1024)
    with pytest.raises(LineTooLong):
        list(lines(part for _ in range(LINE_MAX_BYTES // len(part) + 1)))
