"""What SIGHUP takes over, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from server.admission import Admission
from server.auth import ApiKeys
from server.environment import load_settings
from server.reload import Reload
from server.settings import Settings
from tests.server.harness import captured_log, client_of

BEFORE = Settings(max_requests=5)


def reloaded(fresh: Settings) -> tuple[Admission, list[dict[str, object]]]:
    admission = Admission(BEFORE.max_requests, max_queue_ttft_seconds=30.0)
    reload = Reload(load=lambda: fresh, settings=BEFORE, admission=admission, keys=None)
    with captured_log() as log:
        reload()
    return admission, [json.loads(line) for line in log.getvalue().splitlines()]


def test_limits_are_taken_over() -> None:
    admission, lines = reloaded(replace(BEFORE, max_requests=9, max_queue_ttft_seconds=0.0))
    assert admission.max_requests == 9
    assert admission.max_queue_ttft_seconds == 0.0
    assert [line["event"] for line in lines] == ["settings_reloaded"]
    assert lines[0]["max_requests"] == 9


def test_what_waits_for_a_restart_is_named() -> None:
    admission, lines = reloaded(replace(BEFORE, port=1, max_requests=7))
    assert admission.max_requests == 7
    assert lines[-1]["event"] == "settings_need_restart"
    assert lines[-1]["names"] == ["port"]


def test_a_broken_file_changes_nothing_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("max_requests = 9\nmax_queue_ttft_seconds = \n")
    admission = Admission(5, max_queue_ttft_seconds=30.0)
    keys = ApiKeys(["one"])
    reload = Reload(
        load=lambda: load_settings(flags={}, environ={}, file=file),
        settings=BEFORE,
        admission=admission,
        keys=keys,
    )
    with captured_log() as log:
        reload()
    assert admission.max_requests == 5
    (line,) = [json.loads(x) for x in log.getvalue().splitlines() if "settings" in x]
    assert line["level"] == "error"
    assert "line 2" in line["reason"]
    assert client_of(keys, b"one")
