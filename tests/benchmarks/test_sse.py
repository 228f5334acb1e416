"""Reading streams back: whatever the reads, the events are the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sse import data_events, read_answer
from tests.benchmarks.samples import DONE, FINISH, USAGE, event, piece

STREAM = b": hello\n\n" + piece("a") + piece("é") + FINISH + USAGE + DONE


def _at(*chunks: bytes) -> list[tuple[float, bytes]]:
    return [(float(number), data) for number, data in enumerate(chunks)]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8), crlf=st.booleans())
def test_reads_may_cut_the_stream_anywhere(cuts: list[int], crlf: bool) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(edges)]
    if crlf:
        chunks = [data.replace(b"\n", b"\r\n") for data in chunks]
    answer = read_answer(_at(*chunks))
    assert answer.text == "aé"
    assert answer.error == ""
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
    assert answer.finish_reason == "length"
    assert list(answer.token_times) == sorted(answer.token_times)


def test_an_event_counts_from_its_last_byte() -> None:
    first, second = piece("a")[:9], piece("a")[9:]
    assert [when for when, _ in data_events(_at(first, second))] == [1.0]


def test_data_of_several_lines_is_joined_and_a_cut_event_dropped() -> None:
    assert [data for _, data in data_events(_at(b"data: a\ndata:b\n\ndata: c\n"))] == [b"a\nb"]


def test_reasoning_counts_as_tokens_and_empty_pieces_do_not() -> None:
    thinking = event('{"choices":[{"delta":{"reasoning_content":"hm"}}]}')
    opening = event('{"choices":[{"delta":{"role":"assistant","content":null}}]}')
    answer = read_answer(_at(opening, thinking, piece(""), piece("a")))
    assert answer.token_times == (1.0, 3.0)
    assert answer.text == "hma"


def test_plain_completions_are_read_too() -> None:
    assert read_answer(_at(event('{"choices":[{"text":"a"}]}'))).text == "a"


def test_every_bad_end_is_an_error() -> None:
    assert "without [DONE]" in read_answer(_at(piece("a"), FINISH)).error
    assert "finish reason" in read_answer(_at(piece("a"), DONE)).error
    assert "not a completion chunk" in read_answer(_at(event("nonsense"))).error
    failed = read_answer(_at(piece("a"), event('{"error":{"message":"broken"}}'), DONE))
    assert "broken" in failed.error
    assert failed.text == "a"


def test_equal_texts_have_equal_digests() -> None:
    one, two, other = (read_answer(_at(piece(text))) for text in ("x", "x", "y"))
    assert one.digest == two.digest != other.digest
