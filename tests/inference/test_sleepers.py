"""One timer ends many pauses, each when it is due."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.scripted.sleepers import GRAIN_SECONDS, PRUNE_FROM, Sleepers

FAR_SECONDS = 3600.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=20))
def test_nobody_is_woken_before_the_time(delays: list[int]) -> None:
    async def scenario() -> None:
        loop, sleepers = asyncio.get_running_loop(), Sleepers()
        began = loop.time()

        async def one(delay: int) -> tuple[float, float]:
            until = began + delay * GRAIN_SECONDS / 2
            await sleepers.sleep(until)
            return until, loop.time()

        woken = await asyncio.gather(*map(one, delays))
        # A loop counts what is due within its clock's resolution as due.
        assert all(now >= until - GRAIN_SECONDS / 10 for until, now in woken)
        assert len(sleepers) == 0

    asyncio.run(scenario())


def test_who_asks_later_for_less_is_not_kept_waiting() -> None:
    async def scenario() -> None:
        loop, sleepers = asyncio.get_running_loop(), Sleepers()
        long = sleepers.sleep(loop.time() + FAR_SECONDS)
        await sleepers.sleep(loop.time() + GRAIN_SECONDS)
        assert not long.done()
        long.cancel()

    asyncio.run(scenario())


def test_pauses_that_were_given_up_do_not_pile_up() -> None:
    async def scenario() -> None:
        loop, sleepers = asyncio.get_running_loop(), Sleepers()
        kept = sleepers.sleep(loop.time() + FAR_SECONDS)
        for _ in range(10 * PRUNE_FROM):
            sleepers.sleep(loop.time() + FAR_SECONDS).cancel()
        assert len(sleepers) <= PRUNE_FROM
        assert not kept.done()
        kept.cancel()

    asyncio.run(scenario())
