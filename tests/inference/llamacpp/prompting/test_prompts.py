"""Which template a prompt goes through, and which tokens are shown as text."""

from __future__ import annotations

from typing import cast

import pytest

from inference.errors import ModelLoadError, TemplateError
from inference.llamacpp.bindings import Model
from inference.llamacpp.prompting.prompts import Prompts
from inference.requests import ChatMessage, ChatPrompt, Tool
from tests.inference.dialects import templates

PLAIN = ChatPrompt(messages=(ChatMessage(role="user", content="?"),))
WITH_TOOLS = ChatPrompt(messages=PLAIN.messages, tools=(Tool(name="now"),))
SPECIAL = {"[TOOL_CALLS]": 5, "[THINK]": 6, "<|im_end|>": 7}
SHOWN = {1: b"a", 8: b"[ARGS]"}


class File:
    """What `Prompts` asks of a model."""

    def __init__(self, default: str | None, with_tools: str | None = None) -> None:
        self._meta = {
            b"tokenizer.chat_template": default,
            b"tokenizer.chat_template.tool_use": with_tools,
        }

    def meta(self, key: bytes) -> str | None:
        return self._meta.get(key)

    def bos_text(self) -> str:
        return "<s>"

    def eos_text(self) -> str:
        return "</s>"

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert parse_special
        assert not add_special
        return [SPECIAL[text]] if text in SPECIAL else [8] if text == "[ARGS]" else [1, 1]

    def piece(self, token: int) -> bytes:
        return SHOWN.get(token, b"")


def prompts(default: str | None, with_tools: str | None = None, source: str = "") -> Prompts:
    file = cast("Model", File(default, with_tools))
    return Prompts(file, source=source, limit_seconds=5.0)


def test_the_template_for_tools_is_for_prompts_with_tools() -> None:
    made = prompts("plain", "tools:" + templates.HERMES)
    assert made.dialect == "hermes"
    assert made.thinking == ("<think>", "</think>")
    assert made.render(PLAIN) == "plain"
    assert made.render(WITH_TOOLS).startswith("tools:")


def test_a_template_for_tools_that_nobody_can_read_is_not_used() -> None:
    made = prompts(templates.PLAIN, templates.XML)
    assert made.dialect == "generic"
    assert made.render(WITH_TOOLS).startswith("<system>You can call")


def test_a_broken_template_for_tools_leaves_the_default() -> None:
    made = prompts(templates.HERMES, "{% if %}")
    assert made.dialect == "hermes"
    assert "<tool_call>" in made.render(WITH_TOOLS)


def test_a_template_that_is_set_takes_the_place_of_all() -> None:
    made = prompts("plain", templates.HERMES, source=templates.LLAMA3)
    assert made.dialect == "llama3"
    assert made.render(PLAIN).startswith("<s><|start_header_id|>")
    with pytest.raises(ModelLoadError, match="line 1"):
        prompts("plain", source="{% if %}")


def test_without_a_template_there_are_no_chats() -> None:
    for made in (prompts(None), prompts("{% if %}")):
        assert not made.available
        assert made.dialect == "generic"
        assert made.thinking is None
        with pytest.raises(TemplateError):
            made.render(PLAIN)


def test_marks_that_are_special_tokens_are_shown() -> None:
    made = prompts(templates.MISTRAL_NAMED + "{# [THINK][/THINK] #}")
    assert made.special_marks == (("[TOOL_CALLS]", 5), ("[THINK]", 6))
    assert [made.piece(token) for token in (1, 5, 6, 7, 8)] == [
        *(b"a", b"[TOOL_CALLS]", b"[THINK]", b"", b"[ARGS]")
    ]
