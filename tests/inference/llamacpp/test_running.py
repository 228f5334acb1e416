"""What a process owes a running generation: pure, with a clock of the test's own."""

from __future__ import annotations

import asyncio

from inference.channel import Channel
from inference.events import Accepted, Delta, Event
from inference.llamacpp.running import READING_SECONDS, Sequence
from inference.llamacpp.sequences import Sequences
from inference.requests import GenerationRequest, TextPrompt

NOW = 1000.0


def sequence() -> Sequence:
    channel: Channel[Event] = Channel(
        high=2, low=0, capacity=4, on_high=lambda: None, on_low=lambda: None
    )
    request = GenerationRequest(id="r#0", prompt=TextPrompt(text="a"))
    return Sequence(request, "r", channel)


def test_one_outside_is_owed_nothing() -> None:
    assert not sequence().owes_steps(NOW + 10 * READING_SECONDS)


def test_one_that_was_accepted_is_owed_steps_until_it_ends() -> None:
    running = sequence()
    running.enter(NOW)
    running.take_in(Accepted(prompt_tokens=1))
    assert running.owes_steps(NOW)
    running.end(None)
    assert not running.owes_steps(NOW)


def test_one_that_is_parked_is_owed_nothing() -> None:
    running = sequence()
    running.enter(NOW)
    running.take_in(Accepted(prompt_tokens=1))
    for _ in range(2):
        running.channel.put_nowait(Delta(text="a", tokens=(1,)))
    assert not running.owes_steps(NOW)


def test_one_that_is_read_is_owed_steps_only_after_a_long_time() -> None:
    running = sequence()
    running.enter(NOW)
    assert not running.owes_steps(NOW + READING_SECONDS - 1.0)
    assert running.owes_steps(NOW + READING_SECONDS)


def test_the_next_process_has_to_read_it_again() -> None:
    running = sequence()
    running.enter(NOW)
    running.take_in(Accepted(prompt_tokens=1))
    running.drop_out(NOW)
    running.enter(NOW + 1.0)
    assert not running.owes_steps(NOW + READING_SECONDS)
    assert running.owes_steps(NOW + 1.0 + READING_SECONDS)


def test_requests_that_are_refused_one_after_the_other_are_no_hang() -> None:
    async def main() -> None:
        sequences = Sequences(
            lambda message: None, high_events=2, low_events=0, replay_seconds=60.0
        )
        sequences.on_ready()
        sequences.open(GenerationRequest(id="r", prompt=TextPrompt(text="much too long")))
        assert not sequences.owes_steps

    asyncio.run(main())
