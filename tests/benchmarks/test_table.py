"""The table of wishes from start to report; the scripted engine is every server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cli, table
from benchmarks.rows import DRAFTING, DRAFTING_FLAGS, PEER, ROWS, SAME, TUNED, VLLM
from benchmarks.session import Side
from benchmarks.table import Sides

# What stands for llama-server takes its port and nothing else from its command line.
STAND_IN = """\
#!/bin/sh
[ "$1" = --version ] && {{ echo stand-in; exit; }}
while [ $# -gt 0 ]; do [ "$1" = --port ] && port=$2; shift; done
exec {headrace} serve --engine scripted --port "$port" --log-level warning
"""


def test_a_row_from_start_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "llama-server"
    stand_in.write_text(STAND_IN.format(headrace=Path(sys.executable).with_name("headrace")))
    stand_in.chmod(0o755)
    monkeypatch.setenv("HEADRACE_BENCH_LLAMA_SERVER", str(stand_in))
    model = tmp_path / "m.gguf"
    model.write_bytes(b"not opened here")
    out = tmp_path / "out"
    arguments = ["table", "--out", str(out), "--quick", "--rows", "short-1", "--no-tuned"]
    arguments += ["--model", str(model), "--headrace-flags=--engine scripted"]
    assert cli.main(arguments) == 0
    report = (out / "table.md").read_text()
    assert "| short, 1 at a time | same file over llama-server | tokens per second | ≥ 0.98 |" in (
        report
    )
    assert "of 1 wishes are met." in report
    assert f"| {SAME} | {PEER} | {SAME} / {PEER} |" in report
    saved = json.loads((out / "table.json").read_text())
    assert [each["row"] for each in saved["rows"]] == ["short-1"]


def test_the_tuned_side_has_a_profile_and_flags_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for headrace keeps the command line that it is started with."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"not opened here")
    seen = tmp_path / "seen"
    program = tmp_path / "headrace"
    program.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("HEADRACE_BENCH_HEADRACE", str(program))
    monkeypatch.setenv("HEADRACE_BENCH_LLAMA_SERVER", str(program))
    arguments = ["table", "--out", str(tmp_path / "out"), "--quick", "--rows", "short-1"]
    arguments += ["--model", str(model), "--no-vllm", "--profile", "near-lossless/throughput"]
    flags = ["--headrace-flags=--threads 2", "--tuned-flags=--target-itl-ms 250"]
    assert cli.main([*arguments, *flags]) == 1
    tuned = seen.read_text().splitlines()[0]
    assert "--profile near-lossless/throughput" in tuned
    assert tuned.endswith("--threads 2 --target-itl-ms 250")


def side(label: str) -> Side:
    return Side(label=label, peer="headrace", model="m.gguf", flags=("--mine",))


def test_each_row_has_the_sides_that_can_be_had() -> None:
    rows = {row.name: row for row in ROWS}
    few = Sides(same=side(SAME), peer=side(PEER))
    all_ = Sides(same=side(SAME), peer=side(PEER), tuned=side(TUNED), vllm=side(VLLM))

    def labels(sides: Sides, name: str) -> list[str]:
        return [each.label for each in sides.of(rows[name])]

    assert labels(few, "short-16") == [SAME, PEER]
    assert labels(few, "short-16-vllm") == []
    assert labels(all_, "short-16") == [SAME, TUNED, PEER]
    assert labels(all_, "short-16-vllm") == [TUNED, VLLM]
    assert labels(all_, "rewrite-1") == [SAME, TUNED, DRAFTING, PEER]
    [drafting] = [each for each in all_.of(rows["rewrite-1"]) if each.label == DRAFTING]
    assert drafting.flags == (*DRAFTING_FLAGS, "--mine")


def test_a_row_that_fails_does_not_take_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def chosen(_: object) -> tuple[Sides, tuple[str, ...]]:
        broken = Side(label=PEER, peer="headrace", model="m", program="/no/such")
        return Sides(same=broken, peer=broken), ("Not measured: vLLM (not here)",)

    monkeypatch.setattr(table._Choice, "sides", chosen)
    arguments = ["table", "--out", str(tmp_path), "--model", str(tmp_path)]
    assert cli.main([*arguments, "--rows", "short-1,overload"]) == 1
    printed = capsys.readouterr()
    assert "Not measured: vLLM (not here)" in printed.out
    assert "short-1: /no/such was not found" in printed.out
    assert "overload: /no/such was not found" in printed.out
    assert "no row could be measured" in printed.err


def test_unknown_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", "--out", str(tmp_path), "--rows", "short"]) == 1
    assert "unknown row 'short'; known: short-1, " in capsys.readouterr().err
