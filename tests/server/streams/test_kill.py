"""SIGKILL in mid-stream: what a reader has got is in the store, and the rest is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from server.streams.events import Incomplete, State, decode
from server.streams.opening import open_streams
from tests.server.streams.parts import follow, stream_metrics

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("lines", [9, 100, 401])
async def test_what_was_visible_survives_a_kill(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.server.streams.writing_child", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    printed = [child.stdout.readline() for _ in range(lines)]
    child.kill()
    rest, _ = child.communicate()
    printed += rest.splitlines(keepends=True)
    seen: dict[str, list[str]] = {}
    for line in printed:
        if line.endswith("\n"):  # the kill may have cut the last one
            response_id, number, payload = line.split()
            assert int(number) == len(seen.setdefault(response_id, []))
            seen[response_id].append(payload)
    async with open_streams(Settings(data_dir=tmp_path), metrics=stream_metrics()[0]) as registry:
        assert registry._storage is not None
        await registry._storage.writer.idle()  # until then the store may not be open
        assert seen
        for response_id, payloads in seen.items():
            reader = await registry.reader(response_id, owner="ada")
            stored = [entry async for entry in follow(reader)]
            assert [entry.number for entry in stored] == [*range(len(stored))]
            assert len(stored) > len(payloads)
            for entry, payload in zip(stored, payloads, strict=False):
                assert entry.event == decode(bytes.fromhex(payload))
            ends = [entry.event for entry in stored if entry.last]
            assert ends == [stored[-1].event] == [Incomplete(reason="server_restarted")]
            inspection = await registry.inspect(response_id, owner="ada")
            assert inspection.record.state is State.INCOMPLETE
            # Who had read so far goes on from there, without a gap and without a repeat.
            reader = await registry.reader(response_id, owner="ada", after=len(payloads) - 1)
            tail = [entry.number async for entry in follow(reader)]
            assert tail == [*range(len(payloads), len(stored))]
