"""The link cuts bytes into messages and takes nothing else."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.link import Link
from inference.llamacpp.messages import MESSAGE_MAX_BYTES, Loading, ToServer, frame


@given(st.lists(st.floats(0, 1), max_size=8), st.lists(st.integers(1, 40), min_size=1))
def test_frames_may_be_cut_anywhere(progress: list[float], cuts: list[int]) -> None:
    received: list[ToServer] = []
    link = Link(received.append)
    sent: list[ToServer] = [Loading(progress=value) for value in progress]
    data = b"".join(map(frame, sent))
    position = 0
    while position < len(data):
        for cut in cuts:
            link.data_received(data[position : position + cut])
            position += cut
    assert received == sent
    assert link.violation == ""


@given(st.binary(max_size=64))
def test_nothing_but_messages_is_taken(body: bytes) -> None:
    received: list[ToServer] = []
    link = Link(received.append)
    link.data_received(struct.pack("<I", len(body)) + body)
    link.data_received(frame(Loading(progress=0.5)))
    assert bool(link.violation) != bool(received)


def test_giant_frame_is_refused_by_its_header() -> None:
    link = Link(lambda message: None)
    link.data_received(struct.pack("<I", MESSAGE_MAX_BYTES + 1))
    assert "over the limit" in link.violation


def test_without_a_connection_nothing_is_sent() -> None:
    link = Link(lambda message: None)
    link.send(Loading(progress=1.0))
    link.abort()
    assert link.unsent_bytes == 0
