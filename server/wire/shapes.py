"""What an API needs, beside the log, to show a response: again, and in another process.

It is kept with a stored response as its `details`. `kind` is the record's, the object's
name in OpenAI's API.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from server.errors import unreadable
from server.wire.chat_events import ChatProjection, ChatSummary
from server.wire.common import Envelope, Projection, Summary
from server.wire.completions_events import CompletionProjection, CompletionSummary


class Shape(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What both families have. `n` is the number of choices for one prompt."""

    envelope: Envelope
    n: int
    include_usage: bool = False
    logprobs: bool = False

    @property
    def kind(self) -> str:
        """The kind of response this shows."""
        return str(self.__struct_config__.tag)


class ChatShape(Shape, frozen=True, kw_only=True, tag="chat.completion"):
    """A chat completion."""

    @property
    def sequences(self) -> int:
        """How many sequences the response has."""
        return self.n

    def projection(self) -> Projection:
        """What builds its chunks."""
        return ChatProjection(self.envelope, n=self.n, include_usage=self.include_usage)

    def summary(self) -> Summary:
        """What builds it as a whole."""
        return ChatSummary(self.envelope, n=self.n, logprobs=self.logprobs)


class CompletionShape(Shape, frozen=True, kw_only=True, tag="text_completion"):
    """A completion. `echoes` are the prompts to repeat, one for each sequence, or empty."""

    echoes: list[str]

    @property
    def sequences(self) -> int:
        """How many sequences the response has."""
        return len(self.echoes)

    def projection(self) -> Projection:
        """What builds its chunks."""
        return CompletionProjection(
            self.envelope, n=self.n, echoes=self.echoes, include_usage=self.include_usage
        )

    def summary(self) -> Summary:
        """What builds it as a whole."""
        return CompletionSummary(
            self.envelope, n=self.n, echoes=self.echoes, logprobs=self.logprobs
        )


AnyShape: TypeAlias = ChatShape | CompletionShape

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyShape] = msgspec.msgpack.Decoder(AnyShape)


def encode(shape: AnyShape) -> bytes:
    """The shape as a record keeps it."""
    return _encoder.encode(shape)


def decode(details: bytes) -> AnyShape:
    """The shape that `encode` wrote. Raises `ApiError` 410 for anything else."""
    try:
        return _decoder.decode(details)
    except msgspec.DecodeError as error:
        raise unreadable() from error
