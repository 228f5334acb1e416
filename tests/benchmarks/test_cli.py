"""The commands, from start to report, against the shipped scripted engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cli, machine
from benchmarks import session as sessions
from benchmarks.records import Outcome
from tests.benchmarks.samples import session

FIRST_TOKEN_SECONDS = 0.03
TOKEN_SECONDS = 0.002
# uvloop's timers count whole milliseconds, and may fire one early.
SLACK_SECONDS = 0.002


@pytest.mark.parametrize("keep", [True, False])
def test_comparing_two_scripted_servers(
    tmp_path: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A piece for each token, as the script plays them.
    monkeypatch.setenv("HEADRACE_COALESCE_MS", "0")
    script = tmp_path / "script.toml"
    script.write_text(
        f"[[rules]]\nfirst_token_seconds = {FIRST_TOKEN_SECONDS}\ntoken_seconds = {TOKEN_SECONDS}\n"
    )
    flags = f"--engine scripted --script {script}"
    arguments = ["compare", "--a", "headrace", "--b", "headrace", "--workload", "turns"]
    arguments += ["--a-flags", flags, "--b-flags", flags, "--model", str(script)]
    arguments += ["--concurrency", "2", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *(["--keep"] if keep else [])]) == 0

    done = sessions.load(tmp_path / "out" / "results.json")
    assert [m.label for m in done.measurements] == ["A", "B"]
    assert all(s.command[-4:-2] == ("--engine", "scripted") for s in done.served)
    for measurement in done.measurements:
        assert (measurement.other_cpu_share is not None) == keep
        assert len(measurement.run.records) == 4 * 4
        for record in measurement.run.records:
            assert record.outcome is Outcome.OK, record.error
            assert record.completion_tokens == len(record.token_times) == 48
            # What the script makes a reader wait for is what is measured, at least.
            assert record.ttft is not None
            assert record.ttft >= FIRST_TOKEN_SECONDS - SLACK_SECONDS
            whole = FIRST_TOKEN_SECONDS + 47 * TOKEN_SECONDS
            assert record.token_times[-1] - record.sent >= whole - SLACK_SECONDS
    assert "16 of 16 answers were the same" in (tmp_path / "out" / "report.md").read_text()
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_an_open_loop_against_one_server(tmp_path: Path) -> None:
    arguments = ["compare", "--a", "headrace", "--a-flags", "--engine scripted"]
    arguments += ["--model", str(tmp_path), "--workload", "overload", "--rate", "40"]
    arguments += ["--duration", "0.3", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    [measurement] = sessions.load(tmp_path / "out" / "results.json").measurements
    assert measurement.open
    assert measurement.run.records
    intended = [record.intended for record in measurement.run.records]
    assert intended == sorted(intended)


def test_being_ended_takes_the_servers_along(tmp_path: Path) -> None:
    """A server that outlived a benchmark would spoil the next one."""
    script, pid_file = tmp_path / "never-ready.sh", tmp_path / "pid"
    os.mkfifo(pid_file)
    script.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nexec sleep 600\n")
    script.chmod(0o755)
    arguments = ["compare", "--a", "headrace", "--a-program", str(script), "--model", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments], stderr=subprocess.PIPE, text=True
    ) as benchmark:
        server = int(pid_file.read_text())
        benchmark.terminate()
        _, errors = benchmark.communicate(timeout=60)
    assert (benchmark.returncode, errors) == (1, "benchmarks: stopped, nothing written\n")
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_reports_can_be_written_again(tmp_path: Path) -> None:
    sessions.save(session(), tmp_path / "results.json")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").exists()
    assert (tmp_path / "report.html").exists()


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    listing = capsys.readouterr().out
    assert "shared-prefix" in listing
    assert "llama-server" in listing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a", "headrace", "--workload", "nosuch"], "unknown workload 'nosuch'"),
        (["--a", "nosuch"], "unknown peer 'nosuch'"),
        ([], "name at least one server"),
        (["--a", "headrace", "--model", "no-such-model"], "no model file for 'no-such-model'"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_machine_is_described_from_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Mill 9000\nflags\t\t: fpu avx2 avx512f\n")
    (tmp_path / "meminfo").write_text("MemTotal:       8388608 kB\n")
    facts = machine.describe_machine(tmp_path)
    assert facts["processor"] == "Mill 9000"
    assert facts["instructions"] == "avx2 avx512f"
    assert facts["memory"] == "8.0 GiB"
    assert int(facts["cores"]) > 0


def test_a_model_is_known_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"abc")
    facts = machine.describe_model(str(tmp_path / "m.gguf"))
    assert (facts["model"], facts["bytes"]) == ("m.gguf", "3")
    assert facts["sha256"].startswith("ba7816bf")
    assert machine.describe_model("some-id") == {"model": "some-id"}


def test_a_program_that_cannot_say_its_version() -> None:
    assert machine.program_version(()) == ""
    assert machine.program_version(("/no/such/program",)) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "/nowhere"),
        ("compare", "--a", "url"),
        ("compare", "--a", "http://127.0.0.1:1", "--a-key-env", "HEADRACE_TEST_NO_SUCH_KEY"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith("benchmarks: ")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--concurrency", "1,a"), ("--concurrency", "0"), ("--rounds", "0"), ("--a-flags", "'")],
)
def test_wrong_values_are_refused_by_name(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "--a", "headrace", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: " in capsys.readouterr().err
