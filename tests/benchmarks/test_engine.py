"""Our engine beside llama.cpp's programs: the arithmetic, the command, a real engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import cli, engine
from benchmarks.engine import Round, findings
from benchmarks.engine_run import DecodeRun, EngineSetting, run_decode, run_prefill
from benchmarks.raw import Decode


def decode_run(batch: int, rate: float) -> DecodeRun:
    return DecodeRun(batch=batch, tokens_per_second=rate, outside_steps=0.01, outside_wall=0.02)


def round_(rate: float) -> Round:
    """Ours at `rate` beside 100 at one sequence, at ten times both at sixteen."""
    return Round(
        ours=(decode_run(1, rate), decode_run(16, 10 * rate)),
        theirs=(
            Decode(pp=128, tg=64, batch=1, seconds=0.64),
            Decode(pp=128, tg=64, batch=16, seconds=1.024),
        ),
        prefill=500.0,
        served=400.0,
        their_prefill=500.0,
    )


def test_ratios_are_taken_within_a_round() -> None:
    found = findings([round_(90.0), round_(96.0), round_(99.0)])
    one, sixteen, prefill, served = found[:4]
    assert one.work == "decode, 1 sequences"
    assert (one.spread.low, one.spread.median, one.spread.high) == pytest.approx((0.9, 0.96, 0.99))
    assert one.met
    assert sixteen.ours == "960 tok/s"
    assert sixteen.theirs == "1,000 tok/s"
    assert prefill.met
    assert (served.met, served.spread.median) == (None, 0.8)


def test_the_wish_for_time_outside_is_for_sixteen_and_counts_everything() -> None:
    shares = findings([round_(90.0)])[4:]
    assert [each.met for each in shares] == [None, None, None, True]
    assert [each.spread.median for each in shares] == [0.01, 0.02, 0.01, 0.02]


THEIRS = """\
#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -npl ] && batch=$2; shift; done
echo '{"n_kv_max":1}' >&2
echo "{\\"pp\\":128,\\"tg\\":64,\\"pl\\":$batch,\\"t_tg\\":0.64}"
"""
PREFILL = '#!/bin/sh\necho \'{"n_prompt":512,"avg_ts":500.0}\'\n'


def test_the_command_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    async def decoding(_: EngineSetting, batch: int) -> DecodeRun:
        order.append(f"ours {batch}")
        return decode_run(batch, 100.0)

    async def prefilling(*_: object, **__: object) -> float:
        return 450.0

    monkeypatch.setattr(engine, "run_decode", decoding)
    monkeypatch.setattr(engine, "run_prefill", prefilling)
    for name, text in (("llama-batched-bench", THEIRS), ("llama-bench", PREFILL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    model = tmp_path / "m.gguf"
    model.write_bytes(b"not opened here")
    arguments = ["engine", "--model", str(model), "--bin", str(tmp_path), "--batches", "1,2"]
    assert cli.main([*arguments, "--rounds", "2", "--out", str(tmp_path / "out")]) == 0
    assert order == ["ours 1", "ours 2"] * 2
    report = (tmp_path / "out" / "engine.md").read_text()
    assert "| decode, 1 sequences | headrace | tokens per second | ≥ 0.95 | 1.00 |" in report
    assert "0.900" in report
    saved = json.loads((tmp_path / "out" / "engine.json").read_text())
    assert len(saved["rounds"]) == 2


def test_missing_programs_come_with_their_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["engine", "--bin", str(tmp_path)]) == 1
    assert "benchmarks.build_peer" in capsys.readouterr().err


@pytest.mark.model
def test_a_real_engine_is_measured(default_model_path: Path) -> None:
    setting = EngineSetting(model=default_model_path, threads=1, layout="split")

    async def run() -> tuple[DecodeRun, float]:
        return await run_decode(setting, 2), await run_prefill(setting, repetitions=1)

    decode, prefill = asyncio.run(run())
    assert decode.batch == 2
    assert decode.tokens_per_second > 0
    assert 0 < decode.outside_steps < 1
    assert decode.outside_steps - 0.05 < decode.outside_wall < 1
    assert prefill > 0
