"""What Prometheus finds at `/metrics`."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from inference.events import Accepted, Delta, Finished, FinishReason, Started, Usage
from inference.scripted import Rule, Script
from server import meter as meter_module
from server.collectors import VLLM_NAMES
from server.meter import SequenceMeter
from server.metrics import ITL_BUCKETS, TTFT_BUCKETS, Metrics
from server.settings import Settings
from tests.server.harness import Running, run, samples, serving

HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
)


async def complete(running: Running, **fields: Any) -> None:
    body = {"model": "default", "prompt": "x", "max_tokens": 4, **fields}
    async with httpx2.AsyncClient(base_url=running.url) as client:
        (await client.post("/v1/completions", json=body)).raise_for_status()


def test_a_finished_request_is_in_every_figure() -> None:
    async def scenario() -> None:
        async with serving(Script()) as running:
            await complete(running)
            await complete(running, n=2, stream=True)
            found = await running.metrics()
            for name in HISTOGRAMS:
                times = 9 if name == "inter_token_latency_seconds" else 3
                assert found[f"headrace_{name}_count"] == times, name
            assert found["headrace_prompt_tokens_total"] == 3
            assert found["headrace_generation_tokens_total"] == 12
            assert found["headrace_request_success_total{finished_reason=length}"] == 3
            assert found["headrace_stream_outcomes_total{outcome=completed}"] == 1
            assert found["headrace_lanes_total"] == 16
            assert found["headrace_engine_up"] == 1
            assert found["headrace_num_requests_running"] == 0
            assert found["headrace_num_requests_waiting"] == 0
            assert found["headrace_kv_cache_usage_perc"] == 0
            assert found["headrace_prefix_cache_queries_total"] == 0
            assert found["headrace_prefix_cache_hits_total"] == 0
            assert found["headrace_num_preemptions_total"] == 0
            assert found["headrace_http_responses_total{route=/v1/completions,status=200}"] == 2
            assert not any(name.startswith("vllm") for name in found)

    run(scenario())


@pytest.mark.parametrize("by_setting", [True, False])
def test_vllms_names_show_the_same_figures(by_setting: bool) -> None:
    async def scenario() -> None:
        async with serving(Script(), settings=Settings(vllm_metrics=by_setting)) as running:
            await complete(running)
            query = {} if by_setting else {"names": "vllm"}
            found = await running.metrics(**query)
            for name in VLLM_NAMES:
                ours = {
                    k.removeprefix("headrace_"): v
                    for k, v in found.items()
                    if name in k and k.startswith("headrace_")
                }
                theirs = {
                    k.removeprefix("vllm:"): v
                    for k, v in found.items()
                    if name in k and k.startswith("vllm:")
                }
                assert theirs, name
                assert theirs.items() <= ours.items()

    run(scenario())


def test_labels_and_formats() -> None:
    async def scenario() -> None:
        async with (
            serving(Script()) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            plain = await client.get("/metrics", params={"names": "vllm"})
            assert plain.headers["content-type"].startswith("text/plain")
            assert 'vllm:num_requests_running{engine="0",model_name="scripted"} 0.0' in plain.text
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            modern = await client.get("/metrics", headers=accept)
            assert modern.headers["content-type"].startswith("application/openmetrics-text")
            assert modern.text.endswith("# EOF\n")

    run(scenario())


def test_the_label_of_a_route_is_bounded() -> None:
    async def scenario() -> None:
        async with (
            serving(Script()) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
                assert (await client.get(path)).status_code == 404
            found = await running.metrics()
            assert found["headrace_http_responses_total{route=other,status=404}"] == 2
            named = "headrace_http_responses_total{route=/v1/models/{name:path},status=404}"
            assert found[named] == 2

    run(scenario())


def test_a_running_request_shows_in_the_gauges() -> None:
    async def scenario() -> None:
        script = Script(lanes=1, rules=(Rule(token_seconds=3600.0),))
        async with serving(script) as running:
            body = {"model": "default", "prompt": "x", "stream": True}
            connections = [await running.send("/v1/completions", body) for _ in range(2)]
            await running.engine.saw("Accepted", times=2)
            await running.engine.saw("Delta")
            found = await running.metrics()
            assert found["headrace_num_requests_running"] == 1
            assert found["headrace_num_requests_waiting"] == 1
            assert found["headrace_lanes_total"] == 1
            assert found["headrace_requests_in_flight"] == 2
            assert found["headrace_time_to_first_token_seconds_count"] == 1
            for _, writer in connections:
                writer.transport.abort()
            await running.engine.saw("closed", times=2)

    run(scenario())


def test_times_follow_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.5, 11.0, 11.25, 12.0, 12.5, 13.0])
    monkeypatch.setattr(meter_module, "perf_counter", lambda: next(times))
    metrics = Metrics("m")
    meter = SequenceMeter(metrics.of("m"), arrival=10.0)
    meter.observe(Accepted(prompt_tokens=5))
    meter.observe(Started(cached_tokens=0, queue_seconds=0.5))
    meter.observe(Delta(text="", tokens=(1,)))  # half a character
    meter.observe(Delta(text="é", tokens=(2,)))
    meter.observe(Delta(text="a b", tokens=(3, 4)))
    usage = Usage(prompt_tokens=5, completion_tokens=4)
    meter.observe(Finished(reason=FinishReason.STOP, usage=usage))
    meter.abandon("abort")

    def total(name: str) -> float | None:
        return metrics.registry.get_sample_value(
            f"headrace_{name}", {"model_name": "m", "engine": "0"}
        )

    assert total("time_to_first_token_seconds_sum") == 2.0
    assert total("inter_token_latency_seconds_sum") == 1.25
    assert total("inter_token_latency_seconds_count") == 3  # two of the tokens came together
    assert total("request_time_per_output_token_seconds_sum") == pytest.approx(1.0 / 3)
    assert total("e2e_request_latency_seconds_sum") == 3.0
    assert total("request_queue_time_seconds_sum") == 0.5
    assert total("request_prefill_time_seconds_sum") == 1.0
    assert total("request_decode_time_seconds_sum") == 1.0
    ends = {"model_name": "m", "engine": "0", "finished_reason": "abort"}
    assert metrics.registry.get_sample_value("headrace_request_success_total", ends) == 0


def test_the_buckets_are_those_of_existing_dashboards() -> None:
    assert TTFT_BUCKETS[:4] == (0.001, 0.005, 0.01, 0.02)
    assert TTFT_BUCKETS[-3:] == (160, 640, 2560)
    assert (len(TTFT_BUCKETS), len(ITL_BUCKETS)) == (22, 19)


def test_two_applications_share_no_figures() -> None:
    async def scenario() -> None:
        async with serving(Script()) as one, serving(Script()) as two:
            await complete(one)
            assert (await one.metrics())["headrace_generation_tokens_total"] == 4
            assert (await two.metrics())["headrace_generation_tokens_total"] == 0

    run(scenario())


def test_the_parser_of_these_tests_keeps_labels() -> None:
    assert samples('a{b="c",engine="0"} 1\n') == {"a{b=c}": 1.0}
