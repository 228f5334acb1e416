"""The running generations on the server's side: who they are, what they received.

They outlive engine processes: the next one takes them up where they stand.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

from inference.channel import Channel, ChannelFull
from inference.errors import EngineError, InvalidRequest
from inference.events import Event, Finished, Restarted
from inference.llamacpp.messages import (
    Abort,
    Failure,
    Message,
    Park,
    Resume,
    SequenceEvent,
    Submit,
    frame,
    to_error,
)
from inference.llamacpp.replayed import Replayed, check_decodable
from inference.llamacpp.running import Sequence
from inference.quarantine import Standing
from inference.requests import GenerationRequest

# Room above the high mark for what is on its way while a `Park` is: some hundred frames
# fit into the socket, and as many again are written until the other side has read it.
ROOM_EVENTS = 4096


class Sequences(Replayed):
    """All running generations of one engine, on one event loop.

    Mutable besides what it inherits: `_by_id` has the ids that callers chose, `_by_wire_id`
    those the process sees. They differ because the last words of an aborted sequence may
    arrive when its id is already in use again. `send` takes a message for the process; it
    must not raise once a sequence was opened.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        *,
        high_events: int,
        low_events: int,
        replay_seconds: float,
    ) -> None:
        """Without a process for `replay_seconds`, all that are held end."""
        super().__init__(replay_seconds=replay_seconds)
        self._send = send
        self._high_events = high_events
        self._low_events = low_events
        self._numbers = itertools.count()
        self._by_id: dict[str, Sequence] = {}
        self._by_wire_id: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def owes_steps(self) -> bool:
        """Whether the process has a sequence that should get on."""
        now = asyncio.get_running_loop().time()
        return any(sequence.owes_steps(now) for sequence in self._by_id.values())

    def open(self, request: GenerationRequest) -> Sequence:
        """Submit a request, as soon as the quarantine lets it, and keep it until `leave`.

        Raises `InvalidRequest` for an id that is in use, a value out of its range, or
        text that has no encoding.
        """
        if request.id in self._by_id:
            raise InvalidRequest("A request with this id is running.", param="id")
        check_decodable(request)
        wire_id = f"{request.id}#{next(self._numbers)}"
        channel: Channel[Event] = Channel(
            high=self._high_events,
            low=self._low_events,
            capacity=self._high_events + ROOM_EVENTS,
            on_high=lambda: self._park(wire_id),
            on_low=lambda: self._resume(wire_id),
        )
        sequence = Sequence(msgspec.structs.replace(request, id=wire_id), request.id, channel)
        self._by_id[request.id] = self._by_wire_id[wire_id] = sequence
        try:
            if self._quarantine.open(wire_id):
                self._send(sequence.enter(asyncio.get_running_loop().time()))
            else:
                frame(Submit(request=sequence.request))  # it must be known now whether it can be
        except (ValueError, OverflowError) as error:
            sequence.inside = False
            self.leave(sequence)
            what = "text that is not Unicode"
            if isinstance(error, OverflowError):
                what = "a number that is too large"
            raise InvalidRequest(f"The request holds {what}.") from error
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence; if it has not ended, tell the process to end it."""
        del self._by_id[sequence.id], self._by_wire_id[sequence.wire_id]
        if not sequence.ended:
            if sequence.inside:
                self._send(Abort(id=sequence.wire_id))
            self._end(sequence, None)

    def dispatch(self, item: SequenceEvent) -> None:
        """Hand an event to its sequence. Those of sequences that have left are dropped."""
        sequence = self._by_wire_id.get(item.id)
        if sequence is None or sequence.ended:
            return
        event = item.event
        if isinstance(event, Failure):
            self._end(sequence, to_error(event))
            return
        if sequence.take_in(event) and not self._put(sequence, event):
            self._send(Abort(id=item.id))
        elif isinstance(event, Finished):
            self._end(sequence, None)
        elif item.id == self._quarantine.trial and sequence.proven:
            self._enter(self._quarantine.proven(item.id))

    def _unended(self) -> list[str]:
        return [sequence.wire_id for sequence in self._by_id.values() if not sequence.ended]

    def _hold(self) -> Mapping[str, Standing]:
        now = asyncio.get_running_loop().time()
        running = [s for s in self._by_id.values() if s.inside and not s.ended]
        standings = {sequence.wire_id: sequence.standing for sequence in running}
        for sequence in running:
            sequence.drop_out(now)
        return standings

    def _enter(self, ids: Iterable[str]) -> None:
        entering = deque(ids)
        while entering:
            sequence = self._by_wire_id[entering.popleft()]
            again = sequence.submitted
            submit = sequence.enter(asyncio.get_running_loop().time())
            if again and sequence.accepted:
                self.replays += 1
                if not self._put(sequence, self._restarted(sequence)):
                    continue
            self._send(submit)
            if sequence.channel.parked:
                self._send(Park(id=sequence.wire_id))
                entering.extend(self._quarantine.parked(sequence.wire_id))

    def _restarted(self, sequence: Sequence) -> Restarted:
        paused = asyncio.get_running_loop().time() - sequence.outside_since
        return Restarted(replayed_tokens=len(sequence.tokens), paused_seconds=paused)

    def _put(self, sequence: Sequence, event: Event) -> bool:
        """Give the consumer an event; False where it has ended for want of room."""
        try:
            sequence.channel.put_nowait(event)
        except ChannelFull:
            self._end(sequence, EngineError("The engine did not slow down for a slow reader."))
            return False
        return True

    def _fail(self, id: str, error: EngineError) -> None:
        sequence = self._by_wire_id[id]
        sequence.inside = False
        self._end(sequence, error)

    def _end(self, sequence: Sequence, error: EngineError | None) -> None:
        sequence.end(error)
        self._enter(self._quarantine.leave(sequence.wire_id))

    def _park(self, wire_id: str) -> None:
        if self._by_wire_id[wire_id].inside:
            self._send(Park(id=wire_id))
            self._enter(self._quarantine.parked(wire_id))

    def _resume(self, wire_id: str) -> None:
        if self._by_wire_id[wire_id].inside:
            self._send(Resume(id=wire_id))
