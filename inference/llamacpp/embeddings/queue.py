"""Which texts are computed next: requests in parts, fair between clients.

Pure: it knows tokens and rows of numbers, and nothing of llama.cpp or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.llamacpp.scheduling.fairshare import FairShares


@dataclass(slots=True, kw_only=True)
class Job:
    """One request: its texts as tokens, and the rows that are there already.

    Mutable: `taken`, how many texts have been given out, and `rows`; the queue owns them.
    """

    id: str
    client: str
    priority: int
    texts: Sequence[Sequence[int]]
    taken: int = 0
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    order: int = 0
    since: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all its texts."""
        return sum(map(len, self.texts))

    @property
    def done(self) -> bool:
        """Whether all rows are there."""
        return len(self.rows) == len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Texts to compute together; `jobs` has the one that each belongs to."""

    jobs: tuple[Job, ...]
    texts: tuple[Sequence[int], ...]

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, self.texts))


class EmbeddingQueue:
    """The requests that are not done, by id.

    Mutable: the jobs, what their clients were served, and `tokens`, those that were not
    given out yet. Owner: the embedding loop.
    """

    def __init__(self, *, batch_tokens: int, batch_texts: int) -> None:
        """A batch has `batch_tokens` at most, or one text that is longer by itself."""
        self._batch_tokens = batch_tokens
        self._batch_texts = batch_texts
        self._jobs: dict[str, Job] = {}
        self._shares = FairShares()
        self._orders = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def started(self) -> int:
        """Requests of which some text was computed, or is."""
        return sum(job.taken > 0 for job in self._jobs.values())

    def add(self, job: Job) -> None:
        """Queue a request. Raises `ValueError` when its id is taken."""
        if job.id in self._jobs:
            raise ValueError(f"{job.id} is already here")
        self._orders += 1
        job.order = self._orders
        self._shares.enter(job.client)
        job.since = self._shares.total
        self._jobs[job.id] = job
        self.tokens += job.tokens

    def drop(self, id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        job = self._jobs.pop(id, None)
        if job is not None:
            self._shares.leave(job.client)
            self.tokens -= sum(map(len, job.texts[job.taken :]))

    def batch(self) -> Batch:
        """The texts to compute next; none when nobody waits.

        Text by text, the client that was served least comes first. The batch ends where
        the next text does not fit, or a long one would wait for ever.
        """
        jobs: list[Job] = []
        texts: list[Sequence[int]] = []
        room = self._batch_tokens
        while len(texts) < self._batch_texts:
            open_jobs = [job for job in self._jobs.values() if job.taken < len(job.texts)]
            if not open_jobs:
                break
            job = min(open_jobs, key=self._rank)
            text = job.texts[job.taken]
            if texts and len(text) > room:
                break
            room -= len(text)
            job.taken += 1
            self.tokens -= len(text)
            self._shares.charge(job.client, prompt=len(text), generated=0)
            jobs.append(job)
            texts.append(text)
        return Batch(jobs=tuple(jobs), texts=tuple(texts))

    def apply(self, batch: Batch, rows: NDArray[np.float32]) -> list[Job]:
        """Take in the rows of a batch; returns the requests that are done with it.

        They have left. Those that were dropped meanwhile are passed over.
        """
        finished = []
        for job, row in zip(batch.jobs, rows, strict=True):
            job.rows.append(row)
            if job.done and self._jobs.get(job.id) is job:
                self.drop(job.id)
                finished.append(job)
        return finished

    def _rank(self, job: Job) -> tuple[int, int, int]:
        return (
            *self._shares.rank(job.client, priority=job.priority, since=job.since),
            job.order,
        )
