"""Tools as the Responses API spells them: flat, with the name beside the type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from inference.requests import Tool
from server.errors import invalid
from server.wire import tools
from server.wire.decoding import Harmless, refuse_unbuilt_fields
from server.wire.tools import TOOLS_MAX, Description, FunctionName, NamedFields, ReferenceFields

UNBUILT_TOOL: Harmless = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "output_schema": (),
}
"""Fields of a function."""


class FlatTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function. The last three fields are those of `UNBUILT_TOOL`."""

    type: Literal["function"]
    name: FunctionName
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Any = None
    defer_loading: Any = None
    output_schema: Any = None


class FlatReference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tools, by its name."""

    type: Literal["function"]
    name: FunctionName


class FlatChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the choices that are objects."""


class FlatNamedChoice(FlatChoice, frozen=True, kw_only=True, tag="function"):
    """This function has to be called."""

    name: FunctionName


class FlatAllowedChoice(FlatChoice, frozen=True, kw_only=True, tag="allowed_tools"):
    """Some of the tools may, or one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatReference], Meta(min_length=1, max_length=TOOLS_MAX)]


FlatToolList: TypeAlias = Annotated[list[FlatTool], Meta(max_length=TOOLS_MAX)]
FlatToolChoice: TypeAlias = (
    Literal["none", "auto", "required"] | FlatNamedChoice | FlatAllowedChoice
)
PARAMETERS = "tools[{}].parameters"
CHOICES = ("function", "allowed_tools")
"""The types of choices that are objects."""


def flat_tools_of(given: Sequence[FlatTool] | None) -> tuple[Tool, ...]:
    """The tools of a request. Raises `ApiError` 400, naming the part."""
    found: list[Tool] = []
    names: set[str] = set()
    for index, fields in enumerate(given or ()):
        where = f"tools[{index}]"
        refuse_unbuilt_fields(where, fields, UNBUILT_TOOL)
        if fields.name in names:
            raise invalid("Two tools must not have the same name.", f"{where}.name")
        names.add(fields.name)
        function = tools.FunctionFields(
            name=fields.name, description=fields.description, parameters=fields.parameters
        )
        found.append(tools.tool_of(where, function))
    tools.check_size(found)
    return tuple(found)


def choice_of(choice: FlatToolChoice | None) -> tools.ToolChoice | None:
    """The choice as chat completions spell it."""
    match choice:
        case FlatNamedChoice(name=name):
            return tools.NamedChoice(function=NamedFields(name=name))
        case FlatAllowedChoice(mode=mode, tools=references):
            allowed = [
                ReferenceFields(type="function", function=NamedFields(name=each.name))
                for each in references
            ]
            return tools.AllowedChoice(allowed_tools=tools.AllowedFields(mode=mode, tools=allowed))
        case _:
            return choice
