"""One response that a client follows over its WebSocket, under a tag."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from server.errors import ApiError, from_exception
from server.middleware import log_unexpected
from server.sse import OUTCOMES
from server.streams.events import Failed, Terminal
from server.streams.readers import Reader
from server.wire.endings import error_of
from server.wire.native import native
from server.wire.websocket import Created, Happened, ServerMessage, detachment, refusal


class Gone(Exception):
    """The client has left: nothing can be sent any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A response and a reader of it. `kept` says whether it can be read again later."""

    id: str
    reader: Reader
    kept: Callable[[], bool]


Opening: TypeAlias = Callable[[], Awaitable[Followed]]
SendMessage: TypeAlias = Callable[[ServerMessage], Awaitable[None]]
"""Writes a message, waiting for the socket. Raises `Gone`."""


class Responses(Protocol):
    """The responses that the client of one connection may begin, read and end."""

    def begin(self, body: str | bytes, *, resumable: bool) -> Followed:
        """Begin what a request's body asks for. Raises `ApiError`, `EngineError`."""

    async def resume(self, response_id: str, *, after: int) -> Followed:
        """Find one again, to be read from the event after that number. Raises `ApiError`."""

    async def stop(self, response_id: str) -> None:
        """End one, if it has not ended. Raises `ApiError`."""

    async def forget(self, response_id: str) -> None:
        """Let go of one whose client never learned its id."""


@dataclass(slots=True, kw_only=True, eq=False)
class Following:
    """What is sent of one response.

    `begun` says that the client began it here. Mutable: `number`, that of the last event
    that was sent, and `task`, which sends; owned by the session.
    """

    tag: str
    id: str
    number: int
    begun: bool
    task: asyncio.Task[str] = field(init=False)

    async def run(self, opening: Opening, responses: Responses, send: SendMessage) -> str:
        """Send all there is, and return the outcome for the metrics."""
        try:
            try:
                followed = await opening()
            except Exception as error:
                await send(refusal(answer_to(error), self.tag))
                return "error"
            with followed.reader as reader:
                try:
                    return await self._read(reader, followed, responses, send)
                except ApiError as error:
                    await send(detachment(self.tag, self.number, error))
                    return "error"
        except Gone:
            return "disconnected"

    async def _read(
        self, reader: Reader, followed: Followed, responses: Responses, send: SendMessage
    ) -> str:
        """Send entry by entry. Raises `Gone`, and `ApiError` as `Reader.next` does."""
        while (entry := await reader.next()) is not None:
            if self.begun and entry.number == 0:
                if isinstance(entry.event, Failed):
                    # It never began, so there is nothing that could have an id.
                    await responses.forget(self.id)
                    await send(refusal(failure_of(entry.event), self.tag))
                    return "error"
                await send(Created(tag=self.tag, id=self.id))
            event = native(entry, kept=followed.kept())
            await send(Happened(tag=self.tag, event=event))
            self.number = entry.number
            if isinstance(entry.event, Terminal):
                return OUTCOMES[type(entry.event)]
        await send(detachment(self.tag, self.number))
        return "completed"


def answer_to(error: Exception) -> ApiError:
    """What any exception means to the client; one that nobody foresaw is logged."""
    answer = from_exception(error)
    if answer.code == "internal_error":
        log_unexpected(error)
    return answer


def failure_of(failed: Failed) -> ApiError:
    """The error that ended a response, as it was raised."""
    error = error_of(failed, kept=False)
    assert error is not None, "a failure is an error"
    return error
