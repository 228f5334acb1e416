"""What is measured about logs and their store."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.metrics import LABELS, PREFIX
from server.streams.events import State

FLUSH_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class StreamMetrics:
    """The instruments of one application's streams, on its registry.

    `labels` are the values of `server.metrics.LABELS`.
    """

    def __init__(self, registry: CollectorRegistry, labels: tuple[str, str]) -> None:
        self._labels = labels
        self.live = Gauge(
            PREFIX + "stream_responses_live",
            "Responses that are queued or in progress.",
            LABELS,
            registry=registry,
        ).labels(*labels)
        self.entries = Counter(
            PREFIX + "stream_store_entries", "Entries stored.", LABELS, registry=registry
        ).labels(*labels)
        self.flush = Histogram(
            PREFIX + "stream_store_flush_seconds",
            "Time of one transaction with the new entries of all logs.",
            LABELS,
            buckets=FLUSH_BUCKETS,
            registry=registry,
        ).labels(*labels)
        self.failing = Gauge(
            PREFIX + "stream_store_failing",
            "1 while the store takes nothing and streams go on without it.",
            LABELS,
            registry=registry,
        ).labels(*labels)
        self.lost = Counter(
            PREFIX + "stream_store_lost",
            "Responses that are not stored to their end because the store failed.",
            LABELS,
            registry=registry,
        ).labels(*labels)
        self.detached = Counter(
            PREFIX + "stream_responses_detached",
            "Responses that were ended because their readers had gone and stayed away.",
            LABELS,
            registry=registry,
        ).labels(*labels)
        self._ended = Counter(
            PREFIX + "stream_responses_ended",
            "Responses that ended, by state.",
            (*LABELS, "state"),
            registry=registry,
        )
        self._failures = Counter(
            PREFIX + "stream_store_failures",
            "Attempts to use the store that failed, by reason.",
            (*LABELS, "reason"),
            registry=registry,
        )
        for state in State:
            if state.final:
                self._ended.labels(*labels, state)

    def count_end(self, state: State) -> None:
        """Count one response's end."""
        self._ended.labels(*self._labels, state).inc()

    def count_failure(self, reason: str) -> None:
        """Count one failure of the store. `reason` is `StoreError.reason`."""
        self._failures.labels(*self._labels, reason).inc()
