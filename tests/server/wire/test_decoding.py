"""Any bytes at all become a struct or a 400 that names a field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.events import Usage
from server.errors import ApiError
from server.wire import unbuilt
from server.wire.chat import ChatFields, asked_of
from server.wire.common import Limits, sampling_of, stop_of, usage_of
from server.wire.completions import CompletionFields, prompts_of
from server.wire.decoding import decode
from server.wire.messages import MessageFields

LIMITS = Limits(max_n=16, max_tokens=0, context_length=4096, vocab_size=300)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.sampled_from([*ChatFields.__struct_fields__, *unbuilt.CHAT, "prompt", "echo", "odd"])
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"])},
    optional={name: json_values for name in MessageFields.__struct_fields__ if name != "role"},
)
bodies = st.fixed_dictionaries(
    {"model": st.just("default"), "messages": st.lists(message, max_size=3) | json_values}
).flatmap(
    lambda base: st.dictionaries(names, json_values, max_size=4).map(lambda more: {**base, **more})
)


def assert_names(error: ApiError, start: str = "") -> None:
    assert error.status == 400
    assert error.message
    assert error.param is None or (error.param.startswith(start) and len(error.param) < 200)


def parse_chat(text: str) -> None:
    fields = decode(text, ChatFields, unbuilt.CHAT)
    asked_of(fields, ("<think>", "</think>"))
    sampling_of(fields, {}, LIMITS)
    stop_of(fields)


@given(bodies)
def test_any_json_is_taken_or_refused(body: dict[str, Any]) -> None:
    try:
        parse_chat(json.dumps(body))
    except ApiError as error:
        assert_names(error)


@given(st.text(max_size=64))
def test_any_text_is_taken_or_refused(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_chat(text)
    assert refused.value.status == 400


@given(json_values)
def test_any_prompt_is_taken_or_refused(prompt: Any) -> None:
    body = json.dumps({"model": "default", "prompt": prompt})
    try:
        prompts = prompts_of(decode(body, CompletionFields, unbuilt.COMPLETIONS), LIMITS)
    except ApiError as error:
        assert_names(error, "prompt")
    else:
        assert prompts


@pytest.mark.parametrize(
    ("string", "alone"),
    [
        (r"\ud800", True),
        (r"\uDFFF tail", True),
        (r"\ud83d\ude00\ude00", True),
        (r"\ud83d \ude00", True),
        (r"\\\ud800", True),
        (r"\ud800\ud800\udc00", True),
        (r"\ud83d\ude00", False),
        (r"\\ud800", False),
        (r"\n\u00e9\\", False),
    ],
)
def test_half_a_surrogate_pair_is_called_that(string: str, alone: bool) -> None:
    whole = f'{{"model": "m", "messages": [{{"role": "user", "content": "{string}"}}]}}'
    if alone:
        with pytest.raises(ApiError, match="half of a surrogate pair"):
            parse_chat(whole)
    else:
        parse_chat(whole)
    with pytest.raises(ApiError) as refused:
        parse_chat(whole[:-2])
    assert ("surrogate" in refused.value.message) is alone


def test_the_fields_of_a_message_that_are_not_built_are_its_fields() -> None:
    assert set(unbuilt.MESSAGE) <= set(MessageFields.__struct_fields__)


@pytest.mark.parametrize(
    ("table", "fields"),
    [(unbuilt.CHAT, ChatFields), (unbuilt.COMPLETIONS, CompletionFields)],
)
def test_nothing_is_both_built_and_not(table: dict[str, Any], fields: type[Any]) -> None:
    assert not set(table) & set(fields.__struct_fields__)


@pytest.mark.parametrize("value", [True, 1, 0.0, "none", [], {}, [{}]])
def test_only_the_very_value_that_asks_for_nothing_passes(value: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "store": value}
    with pytest.raises(ApiError) as refused:
        decode(json.dumps(body), ChatFields, unbuilt.CHAT)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "store")


def test_a_prompt_counts_once_however_often_it_is_answered() -> None:
    def used(prompt: int, completion: int, cached: int) -> Usage:
        return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)

    usage = usage_of([used(10, 1, 4), used(10, 2, 9), used(20, 3, 19), used(20, 4, 19)], 2)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 10, 40)
    assert usage.prompt_tokens_details.cached_tokens == 4 + 19
