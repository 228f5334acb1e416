"""The queue as clients see it: comments in streams, `GET /v1/queue`, figures."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from inference.events import Accepted, Delta, Finished, FinishReason, Queued, Started, Usage
from inference.scripted import Rule, Script, Wait
from server.auth import ApiKeys
from server.queueboard import Listing, QueueBoard
from tests.server.harness import Running, run, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FOR_EVER = Rule(match="for ever", token_seconds=3600.0)
PLACED = Rule(
    match="placed",
    reply="at last",
    queued=(Wait(position=3, expected_seconds=1.44), Wait(position=1)),
)
PLACES = [
    ": queued position=3 expected_start_seconds=1.4",
    ": queued position=1 expected_start_seconds=0.0",
]


def asking(text: str, path: str = TEXT, **fields: object) -> dict[str, Any]:
    if path == TEXT:
        return {"model": "default", "prompt": text, **fields}
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize(("path", "n"), [(CHAT, 1), (TEXT, 1), (CHAT, 2), (TEXT, 2)])
def test_a_stream_says_the_place_of_its_first_choice(path: str, n: int) -> None:
    async def scenario() -> str:
        async with (
            serving(Script(rules=(PLACED,))) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            answer = await client.post(path, json=asking("placed", path, stream=True, n=n))
            assert answer.status_code == 200
            return answer.text

    lines = [line for line in run(scenario()).split("\n") if line]
    assert [line for line in lines if line.startswith(":")] == PLACES
    assert lines[-1] == "data: [DONE]"
    if n == 1:  # what the second choice says may come in between
        first = next(at for at, line in enumerate(lines) if '"at' in line or '"a"' in line)
        assert max(map(lines.index, PLACES)) < first


async def queue_of(running: Running, **headers: str) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=running.url, headers=headers) as client:
        answer = await client.get("/v1/queue")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found


def test_a_client_sees_its_own_requests_and_everybodys_totals() -> None:
    async def scenario() -> None:
        script = Script(lanes=1, expected_wait_seconds=2.5, rules=(FOR_EVER,))
        keys = ApiKeys(["one", "two"])
        async with (
            serving(script, keys=keys) as running,
            httpx2.AsyncClient(base_url=running.url) as client,
        ):
            mine, other = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
            body = asking("for ever", stream=True, max_tokens=5)
            async with client.stream("POST", TEXT, json=body, headers=mine) as first:
                await running.engine.saw("Delta")
                async with client.stream("POST", TEXT, json=body, headers=mine) as second:
                    await running.engine.saw("Queued")
                    seen = await queue_of(running, **mine)
                    assert [item["status"] for item in seen["data"]] == ["running", "waiting"]
                    assert [item["position"] for item in seen["data"]] == [None, 1]
                    waiting = seen["data"][1]
                    assert waiting["expected_start_seconds"] == 0.0
                    assert waiting["prompt_tokens"] == len("for ever")
                    assert waiting["sequences_waiting"] == waiting["sequences"] == 1
                    assert waiting["age_seconds"] >= 0
                    assert seen["totals"] == {
                        "running": 1,
                        "waiting": 1,
                        "parked": 0,
                        "lanes": 1,
                        "waiting_tokens": len("for ever"),
                        "expected_wait_seconds": 2.5,
                    }
                    others = await queue_of(running, **other)
                    assert others["data"] == []
                    assert others["totals"] == seen["totals"]
                    assert (await client.get("/v1/queue")).status_code == 401
                    assert running.sample("queue_expected_wait_seconds") == 2.5
                    assert running.sample("queue_tokens") == len("for ever")
                    assert first.status_code == second.status_code == 200
            await running.engine.saw("closed", times=2)
            assert (await queue_of(running, **mine))["data"] == []

    run(scenario())


def listing(sequences: int) -> Listing:
    return QueueBoard().enter("r", "", sequences=sequences)


def test_a_request_stands_where_its_next_sequence_stands() -> None:
    shown = listing(3)
    assert shown.place(0.0) == (None, None)
    for index in range(3):
        shown.observe(index, Accepted(prompt_tokens=4))
    shown.observe(1, Queued(position=7, expected_seconds=2.0))
    shown.observe(2, Queued(position=8, expected_seconds=3.0))
    position, seconds = shown.place(shown.since)
    assert position == 7
    assert seconds is not None
    assert seconds >= 2.0  # it was told after that moment
    shown.observe(1, Started(cached_tokens=0, queue_seconds=0.0))
    assert shown.place(shown.since)[0] == 8
    assert shown.prompt_tokens == 12


def test_an_expectation_counts_down_and_never_below_zero() -> None:
    shown = listing(1)
    shown.observe(0, Queued(position=1, expected_seconds=2.0))
    assert shown.place(shown.since + 1e9) == (1, 0.0)


def test_who_lost_its_lane_waits_again_until_it_goes_on() -> None:
    shown = listing(1)
    shown.observe(0, Started(cached_tokens=0, queue_seconds=0.0))
    assert not shown.waiting
    shown.observe(0, Queued(position=1, expected_seconds=0.0))
    assert shown.waiting
    shown.observe(0, Delta(text="x", tokens=(1,)))
    assert not shown.waiting
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    shown.observe(0, Finished(reason=FinishReason.STOP, usage=usage))
    assert not shown.waiting
