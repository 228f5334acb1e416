"""Requests for vectors in batches: everything once, nobody starved, nothing too large."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.llamacpp.embeddings.queue import Batch, EmbeddingQueue, Job

TOKENS, TEXTS = 32, 4


def _job(id: str, *lengths: int, client: str = "", priority: int = 0) -> Job:
    # Each text says whose it is, and which of them.
    texts = [[number] * length for number, length in enumerate(lengths)]
    return Job(id=id, client=client or id, priority=priority, texts=texts)


def _rows(batch: Batch) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([[float(text[0])] for text in batch.texts], np.float32)


def _queue(*jobs: Job) -> EmbeddingQueue:
    queue = EmbeddingQueue(batch_tokens=TOKENS, batch_texts=TEXTS)
    for job in jobs:
        queue.add(job)
    return queue


def test_a_small_request_does_not_wait_behind_a_large_one() -> None:
    queue = _queue(_job("large", *[16] * 100), _job("small", 5))
    batch = queue.batch()
    assert [job.id for job in batch.jobs] == ["large", "small"]
    (done,) = queue.apply(batch, _rows(batch))
    assert done.id == "small"
    assert len(queue) == 1


def test_clients_share_whatever_they_send() -> None:
    jobs = [_job(f"many-{n}", *[8] * 8, client="many") for n in range(9)]
    queue = _queue(*jobs, _job("few", *[8] * 8, client="few"))
    computed: Counter[str] = Counter()
    while computed["few"] < 8:
        batch = queue.batch()
        computed.update(job.client for job in batch.jobs)
        queue.apply(batch, _rows(batch))
    assert abs(computed["many"] - computed["few"]) <= TEXTS


def test_a_higher_priority_goes_first() -> None:
    queue = _queue(_job("low", 30, 30), _job("high", 30, priority=1))
    assert [job.id for job in queue.batch().jobs] == ["high"]


def test_a_long_text_has_a_batch_of_its_own() -> None:
    queue = _queue(_job("a", 100, 2))
    assert queue.batch().tokens == 100
    assert queue.batch().tokens == 2
    assert not queue.batch().texts


def test_what_was_dropped_is_not_finished() -> None:
    queue = _queue(_job("a", 2), _job("b", 2))
    batch = queue.batch()
    queue.drop("a")
    queue.drop("unknown")
    assert [job.id for job in queue.apply(batch, _rows(batch))] == ["b"]
    assert len(queue) == 0


def test_an_id_is_taken_once() -> None:
    queue = _queue(_job("a", 2))
    with pytest.raises(ValueError, match="a is already here"):
        queue.add(_job("a", 2))


class Life(RuleBasedStateMachine):
    """Requests come, go and are computed in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = _queue()
        self.waiting: dict[str, Job] = {}
        self.running: Batch | None = None
        self.names = 0

    @rule(
        lengths=st.lists(st.integers(1, 2 * TOKENS), min_size=1, max_size=9),
        client=st.sampled_from("abc"),
        priority=st.integers(-2, 2),
    )
    def add(self, lengths: list[int], client: str, priority: int) -> None:
        self.names += 1
        job = _job(str(self.names), *lengths, client=client, priority=priority)
        self.waiting[job.id] = job
        self.queue.add(job)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.drop(id)
        del self.waiting[id]

    @precondition(lambda self: self.running is None)
    @rule()
    def plan(self) -> None:
        batch = self.queue.batch()
        assert bool(batch.texts) == bool(self.waiting)
        assert len(batch.texts) <= TEXTS
        assert batch.tokens <= TOKENS or len(batch.texts) == 1
        self.running = batch if batch.texts else None

    @precondition(lambda self: self.running is not None)
    @rule()
    def compute(self) -> None:
        assert self.running is not None
        for job in self.queue.apply(self.running, _rows(self.running)):
            assert self.waiting.pop(job.id) is job
            assert [row[0] for row in job.rows] == list(range(len(job.texts)))
        self.running = None

    @invariant()
    def counts(self) -> None:
        assert len(self.queue) == len(self.waiting)
        left = sum(len(t) for job in self.waiting.values() for t in job.texts[job.taken :])
        assert self.queue.tokens == left


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=30)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_text_is_computed_once(lengths: list[int]) -> None:
    queue = _queue(_job("a", *lengths))
    texts = 0
    while len(queue):
        batch = queue.batch()
        texts += len(batch.texts)
        queue.apply(batch, _rows(batch))
    assert texts == len(lengths)
