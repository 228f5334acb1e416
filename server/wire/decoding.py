"""Bytes to request structs, with errors that name the field.

A body is decoded twice: first as far as its top-level names, to tell a parameter that
is known but not built from one that nobody knows, then into its struct. So the struct
of a whole body ignores unknown fields, and every struct inside it forbids them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request

from server.errors import ApiError, invalid, unsupported

Body = TypeVar("Body", bound=Struct)

Harmless = Mapping[str, Sequence[object]]
"""Parameters that are not built, each with the values that ask for nothing. None always does."""

SHOWN_CHARS = 64
MESSAGE_CHARS = 240

_PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_TYPE = re.compile(r"Expected `[^`]*`(?:, got `|$)")
_LONE_SURROGATE = re.compile(
    r"(?:[^\\]++|\\(?!u[dD][89a-fA-F]).|\\u[dD][89abAB]..\\u[dD][c-fC-F])*+\\u[dD][89a-fA-F]",
    re.DOTALL,
)
"""From the start to the first half of a surrogate pair that has no other half: everything
else is taken whole and never given back, so this takes linear time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to write a body down.

    `read` is msgspec's decoding function for it, `names` decodes as far as the top-level
    names. What the form does not allow has the error `code`, and `broken` says what is
    wrong, given the text and msgspec's reason.
    """

    read: Callable[..., Any]
    names: Callable[[Any], dict[str, msgspec.Raw]]
    code: str
    broken: Callable[[Any, str], str]


def _broken(text: str, reason: str) -> str:
    # msgspec has other names for it: it looks for the other half in whatever follows.
    if _LONE_SURROGATE.match(text):
        return r"holds half of a surrogate pair (\ud800 to \udfff) without the other"
    return f"is not valid JSON: {reason}"


JSON = Form(
    read=msgspec.json.decode,
    names=msgspec.json.Decoder(dict[str, msgspec.Raw]).decode,
    code="invalid_json",
    broken=_broken,
)
MSGPACK = Form(
    read=msgspec.msgpack.decode,
    names=msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode,
    code="invalid_msgpack",
    broken=lambda _, reason: f"is not valid MessagePack: {reason}",
)


async def read_json(request: Request) -> str:
    """Read the request's body as text.

    Raises `ApiError` 415 for any other type than UTF-8 JSON, 400 for bytes that are not
    UTF-8, and whatever the body's limits raise.
    """
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise ApiError(415, "unsupported_media_type", "The body must be application/json in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "The body must not be compressed.")
    try:
        return (await request.body()).decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The body is not valid UTF-8 (byte {error.start})."
        raise invalid(message, None, "invalid_json") from None


def decode(text: str | bytes, kind: type[Body], unbuilt: Harmless, *, form: Form = JSON) -> Body:
    """Build the struct from JSON, a string, or another form, bytes.

    Raises `ApiError` 400: broken JSON, a field of the wrong type or out of range, one
    in `unbuilt` that asks for something, one that nobody knows.
    """
    try:
        known = kind.__struct_fields__
        for name, value in form.names(text).items():
            if name in unbuilt:
                refuse_unbuilt(name, form.read(value), unbuilt[name])
            elif name not in known:
                _refuse_unknown(name)
        struct: Body = form.read(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise explained(error, text, form=form) from None
    return struct


def explained(
    error: Exception, text: str | bytes, *, form: Form = JSON, what: str = "body"
) -> ApiError:
    """What msgspec's refusal of `text`, the `what` of a request, means: status 400."""
    match error:
        case msgspec.ValidationError():
            return _translate(str(error), what)
        case msgspec.DecodeError():
            reason = form.broken(text, str(error))
        case UnicodeDecodeError():
            reason = "holds text that is not UTF-8"
        case _:
            reason = "is nested too deeply"
    return invalid(f"The {what} {reason}.", None, form.code)


def refuse_unbuilt(path: str, value: object, harmless: Sequence[object]) -> None:
    """Raise `ApiError` 400 unless the value is one that asks for nothing."""
    if value is None:
        return
    # `1 == True` in Python, but not in JSON.
    if not any(type(value) is type(each) and value == each for each in harmless):
        raise unsupported(path)


def refuse_unbuilt_fields(where: str, struct: Struct, unbuilt: Harmless) -> None:
    """Do the same for the fields of a struct inside the body, at path `where`."""
    for name, harmless in unbuilt.items():
        refuse_unbuilt(f"{where}.{name}", getattr(struct, name), harmless)


def _refuse_unknown(name: str) -> NoReturn:
    shown = name[:SHOWN_CHARS]
    raise invalid(f"There is no parameter `{shown}`.", shown, "unknown_parameter")


def _translate(text: str, what: str) -> ApiError:
    """Turn msgspec's message, which ends with a path, into ours.

    "Expected `int`, got `str` - at `$.messages[2].role`" names `messages[2].role`; of a
    dictionary it names the dictionary: `$.logit_bias[...]` is `logit_bias`.
    """
    found = _PATH.search(text)
    path = found["path"].replace("[...]", "").lstrip(".") if found else ""
    reason = text[: found.start()] if found else text
    if missing := _MISSING.match(reason):
        param = _join(path, missing["field"])
        return invalid(f"`{param}` is required.", param, "missing_required_parameter")
    if unknown := _UNKNOWN.match(reason):
        param = _join(path, unknown["field"][:SHOWN_CHARS])
        return invalid(f"There is no parameter `{param}`.", param, "unknown_parameter")
    code = "invalid_type" if _TYPE.match(reason) else "invalid_value"
    where = f"`{path}`" if path else f"The {what}"
    return invalid(f"{where}: {reason[:MESSAGE_CHARS]}.", path or None, code)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
