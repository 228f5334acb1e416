"""The fault suite's own judgement: what must fail does fail."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.faults import counting, wire
from benchmarks.faults.cli import FAULTS, judged, main
from benchmarks.faults.fault import Fault, FaultError, Finding, Setting
from benchmarks.faults.host import parse_figures

BEGIN, TOKENS = 3010, 40


def setting(tmp_path: Path) -> Setting:
    return Setting(model="none", threads=1, scratch=tmp_path, times=1, seed=1)


async def good(_setting: Setting) -> Finding:
    finding = Finding(done="nothing")
    finding.require(True, "never")
    finding.note("all well")
    return finding


async def bad(_setting: Setting) -> Finding:
    finding = Finding(done="something")
    for number in range(6):
        finding.require(False, f"promise {number} broken")
    return finding


async def raising(_setting: Setting) -> Finding:
    raise FaultError("the server has ended by itself")


async def endless(_setting: Setting) -> Finding:
    await asyncio.Event().wait()
    raise AssertionError


def verdict_of(run: object, tmp_path: Path, **fields: float) -> tuple[bool, str]:
    fault = Fault(name="it", run=run, **fields)  # type: ignore[arg-type]
    verdict = asyncio.run(judged(fault, setting(tmp_path)))
    return verdict.passed, verdict.line()


def test_a_kept_promise_passes(tmp_path: Path) -> None:
    passed, line = verdict_of(good, tmp_path)
    assert passed
    assert line.startswith("PASS  it ")
    assert "nothing: all well" in line


def test_a_broken_promise_fails_and_says_which(tmp_path: Path) -> None:
    passed, line = verdict_of(bad, tmp_path)
    assert not passed
    assert line.startswith("FAIL  it ")
    assert "promise 0 broken" in line
    assert "promise 5 broken" not in line
    assert "and 2 more" in line


def test_an_error_and_a_hang_fail(tmp_path: Path) -> None:
    passed, line = verdict_of(raising, tmp_path)
    assert not passed
    assert "FaultError: the server has ended by itself (test_judgement.py:" in line
    passed, line = verdict_of(endless, tmp_path, limit_seconds=0.01)
    assert not passed
    assert "no end within 0.01 s" in line


def test_the_exit_status_tells(capsys: pytest.CaptureFixture[str]) -> None:
    faults = (Fault(name="good", run=good), Fault(name="bad", run=bad))
    assert main([], faults) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 passed"
    assert main(["--only", "good"], faults) == 0


def test_each_fault_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) == 14
    assert all(fault.quick_times <= fault.times for fault in FAULTS)


def chunk(text: str, finish: str | None = None, **fields: object) -> wire.Event:
    choice = {"text": text, "finish_reason": finish}
    return event({"choices": [choice], **fields})


def event(body: object) -> wire.Event:
    return wire.Event(when=0.0, data=json.dumps(body).encode())


def stream(text: str, *, tokens: int = TOKENS, usage: int = TOKENS) -> counting.Transcript:
    """What a reader got who was sent `text` and a good end."""
    got = counting.Transcript(begin=BEGIN, tokens=tokens, status=200)
    got.take(chunk(text[:7]))
    got.take(chunk(text[7:]))
    got.take(chunk("", "length"))
    got.take(event({"choices": [], "usage": {"completion_tokens": usage}}))
    got.take(wire.Event(when=0.0, data=b"[DONE]"))
    return got


RIGHT = counting.expected(BEGIN, TOKENS)


def test_the_right_text_counts_on() -> None:
    assert RIGHT == " 3022 3023 3024 3025 3026 3027 3028 3029"
    assert stream(RIGHT).whole() == ""


@pytest.mark.parametrize("at", range(TOKENS))
def test_a_token_lost_or_repeated_anywhere_is_found(at: int) -> None:
    lost = RIGHT[:at] + RIGHT[at + 1 :]
    twice = RIGHT[:at] + RIGHT[at] + RIGHT[at:]
    assert stream(lost).whole()
    assert stream(twice).whole()
    # Nor may a loss be hidden by going on for longer, unless the two texts are the same.
    longer = counting.expected(BEGIN, TOKENS + 1)
    hidden = longer[:at] + longer[at + 1 :]
    assert bool(stream(hidden).whole()) == (hidden != RIGHT)


def test_every_other_bad_end_is_found() -> None:
    assert stream(RIGHT, usage=TOKENS + 1).whole()
    cut = counting.Transcript(begin=BEGIN, tokens=TOKENS, status=200)
    cut.take(chunk(RIGHT))
    assert "0 ends" in cut.whole()
    failed = stream(RIGHT)
    failed.take(event({"error": {"code": "engine_died"}}))
    assert "engine_died" in failed.whole()
    two = stream(RIGHT)
    two.take(chunk("", "length"))
    assert "2 ends" in two.whole()
    assert "log probabilities of 0 of 40" in stream(RIGHT).whole(logprobs=True)
    doubled = stream(RIGHT)
    doubled.numbers += [3, 3]
    assert "numbers" in doubled.whole()


def test_a_miscount_beyond_what_the_model_can_do_is_its_own() -> None:
    far = counting.expected(BEGIN, counting.SURE_TOKENS)
    assert counting.miscounted(BEGIN, far + " nonsense") == ""
    assert counting.miscounted(BEGIN, far[:-1] + "x") != ""


def test_metrics_are_summed_and_told_apart_by_label() -> None:
    text = "\n".join(
        (
            "# HELP headrace_x_total X.",
            'headrace_x_total{deadline="head",engine="0",model_name="m"} 2.0',
            'headrace_x_total{deadline="body",engine="0",model_name="m"} 3.0',
            'headrace_tasks{engine="0",model_name="m"} 7.0',
            "python_info 1.0",
        )
    )
    assert parse_figures(text) == {
        "x_total": 5.0,
        "x_total{head}": 2.0,
        "x_total{body}": 3.0,
        "tasks": 7.0,
    }
