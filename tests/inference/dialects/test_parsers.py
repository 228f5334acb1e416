"""What parsers make of answers, whatever pieces those come in."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.dialects import CALLS_MAX
from inference.dialects.calls import HELD_MAX_CHARS
from tests.inference.dialects.answers import (
    THINK,
    TOOLS,
    Call,
    Heard,
    Recording,
    cut,
    heard,
    new_parser,
    recordings,
)

DIALECTS = ["generic", "hermes", "llama3", "mistral", "mistral-named"]
RECORDINGS = recordings()

PARTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
    *("<function=", "</function>", "<think>", "</think>", "weather", "now", "abcdefgh1"),
    *('{"name": "weather"', ', "arguments": ', ', "parameters": ', '{"city": "Oslo"}', "{}"),
    *('{"name": "now", "arguments": {}}', "[", "]", "{", "}", '"', "\\", ",", ";", " ", "\n"),
    *("null", "-1.5e+3", "0", "Oslo", "ø", "🙂", " " * 70, ">", ":"),
]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=30).map("".join)
places = st.lists(st.integers(0, 400), max_size=20)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda each: f"{each.dialect}: {each.what}")
def test_recorded_answers(recording: Recording) -> None:
    for pieces in ([recording.written], list(recording.written)):
        parser = recording.parser()
        result = heard(parser, pieces).result()
        assert result == (recording.said, recording.reasoned, recording.calls)
        assert parser.called == (bool(recording.calls) and not recording.broken)
        for call in recording.calls:
            if not recording.broken:
                json.loads(call.arguments)


@given(st.sampled_from(RECORDINGS), places, st.integers(0, 400))
def test_recorded_answers_broken_off_anywhere_and_cut_anywhere(
    recording: Recording, places: list[int], end: int
) -> None:
    text = recording.written[:end]
    whole = heard(recording.parser(), [text]).result()
    assert heard(recording.parser(), cut(text, places)).result() == whole
    assert heard(recording.parser(), text).result() == whole


@given(st.sampled_from(DIALECTS), texts, places, st.booleans(), st.booleans())
def test_the_pieces_do_not_matter(
    dialect: str, text: str, places: list[int], opened: bool, parallel: bool
) -> None:
    results = []
    for pieces in ([text], list(text), cut(text, places)):
        parser = new_parser(dialect, parallel=parallel)
        parser.begin(thinking=opened)
        results.append((heard(parser, pieces).result(), parser.called))
    assert results[0] == results[1] == results[2]
    _, _, calls = results[0][0]
    assert len(calls) <= (CALLS_MAX if parallel else 1)
    assert {call.name for call in calls} <= {tool.name for tool in TOOLS}
    for call in calls if results[0][1] else ():
        assert isinstance(json.loads(call.arguments), dict)


@given(st.sampled_from(DIALECTS), texts)
def test_without_calls_and_reasoning_nothing_changes(dialect: str, text: str) -> None:
    parser = new_parser(dialect, marks=None)
    said, reasoned, calls = heard(parser, text).result()
    if not calls:
        assert (said, reasoned) == (text, "")
    assert _remains(text, said, calls)


def _remains(text: str, said: str, calls: tuple[Call, ...]) -> bool:
    """Whether what came out is all in the text, in order."""
    place = 0
    for char in said:
        place = text.find(char, place) + 1
        if not place:
            return False
    return all(call.arguments in text or call.arguments == "{}" for call in calls)


spoken_words = st.text("<> abc{", min_size=1, max_size=9).map(lambda text: f".{text}.")
values = (
    st.none()
    | st.integers()
    | st.text(max_size=9)
    | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=2)
)
arguments = st.dictionaries(st.text(max_size=3), values, max_size=3)
made_calls = st.tuples(st.sampled_from(["weather", "add", "now"]), arguments, st.booleans())


@given(st.lists(spoken_words | made_calls, max_size=8), places)
def test_what_was_written_comes_back(
    parts: list[str | tuple[str, dict[str, object], bool]], places: list[int]
) -> None:
    written, said, calls = "", "", []
    for part in parts:
        if isinstance(part, str):
            said, written = said + part, written + part
            continue
        name, given, ascii_only = part
        call = Call(name, json.dumps(given, ensure_ascii=ascii_only))
        calls.append(call)
        written += f'<tool_call>\n{{"name": "{name}", "arguments": {call.arguments}}}\n</tool_call>'
    result = heard(new_parser("hermes"), cut(written, places)).result()
    assert result == (said, "", tuple(calls))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "unit",
    [
        *("<tool_call>", '<tool_call>{"arguments": {"', '<tool_call>{"id": "', "[TOOL_CALLS]"),
        *('[TOOL_CALLS][{"id": [', "[TOOL_CALLS]abc", " ", "\n\n", "<", "x", '{"arguments": {"a":'),
        '<tool_call>{"name": "now", "arguments": {"a": "b", "',
    ],
)
def test_what_is_held_back_is_bounded(dialect: str, unit: str) -> None:
    parser = new_parser(dialect)
    result, pushed, most = Heard(), 0, 0
    for _ in range(4000):
        result.add(parser.push(unit))
        pushed += len(unit)
        out = len(result.said) + sum(len(call[1]) for call in result.calls)
        most = max(most, pushed - out)
    # What marks a call, its name included, is not held back but used.
    assert most < HELD_MAX_CHARS + 1024
    assert _size(parser) < 1_000_000


def _size(thing: object, seen: set[int] | None = None) -> int:
    """About how many bytes a parser keeps (its own objects, not the modules')."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, list | tuple | set | frozenset):
        size += sum(_size(each, seen) for each in thing)
    elif isinstance(thing, dict):
        size += sum(_size(each, seen) for each in thing.values())
    elif hasattr(thing, "__dict__"):
        size += _size(vars(thing), seen)
    return size


def test_pieces_come_as_soon_as_they_can() -> None:
    parser = new_parser("hermes")
    assert parser.push('<tool_call>{"name": "weather", ') == []
    (delta,) = parser.push('"arguments": {"ci')
    assert delta.calls[0].name == "weather"
    assert delta.calls[0].arguments == '{"ci'
    (delta,) = parser.push('ty": ')
    assert (delta.calls[0].id, delta.calls[0].name) == (None, None)
    assert delta.calls[0].arguments == 'ty": '


def test_order_within_a_delta() -> None:
    parser = new_parser("hermes")
    call = '<tool_call>{"name": "now"}</tool_call>'
    deltas = parser.push(f"<think>a</think>b{call}{call}c{call}")
    assert [(each.reasoning, each.text, len(each.calls)) for each in deltas] == [
        ("a", "b", 2),
        ("", "c", 1),
    ]


@pytest.mark.parametrize("depth", [63, 64, 65, 5000])
def test_depth(depth: int) -> None:
    nested = "[" * (depth - 1) + "]" * (depth - 1)
    parser = new_parser("hermes")
    heard(parser, f'<tool_call>{{"name": "now", "arguments": {{"a": {nested}}}}}</tool_call>')
    assert parser.called == (depth <= 64)


def test_reasoning_is_known_while_it_lasts() -> None:
    parser = new_parser("hermes", THINK)
    assert not parser.thinking
    parser.push("<think>")
    assert parser.thinking
    parser.push("a </think")
    assert parser.thinking
    parser.push(">")
    assert not parser.thinking
