"""When a process counts as hung: pure, with a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.watchdog import FIRST_STEP_FACTOR, TICKS, Progress, hung

STEP_SECONDS = 30.0
TICK = STEP_SECONDS / TICKS


class Clock:
    """Ticks a `Progress` and says when it was taken as hung."""

    def __init__(self) -> None:
        self.progress = Progress(STEP_SECONDS)
        self.now = 1000.0
        self.progress.tick(self.now, owes_steps=False)

    def ticks(
        self, count: int, *, owes_steps: bool, answers: bool = True, each: float = TICK
    ) -> int | None:
        """Tick so often; the number of the tick that was too many, from 1."""
        for number in range(1, count + 1):
            self.now += each
            if answers:
                self.progress.heard()
            if self.progress.tick(self.now, owes_steps=owes_steps):
                return number
        return None


def test_work_without_steps_is_a_hang() -> None:
    clock = Clock()
    clock.progress.stepped(1)
    assert clock.ticks(100, owes_steps=True) == TICKS + 1


def test_each_step_gives_it_all_its_time_again() -> None:
    clock = Clock()
    for steps in range(1, 20):
        clock.progress.stepped(steps)
        assert clock.ticks(TICKS, owes_steps=True) is None
        clock.progress.stepped(steps)  # said again, not done again
    assert clock.ticks(1, owes_steps=True) == 1


def test_the_first_step_may_take_longer() -> None:
    assert Clock().ticks(1000, owes_steps=True) == TICKS * FIRST_STEP_FACTOR


def test_an_idle_process_only_has_to_answer() -> None:
    clock = Clock()
    clock.progress.stepped(1)
    assert clock.ticks(10_000, owes_steps=False) is None
    assert clock.ticks(100, owes_steps=False, answers=False) == TICKS


def test_a_long_idle_time_is_not_held_against_the_next_work() -> None:
    clock = Clock()
    clock.progress.stepped(7)
    clock.ticks(10_000, owes_steps=False)
    assert clock.ticks(TICKS, owes_steps=True) is None


@pytest.mark.parametrize("jump", [-86_400.0, 0.0, 86_400.0])
def test_a_clock_that_jumps_or_a_machine_that_slept_is_one_tick_at_most(jump: float) -> None:
    clock = Clock()
    clock.progress.stepped(1)
    clock.progress.heard()
    assert clock.ticks(TICKS - 2, owes_steps=True, answers=False) is None
    assert clock.ticks(1, owes_steps=True, answers=False, each=jump) is None
    assert clock.ticks(1, owes_steps=True, answers=False) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0.0, 1e6)), max_size=60))
def test_it_takes_as_many_silent_ticks_in_a_row(said: list[tuple[bool, bool, float]]) -> None:
    """Whatever the clock does, a process that spoke less than `TICKS` ticks ago lives."""
    progress = Progress(STEP_SECONDS)
    now, steps, silent = 0.0, 1, 0
    progress.stepped(steps)
    for stepped, owes, elapsed in said:
        now += elapsed
        if stepped:
            steps += 1
            progress.stepped(steps)
            progress.heard()
            silent = 0
        silent += 1
        if progress.tick(now, owes_steps=owes):
            assert silent >= TICKS
            return


def test_the_task_pings_and_returns_when_nothing_answers() -> None:
    async def main() -> None:
        pings: list[None] = []
        progress = Progress(0.01)
        async with asyncio.timeout(10):
            await hung(progress, ping=lambda: pings.append(None), owes_steps=lambda: False)
        assert len(pings) >= TICKS

    asyncio.run(main())
