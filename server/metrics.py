"""What is measured at the edge, under the names that dashboards already query.

Definitions. *TTFT*: from the request's arrival, before its body is read, to the first
delta that carries text. *ITL*: from one token to the next, for each but the first; the
tokens of one delta, which came one soon after the other, share the time since the delta
before evenly. *TPOT*: (end to end − TTFT) / (tokens − 1). *End to end*: from arrival to
the last event. *Queue*: from the engine's taking the request to its first lane.
*Prefill*: from that lane to the first delta with text. *Decode*: from there to the end.
All in seconds. Each sequence counts: a request with `n` = 3 appears three times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.tallies import Spreads, Tallies

PREFIX = "headrace_"
VLLM_PREFIX = "vllm:"
ENGINE_LABEL = "0"

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
LATENCY_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20),
    *(30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
TOKEN_BUCKETS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))

LABELS = ("model_name", "engine")

DEADLINES = (
    *("head", "body", "keep_alive", "write", "peer", "websocket_pong", "websocket_idle"),
    *("load", "queue", "first_token", "between_tokens", "response", "drain"),
)
"""Every deadline that is counted: its setting's name without `_seconds`."""

REFUSALS = (
    *("client_requests", "client_connections", "requests_per_minute", "tokens_per_minute"),
    *("server_requests", "queue_ttft"),
)
"""Every limit by which admission refuses."""


class SequenceMetrics:
    """The instruments for the sequences of one model."""

    def __init__(self, families: _SequenceFamilies, model_name: str) -> None:
        labels = (model_name, ENGINE_LABEL)
        self.ttft = families.ttft.labels(*labels)
        self.itl = families.itl.labels(*labels)
        self.tpot = families.tpot.labels(*labels)
        self.e2e = families.e2e.labels(*labels)
        self.queue = families.queue.labels(*labels)
        self.prefill = families.prefill.labels(*labels)
        self.decode = families.decode.labels(*labels)
        self.request_prompt_tokens = families.request_prompt_tokens.labels(*labels)
        self.request_generation_tokens = families.request_generation_tokens.labels(*labels)
        self.prompt_tokens = families.prompt_tokens.labels(*labels)
        self.generation_tokens = families.generation_tokens.labels(*labels)
        self._ends = {
            reason: families.success.labels(*labels, reason)
            for reason in ("stop", "length", "tool_calls", "abort", "error")
        }

    def count_end(self, finished_reason: str) -> None:
        """Count one sequence's end."""
        self._ends[finished_reason].inc()


class _SequenceFamilies:
    """What is measured of sequences, for all models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(PREFIX + name, text, LABELS, buckets=buckets, registry=registry)

        def seconds(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return histogram(name + "_seconds", text, buckets)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(PREFIX + name, text, (*LABELS, *more), registry=registry)

        self.ttft = seconds(
            "time_to_first_token", "Time from arrival to the first text.", TTFT_BUCKETS
        )
        self.itl = Spreads(
            PREFIX + "inter_token_latency_seconds",
            "Time of a token since the one before; tokens that came together share it.",
            LABELS,
            buckets=ITL_BUCKETS,
            registry=registry,
        )
        self.tpot = seconds(
            "request_time_per_output_token", "Mean time of a token after the first.", ITL_BUCKETS
        )
        self.e2e = seconds("e2e_request_latency", "Time from arrival to the end.", LATENCY_BUCKETS)
        self.queue = seconds(
            "request_queue_time", "Time in the queue before the first lane.", LATENCY_BUCKETS
        )
        self.prefill = seconds(
            "request_prefill_time", "Time from the first lane to the first text.", LATENCY_BUCKETS
        )
        self.decode = seconds(
            "request_decode_time", "Time from the first text to the end.", LATENCY_BUCKETS
        )
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a sequence.", TOKEN_BUCKETS
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Generated tokens of a sequence.", TOKEN_BUCKETS
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of sequences that got a lane.")
        self.generation_tokens = Tallies(
            PREFIX + "generation_tokens", "Tokens generated.", LABELS, registry=registry
        )
        self.success = counter(
            "request_success",
            "Sequences that were accepted and ended, by how: stop, length, tool_calls, "
            "abort or error.",
            "finished_reason",
        )


class Metrics:
    """The instruments of one application, on a registry of its own.

    What no model is the cause of carries the default model's name. Mutable: the
    instruments by model, made when a model is first named.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.labels = (model_name, ENGINE_LABEL)
        self._families = _SequenceFamilies(self.registry)
        self._of_model: dict[str, SequenceMetrics] = {}
        self.of(model_name)
        self._streams = Counter(
            PREFIX + "stream_outcomes",
            "Streams that began, by how they ended: completed, disconnected, error, stopped.",
            (*LABELS, "outcome"),
            registry=self.registry,
        )
        self._responses = Counter(
            PREFIX + "http_responses",
            "HTTP responses by route and status; 499 is a client that went first.",
            (*LABELS, "route", "status"),
            registry=self.registry,
        )
        self._refusals = Counter(
            PREFIX + "requests_refused",
            "Requests that admission refused, by which limit.",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self._deadlines = Counter(
            PREFIX + "deadline_exceeded",
            "Deadlines that passed, by the name of their setting without _seconds.",
            (*LABELS, "deadline"),
            registry=self.registry,
        )
        self._gauge("tasks", "Tasks of the server's event loop.").set_function(_tasks)
        self.connections = self._gauge("connections", "Open connections.")
        self.connections_idle = self._gauge(
            "connections_idle", "Open connections on which no request is running."
        )
        self.websockets = self._gauge("websockets", "Open WebSockets.")
        self.connections_evicted = self._counter(
            "connections_evicted", "Idle connections that were closed for a newcomer."
        )
        self.connections_refused = self._counter(
            "connections_refused", "Requests answered 503 because all connections were taken."
        )
        for refusal in REFUSALS:
            self._refusals.labels(*self.labels, refusal)
        for deadline in DEADLINES:
            self._deadlines.labels(*self.labels, deadline)
        for outcome in ("completed", "disconnected", "error", "stopped"):
            self._streams.labels(*self.labels, outcome)

    def of(self, model_name: str) -> SequenceMetrics:
        """The instruments of one of this server's models; never a client's text."""
        found = self._of_model.get(model_name)
        if found is None:
            found = self._of_model[model_name] = SequenceMetrics(self._families, model_name)
        return found

    def count_stream(self, outcome: str) -> None:
        """Count one stream's end."""
        self._streams.labels(*self.labels, outcome).inc()

    def count_refusal(self, reason: str) -> None:
        """Count a request that was refused: one of `REFUSALS`."""
        self._refusals.labels(*self.labels, reason).inc()

    def count_deadline(self, deadline: str) -> None:
        """Count a deadline that passed: one of `DEADLINES`."""
        self._deadlines.labels(*self.labels, deadline).inc()

    def count_response(self, route: str, status: int) -> None:
        """Count one HTTP response. `route` is a path template, never a client's text."""
        self._responses.labels(*self.labels, route, str(status)).inc()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(PREFIX + name, text, LABELS, registry=self.registry).labels(*self.labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, LABELS, registry=self.registry).labels(*self.labels)


def _tasks() -> float:
    """How many tasks the running loop has; 0 where a registry is read outside of one."""
    try:
        return float(len(asyncio.all_tasks()))
    except RuntimeError:
        return 0.0
