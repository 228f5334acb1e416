"""The requests for vectors on the server's side: who they are, and who waits for them.

They outlive engine processes, as generations do: the next one is asked again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from inference.errors import EngineError, InvalidRequest
from inference.events import Accepted, Embeddings, Scores
from inference.llamacpp.messages import (
    Abort,
    Embed,
    Embedded,
    Failure,
    Message,
    SequenceEvent,
    frame,
    to_error,
)
from inference.llamacpp.replayed import Replayed, check_decodable
from inference.quarantine import Standing
from inference.requests import EmbeddingRequest, RerankRequest

READING_SECONDS = 60.0
"""A request that is read for longer than this counts as work for steps."""


class _Call:
    """One request. Only `EmbeddingCalls` changes it.

    `inside` says whether a process has it, since the event loop's time `since`, `accepted`
    whether that process said so, `submitted` whether one ever had it.
    """

    def __init__(self, request: EmbeddingRequest | RerankRequest, now: float) -> None:
        self.request = request
        self.answer: asyncio.Future[Embeddings | Scores] = (
            asyncio.get_running_loop().create_future()
        )
        self.inside = False
        self.accepted = False
        self.submitted = False
        self.since = now


class EmbeddingCalls(Replayed):
    """All requests for vectors of one engine, on one event loop.

    Mutable besides what it inherits: `_calls` by the ids that the process knows.
    """

    def __init__(self, send: Callable[[Message], None], *, replay_seconds: float) -> None:
        """Without a process for `replay_seconds`, all that are held end."""
        super().__init__(replay_seconds=replay_seconds)
        self._send = send
        self._numbers = itertools.count()
        self._calls: dict[str, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    async def ask(self, request: EmbeddingRequest | RerankRequest) -> Embeddings | Scores:
        """Have a request computed; cancelling it tells the process.

        Raises what the process refuses it with, `EngineDied` when none is there in time,
        `RequestQuarantined`, `InvalidRequest` for what has no encoding or is out of range.
        """
        check_decodable(request)
        id = f"{request.id}#{next(self._numbers)}"
        call = _Call(msgspec.structs.replace(request, id=id), self._now())
        self._calls[id] = call
        try:
            if self._quarantine.open(id):
                self._enter((id,))
            else:
                frame(Embed(request=call.request))  # it must be known now whether it can be
            return await call.answer
        except (ValueError, OverflowError) as error:
            call.inside = False
            raise InvalidRequest("The request holds text that is not Unicode.") from error
        finally:
            del self._calls[id]
            if call.inside:
                self._send(Abort(id=id))
            self._enter(self._quarantine.leave(id))

    def answered(self, message: Embedded) -> None:
        """Take an answer. Those that nobody waits for any more are dropped."""
        call = self._calls.get(message.id)
        if call is not None and not call.answer.done():
            call.inside = False
            call.answer.set_result(message.value)

    def dispatch(self, item: SequenceEvent) -> None:
        """Take what a process said of a request, if it is one of these."""
        call = self._calls.get(item.id)
        if call is None or call.answer.done():
            return
        if isinstance(item.event, Accepted):
            call.accepted = True
        elif isinstance(item.event, Failure):
            call.inside = False
            call.answer.set_exception(to_error(item.event))

    @property
    def owes_steps(self) -> bool:
        """Whether the process has one that should get on.

        While a request is only read it owes none: it may be refused, and a process that
        refuses one after the other does no steps, but does not hang either.
        """
        now = self._now()
        return any(
            call.inside and (call.accepted or now - call.since >= READING_SECONDS)
            for call in self._calls.values()
        )

    def _unended(self) -> Sequence[str]:
        return [id for id, call in self._calls.items() if not call.answer.done()]

    def _hold(self) -> Mapping[str, Standing]:
        inside = {id: call for id, call in self._calls.items() if call.inside}
        for call in inside.values():
            call.inside = call.accepted = False
        return dict.fromkeys(inside, Standing.UNPROVEN)

    def _enter(self, ids: Iterable[str]) -> None:
        entering = deque(ids)
        while entering:
            call = self._calls.get(entering.popleft())
            if call is None or call.answer.done():
                continue
            self.replays += call.submitted
            call.inside = call.submitted = True
            call.since = self._now()
            self._send(Embed(request=call.request))

    def _fail(self, id: str, error: EngineError) -> None:
        call = self._calls[id]
        call.inside = False
        if not call.answer.done():
            call.answer.set_exception(error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
