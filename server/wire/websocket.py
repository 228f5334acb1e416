"""What goes over a WebSocket: the client's messages, the server's, and their two formats.

Each message is one object with a `type`, written as JSON in a text frame or as
MessagePack in a binary one; the subprotocol says which. A client names each response it
follows by a `tag` of its own choice, and everything about it bears that tag. The events
inside are those of `server.wire.native`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from server.errors import ApiError, ErrorDetail, body_of
from server.wire.decoding import JSON, MSGPACK, Form, explained
from server.wire.native import NativeEvent

PREFIX: Final = "headrace."
"""What all subprotocols of this server begin with."""

ID_MAX_CHARS = 128
AFTER_MAX = 2**53 - 1
"""The largest whole number that every JSON reader has."""

Tag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]


class FromClient(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what a client sends."""


class Create(FromClient, frozen=True, kw_only=True, tag="create"):
    """Begin a response and follow it. `body` is that of a chat completion's request.

    A resumable one is stored and outlives the connection.
    """

    tag: Tag
    body: msgspec.Raw
    resumable: bool = False


class Resume(FromClient, frozen=True, kw_only=True, tag="resume"):
    """Follow one's own response from the event after the number `after`; -1 is before all."""

    tag: Tag
    id: Annotated[str, Meta(min_length=1, max_length=ID_MAX_CHARS)]
    after: Annotated[int, Meta(ge=-1, le=AFTER_MAX)] = -1


class Stop(FromClient, frozen=True, kw_only=True, tag="stop"):
    """End the response that is followed under this tag; its last event will come."""

    tag: Tag


class Detach(FromClient, frozen=True, kw_only=True, tag="detach"):
    """Follow it no longer; what becomes of it is as if the connection had ended."""

    tag: Tag


class Ping(FromClient, frozen=True, kw_only=True, tag="ping"):
    """Ask for a `pong` with the same tag."""

    tag: Tag | None = None


ClientMessage: TypeAlias = Create | Resume | Stop | Detach | Ping


class FromServer(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what the server sends."""


class Created(FromServer, frozen=True, kw_only=True, tag="created"):
    """The response was taken, and can be found under its id; its events follow."""

    tag: str
    id: str


class Happened(FromServer, frozen=True, kw_only=True, tag="event"):
    """An event of the response. After one that ends it, the tag is free again."""

    tag: str
    event: NativeEvent


class Detached(FromServer, frozen=True, kw_only=True, tag="detached"):
    """Nothing more will come under this tag, though the response may go on.

    `number` is that of the last event that was sent, for resuming. There is an `error`
    unless the client wanted it or the response has nothing more to show.
    """

    tag: str
    number: int
    error: ErrorDetail | UnsetType = UNSET
    retry_after_seconds: float | UnsetType = UNSET


class Pong(FromServer, frozen=True, kw_only=True, tag="pong"):
    """The answer to a `ping`."""

    tag: str | None


class Refused(FromServer, frozen=True, kw_only=True, tag="error"):
    """A message could not be acted on, and nothing has changed.

    `tag` is the message's, as far as it had one that could be read.
    """

    tag: str | None
    error: ErrorDetail
    retry_after_seconds: float | UnsetType = UNSET


ServerMessage: TypeAlias = Created | Happened | Detached | Pong | Refused


class _Tagged(Struct):
    """The one field that is looked for in a message that cannot be read."""

    tag: Tag | None = None


class Unreadable(Exception):
    """A message that cannot be read: whose it was, and what is wrong with it."""

    def __init__(self, tag: str | None, error: ApiError) -> None:
        super().__init__(error.message)
        self.tag = tag
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How messages are written: the subprotocol's name, its frames, its encoding."""

    subprotocol: str
    binary: bool
    form: Form
    encode: Callable[[Any], bytes]

    def parse(self, data: str | bytes) -> ClientMessage:
        """Read a message. Raises `Unreadable`."""
        try:
            message: ClientMessage = self.form.read(data, type=ClientMessage)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            refusal = explained(error, data, form=self.form, what="message")
            raise Unreadable(self._tag_of(data), refusal) from None
        return message

    def body(self, message: Create) -> str | bytes:
        """A request's body as `server.wire.decoding.decode` takes it in this form."""
        raw = bytes(message.body)
        return raw if self.binary else raw.decode()

    def _tag_of(self, data: str | bytes) -> str | None:
        try:
            tagged: _Tagged = self.form.read(data, type=_Tagged)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        return tagged.tag


FORMATS: Final = (
    Format(subprotocol=PREFIX + "v1.json", binary=False, form=JSON, encode=msgspec.json.encode),
    Format(
        subprotocol=PREFIX + "v1.msgpack",
        binary=True,
        form=MSGPACK,
        encode=msgspec.msgpack.encode,
    ),
)


def refusal(error: ApiError, tag: str | None) -> Refused:
    """The answer to a message that could not be acted on."""
    return Refused(tag=tag, error=body_of(error).error, retry_after_seconds=_retry_after(error))


def detachment(tag: str, number: int, error: ApiError | None = None) -> Detached:
    """The end of following a response, for a reason or without one."""
    if error is None:
        return Detached(tag=tag, number=number)
    return Detached(
        tag=tag,
        number=number,
        error=body_of(error).error,
        retry_after_seconds=_retry_after(error),
    )


def _retry_after(error: ApiError) -> float | UnsetType:
    seconds = error.retry_after_seconds
    return UNSET if seconds is None else round(seconds, 3)
