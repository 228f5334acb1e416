"""What all requests have in common that outlive engine processes, whatever they ask for.

When a process is gone its requests are held, and the next one takes them up in the order
and at the time that the quarantine says. They end when there is none for too long, and
the one that ends processes ends by itself.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from inference.errors import EngineDied, EngineError, InvalidRequest, RequestQuarantined
from inference.quarantine import Quarantine, Standing


class Replayed(ABC):
    """The requests of one kind to one engine, on one event loop.

    Their ids are those that the process knows. Mutable: the quarantine, and the timer
    that runs while there is no process. `replays` and `quarantined` count.
    """

    def __init__(self, *, replay_seconds: float) -> None:
        """Without a process for `replay_seconds`, all that are held end."""
        self.replays = 0
        self.quarantined = 0
        self._quarantine = Quarantine()
        self._replay_seconds = replay_seconds
        self._giving_up: asyncio.TimerHandle | None = None

    def stepped(self, steps: int) -> None:
        """The process has done so many steps since it is there."""
        self._enter(self._quarantine.stepped(steps))

    def on_ready(self) -> None:
        """A process is there: it takes up those that are held."""
        self._stop_giving_up()
        self._enter(self._quarantine.up())

    def on_down(self) -> None:
        """The process is gone: hold what was in it."""
        self._quarantine.down(self._hold())
        loop = asyncio.get_running_loop()
        self._giving_up = loop.call_later(self._replay_seconds, self._give_up)

    def on_ended(self, *, killed: bool) -> None:
        """It is known how the process ended: by itself, or `killed`."""
        convicted = self._quarantine.judge(killed=killed)
        if convicted is not None:
            self.quarantined += 1
            error = RequestQuarantined("The engine ended each time it ran this request.")
            self._fail(convicted, error)

    def end_all(self, error: Callable[[], EngineError]) -> None:
        """End every request that has not ended: no process will take them up."""
        self._stop_giving_up()
        self._quarantine.down({})  # nobody enters in place of those that end
        for id in self._unended():
            self._fail(id, error())

    @abstractmethod
    def _unended(self) -> Sequence[str]:
        """Those that have not ended."""

    @abstractmethod
    def _hold(self) -> Mapping[str, Standing]:
        """Take out of the process those that were in it, in order of arrival."""

    @abstractmethod
    def _enter(self, ids: Iterable[str]) -> None:
        """Hand requests to the process, as new ones or once more."""

    @abstractmethod
    def _fail(self, id: str, error: EngineError) -> None:
        """End a request that is in no process."""

    def _give_up(self) -> None:
        self.end_all(lambda: EngineDied("The engine ended while this request was running."))

    def _stop_giving_up(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def check_decodable(request: msgspec.Struct) -> None:
    """Raise `InvalidRequest` for what the process would not decode.

    Structs check their fields when decoded, not when made, and a message that the
    process cannot decode would end it.
    """
    try:
        msgspec.convert(msgspec.to_builtins(request), type(request))
    except msgspec.ValidationError as error:
        # It names the field and its range, and holds no value.
        raise InvalidRequest(f"The request is out of range: {error}.") from None
