"""What the server hears of the step loop: events, places in the queue, counters.

One message a step takes all of it, or one for several short steps: whoever is sent a
message has to wake for it, on a processor that the next step may need. So what a sequence
says after its first token is gathered for a few milliseconds, and joined.
"""

from __future__ import annotations

from collections.abc import Callable

from inference.errors import EngineError
from inference.events import Delta, Event, Queued
from inference.llamacpp.devicechains import DeviceChains
from inference.llamacpp.messages import Failure, Report, SequenceEvent, to_failure
from inference.llamacpp.scheduling.queueview import Notices, Outlook
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.sequence import Phase
from inference.merging import merged
from inference.status import EngineStats


class Outbox:
    """Gathers events and sends them with the state of the engine.

    Mutable, all of the step loop's thread: the events not yet sent, where among them each
    sequence's last delta is, whether they can wait and for how long steps have gathered
    them, who has said something; the last look at the queue, how long steps took since
    and who was told of it; the counters. Other threads only read `stats`, an immutable
    snapshot.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        send: Callable[[Report], object],
        lanes: int,
        device: DeviceChains | None,
        gather_seconds: float = 0.0,
        seam: str = "",
    ) -> None:
        """`send` takes the reports; `scheduler` and `device` are only read.

        Tokens wait for others at most `gather_seconds`, 0: each step is reported. What
        follows `seam`, the mark that ends the reasoning, is not joined with what is before:
        tokens of one delta count as of one kind.
        """
        self.stats = EngineStats(lanes_total=lanes, cache_total=scheduler.lanes.cells)
        self._scheduler = scheduler
        self._send = send
        self._lanes = lanes
        self._device = device
        self._gather_seconds = gather_seconds
        self._seam = seam
        self._events: list[SequenceEvent] = []
        self._last_delta: dict[str, int] = {}
        self._urgent = False
        self._gathering = 0.0
        self._last_step = 0.0
        self._talking: set[str] = set()
        self._notices = Notices()
        self._outlook = Outlook()
        self._since = 0.0
        self._steps = 0
        self._generation_tokens = 0
        self._step_seconds = 0.0
        self._decode_seconds = 0.0

    def emit(self, id: str, event: Event | EngineError) -> None:
        """Have `event` sent with the next report."""
        if isinstance(event, Delta):
            if id not in self._talking:
                self._urgent = True
                if event.text:
                    self._talking.add(id)
            if self._gather_seconds and self._join(id, event):
                return
            self._last_delta[id] = len(self._events)
        else:
            self._urgent = True
            self._last_delta.pop(id, None)
        wire: Event | Failure
        wire = to_failure(event) if isinstance(event, EngineError) else event
        self._events.append(SequenceEvent(id=id, event=wire))

    def forget(self, id: str) -> None:
        """A sequence says nothing any more."""
        self._talking.discard(id)
        self._last_delta.pop(id, None)

    def _join(self, id: str, delta: Delta) -> bool:
        """Add to what the sequence said last, if that has not been sent."""
        place = self._last_delta.get(id)
        if place is None:
            return False
        before = self._events[place].event
        if not isinstance(before, Delta) or (self._seam and self._seam in before.text):
            return False
        both = merged(before, delta)
        if both is None:
            return False
        self._events[place] = SequenceEvent(id=id, event=both)
        return True

    def note_queued(self, now: float) -> None:
        """Look at the queue, if it is time, and tell those their place who wait."""
        scheduler = self._scheduler
        sequences = scheduler.count(Phase.RUNNING) + scheduler.count(Phase.WAITING)
        if not self._notices.due(sequences=sequences, now=now):
            return
        self._outlook = scheduler.outlook()
        self._since = 0.0
        for place in self._notices.news(self._outlook, now=now):
            news = Queued(position=place.position, expected_seconds=place.seconds)
            self.emit(place.id, news)

    def note_step(self, *, tokens: int, seconds: float, decode_seconds: float) -> None:
        """A step has sampled `tokens` in `seconds`, of which the models computed some."""
        self._steps += 1
        self._generation_tokens += tokens
        self._step_seconds += seconds
        self._since += seconds
        self._gathering += seconds
        self._last_step = seconds
        self._decode_seconds += decode_seconds

    @property
    def gathers(self) -> bool:
        """Whether there are events that have not been sent."""
        return bool(self._events)

    def report_step(self) -> None:
        """Send what there is, unless it can wait for another step like the last one."""
        if self._urgent or self._gathering + self._last_step > self._gather_seconds:
            self.report()

    def report(self) -> None:
        """Send what there is: one message."""
        self.stats = self._measured()
        events, self._events = tuple(self._events), []
        self._last_delta.clear()
        self._urgent = False
        self._gathering = 0.0
        self._send(Report(events=events, stats=self.stats))

    def _measured(self) -> EngineStats:
        scheduler, lanes, disk = self._scheduler, self._scheduler.lanes, self._scheduler.disk
        running, waiting = scheduler.count(Phase.RUNNING), scheduler.count(Phase.WAITING)
        full = waiting > 0 or running >= self._lanes
        view = self._outlook
        return EngineStats(
            running=running,
            waiting=waiting,
            parked=scheduler.count(Phase.PARKED),
            waiting_tokens=view.tokens if waiting else 0,
            expected_wait_seconds=self._now(view.expected_wait) if full else 0.0,
            expected_first_seconds=self._now(view.first_seconds) if running or waiting else 0.0,
            place_seconds=view.place_seconds,
            prefill_token_seconds=scheduler.prefill_token_seconds,
            lanes_total=self._lanes,
            cache_used=lanes.used,
            cache_total=lanes.cells,
            host_used=scheduler.host.used,
            host_total=scheduler.host.capacity,
            disk_used=disk.used,
            disk_total=disk.capacity,
            disk_stores=disk.stored,
            disk_fetches=disk.fetched,
            disk_failures=disk.failed,
            disk_fetch_timeouts=disk.late,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=scheduler.prefilled,
            generation_tokens=self._generation_tokens,
            device_sampled_tokens=0 if self._device is None else self._device.tokens,
            draft_tokens=scheduler.drafted,
            draft_tokens_accepted=scheduler.accepted,
            step_seconds=self._step_seconds,
            decode_seconds=self._decode_seconds,
        )

    def _now(self, seconds: float) -> float:
        """What was expected at the last look, after what has happened since.

        Steps have passed of it, and more may wait: each as long as those did.
        """
        seen, waiting = len(self._outlook.ids), self._scheduler.count(Phase.WAITING)
        return max(0.0, seconds - self._since) * max(1.0, (waiting + 1) / (seen + 1))
