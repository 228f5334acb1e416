"""Figures that are read when somebody asks: the engine's, and the `vllm:` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inference.conditions import Condition
from inference.slots import Phase
from inference.status import EngineHealth, EngineState, EngineStats
from server.admission import Admission
from server.metrics import ENGINE_LABEL, LABELS, PREFIX, VLLM_PREFIX
from server.models import Models

VLLM_NAMES = frozenset(
    {
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens",
        "generation_tokens",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "num_preemptions",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_accepted_tokens",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    }
)
"""The families vLLM has under the same name and meaning."""

Figures = Callable[[EngineStats, EngineHealth], float]


def _cache_usage(stats: EngineStats, _health: EngineHealth) -> float:
    return stats.cache_used / stats.cache_total if stats.cache_total else 0.0


def _host_usage(stats: EngineStats, _health: EngineHealth) -> float:
    return stats.host_used / stats.host_total if stats.host_total else 0.0


def _disk_usage(stats: EngineStats, _health: EngineHealth) -> float:
    return stats.disk_used / stats.disk_total if stats.disk_total else 0.0


GAUGES: tuple[tuple[str, str, Figures], ...] = (
    ("num_requests_running", "Sequences that hold a lane.", lambda s, h: s.running),
    ("num_requests_waiting", "Sequences in the engine's queue.", lambda s, h: s.waiting),
    ("num_requests_parked", "Sequences whose reader is slow.", lambda s, h: s.parked),
    (
        "queue_expected_wait_seconds",
        "When a request that came now might start.",
        lambda s, h: s.expected_wait_seconds,
    ),
    (
        "queue_tokens",
        "Tokens the waiting sequences have to prefill.",
        lambda s, h: s.waiting_tokens,
    ),
    ("lanes_total", "Lanes there are.", lambda s, h: s.lanes_total),
    ("kv_cache_usage_perc", "Share of cache cells that sequences hold, 0 to 1.", _cache_usage),
    ("kv_host_cache_usage_perc", "Share of the host memory for prefixes, 0 to 1.", _host_usage),
    ("kv_disk_cache_usage_perc", "Share of the disk for prefixes, 0 to 1.", _disk_usage),
    ("engine_up", "1 while the engine takes requests.", lambda s, h: h.state is EngineState.READY),
)
COUNTERS: tuple[tuple[str, str, Figures], ...] = (
    (
        "prefix_cache_queries",
        "Prompt tokens looked up in the cache.",
        lambda s, h: s.prefix_queries,
    ),
    ("prefix_cache_hits", "Prompt tokens found there.", lambda s, h: s.prefix_hits),
    ("num_preemptions", "Sequences that lost their cache for a while.", lambda s, h: s.preemptions),
    ("kv_disk_stores", "Prefixes written to the disk.", lambda s, h: s.disk_stores),
    ("kv_disk_fetches", "Prefixes read from there.", lambda s, h: s.disk_fetches),
    (
        "kv_disk_failures",
        "Prefixes that could not be written or read.",
        lambda s, h: s.disk_failures,
    ),
    (
        "kv_disk_fetch_timeouts",
        "Prefixes that were not read in time.",
        lambda s, h: s.disk_fetch_timeouts,
    ),
    (
        "device_sampled_tokens",
        "Tokens drawn in the model's graph, not on the host.",
        lambda s, h: s.device_sampled_tokens,
    ),
    ("spec_decode_num_draft_tokens", "Draft tokens computed.", lambda s, h: s.draft_tokens),
    (
        "spec_decode_num_accepted_tokens",
        "Draft tokens that were right.",
        lambda s, h: s.draft_tokens_accepted,
    ),
    ("engine_steps", "Batches decoded.", lambda s, h: s.steps),
    ("engine_step_seconds", "Time spent in steps.", lambda s, h: s.step_seconds),
    ("engine_decode_seconds", "Time llama.cpp took of them.", lambda s, h: s.decode_seconds),
    ("engine_restarts", "Times the engine was started again.", lambda s, h: h.restarts),
    ("engine_hangs", "Times of these that it was ended since no step came.", lambda s, h: h.hangs),
    ("engine_replays", "Sequences that went on in another engine process.", lambda s, h: h.replays),
    (
        "quarantined_requests",
        "Sequences given up because the engine ended each time it ran them.",
        lambda s, h: h.quarantined,
    ),
)


class EngineCollector(Collector):
    """Reads the snapshots of all engines at each scrape, each under its model's name.

    Their counters begin again with every engine process, which Prometheus' `rate` allows
    for. A model that is not loaded has none of these figures.
    """

    def __init__(self, models: Models, admission: Admission, labels: tuple[str, ...]) -> None:
        self._models = models
        self._admission = admission
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each figure."""
        read = [
            ((id, ENGINE_LABEL), engine.stats(), engine.health())
            for id, engine in self._models.fleet.engines()
        ]
        for name, text, figure in GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
            for labels, stats, health in read:
                gauge.add_metric(labels, figure(stats, health))
            yield gauge
        for name, text, figure in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
            for labels, stats, health in read:
                counter.add_metric(labels, figure(stats, health))
            yield counter
        in_flight = GaugeMetricFamily(
            PREFIX + "requests_in_flight", "Requests past admission.", labels=LABELS
        )
        in_flight.add_metric(self._labels, self._admission.in_flight)
        yield in_flight


MODEL_GAUGES: tuple[tuple[str, str, Callable[[Condition], float]], ...] = (
    ("model_loaded", "1 while the model is loaded.", lambda c: c.phase is Phase.LOADED),
    ("model_failed", "1 while it cannot be loaded.", lambda c: c.phase is Phase.FAILED),
    ("model_leases", "Requests that use it; not told of the default model.", lambda c: c.leases),
    ("model_waiting", "Requests that wait for it to be loaded.", lambda c: c.waiting),
    ("model_memory_bytes", "Memory accounted for it.", lambda c: c.held_bytes),
)
MODEL_COUNTERS: tuple[tuple[str, str, Callable[[Condition], float]], ...] = (
    ("model_loads", "Times the model was loaded on demand.", lambda c: c.loads),
    ("model_load_failures", "Times it could not be.", lambda c: c.load_failures),
    ("model_load_seconds", "Time that these loads took.", lambda c: c.load_seconds),
    ("model_unloads", "Times it was unloaded.", lambda c: c.unloads),
)


class ModelCollector(Collector):
    """Reads at each scrape which models are loaded, and what became of them so far."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each figure."""
        conditions = self._models.fleet.conditions()
        for name, text, figure in MODEL_GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
            for condition in conditions:
                gauge.add_metric((condition.id, ENGINE_LABEL), figure(condition))
            yield gauge
        for name, text, figure in MODEL_COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
            for condition in conditions:
                counter.add_metric((condition.id, ENGINE_LABEL), figure(condition))
            yield counter


class WithVllmNames(Collector):
    """A registry's families, each followed by its twin under vLLM's name if it has one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the registry's own families and the twins."""
        for family in self._registry.collect():
            yield family
            name = family.name.removeprefix(PREFIX)
            if name in VLLM_NAMES:
                twin = Metric(VLLM_PREFIX + name, family.documentation, family.type)
                for sample in family.samples:
                    twin.samples.append(
                        sample._replace(name=VLLM_PREFIX + sample.name.removeprefix(PREFIX))
                    )
                yield twin
