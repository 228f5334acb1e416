"""Requests for vectors over a real process that can misbehave, and without any process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inference.child import Deadlines
from inference.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    RequestQuarantined,
)
from inference.events import Accepted, Embeddings
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.embeddings.calls import EmbeddingCalls
from inference.llamacpp.messages import (
    Abort,
    Embed,
    Embedded,
    Failure,
    Message,
    SequenceEvent,
    WorkerConfig,
)
from inference.requests import ChatPrompt, EmbeddingRequest, RerankRequest, TextPrompt
from inference.status import EngineState
from inference.supervisor import RestartPolicy

POLICY = RestartPolicy(
    first_delay_seconds=0.001,
    delay_max_seconds=0.002,
    failed_starts_max=3,
    deadlines=Deadlines(goodbye_seconds=0.05, terminate_seconds=0.05),
)
ANSWER = Embeddings(length=1, vectors=b"\0\0\0\0", tokens=(1,))


def request(text: str, *, id: str = "e") -> EmbeddingRequest:
    return EmbeddingRequest(id=id, inputs=(TextPrompt(text=text),))


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[LlamaCppEngine]:
    made = LlamaCppEngine(
        WorkerConfig(model_id="test", model_path="none"),
        command=(sys.executable, "-m", "tests.inference.worker"),
        policy=POLICY,
        **options,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def log(running: LlamaCppEngine) -> list[str]:
    return (await running.apply_template(ChatPrompt(messages=()))).splitlines()


@pytest.mark.anyio
async def test_an_answer_reaches_whoever_asked() -> None:
    async with engine() as running:
        texts = ("a", "bb", "ccc")
        answers = await asyncio.gather(*(running.embed(request(text)) for text in texts))
        assert [each.vectors for each in answers] == [
            b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40", b"\x00\x00\x40\x40"
        ]  # fmt: skip
        with pytest.raises(InvalidRequest, match="no such input") as caught:
            await running.embed(request("refuse"))
        assert caught.value.param == "input[0]"


@pytest.mark.anyio
async def test_cancelling_tells_the_process() -> None:
    async with engine() as running:
        waiting = asyncio.ensure_future(running.embed(request("wait")))
        while not (said := [line for line in await log(running) if line.startswith("embed")]):
            pass
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert f"abort {said[0].split()[1]}" in await log(running)
        assert not running.owes_steps


@pytest.mark.anyio
async def test_what_ends_each_process_is_kept_out_and_the_others_go_on() -> None:
    async with engine() as running:
        bad = asyncio.ensure_future(running.embed(request("die", id="bad")))
        good = [asyncio.ensure_future(running.embed(request("wait", id=f"w{n}"))) for n in (1, 2)]
        with pytest.raises(RequestQuarantined):
            await bad
        assert running.health().quarantined == 1
        assert not any(task.done() for task in good)
        for task in good:
            task.cancel()
        await asyncio.gather(*good, return_exceptions=True)
        while running.health().state is not EngineState.READY:
            await running.state_changed()
        assert (await running.embed(request("after"))).tokens == (1,)


@pytest.mark.anyio
async def test_closing_ends_all() -> None:
    async with engine() as running:
        waiting = asyncio.ensure_future(running.embed(request("wait")))
        await log(running)
    with pytest.raises(EngineUnavailable):
        await waiting


@pytest.mark.anyio
async def test_what_has_no_encoding_or_is_out_of_range_is_refused() -> None:
    async with engine() as running:
        with pytest.raises(InvalidRequest, match="not Unicode"):
            await running.embed(request("\ud800"))
        with pytest.raises(InvalidRequest, match="out of range"):
            await running.embed(EmbeddingRequest(id="e", inputs=()))
        with pytest.raises(InvalidRequest, match="out of range"):
            await running.rerank(RerankRequest(id="e", query="a", documents=()))
        assert (await running.embed(request("a"))).length == 1


class Process:
    """What is sent, without a process."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.calls = EmbeddingCalls(self.sent.append, replay_seconds=0.0)

    @property
    def embeds(self) -> list[str]:
        return [each.request.id for each in self.sent if isinstance(each, Embed)]

    async def ask(self, *texts: str) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.ensure_future(self.calls.ask(request(text))) for text in texts]
        await asyncio.sleep(0)
        return tasks


@pytest.mark.anyio
async def test_after_an_end_they_return_one_by_one() -> None:
    process = Process()
    process.calls.on_ready()
    tasks = await process.ask("a", "b")
    first, second = process.embeds
    process.calls.on_down()
    process.calls.on_ended(killed=False)
    late = await process.ask("c")
    process.calls.on_ready()
    assert process.embeds[2:] == [first]
    process.calls.answered(Embedded(id=first, value=ANSWER))
    await tasks[0]
    assert process.embeds[3:] == [second]
    process.calls.answered(Embedded(id=second, value=ANSWER))
    await tasks[1]
    (third,) = process.embeds[4:]
    process.calls.dispatch(
        SequenceEvent(id=third, event=Failure(code="invalid_request", text="no"))
    )
    with pytest.raises(InvalidRequest):
        await late[0]
    assert process.calls.replays == 2
    assert len(process.calls) == 0
    assert not any(isinstance(each, Abort) for each in process.sent)


@pytest.mark.anyio
async def test_without_a_process_they_end_in_time() -> None:
    process = Process()
    process.calls.on_ready()
    tasks = await process.ask("a")
    process.calls.on_down()
    with pytest.raises(EngineDied):
        await tasks[0]


@pytest.mark.anyio
async def test_only_what_was_accepted_owes_steps() -> None:
    process = Process()
    process.calls.on_ready()
    tasks = await process.ask("a")
    assert not process.calls.owes_steps
    (id,) = process.embeds
    process.calls.dispatch(SequenceEvent(id=id, event=Accepted(prompt_tokens=1)))
    assert process.calls.owes_steps
    process.calls.answered(Embedded(id="unknown", value=ANSWER))
    process.calls.answered(Embedded(id=id, value=ANSWER))
    process.calls.answered(Embedded(id=id, value=ANSWER))
    assert await tasks[0] == ANSWER
    assert not process.calls.owes_steps


@pytest.mark.anyio
async def test_held_ones_end_with_the_engine() -> None:
    process = Process()
    tasks = await process.ask("a")
    process.calls.end_all(lambda: EngineError("over"))
    with pytest.raises(EngineError, match="over"):
        await tasks[0]
    assert process.embeds == []
