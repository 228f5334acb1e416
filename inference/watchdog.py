"""Notices an engine process that hangs: one that lives but makes no progress.

Two signs of life are counted apart. Steps must be done while there is work for them. And
something must be heard, at least the answers to pings, for a process that is stopped
while idle would otherwise look healthy until the next request. Neither is a flag that the
process sets: it shows that it lives by doing what it is for.

Silence is counted in ticks of this process, each worth no more than the time between
two ticks should be. So a machine that slept, a clock that jumped or a server that was
itself stopped adds one tick at most, and the engine has all the other ticks to speak.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICKS = 10
"""How many ticks in a row must be silent."""
FIRST_STEP_FACTOR = 4
"""How much longer the first step of a process may take.

How large it should be is only known after it; and the weights may have to be read from
the disk.
"""


class Progress:
    """What one process has shown of its progress, and for how long it has shown nothing.

    Mutable: the `steps` last seen, two silences in seconds, the time of the last tick. One
    event loop owns it.
    """

    def __init__(self, step_seconds: float) -> None:
        """A step may take `step_seconds`, and so may the answer to a ping."""
        self.tick_seconds = step_seconds / TICKS
        self._step_seconds = step_seconds
        self.steps = 0
        self._without_step = 0.0
        self._without_word = 0.0
        self._ticked: float | None = None

    def stepped(self, steps: int) -> None:
        """The process says how many steps it has done."""
        if steps != self.steps:
            self.steps = steps
            self._without_step = -self.tick_seconds  # the tick it falls into does not count

    def heard(self) -> None:
        """The process said something, whatever it was."""
        self._without_word = -self.tick_seconds

    def tick(self, now: float, *, owes_steps: bool) -> bool:
        """Count the time since the last tick; True once the process must be taken as hung.

        `now` is in seconds of a monotonic clock. `owes_steps` says whether there is work
        that only steps can do.
        """
        since = 0.0 if self._ticked is None else now - self._ticked
        self._ticked = now
        silence = min(max(since, 0.0), self.tick_seconds)
        self._without_word += silence
        if owes_steps:
            self._without_step += silence
        patience = self._step_seconds * (1 if self.steps else FIRST_STEP_FACTOR)
        return self._without_step >= patience or self._without_word >= self._step_seconds


async def hung(
    progress: Progress, *, ping: Callable[[], None], owes_steps: Callable[[], bool]
) -> None:
    """Tick and ping until the process hangs, then return."""
    loop = asyncio.get_running_loop()
    progress.tick(loop.time(), owes_steps=False)
    while True:
        ping()
        await asyncio.sleep(progress.tick_seconds)
        if progress.tick(loop.time(), owes_steps=owes_steps()):
            return
