"""The WebSocket with the real model: begun, read, stopped, resumed after the connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from server.wire.websocket import FORMATS, Format
from tests.server.modelserver import run, served
from tests.server.websocket.talking import talking, text_of

pytestmark = pytest.mark.model


@dataclass(frozen=True)
class At:
    """A server in another process."""

    port: int


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.subprotocol)
def test_create_stream_stop_and_resume(
    format: Format, default_model_path: Path, tmp_path: Path
) -> None:
    variables = {
        "HEADRACE_STREAM_STORE": "sqlite",
        "HEADRACE_DATA_DIR": str(tmp_path),
        "HEADRACE_COALESCE_MS": "0",
    }

    async def scenario() -> None:
        async with served(default_model_path, "--lanes", "2", variables=variables) as server:
            port = server.client.base_url.port
            assert port is not None
            asked = {"temperature": 0, "ignore_eos": True}
            async with talking(At(port), format) as talk:
                stopped_id = await talk.created(
                    "long", "Go on.", resumable=True, max_tokens=1500, **asked
                )
                seen = await talk.events("long", 12)
                await talk.say("stop", tag="long")
                seen += await talk.to_the_end("long")
                short_id = await talk.created(
                    "short", "Hello", resumable=True, max_tokens=24, **asked
                )
                begun = await talk.events("short", 6)
            assert seen[-1]["type"] == "cancelled"
            assert seen[-1]["reason"] == "stopped"
            assert [each["number"] for each in seen] == list(range(len(seen)))

            async with talking(At(port), format) as talk:
                await talk.say("resume", tag="rest", id=short_id, after=begun[-1]["number"])
                rest = await talk.to_the_end("rest")
                await talk.say("resume", tag="whole", id=short_id)
                whole = await talk.to_the_end("whole")
                await talk.say("resume", tag="stopped", id=stopped_id)
                assert await talk.to_the_end("stopped") == seen
            assert begun + rest == whole
            assert [each["type"] for each in whole[-2:]] == ["finished", "completed"]
            assert sum(len(each["tokens"]) for each in whole if each["type"] == "delta") == 24
            assert text_of(whole)
            await server.reaches("num_requests_running", 0)

    run(scenario())
