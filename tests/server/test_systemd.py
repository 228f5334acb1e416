"""What systemd hears, over a socket like its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import structlog

from inference.status import EngineHealth, EngineState, EngineStats
from server.systemd import FEEDS_PER_WATCHDOG, Notifier, Progress, feed_watchdog
from tests.server.cli.processes import serving
from tests.server.harness import run

READY = EngineHealth(state=EngineState.READY)
BUSY = EngineStats(running=1, steps=1)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """An address and the socket that listens there."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(30)
        yield address, listener


def heard(listener: socket.socket) -> dict[str, str]:
    lines = listener.recv(4096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_without_systemd_nothing_is_said() -> None:
    notifier = Notifier.of({})
    notifier.ready()
    assert notifier.watchdog_seconds == 0.0
    asyncio.run(feed_watchdog(notifier, FakeEngine()))  # type: ignore[arg-type]


def test_the_words_of_the_protocol(systemd: tuple[str, socket.socket]) -> None:
    address, listener = systemd
    notifier = Notifier.of({"NOTIFY_SOCKET": address})
    notifier.loading(0.5)
    assert heard(listener)["STATUS"] == "loading the model, 50%"
    notifier.ready()
    assert heard(listener)["READY"] == "1"
    notifier.alive()
    assert heard(listener) == {"WATCHDOG": "1"}
    notifier.stopping()
    assert heard(listener)["STOPPING"] == "1"


def test_an_abstract_address() -> None:
    name = f"headrace-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(30)
        Notifier.of({"NOTIFY_SOCKET": "@" + name}).alive()
        assert heard(listener) == {"WATCHDOG": "1"}


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_an_address_of_another_kind_is_none(address: str) -> None:
    Notifier.of({"NOTIFY_SOCKET": address}).ready()


def test_systemd_that_is_gone_is_only_told_in_the_log(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        Notifier(str(tmp_path / "nobody")).ready()
    assert [entry["event"] for entry in log] == ["notify_failed"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_that_is_meant_for_this_process(
    environ: dict[str, str], seconds: float
) -> None:
    assert Notifier.of(environ).watchdog_seconds == seconds


def test_progress_is_steps_or_having_nothing_to_do() -> None:
    progress = Progress()
    assert progress.seen(READY, EngineStats())
    assert progress.seen(READY, BUSY)
    assert not progress.seen(READY, BUSY)
    assert not progress.seen(READY, EngineStats(waiting=1, steps=1))
    assert progress.seen(READY, EngineStats(running=1, steps=2))
    assert progress.seen(READY, EngineStats(parked=1, steps=2))
    for state in EngineState:
        if state is not EngineState.READY:
            assert progress.seen(EngineHealth(state=state), EngineStats(running=1, steps=2))


class FakeEngine:
    def __init__(self) -> None:
        self.now = EngineStats()
        self.looks = 0
        self._looked = asyncio.Event()

    def health(self) -> EngineHealth:
        return READY

    def stats(self) -> EngineStats:
        self.looks += 1
        self._looked.set()
        return self.now

    async def looked(self, times: int) -> None:
        target = self.looks + times
        while self.looks < target:
            self._looked.clear()
            await self._looked.wait()


def test_an_engine_that_stands_still_is_not_reported_alive(
    systemd: tuple[str, socket.socket],
) -> None:
    async def scenario() -> None:
        address, listener = systemd
        engine = FakeEngine()
        notifier = Notifier(address, watchdog_seconds=0.03)
        feeding = asyncio.create_task(feed_watchdog(notifier, engine))  # type: ignore[arg-type]
        await engine.looked(2)
        assert heard(listener) == heard(listener) == {"WATCHDOG": "1"}
        engine.now = EngineStats(running=1, steps=5)
        await engine.looked(1)  # steps since the last look
        assert heard(listener) == {"WATCHDOG": "1"}
        await engine.looked(FEEDS_PER_WATCHDOG)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(4096)
        feeding.cancel()

    run(scenario())


def test_a_service_from_its_start_to_its_end(
    tmp_path: Path, systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, listener = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "90000")
    script = '[[rules]]\nmatch = "hang"\nfault = { kind = "hang" }\n'
    with serving(home=tmp_path, script=script) as server:
        words = heard(listener)
        while "READY" not in words:
            assert words["STATUS"].startswith("loading")
            assert int(words["EXTEND_TIMEOUT_USEC"]) > 0
            words = heard(listener)
        assert heard(listener) == heard(listener) == {"WATCHDOG": "1"}
        body = {"model": "default", "prompt": "hang", "stream": True}
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=body):
            # Hung: what is already on the way comes, then there is silence.
            listener.settimeout(0.2)
            with suppress(TimeoutError):
                while heard(listener):
                    pass
        listener.settimeout(30)
        assert heard(listener) == {"WATCHDOG": "1"}
        server.process.send_signal(signal.SIGTERM)
        words = heard(listener)
        while words == {"WATCHDOG": "1"}:
            words = heard(listener)
        assert words["STOPPING"] == "1"
        assert server.end()[0] == 0
