"""One connection: what its client says, what it follows, and how it ends.

Each response that is followed has a task of its own, which reads the log and writes to
the socket. A socket that does not take what is written holds these tasks back, the logs
fill, and their sequences are parked: others do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from functools import partial
from typing import Any, assert_never

from starlette.types import Receive, Send

from server.errors import ApiError, invalid, stopping
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.middleware import log_unexpected
from server.settings import Settings
from server.websocket.following import (
    Followed,
    Following,
    Gone,
    Opening,
    Responses,
    answer_to,
)
from server.websocket.life import CLOSES, Happening, Phase, phase_after
from server.websocket.pace import Pace
from server.websocket.protocol import CLOSE_SECONDS, SERVER_ENDS
from server.wire.websocket import (
    ClientMessage,
    Create,
    Detach,
    Format,
    Ping,
    Pong,
    Resume,
    ServerMessage,
    Stop,
    Unreadable,
    detachment,
    refusal,
)

END_SECONDS = 2.0
"""How long the last events may take to be written when the server ends."""


class Session:
    """One connection. It belongs to one event loop.

    Mutable, owned by `run` and the tasks it starts: `phase`, which only `_move` changes;
    `_following`, what is followed, by tag; `_empty`, set while that is nothing;
    `_heard`, when the client last did something, in the loop's seconds.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        format: Format,
        responses: Responses,
        settings: Settings,
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        self.phase = Phase.HANDSHAKE
        self._receive = receive
        self._send = send
        self._format = format
        self._responses = responses
        self._settings = settings
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._pace = Pace(settings.websocket_messages_per_second)
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._following: dict[str, Following] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    async def run(self, subprotocol: str | None) -> Happening:
        """Accept the connection and serve it to its end; returns what ended it."""
        try:
            await self._send({"type": "websocket.accept", "subprotocol": subprotocol})
        except OSError:
            self._move(Happening.GONE)
            return Happening.GONE
        self._move(Happening.ACCEPTED)
        watched = _tasks(self._listening(), self._idling(), self._drain_begun())
        try:
            while self.phase is not Phase.CLOSED:
                happening = await self._next(watched)
                self._move(happening)
                if happening in (Happening.DRAIN, Happening.CUT):
                    watched |= _tasks(self._emptied())
                if happening is Happening.CUT:
                    watched |= _tasks(self._late())
        finally:
            await _cancelled(*watched, *(each.task for each in self._following.values()))
        await self._close(happening)
        return happening

    async def _next(self, watched: set[asyncio.Task[Happening]]) -> Happening:
        """Wait for what happens next; its task is watched no longer."""
        try:
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The drain is over. Told so a second time, there is nothing to wait for.
            return Happening.LATE if self.phase is Phase.ENDING else Happening.CUT
        task = done.pop()
        watched.discard(task)
        try:
            return task.result()
        except Exception as error:
            log_unexpected(error)
            return Happening.FAILED

    def _move(self, happening: Happening) -> None:
        self.phase = phase_after(self.phase, happening)

    async def _close(self, happening: Happening) -> None:
        """Say goodbye, where there is somebody to hear it."""
        if happening not in CLOSES:
            return
        code, reason = CLOSES[happening]
        close = self._send({"type": "websocket.close", "code": code, "reason": reason})
        # Gone, or does not read: the transport is closed in any case.
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(close, CLOSE_SECONDS)

    # What happens

    async def _drain_begun(self) -> Happening:
        await self._lifecycle.drain_begun()
        return Happening.DRAIN

    async def _emptied(self) -> Happening:
        await self._empty.wait()
        return Happening.EMPTY

    async def _late(self) -> Happening:
        await asyncio.sleep(END_SECONDS)
        return Happening.LATE

    async def _idling(self) -> Happening:
        while True:
            await self._empty.wait()
            left = self._heard + self._settings.websocket_idle_seconds - self._loop.time()
            if left <= 0:
                self._metrics.count_deadline("websocket_idle")
                return Happening.IDLE
            await asyncio.sleep(left)

    async def _listening(self) -> Happening:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    ends = message["code"] == SERVER_ENDS
                    return Happening.CUT if ends else Happening.GONE
                self._heard = self._loop.time()
                # What is not read yet waits in the client: more cannot come meanwhile.
                await asyncio.sleep(self._pace.wait_seconds(self._heard))
                text = message.get("text")
                await self._take(message.get("bytes") or b"" if text is None else text)
        except Gone:
            return Happening.GONE

    # What the client says

    async def _take(self, data: str | bytes) -> None:
        """Act on a message, or say why not. Raises `Gone`."""
        tag: str | None = None
        try:
            message = self._parsed(data)
            tag = message.tag
            await self._act(message)
        except Gone:
            raise
        except Unreadable as error:
            await self._say(refusal(error.error, error.tag))
        except Exception as error:
            await self._say(refusal(answer_to(error), tag))

    def _parsed(self, data: str | bytes) -> ClientMessage:
        """The message. Raises `Unreadable`."""
        if isinstance(data, bytes) is not self._format.binary:
            kind = "binary" if self._format.binary else "text"
            error = invalid(f"This subprotocol has {kind} frames.", None, "invalid_frame")
            raise Unreadable(None, error)
        return self._format.parse(data)

    async def _act(self, message: ClientMessage) -> None:
        match message:
            case Create(tag=tag):
                self._require_room(tag)
                body = self._format.body(message)
                followed = self._responses.begin(body, resumable=message.resumable)
                following = Following(tag=tag, id=followed.id, number=-1, begun=True)
                self._follow(following, partial(_opened, followed))
            case Resume(tag=tag, id=id, after=after):
                self._require_room(tag)
                following = Following(tag=tag, id=id, number=after, begun=False)
                self._follow(following, partial(self._responses.resume, id, after=after))
            case Stop():
                await self._responses.stop(self._followed(message.tag).id)
            case Detach():
                following = self._followed(message.tag)
                await _cancelled(following.task)
                await self._say(detachment(following.tag, following.number))
            case Ping():
                await self._say(Pong(tag=message.tag))
            case _:
                assert_never(message)

    def _require_room(self, tag: str) -> None:
        """Raise `ApiError` unless one more response may be followed, under this tag."""
        if self.phase is not Phase.OPEN:
            raise stopping()
        if tag in self._following:
            raise ApiError(409, "tag_in_use", "Something is followed under this tag.", param="tag")
        most = self._settings.websocket_responses
        if len(self._following) >= most:
            sentence = f"A connection follows at most {most} responses at a time."
            raise ApiError(429, "too_many_responses", sentence)

    def _followed(self, tag: str) -> Following:
        """What is followed under a tag. Raises `ApiError`."""
        following = self._following.get(tag)
        if following is None:
            sentence = "Nothing is followed under this tag, or not any more."
            raise ApiError(404, "tag_not_found", sentence, param="tag")
        return following

    # What the client is told

    def _follow(self, following: Following, opening: Opening) -> None:
        self._following[following.tag] = following
        self._empty.clear()
        running = following.run(opening, self._responses, self._say)
        following.task = asyncio.create_task(running)
        # A task that is cancelled before its first step runs no `finally` of its own.
        following.task.add_done_callback(partial(self._over, following))

    def _over(self, following: Following, task: asyncio.Task[str]) -> None:
        del self._following[following.tag]
        if not self._following:
            self._heard = self._loop.time()
            self._empty.set()
        if task.cancelled():
            self._metrics.count_stream("disconnected")
        elif (error := task.exception()) is None:
            self._metrics.count_stream(task.result())
        elif isinstance(error, Exception):
            log_unexpected(error)
            self._metrics.count_stream("error")

    async def _say(self, message: ServerMessage) -> None:
        """Write a message when the socket takes it. Raises `Gone`."""
        data = self._format.encode(message)
        content = {"bytes": data} if self._format.binary else {"text": data.decode()}
        try:
            await self._send({"type": "websocket.send", **content})
        except OSError:
            raise Gone from None


async def _opened(followed: Followed) -> Followed:
    return followed


def _tasks(*happenings: Coroutine[Any, Any, Happening]) -> set[asyncio.Task[Happening]]:
    return {asyncio.create_task(each) for each in happenings}


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
