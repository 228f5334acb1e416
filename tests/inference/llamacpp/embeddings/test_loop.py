"""The loop that makes vectors, over a context that computes nothing."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.events import Accepted, Embeddings, Scores
from inference.llamacpp.embeddings.context import EmbeddingContext
from inference.llamacpp.embeddings.loop import EmbeddingLoop, normalised, sigmoid
from inference.llamacpp.embeddings.queue import Job
from inference.llamacpp.messages import (
    Abort,
    Embedded,
    Failure,
    Message,
    Park,
    Report,
    SequenceEvent,
)
from inference.llamacpp.steploop import Close

DEADLINE_SECONDS = 20.0


class Context:
    """Gives each text its number of tokens, once it may."""

    length = 2

    def __init__(self, *, ranks: bool = False) -> None:
        self.ranks = ranks
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.go = threading.Semaphore(0)

    def compute(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.begun.put(len(texts))
        assert self.go.acquire(timeout=DEADLINE_SECONDS)
        return np.array([[len(text), 0.0] for text in texts], np.float32)


class Running:
    """A loop in its thread, and what it says."""

    def __init__(self, context: Context, **options: Any) -> None:
        self.context = context
        self.said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        settings: dict[str, Any] = {"batch_tokens": 8, "batch_texts": 4, "max_waiting": 2}
        self.loop = EmbeddingLoop(
            cast(EmbeddingContext, context), send=self.said.put, **(settings | options)
        )

    def add(self, id: str, *lengths: int) -> None:
        texts = [[0] * length for length in lengths]
        self.loop.inbox.put(Job(id=id, client="", priority=0, texts=texts))

    def hear(self, kind: type[Any]) -> Any:
        while not isinstance(said := self.said.get(timeout=DEADLINE_SECONDS), kind):
            pass
        return said

    def events(self) -> tuple[SequenceEvent, ...]:
        while not (report := self.hear(Report)).events:
            pass
        events: tuple[SequenceEvent, ...] = report.events
        return events


@contextmanager
def running(context: Context | None = None, **options: Any) -> Iterator[Running]:
    made = Running(context or Context(), **options)
    thread = threading.Thread(target=made.loop.run)
    thread.start()
    try:
        yield made
    finally:
        made.loop.inbox.put(Close())
        made.context.go.release(1000)
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def test_a_request_is_accepted_computed_and_counted() -> None:
    with running() as run:
        run.add("a", 3, 5, 8)
        (event,) = run.events()
        assert event == SequenceEvent(id="a", event=Accepted(prompt_tokens=16))
        run.context.go.release(2)
        answer = run.hear(Embedded)
        assert answer.id == "a"
        assert isinstance(answer.value, Embeddings)
        assert answer.value.tokens == (3, 5, 8)
        assert np.frombuffer(answer.value.vectors, "<f4").tolist() == [1.0, 0.0] * 3
        stats = run.hear(Report).stats
        assert (stats.steps, stats.prompt_tokens, stats.running, stats.waiting) == (2, 16, 0, 0)
        assert stats.prefill_token_seconds > 0


def test_a_request_that_is_aborted_is_computed_no_further() -> None:
    with running() as run:
        run.add("a", *[8] * 50)
        assert run.context.begun.get(timeout=DEADLINE_SECONDS) == 1
        run.loop.inbox.put(Abort(id="a"))
        run.loop.inbox.put(Park(id="b"))
        run.add("b", 1)
        run.context.go.release(2)
        assert run.hear(Embedded).id == "b"
        assert run.loop.stats.prompt_tokens == 9


def test_a_full_queue_refuses() -> None:
    with running(max_waiting=1) as run:
        run.add("a", 8, 8)
        assert run.context.begun.get(timeout=DEADLINE_SECONDS) == 1
        run.add("b", 8)
        run.context.go.release()
        assert isinstance(run.events()[0].event, Accepted)
        (refused,) = run.events()
        assert isinstance(refused.event, Failure)
        assert refused.event.code == "engine_overloaded"


def test_scores_are_between_nothing_and_one() -> None:
    with running(Context(ranks=True)) as run:
        run.add("a", 3)
        run.context.go.release()
        value = run.hear(Embedded).value
        assert isinstance(value, Scores)
        assert value.scores[0] == pytest.approx(1 / (1 + math.exp(-3)))
    with running(Context(ranks=True), certain=True) as run:
        run.add("a", 1)
        run.context.go.release()
        assert run.hear(Embedded).value.scores == (1.0,)


def test_extremes_stay_numbers() -> None:
    rows = normalised(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert rows.tolist() == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
