"""Runs a request that generates nothing: vectors and scores, admitted and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from starlette.requests import Request

from inference.engine import Engine
from inference.errors import RequestError
from inference.events import Embeddings, Scores, Started
from server.access.audit import route_of
from server.access.client import Client
from server.deadlines import DeadlineExceeded
from server.errors import rename
from server.models import Served
from server.served import Edge
from server.tickets import Ticket
from server.waiting import in_time

Value = TypeVar("Value", Embeddings, Scores)


class Computation:
    """One request for a model's vectors or scores; `id` is what the board shows.

    `prompt_tokens` is about how many it has. `names` says what the API calls the engine's
    `param`s, where it differs.
    """

    def __init__(
        self,
        edge: Edge,
        served: Served,
        request: Request,
        *,
        id: str,
        prompt_tokens: int,
        names: Mapping[str, str],
    ) -> None:
        self.client: Client = request.state.access
        self._edge = edge
        self._served = served
        self._id = id
        self._names = names
        self._arrival: float = request.state.arrival
        self._ticket = request.state.ticket = Ticket(
            edge.admission,
            self.client,
            route=route_of(request.scope),
            prompt_tokens=prompt_tokens,
            queues=False,
        )

    async def run(self, compute: Callable[[Engine], Awaitable[Value]]) -> Value:
        """Hold ticket and model while `compute` runs; gives what it returns.

        Raises `ApiError` where the ticket is refused or a deadline passes, `EngineError`.
        """
        seconds = self._edge.settings.response_seconds
        with self._ticket, self._observing() as started, self._served.lease() as lease:
            engine = await in_time(lease, self._edge)
            started()
            try:
                async with asyncio.timeout(seconds or None) as deadline:
                    value = await compute(engine)
            except TimeoutError:
                if not deadline.expired():
                    raise
                self._edge.metrics.count_deadline("response")
                raise DeadlineExceeded("response", seconds) from None
            self._ticket.settle(sum(value.tokens))
            self._count(sum(value.tokens))
            return value

    def _count(self, tokens: int) -> None:
        metrics = self._edge.metrics.of(self._served.id)
        metrics.prompt_tokens.inc(tokens)
        metrics.request_prompt_tokens.observe(tokens)
        metrics.e2e.observe(perf_counter() - self._arrival)

    @contextmanager
    def _observing(self) -> Iterator[Callable[[], None]]:
        """Show the request on the board while it runs, and count how it ends."""
        listing = self._edge.queue.enter(self._id, self.client.id, sequences=1)
        listing.prompt_tokens = self._ticket.prompt_tokens
        outcome = "abort"
        try:
            yield lambda: listing.observe(0, Started(cached_tokens=0, queue_seconds=0.0))
            outcome = "stop"
        except Exception as error:
            outcome = "error"
            if isinstance(error, RequestError):
                rename(error, self._names)
            raise
        finally:
            self._edge.queue.leave(listing)
            self._edge.metrics.of(self._served.id).count_end(outcome)
