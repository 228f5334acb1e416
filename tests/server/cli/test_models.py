from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.adding import to_toml
from models.places import Places
from server.cli import models as command
from tests.models.entries import CONTENT, make_entry
from tests.models.gguf_files import CHAT_MODEL, gguf_bytes
from tests.models.hub_server import Hub

MAIN = """
import argparse, sys
from server.cli import models
parser = argparse.ArgumentParser(prog="headrace")
models.add_parser(parser.add_subparsers())
args = parser.parse_args()
sys.exit(args.run(args))
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Places with one user's entry, whose file comes from a hub."""
    environ = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = Places.from_environ(environ)
    found.user_catalog.parent.mkdir(parents=True)
    found.user_catalog.write_text(to_toml(make_entry()))
    return found


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="headrace")
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["models", *arguments])
    code: int = args.run(args)
    return code


def test_pull_list_show_and_verify_tell_one_story(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    with Hub({"tiny.gguf": CONTENT}) as hub:
        assert _run("list") == 0
        before = capsys.readouterr().out.splitlines()
        assert before[0].split() == ["ID", "SIZE", "QUANTIZATION", "CONTEXT", "LICENCE", "STATE"]
        assert before[1].startswith("smollm2-135m-instruct *  98.4 MB")
        assert before[2].endswith("not pulled")
        assert _run("pull", "tiny", "--endpoint", hub.endpoint) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[0] == "tiny: fetched and verified"
        assert Path(told.out.splitlines()[1]).read_bytes() == CONTENT
        assert told.err.startswith("tiny: fetching 0.3 MB from http://127.0.0.1")
    assert _run("pull", "tiny", "--quiet", "--offline") == 0
    assert capsys.readouterr() == (told.out.replace("fetched", "already here"), "")
    assert _run("show", "tiny") == 0
    shown = capsys.readouterr().out
    assert "state         verified\n" in shown
    assert "draft model   none\n" in shown
    assert _run("verify") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ID", "RESULT"],
        ["smollm2-135m-instruct", "not", "pulled"],
        ["all-minilm-l6-v2", "not", "pulled"],
        ["gemma3-270m", "not", "pulled"],
        ["tiny", "ok"],
    ]


def test_a_damaged_file_fails_verify_and_is_named(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(gguf_bytes())
    assert _run("add", str(mine)) == 0
    mine.write_bytes(gguf_bytes()[:-1] + b"!")
    assert _run("verify") == 1
    told = capsys.readouterr()
    assert "mine                   WRONG\n" in told.out
    assert told.err.count("\n") == 1
    assert told.err.startswith("headrace: mine: ")
    mine.unlink()
    assert _run("verify") == 1
    assert "mine                   missing\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nothing"], "no model is called 'nothing'"),
        (["pull", "tiny", "--offline"], "offline mode forbids"),
        (["verify", "tiny"], "there is no file"),
        (["add", "/nowhere/x.gguf"], "cannot be read"),
    ],
)
def test_failures_are_one_line_and_exit_code_one(
    arguments: list[str], message: str, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("headrace: ")
    assert message in told
    assert told.count("\n") == 1


def test_a_wrong_command_line_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["pull"], ["show", "a", "b"], ["dance"]):
        with pytest.raises(SystemExit) as caught:
            _run(*arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_added_files_are_listed_without_their_control_characters(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**CHAT_MODEL, "general.license": "\x1b[31mfree\nbeer"}
    (tmp_path / "mine.gguf").write_bytes(gguf_bytes(values))
    assert _run("add", str(tmp_path / "mine.gguf"), "--id", "chosen") == 0
    assert capsys.readouterr().out == (
        f"chosen: added to {places.user_catalog}\n"
        "serve it with: headrace serve --model chosen\n"
    )  # fmt: skip
    assert _run("show", "chosen") == 0
    assert "licence       \\x1b[31mfree beer\n" in capsys.readouterr().out


def test_ctrl_c_during_a_pull_leaves_a_clean_state(places: Places) -> None:
    with Hub({"tiny.gguf": CONTENT}) as hub:
        hub.may_answer.clear()
        words = [sys.executable, "-c", MAIN, "models", "pull", "tiny", "--endpoint", hub.endpoint]
        with subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ, text=True) as process:
            assert hub.blob_requested.wait(30)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert told.splitlines()[-1].startswith("headrace: stopped")
        assert "Traceback" not in told
        kept = [path for path in places.store.rglob("*") if path.is_file()]
        assert [path.parent.name for path in kept] == ["locks"]
        hub.may_answer.set()
        assert _run("pull", "tiny", "--quiet", "--endpoint", hub.endpoint) == 0
