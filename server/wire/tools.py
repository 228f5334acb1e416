"""The functions that a chat request offers to the model, and which of them it may call.

Follows OpenAI's reference (https://platform.openai.com/docs/guides/function-calling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from inference.dialects import Offer
from inference.requests import Tool
from server.errors import invalid, unsupported
from server.wire.schemas import SCHEMA_MAX_CHARS, schema_text

TOOLS_MAX = 128
DESCRIPTION_MAX_CHARS = 16_384
PARAMETERS = "tools[{}].function.parameters"
NO_PARAMETERS = '{"type":"object","properties":{},"additionalProperties":false}'
"""What the arguments of a function are that names none: an object, and empty."""

FunctionName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Description: TypeAlias = Annotated[str, Meta(max_length=DESCRIPTION_MAX_CHARS)]


class FunctionFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function. `strict` changes nothing: arguments always follow the schema."""

    name: FunctionName
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool of a request; only functions are built."""

    type: str
    function: FunctionFields | None = None
    custom: Any = None


class NamedFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The name of a function."""

    name: FunctionName


class ReferenceFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tools, by its name. A whole definition is what other servers take as well."""

    type: Literal["function"]
    function: NamedFields


class AllowedFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tools that may be called, of those that are offered."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ReferenceFields], Meta(min_length=1, max_length=TOOLS_MAX)]


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the choices that are objects."""


class NamedChoice(Choice, frozen=True, kw_only=True, tag="function"):
    """This function has to be called."""

    function: NamedFields


class AllowedChoice(Choice, frozen=True, kw_only=True, tag="allowed_tools"):
    """Some of the tools may, or one of them has to be called."""

    allowed_tools: AllowedFields


class CustomChoice(Choice, frozen=True, kw_only=True, tag="custom"):
    """Known, not built."""

    custom: Any = None


ToolList: TypeAlias = Annotated[list[ToolFields], Meta(max_length=TOOLS_MAX)]
ToolChoice: TypeAlias = (
    Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | CustomChoice
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools that the model is shown, and what of them it may call.

    `path` is what the request calls the parameters of one, with {} for its number.
    """

    shown: tuple[Tool, ...]
    offer: Offer
    path: str

    @property
    def paths(self) -> tuple[str, ...]:
        """What the request calls the parameters of each tool that may be called."""
        return tuple(self.path.format(self.shown.index(tool)) for tool in self.offer.tools)


def check_function(kind: str, where: str) -> None:
    """Raise `ApiError` 400 unless the type of a tool or of a call is `function`."""
    if kind == "custom":
        raise unsupported(where)
    if kind != "function":
        raise invalid(f"`{where}` must be `function`.", where)


def tools_of(given: Sequence[ToolFields] | None) -> tuple[Tool, ...]:
    """The tools of a request. Raises `ApiError` 400, naming the part."""
    tools: list[Tool] = []
    names: set[str] = set()
    for index, fields in enumerate(given or ()):
        where = f"tools[{index}]"
        check_function(fields.type, f"{where}.type")
        function = fields.function
        if function is None:
            path = f"{where}.function"
            raise invalid(f"`{path}` is required.", path, "missing_required_parameter")
        if function.name in names:
            path = f"{where}.function.name"
            raise invalid("Two tools must not have the same name.", path)
        names.add(function.name)
        tools.append(tool_of(f"{where}.function", function))
    check_size(tools)
    return tuple(tools)


def tool_of(where: str, function: FunctionFields) -> Tool:
    """One function. Raises `ApiError` 400."""
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=parameters_of(f"{where}.parameters", function.parameters),
    )


def check_size(tools: Sequence[Tool]) -> None:
    """Raise `ApiError` 400 where all parameters together are too long."""
    if sum(len(tool.parameters) for tool in tools) > SCHEMA_MAX_CHARS:
        raise invalid(
            f"The `parameters` of all tools may have {SCHEMA_MAX_CHARS:,} characters together.",
            "tools",
        )


def parameters_of(where: str, given: dict[str, Any] | None) -> str:
    """The schema of a function's arguments, an object. Raises `ApiError` 400."""
    if not given:
        return NO_PARAMETERS
    if given.get("type") != "object":
        raise invalid(f"`{where}.type` must be `object`.", f"{where}.type")
    return schema_text(where, given)


def tool_use_of(
    tools: tuple[Tool, ...],
    choice: ToolChoice | None,
    parallel: bool | None,
    *,
    path: str = PARAMETERS,
) -> ToolUse | None:
    """What the model may do with the tools; None where it can call none.

    With the choice `none` it is not shown them either. `path` is that of `ToolUse`. Raises
    `ApiError` 400.
    """
    if isinstance(choice, CustomChoice):
        raise unsupported("tool_choice.type")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("`tool_choice` needs `tools`.", "tool_choice")
        return None
    if choice == "none":
        return None
    allowed, required = tools, choice == "required"
    match choice:
        case NamedChoice(function=function):
            where = "tool_choice.function.name"
            allowed, required = (_named(tools, function.name, where),), True
        case AllowedChoice(allowed_tools=fields):
            where = "tool_choice.allowed_tools.tools[{}].function.name"
            names = {
                _named(tools, each.function.name, where.format(index)).name
                for index, each in enumerate(fields.tools)
            }
            allowed = tuple(tool for tool in tools if tool.name in names)
            required = fields.mode == "required"
    # A named function is called once: that is what was asked for.
    several = parallel is not False and not isinstance(choice, NamedChoice)
    offer = Offer(tools=allowed, required=required, parallel=several)
    return ToolUse(shown=tools, offer=offer, path=path)


def _named(tools: Sequence[Tool], name: str, where: str) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    raise invalid(f"`{where}` must be the name of one of `tools`.", where)
