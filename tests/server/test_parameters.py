"""docs/parameters.md is true: each parameter is sent to a server, and does what it says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat

from inference.scripted import Rule, Script
from server.wire import unbuilt
from server.wire.chat import ChatFields
from server.wire.common import GenerationFields
from server.wire.completions import CompletionFields
from tests.server.harness import Running, in_thread
from tests.server.reading import CHAT, TEXT

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"
FUNCTION = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object"}

SAMPLES: dict[str, Any] = {
    "add_generation_prompt": False,
    "add_special_tokens": None,
    "allowed_token_ids": [5],
    "audio": {"voice": "alloy", "format": "mp3"},
    "bad_words": ["no"],
    "best_of": 2,
    "cache_prompt": False,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "documents": [{"text": "x"}],
    "dry_multiplier": 0.5,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": {"name": "f"},
    "functions": [{"name": "f", "parameters": SCHEMA}],
    "grammar": 'root ::= "a"',
    "guided_choice": ["a", "b"],
    "guided_decoding_backend": "xgrammar",
    "guided_grammar": 'start: "a"',
    "guided_json": SCHEMA,
    "guided_regex": "a+",
    "guided_whitespace_pattern": " ?",
    "ignore_eos": True,
    "include_reasoning": False,
    "include_stop_str_in_output": True,
    "json_schema": SCHEMA,
    "length_penalty": 1.5,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "lora": [{"id": 0, "scale": 0.5}],
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "x"}],
    "metadata": {"a": "b"},
    "min_p": 0.1,
    "min_tokens": 1,
    "mirostat": 2,
    "mm_processor_kwargs": {"a": 1},
    "modalities": ["text", "audio"],
    "model": "default",
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "n_predict": 5,
    "n_probs": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "priority": 1,
    "prompt": "x",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "prompt_logprobs": 1,
    "reasoning_budget_tokens": 5,
    "reasoning_effort": "low",
    "reasoning_format": "none",
    "repeat_penalty": 1.1,
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "safety_identifier": "s",
    "seed": 1,
    "service_tier": "flex",
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stop": ["x"],
    "stop_token_ids": [5],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "structural_tag": {},
    "structured_outputs": {"regex": "a+"},
    "suffix": "x",
    "temperature": 0.5,
    "thinking_budget_tokens": 5,
    "thinking_token_budget": 5,
    "tool_choice": "required",
    "tools": [FUNCTION],
    "top_k": 5,
    "top_logprobs": 2,
    "top_p": 0.5,
    "truncate_prompt_tokens": 5,
    "typical_p": 0.5,
    "use_beam_search": True,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
    "xtc_probability": 0.5,
}
"""A value of each parameter that asks for something."""

BESIDE: dict[str, dict[str, Any]] = {
    "parallel_tool_calls": {"tools": [FUNCTION]},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [FUNCTION]},
    "top_logprobs": {"logprobs": True},
}
"""What some parameters need beside them."""

BASES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "default", "messages": SAMPLES["messages"], "max_tokens": 8},
    TEXT: {"model": "default", "prompt": "x", "max_tokens": 8},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the page says of a parameter: what it does, which values are let through.

    `instead` is what it says to use in its place, or nothing.
    """

    path: str
    name: str
    here: str
    let_through: tuple[Any, ...]
    instead: str


def rows(heading: str, path: str) -> Iterator[Row]:
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in [line for line in section.splitlines() if line.startswith("| `")]:
        name, here, what = (cell.strip() for cell in line.strip("|").split("|"))
        only = what.split(";")[0]
        if {"chat": CHAT, "completions": TEXT}.get(only, path) == path:
            yield Row(
                path=path,
                name=name.strip("`"),
                here=here,
                let_through=tuple(values(what)),
                instead="".join(re.findall(r"use `\w+`", what)),
            )


def values(text: str) -> Iterator[Any]:
    """The values in a cell, which are JSON between backticks."""
    for quoted in re.findall(r"`([^`]+)`", text):
        with contextlib.suppress(ValueError):  # or it is the name of another parameter
            yield json.loads(quoted)


OWN = {CHAT: list(rows("Chat Completions", CHAT)), TEXT: list(rows("Completions", TEXT))}
OTHERS = {path: list(rows("Parameters of other servers", path)) for path in (CHAT, TEXT)}
ROWS = [row for path in (CHAT, TEXT) for row in (*OWN[path], *OTHERS[path])]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        (CHAT, chat.CompletionCreateParamsStreaming),
        (TEXT, completions.CompletionCreateParamsStreaming),
    ],
)
def test_the_page_has_every_parameter_that_the_sdk_has(path: str, parameters: type[Any]) -> None:
    named = [row.name for row in OWN[path]]
    assert len(set(named)) == len(named)
    assert set(named) == set(parameters.__annotations__)


@pytest.mark.parametrize(
    ("path", "fields", "table"),
    [(CHAT, ChatFields, unbuilt.CHAT), (TEXT, CompletionFields, unbuilt.COMPLETIONS)],
)
def test_the_page_has_every_parameter_that_the_server_knows(
    path: str, fields: type[GenerationFields], table: dict[str, Any]
) -> None:
    told = {row.name: row for row in (*OWN[path], *OTHERS[path])}
    assert set(fields.__struct_fields__) | set(table) == set(told)
    refused = {name: row.let_through for name, row in told.items() if row.here == "refused"}
    assert refused == {name: once(harmless) for name, harmless in table.items()}


def once(harmless: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values as JSON tells them apart: 1 and 1.0 are the same to a reader."""
    return tuple(each for each in harmless if not (isinstance(each, float) and each in (0.0, 1.0)))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    # A model that thinks: what is for such models works, then.
    script = Script(thinking=("<think>", "</think>"), rules=(Rule(reply="It rains."),))
    with in_thread(script) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.path}-{row.name}")
def test_each_parameter_does_what_the_page_says(client: httpx2.Client, row: Row) -> None:
    base = {**BASES[row.path], **BESIDE.get(row.name, {})}
    if row.name == "max_completion_tokens":
        del base["max_tokens"]
    sample = 2 if (row.path, row.name) == (TEXT, "logprobs") else SAMPLES[row.name]
    if row.name == "add_special_tokens":
        sample = not row.let_through[0]
    answer = client.post(row.path, json={**base, row.name: sample})
    if row.here in ("works", "no effect"):
        assert answer.status_code == 200, answer.text
        return
    assert row.here == "refused"
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == row.name
    assert row.instead.capitalize() in error["message"]
    for value in (*row.let_through, None):
        passed = client.post(row.path, json={**base, row.name: value})
        assert passed.status_code == 200, passed.text
