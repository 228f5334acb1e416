"""How long an engine may keep a response waiting, and what happens when it does.

    WAITING  --Started-->  READING  --Delta-->  WRITING  --Finished-->  ENDED
       ^                      |                    |
       +-------Queued---------+-------Queued-------+

Before all that the model is due within `load_seconds`, where it is not loaded. In WAITING
a lane is due within `queue_seconds` of when it began to wait, in READING the first token
within `first_token_seconds` of the lane, in WRITING any event within
`between_tokens_seconds` of being asked for; and everything within `response_seconds`.
Only waiting for the engine counts between tokens: a reader who takes his time stops
that clock. A sequence that is preempted waits for a lane again, and then has its tokens
computed again: the engine's silence meanwhile is none of its own. One that keeps its
lane may go on from WAITING without a word.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from inference.events import Delta, Event, Finished, Queued, Started
from server.errors import ApiError
from server.settings import Settings

RETRY_AFTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDeadlines:
    """What one sequence is given; 0 is no limit."""

    load_seconds: float = 0.0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    between_tokens_seconds: float = 0.0
    response_seconds: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> ResponseDeadlines:
        """The settings by the same names."""
        return cls(
            load_seconds=settings.load_seconds,
            queue_seconds=settings.queue_seconds,
            first_token_seconds=settings.first_token_seconds,
            between_tokens_seconds=settings.between_tokens_seconds,
            response_seconds=settings.response_seconds,
        )


class Phase(enum.IntEnum):
    """What is due next from the engine."""

    WAITING = enum.auto()
    READING = enum.auto()
    WRITING = enum.auto()
    ENDED = enum.auto()


TRANSITIONS: Mapping[tuple[Phase, type[Event]], Phase] = {
    (Phase.WAITING, Started): Phase.READING,
    (Phase.WAITING, Delta): Phase.WRITING,
    (Phase.WAITING, Finished): Phase.ENDED,
    (Phase.READING, Queued): Phase.WAITING,
    (Phase.READING, Delta): Phase.WRITING,
    (Phase.READING, Finished): Phase.ENDED,
    (Phase.WRITING, Queued): Phase.WAITING,
    (Phase.WRITING, Started): Phase.READING,
    (Phase.WRITING, Finished): Phase.ENDED,
}
"""Every other event leaves the phase as it is."""

_SENTENCES: Mapping[str, str] = {
    "load": "The model could not be loaded within {:g} seconds.",
    "queue": "No lane was free for this request within {:g} seconds.",
    "first_token": "The first token took longer than {:g} seconds.",
    "between_tokens": "The engine has said nothing for {:g} seconds.",
    "response": "The response took longer than {:g} seconds.",
}


class DeadlineExceeded(ApiError):
    """A deadline passed: status 504. `name` is its setting's without `_seconds`."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(
            504,
            f"{name}_timeout",
            _SENTENCES[name].format(seconds),
            retry_after_seconds=RETRY_AFTER_SECONDS if name in ("load", "queue") else None,
        )
        self.name = name


class Clock:
    """Which deadline of one sequence comes first. Pure: times are arguments, in seconds.

    Mutable: `phase`, and since when it lasts; owned by whoever reads the events.
    """

    def __init__(self, deadlines: ResponseDeadlines, *, now: float) -> None:
        self.phase = Phase.WAITING
        self._deadlines = deadlines
        self._began = now
        self._since = now

    def observe(self, event: Event, *, now: float) -> bool:
        """Take note of the next event; True when with it something else is due."""
        following = TRANSITIONS.get((self.phase, type(event)))
        if following is None:
            return False
        self.phase, self._since = following, now
        return True

    def due(self, *, now: float) -> tuple[float, str, float] | None:
        """When waiting from now on has to end, for which deadline, and how long that is."""
        deadlines = self._deadlines
        match self.phase:
            case Phase.WAITING:
                name, since, seconds = "queue", self._since, deadlines.queue_seconds
            case Phase.READING:
                name, since, seconds = "first_token", self._since, deadlines.first_token_seconds
            case Phase.WRITING:
                name, since, seconds = "between_tokens", now, deadlines.between_tokens_seconds
            case Phase.ENDED:
                return None
        whole = deadlines.response_seconds
        if whole and (not seconds or self._began + whole <= since + seconds):
            name, since, seconds = "response", self._began, whole
        return (since + seconds, name, seconds) if seconds else None


class _Alarm:
    """Wakes the task that waits for the next event when its deadline has passed.

    One timer serves many events: within a phase what is due only moves away, so it is
    left to ring too early and to look again. To set it anew with each token would cost
    more than all else here. Mutable: everything; owned by `deadlined`. `_task` is the one
    that waits, None while none does, and `_cancelling` how often it was being cancelled
    by others when it began to.
    """

    def __init__(self, deadlines: ResponseDeadlines) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(deadlines, now=self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._passed: DeadlineExceeded | None = None

    def asked(self) -> None:
        """This task begins to wait for the next event."""
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        self._cancelling = task.cancelling()
        self._asked = self._loop.time()
        if self._timer is None:
            self._set()

    def answered(self, event: Event) -> None:
        """The event is there."""
        self._task = None
        if self._clock.observe(event, now=self._loop.time()):
            self._unset()

    def over(self) -> DeadlineExceeded | None:
        """Stop; the deadline that passed, if it was that which cancelled the task that waits.

        The task is then free of that cancellation.
        """
        self._unset()
        task, self._task = self._task, None
        if task is None or self._passed is None:
            return None
        # What is left are cancellations by others, who want this task to end.
        return self._passed if task.uncancel() <= self._cancelling else None

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        due = self._clock.due(now=self._asked)
        if due is not None:
            self._timer = self._loop.call_at(due[0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        due = self._clock.due(now=self._asked)
        if self._task is None or due is None:
            return  # Nobody is waiting; whoever does next will set it again.
        when, name, seconds = due
        if when > self._loop.time():
            self._set()
            return
        self._passed = DeadlineExceeded(name, seconds)
        self._task.cancel()


async def deadlined(
    events: AsyncGenerator[Event, None],
    deadlines: ResponseDeadlines,
    *,
    count: Callable[[str], None],
) -> AsyncGenerator[Event, None]:
    """Yield the events of one sequence while each comes in time.

    The clocks begin with the first step. `count` is told the name of a deadline that
    passed. Closes `events` however it ends. Raises `DeadlineExceeded`, and what
    `events` raises.
    """
    alarm = _Alarm(deadlines)
    async with aclosing(events):
        try:
            alarm.asked()
            async for event in events:
                alarm.answered(event)
                yield event
                alarm.asked()
        except asyncio.CancelledError:
            passed = alarm.over()
            if passed is None:
                raise
            count(passed.name)
            raise passed from None
        finally:
            alarm.over()
