"""One sequence's times and tokens, on their way into the metrics."""

from __future__ import annotations

from time import perf_counter
from typing import assert_never

from inference.events import Accepted, Delta, Event, Finished, Queued, Restarted, Started
from server.metrics import SequenceMetrics


class SequenceMeter:
    """Follows the events of one sequence. Times are `perf_counter` seconds.

    Mutable: everything; owned by the task that reads the events.
    """

    def __init__(self, metrics: SequenceMetrics, *, arrival: float) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._prompt_tokens = 0
        self._tokens = 0
        self._started: float | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._accepted = False
        self._ended = False

    def observe(self, event: Event) -> None:
        """Take note of the next event, now."""
        now = perf_counter()
        match event:
            case Delta():  # the most frequent first
                self._delta(event, now)
            case Accepted():
                self._accepted = True
                self._prompt_tokens = event.prompt_tokens
            case Queued():
                pass  # how long it waited in the end comes with `Started`
            case Restarted():
                pass  # the pause shows as one long gap between tokens
            case Started():
                # A preempted sequence starts again; its prompt was counted before.
                if self._started is None:
                    self._started = now
                    self._metrics.queue.observe(event.queue_seconds)
                    self._metrics.prompt_tokens.inc(self._prompt_tokens)
            case Finished():
                self._finished(event, now)
            case _:
                assert_never(event)

    def abandon(self, reason: str) -> None:
        """Count an end without `Finished`: "abort" or "error".

        A sequence that was refused never began, and one that ended is counted already.
        """
        if self._accepted and not self._ended:
            self._ended = True
            self._metrics.count_end(reason)

    def _delta(self, event: Delta, now: float) -> None:
        self._tokens += len(event.tokens)
        self._metrics.generation_tokens.inc(len(event.tokens))
        if event.tokens:
            if self._last is not None:
                # Tokens that come together came one after the other since the last.
                gap = (now - self._last) / len(event.tokens)
                for _ in event.tokens:
                    self._metrics.itl.observe(gap)
            self._last = now
        if self._first is None and (event.text or event.reasoning or event.calls):
            self._first = now
            self._metrics.ttft.observe(now - self._arrival)
            if self._started is not None:
                self._metrics.prefill.observe(now - self._started)

    def _finished(self, event: Finished, now: float) -> None:
        self._ended = True
        metrics = self._metrics
        metrics.count_end(event.reason.value)
        metrics.e2e.observe(now - self._arrival)
        metrics.request_prompt_tokens.observe(event.usage.prompt_tokens)
        metrics.request_generation_tokens.observe(event.usage.completion_tokens)
        if self._first is not None:
            metrics.decode.observe(now - self._first)
            if self._tokens > 1:
                metrics.tpot.observe((now - self._first) / (self._tokens - 1))
