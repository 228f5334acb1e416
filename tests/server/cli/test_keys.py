"""`headrace keys`, and a server that follows it."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import httpx2
import pytest

from server.cli import main
from server.cli.errors import CommandError
from server.cli.keys import age_of, limits_of, store_path
from tests.server.cli.processes import Serving, serving

CHAT = {"model": "default", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("HEADRACE_", "XDG_")):
            monkeypatch.delenv(name)
    return tmp_path


def create(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["keys", "create", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


def listed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert main(["keys", "list"]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_create_list_limit_and_revoke_tell_one_story(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys) == [["ID", "NAME", "STATE", "CREATED", "EXPIRES", "SCOPES", "LIMITS"]]
    key = create(
        capsys, "ci", "--scope", "read", "--expires", "90d", "--limit", "requests-per-minute=60"
    )
    create(capsys, "mill")
    store = store_path(None)
    assert store == home / ".local/share/headrace/keys.jsonl"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert key not in store.read_text()
    _, ci, mill = listed(capsys)
    assert (ci[1], ci[2], ci[-2:]) == ("ci", "active", ["read", "requests_per_minute=60"])
    assert (mill[1], mill[5], mill[-1]) == ("mill", "never", "none")
    assert main(["keys", "limit", mill[0], "--limit", "requests=2", "--limit", "priority=-5"]) == 0
    assert main(["keys", "revoke", ci[0]]) == 0
    capsys.readouterr()
    _, ci, mill = listed(capsys)
    assert ci[2] == "revoked"
    assert mill[-2:] == ["requests=2", "priority=-5"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", ""], 2, "NAME: 1 to 64 printable"),
        (["create", "a\nb"], 2, "NAME: 1 to 64 printable"),
        (["create", "a", "--expires", "soon"], 2, "--expires soon: expected such as"),
        (["create", "a", "--expires", "0d"], 2, "--expires 0d"),
        (["create", "a", "--expires", "999999w"], 2, "--expires 999999w"),
        (["create", "a", "--limit", "rps=5"], 2, "--limit rps=5: the names are requests,"),
        (["create", "a", "--limit", "requests=0"], 2, "--limit requests=0: expected a whole"),
        (["create", "a", "--limit", "priority=101"], 2, "-100 to 100"),
        (["create", "a", "--limit", "requests"], 2, "--limit requests: expected"),
        (["revoke", "k_nothing"], 1, "no key has the id 'k_nothing'"),
        (["limit", "k_nothing"], 1, "no key has the id 'k_nothing'"),
        (["list", "--store", "/proc/version/x"], 0, ""),
        (["create", "a", "--store", "/proc/nothing/x"], 1, "cannot be written"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] in ("revoke", "limit"):
        create(capsys, "first")
    assert main(["keys", *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == (1 if code else 0)
    assert "hr_" not in captured.out


def test_a_scope_that_is_none_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "a", "--scope", "all"]) == 2
    said = capsys.readouterr().err
    assert "generate" in said
    assert "<" not in said


def test_the_store_is_where_the_setting_says(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_KEY_STORE", str(home / "elsewhere" / "keys"))
    create(capsys, "a")
    assert (home / "elsewhere" / "keys").exists()
    assert store_path(home / "given") == home / "given"
    monkeypatch.setenv("HEADRACE_PORT", "x")
    with pytest.raises(CommandError, match="HEADRACE_PORT"):
        store_path(None)


def test_ages_and_limits_are_read_as_written() -> None:
    assert age_of("90d").days == 90
    assert age_of("2w").days == 14
    assert age_of("30m").total_seconds() == 1800
    assert limits_of([]).requests is None
    assert limits_of(["tokens_per_minute=5", "priority=-1"]).priority == -1


def ask(server: Serving, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.get(f"{server.url}/v1/models", headers=headers).status_code


def test_a_server_follows_the_store_and_the_settings(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = create(capsys, "first")
    config = home / "headrace.toml"
    config.write_text("max_requests = 5\n")
    with serving("--config", str(config), "--log-level", "info", home=home) as server:
        assert str(store_path(None)) in server.banner
        assert "$HEADRACE_API_KEY" in server.banner
        assert ask(server, first) == 200
        assert ask(server, "hr_wrong") == 401
        second = create(capsys, "second")
        assert main(["keys", "revoke", listed(capsys)[1][0]]) == 0
        config.write_text("max_requests = 7\n")
        server.process.send_signal(signal.SIGHUP)
        assert "max_requests=7" in server.next_log_line("settings_reloaded")
        assert ask(server, second) == 200
        assert ask(server, first) == 401
        config.write_text("max_requests = \n")
        server.process.send_signal(signal.SIGHUP)
        assert "line 1" in server.next_log_line("settings_not_reloaded")
        assert ask(server, second) == 200
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end()
    assert code == 0
    assert "Traceback" not in err


def test_a_store_that_cannot_be_used_stops_the_start(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(capsys, "first")
    store = store_path(None)
    with store.open("a") as file:
        file.write("{}\n")
    assert main(["serve", "--engine", "scripted", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert f"key store {store}: line 2" in err
    assert err.count("\n") == 1
