"""The loop of an engine process that makes vectors: drain the inbox, compute a batch, report.

A batch is short, so that whoever goes is noticed soon and nobody waits behind a large
request.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Final, TypeAlias, assert_never

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.errors import EngineOverloaded
from inference.events import Accepted, Embeddings, Scores
from inference.llamacpp.embeddings.context import EmbeddingContext
from inference.llamacpp.embeddings.queue import EmbeddingQueue, Job
from inference.llamacpp.messages import (
    Abort,
    Embedded,
    Message,
    Park,
    Report,
    Resume,
    SequenceEvent,
    to_failure,
)
from inference.llamacpp.steploop import Close
from inference.status import EngineStats

LEARNING: Final = 0.1
"""How much of the difference the known price of a token follows at each batch."""

Command: TypeAlias = Job | Abort | Park | Resume | Close


class EmbeddingLoop:
    """Computes what is asked for, batch by batch.

    Mutable state, all of the loop's thread: the queue and the counters. Other threads only
    put into `inbox` and read `stats`.
    """

    def __init__(
        self,
        context: EmbeddingContext,
        *,
        send: Callable[[Message], object],
        batch_tokens: int,
        batch_texts: int,
        max_waiting: int,
        certain: bool = False,
    ) -> None:
        """`max_waiting` bounds the queue. `certain`: a model's scores are probabilities."""
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.stats = EngineStats(lanes_total=batch_texts)
        self._context = context
        self._send = send
        self._queue = EmbeddingQueue(batch_tokens=batch_tokens, batch_texts=batch_texts)
        self._max_waiting = max_waiting
        self._certain = certain

    def run(self) -> None:
        """Loop until `Close`. Raises `FatalDecode` when the context is lost."""
        while True:
            for command in self._drain(block=not self._queue):
                if isinstance(command, Close):
                    return
                self._obey(command)
            if self._queue:
                self._step()

    def _drain(self, *, block: bool) -> list[Command]:
        commands = [self.inbox.get()] if block else []
        while True:
            try:
                commands.append(self.inbox.get_nowait())
            except queue.Empty:
                return commands

    def _obey(self, command: Job | Abort | Park | Resume) -> None:
        match command:
            case Job():
                self._queue_job(command)
            case Abort(id=id):
                self._queue.drop(id)
            case Park() | Resume():
                pass  # nobody reads vectors slowly: they come all at once
            case _:
                assert_never(command)

    def _queue_job(self, job: Job) -> None:
        if len(self._queue) >= self._max_waiting:
            error = EngineOverloaded(f"{self._max_waiting} requests are waiting already.")
            self._report(SequenceEvent(id=job.id, event=to_failure(error)))
            return
        self._queue.add(job)
        self._report(SequenceEvent(id=job.id, event=Accepted(prompt_tokens=job.tokens)))

    def _step(self) -> None:
        began = time.monotonic()
        batch = self._queue.batch()
        rows = self._context.compute(batch.texts)
        seconds = time.monotonic() - began
        finished = self._queue.apply(batch, rows)
        self._count(batch.tokens, seconds)
        for job in finished:
            self._send(Embedded(id=job.id, value=self._value(job)))
        self._report()

    def _value(self, job: Job) -> Embeddings | Scores:
        rows, tokens = np.stack(job.rows), tuple(map(len, job.texts))
        if self._context.ranks:
            first = rows[:, 0].astype(np.float64)
            scores = first if self._certain else sigmoid(first)
            return Scores(scores=tuple(scores.tolist()), tokens=tokens)
        return Embeddings(
            length=self._context.length,
            vectors=normalised(rows).astype("<f4").tobytes(),
            tokens=tokens,
        )

    def _count(self, tokens: int, seconds: float) -> None:
        stats = self.stats
        before = stats.prefill_token_seconds
        price = seconds / tokens
        self.stats = msgspec.structs.replace(
            stats,
            steps=stats.steps + 1,
            prompt_tokens=stats.prompt_tokens + tokens,
            step_seconds=stats.step_seconds + seconds,
            decode_seconds=stats.decode_seconds + seconds,
            prefill_token_seconds=before + LEARNING * (price - before) if before else price,
        )

    def _report(self, *events: SequenceEvent) -> None:
        running, tokens = self._queue.started, self._queue.tokens
        self.stats = msgspec.structs.replace(
            self.stats,
            running=running,
            waiting=len(self._queue) - running,
            waiting_tokens=tokens,
            expected_wait_seconds=tokens * self.stats.prefill_token_seconds,
        )
        self._send(Report(events=events, stats=self.stats))


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its Euclidean length; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return result


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow for large values of either sign."""
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result
