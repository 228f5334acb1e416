"""How long a model may think before it answers, and what else its chat template is told.

`reasoning_effort` is OpenAI's, `thinking_token_budget` vLLM's, the two other budgets are
llama-server's names for the same; both have `chat_template_kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from inference.requests import Thinking
from server.errors import invalid
from server.wire.common import MAX_TOKENS_CEILING
from server.wire.constraints import ConstrainedFields

VARIABLES_MAX = 16
EXACT = 2**53 - 1

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORT_BUDGETS: Final[Mapping[str, int | None]] = {
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16_384,
    "xhigh": 32_768,
    "max": None,
}
"""How many tokens each effort may think; None leaves it to the model."""

UNBOUNDED = -1
"""The budget that is none, as llama-server and vLLM spell it."""

ENABLE = "enable_thinking"
EFFORT = "reasoning_effort"
RESERVED = frozenset(
    {"add_generation_prompt", "bos_token", "documents", "eos_token", "messages", "tools"}
)
"""What templates are told by other means."""

Budget: TypeAlias = Annotated[int, Meta(ge=UNBOUNDED, le=MAX_TOKENS_CEILING)]
Variable: TypeAlias = (
    bool | Annotated[int, Meta(ge=-EXACT, le=EXACT)] | float | Annotated[str, Meta(max_length=1024)]
)
Variables: TypeAlias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,63}$")], Variable],
    Meta(max_length=VARIABLES_MAX),
]
BUDGETS = ("thinking_token_budget", "reasoning_budget_tokens", "thinking_budget_tokens")


class ThinkingFields(ConstrainedFields, frozen=True, kw_only=True):
    """More of them: those about thinking and the chat template."""

    reasoning_effort: Effort | None = None
    thinking_token_budget: Budget | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    chat_template_kwargs: Variables | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """What the template is told, and how the engine is to watch over the thinking, if at all."""

    variables: tuple[tuple[str, bool | int | float | str], ...]
    thinking: Thinking | None


def thought_of(fields: ThinkingFields, marks: tuple[str, str] | None) -> Thought:
    """Settle the fields for a model with these marks, None for one that does not think.

    A budget by its own name counts before that of the effort. Raises `ApiError` 400 for
    fields that contradict each other, or that ask a model to think that cannot.
    """
    variables = variables_of(fields.chat_template_kwargs)
    effort, budget = fields.reasoning_effort, _budget(fields)
    if marks is None:
        for name in (EFFORT, *BUDGETS):
            if getattr(fields, name) not in (None, "none", 0, UNBOUNDED):
                raise invalid(
                    f"`{name}` is for models that think; this one does not.",
                    name,
                    "unsupported_parameter",
                )
        return Thought(variables=tuple(variables.items()), thinking=None)
    if effort is not None:
        enabled = effort != "none"
        if variables.setdefault(ENABLE, enabled) is not enabled:
            name = f"chat_template_kwargs.{ENABLE}"
            raise invalid(f"`{name}` contradicts `{EFFORT}`.", name)
        if enabled:
            variables.setdefault(EFFORT, effort)
    if budget is None and effort is not None:
        budget = EFFORT_BUDGETS.get(effort)
    start, end = marks
    return Thought(
        variables=tuple(variables.items()),
        thinking=Thinking(
            start=start, end=end, budget_tokens=None if budget == UNBOUNDED else budget
        ),
    )


def variables_of(
    given: Mapping[str, bool | int | float | str] | None,
) -> dict[str, bool | int | float | str]:
    """What the request itself tells the template. Raises `ApiError` 400 for a reserved name."""
    for name in given or ():
        if name in RESERVED:
            path = f"chat_template_kwargs.{name}"
            raise invalid(f"`{path}` is set by the server.", path)
    return dict(given or {})


def _budget(fields: ThinkingFields) -> int | None:
    """The budget, whatever it is called. Raises `ApiError` 400 where its names differ."""
    given = [name for name in BUDGETS if getattr(fields, name) is not None]
    for name in given:
        if getattr(fields, name) != getattr(fields, given[0]):
            raise invalid(f"`{name}` and `{given[0]}` differ.", name)
    return getattr(fields, given[0]) if given else None
