"""The running generations on the server's side: who they are, what they received."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from inference.channel import Channel, ChannelFull
from inference.errors import EngineError, InvalidRequest
from inference.llamacpp.messages import (
    Abort,
    Failure,
    Message,
    Park,
    Resume,
    SequenceEvent,
    Submit,
    to_error,
)
from inference.types import Delta, Event, Finished, GenerationRequest

# Room above the high mark for what is on its way while a `Park` is: some hundred frames
# fit into the socket, and as many again are written until the other side has read it.
ROOM_EVENTS = 4096


class Sequence:
    """One running generation, with all that is needed to go on with it elsewhere.

    `request` is as the engine process knows it, its seed filled in. `tokens` are those
    that arrived so far, `ended` says that the process owes nothing more. Only
    `Sequences` changes them.
    """

    def __init__(self, request: GenerationRequest, id: str, channel: Channel[Event]) -> None:
        self.request = request
        self.id = id
        self.channel = channel
        self.tokens: list[int] = []
        self.ended = False

    def end(self, error: EngineError | None) -> None:
        """No further event comes; those in the channel can still be read."""
        self.ended = True
        self.channel.close(error)


class Sequences:
    """All running generations of one engine, on one event loop.

    `_by_id` has the ids that callers chose, `_by_wire_id` those the process sees. They
    differ because the last words of an aborted sequence may arrive when its id is
    already in use again. `send` takes a message for the process; it must not raise
    once a sequence was opened.
    """

    def __init__(
        self, send: Callable[[Message], None], *, high_events: int, low_events: int
    ) -> None:
        self._send = send
        self._high_events = high_events
        self._low_events = low_events
        self._numbers = itertools.count()
        self._by_id: dict[str, Sequence] = {}
        self._by_wire_id: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, request: GenerationRequest) -> Sequence:
        """Submit a request and keep it until `leave`.

        Raises `InvalidRequest` for an id that is in use, a value out of its range, or
        text that has no encoding.
        """
        if request.id in self._by_id:
            raise InvalidRequest("A request with this id is running.", param="id")
        _check(request)
        wire_id = f"{request.id}#{next(self._numbers)}"
        channel: Channel[Event] = Channel(
            high=self._high_events,
            low=self._low_events,
            capacity=self._high_events + ROOM_EVENTS,
            on_high=lambda: self._send(Park(id=wire_id)),
            on_low=lambda: self._send(Resume(id=wire_id)),
        )
        sequence = Sequence(msgspec.structs.replace(request, id=wire_id), request.id, channel)
        try:
            self._send(Submit(request=sequence.request))
        except ValueError as error:
            raise InvalidRequest("The request holds text that is not Unicode.") from error
        except OverflowError as error:
            raise InvalidRequest("The request holds a number that is too large.") from error
        self._by_id[request.id] = self._by_wire_id[wire_id] = sequence
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence; if it has not ended, tell the process to end it."""
        del self._by_id[sequence.id], self._by_wire_id[sequence.request.id]
        if not sequence.ended:
            sequence.end(None)
            self._send(Abort(id=sequence.request.id))

    def dispatch(self, item: SequenceEvent) -> None:
        """Hand an event to its sequence. Those of sequences that have left are dropped."""
        sequence = self._by_wire_id.get(item.id)
        if sequence is None or sequence.ended:
            return
        event = item.event
        if isinstance(event, Failure):
            sequence.end(to_error(event))
            return
        if isinstance(event, Delta):
            sequence.tokens.extend(event.tokens)
        try:
            sequence.channel.put_nowait(event)
        except ChannelFull:
            self._send(Abort(id=item.id))
            sequence.end(EngineError("The engine did not slow down for a slow reader."))
            return
        if isinstance(event, Finished):
            sequence.end(None)

    def end_all(self, error: Callable[[], EngineError]) -> None:
        """End every sequence that has not ended: the process is gone.

        Who wants to go on with them in a new process finds here, before they end, each
        `request` and its `tokens`.
        """
        for sequence in self._by_id.values():
            if not sequence.ended:
                sequence.end(error())


def _check(request: GenerationRequest) -> None:
    """Raise `InvalidRequest` for what the process would not decode.

    Structs check their fields when decoded, not when made, and a message that the
    process cannot decode would end it.
    """
    try:
        msgspec.convert(msgspec.to_builtins(request), GenerationRequest)
    except msgspec.ValidationError as error:
        # It names the field and its range, and holds no value.
        raise InvalidRequest(f"The request is out of range: {error}.") from None
