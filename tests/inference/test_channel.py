"""The channel keeps order, loses nothing, parks and resumes, and ends as named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.channel import Channel, ChannelBusy, ChannelClosed, ChannelFull, EndOfChannel

HIGH, LOW, CAPACITY = 4, 1, 6


def new_channel(signals: list[str]) -> Channel[int]:
    return Channel(
        high=HIGH,
        low=LOW,
        capacity=CAPACITY,
        on_high=lambda: signals.append("park"),
        on_low=lambda: signals.append("resume"),
    )


def run(scenario: Callable[[Channel[int], list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        signals: list[str] = []
        await scenario(new_channel(signals), signals)

    asyncio.run(main())


@pytest.mark.parametrize(("low", "high", "capacity"), [(-1, 4, 8), (4, 4, 8), (1, 9, 8)])
def test_marks_must_be_in_order(low: int, high: int, capacity: int) -> None:
    with pytest.raises(ValueError):
        Channel[int](
            high=high, low=low, capacity=capacity, on_high=lambda: None, on_low=lambda: None
        )


def test_waiting_consumer_gets_the_item() -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        getting = asyncio.ensure_future(channel.get())
        await asyncio.sleep(0)
        channel.put_nowait(7)
        channel.put_nowait(8)
        assert await getting == 7
        assert await channel.get() == 8
        assert signals == []

    run(scenario)


def test_cancelled_get_loses_nothing() -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        getting = asyncio.ensure_future(channel.get())
        await asyncio.sleep(0)
        channel.put_nowait(7)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting
        assert await channel.get() == 7

    run(scenario)


def test_second_consumer_is_refused() -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        getting = asyncio.ensure_future(channel.get())
        await asyncio.sleep(0)
        with pytest.raises(ChannelBusy):
            await channel.get()
        channel.close()
        with pytest.raises(EndOfChannel):
            await getting

    run(scenario)


def test_full_after_the_park_was_ignored() -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        for number in range(CAPACITY):
            channel.put_nowait(number)
        with pytest.raises(ChannelFull):
            channel.put_nowait(CAPACITY)
        assert signals == ["park"]
        assert [await channel.get() for _ in range(CAPACITY)] == list(range(CAPACITY))
        assert signals == ["park", "resume"]

    run(scenario)


@pytest.mark.parametrize("error", [None, RuntimeError("died")])
def test_end_comes_after_the_last_item_and_stays(error: RuntimeError | None) -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        channel.put_nowait(1)
        channel.close(error)
        channel.close(ValueError("too late"))
        assert await channel.get() == 1
        for _ in range(2):
            with pytest.raises(EndOfChannel if error is None else RuntimeError):
                await channel.get()
        with pytest.raises(ChannelClosed):
            channel.put_nowait(2)

    run(scenario)


def test_no_resume_after_close() -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        for number in range(HIGH):
            channel.put_nowait(number)
        channel.close()
        for _ in range(HIGH):
            await channel.get()
        assert signals == ["park"]

    run(scenario)


class ChannelAgainstList(RuleBasedStateMachine):
    """Puts and gets in any order: the channel is a list with two marks."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: list[str] = []
        self.channel = new_channel(self.signals)
        self.expected: list[int] = []
        self.parked = False
        self.number = 0

    @rule(count=st.integers(1, 3))
    def put(self, count: int) -> None:
        for _ in range(count):
            if len(self.expected) == CAPACITY:
                with pytest.raises(ChannelFull):
                    self.channel.put_nowait(-1)
                return
            self.channel.put_nowait(self.number)
            self.expected.append(self.number)
            self.number += 1
            self.parked = self.parked or len(self.expected) >= HIGH

    @precondition(lambda self: bool(self.expected))
    @rule(count=st.integers(1, 3))
    def get(self, count: int) -> None:
        for _ in range(min(count, len(self.expected))):
            assert take(self.channel) == self.expected.pop(0)
            self.parked = self.parked and len(self.expected) > LOW

    @invariant()
    def agrees(self) -> None:
        assert len(self.channel) == len(self.expected)
        assert self.channel.parked == self.parked

    @invariant()
    def signals_alternate(self) -> None:
        assert self.signals == ["park", "resume"] * (len(self.signals) // 2) + ["park"] * (
            len(self.signals) % 2
        )
        assert (len(self.signals) % 2 == 1) == self.parked


def take(channel: Channel[int]) -> int:
    """Get an item that is there: the coroutine ends at its first step."""
    step = channel.get()
    with pytest.raises(StopIteration) as stopped:
        step.send(None)
    value = stopped.value.value
    assert isinstance(value, int)
    return value


TestChannelAgainstList = ChannelAgainstList.TestCase
TestChannelAgainstList.settings = settings(max_examples=40, stateful_step_count=30)


@given(st.lists(st.booleans(), max_size=40))
def test_producer_and_consumer_tasks_agree(yields: list[bool]) -> None:
    async def scenario(channel: Channel[int], signals: list[str]) -> None:
        taken: list[int] = []

        async def consume() -> None:
            with suppress(EndOfChannel):
                while True:
                    taken.append(await channel.get())

        consumer = asyncio.ensure_future(consume())
        for number, pause in enumerate(yields):
            channel.put_nowait(number)
            while pause or channel.parked:
                pause = False
                await asyncio.sleep(0)
        channel.close()
        await consumer
        assert taken == list(range(len(yields)))

    run(scenario)
