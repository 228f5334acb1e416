"""The disk tier end to end: the real process, the real model, real files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inference.requests import ChatPrompt
from inference.status import EngineStats
from tests.inference.llamacpp.test_engine import (
    Answer,
    answer,
    assert_equal_up_to_near_ties,
    chat,
    request,
    running,
    settled,
)

pytestmark = pytest.mark.model

MIB = 1 << 20
RULES = " ".join(f"Rule {number}: be kind to river number {number * 7}." for number in range(7))


def prompt(topic: str) -> ChatPrompt:
    """Some 130 tokens, of which all but the last few are the topic's own."""
    return chat(f"{topic}. {RULES} Now say something about water.")


async def asked(engine: object, id: str, topic: str) -> Answer:
    found = await answer(engine, request(id, prompt(topic), max_tokens=12, logprobs=2))  # type: ignore[arg-type]
    assert found.finished is not None
    return found


def cached(found: Answer) -> int:
    assert found.finished is not None
    return found.finished.usage.cached_tokens


def test_a_prompt_survives_a_restart(default_model_path: Path, tmp_path: Path) -> None:
    async def once(topic: str, *, seconds: float = 60.0) -> tuple[Answer, EngineStats]:
        async with running(
            default_model_path,
            layout="split",  # the other one is below
            disk_bytes=200 * MIB,
            disk_dir=str(tmp_path / "kv"),
            disk_fetch_seconds=seconds,
        ) as engine:
            found = await asked(engine, "a", topic)
            await settled(engine)
            return found, engine.stats()

    async def scenario() -> None:
        first, before = await once("Rivers")
        assert cached(first) == 0
        assert before.disk_fetches == 0
        assert before.disk_total == 200 * MIB
        second, after = await once("Rivers")
        assert cached(second) > 100
        assert after.disk_fetches == 1
        assert after.disk_failures == 0
        assert_equal_up_to_near_ties(first, second)
        hasty, late = await once("Rivers", seconds=0.0)
        assert (cached(hasty) == 0) == (late.disk_fetch_timeouts == 1)
        assert_equal_up_to_near_ties(first, hasty)
        for place in tmp_path.rglob("*.kv"):
            content = bytearray(place.read_bytes())
            content[len(content) // 2] ^= 1
            place.write_bytes(content)
        third, refused = await once("Rivers")
        assert cached(third) == 0
        assert refused.disk_failures == 1
        assert_equal_up_to_near_ties(first, third)

    asyncio.run(scenario())


def test_what_host_memory_cannot_hold_comes_back_from_the_disk(
    default_model_path: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(
            default_model_path,
            layout="unified",
            host_memory_bytes=16 * MIB,  # three conversations, and what is being written
            disk_bytes=200 * MIB,
            disk_dir=str(tmp_path / "kv"),
            disk_fetch_seconds=60.0,
        ) as engine:
            first = await asked(engine, "a", "Rivers")
            for topic in ("Mountains", "Forests", "Clouds", "Roads"):
                await asked(engine, topic, topic)
            again = await asked(engine, "b", "Rivers")
            assert cached(first) == 0
            assert cached(again) > 100
            assert_equal_up_to_near_ties(first, again)
            stats = engine.stats()
            assert stats.disk_stores >= 1
            assert stats.disk_fetches == 1
            assert 0 < stats.disk_used <= stats.disk_total

    asyncio.run(scenario())
