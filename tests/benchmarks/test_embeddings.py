"""Embeddings beside chats: the arithmetic, the texts, the command with real engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.embedding_texts import COUNT, texts
from benchmarks.embeddings import findings
from benchmarks.embeddings_run import Round, Streams

REFERENCE = Path("tests/inference/llamacpp/embeddings/embedding_reference.json")


def streams(p99: float, rate: float = 0.0) -> Streams:
    return Streams(itl_p50=p99 / 2, itl_p99=p99, sentences_per_second=rate)


def round_(alone: float, beside: float) -> Round:
    return Round(alone=streams(alone), beside=streams(beside, rate=9.0), sentences_per_second=200.0)


def test_ratios_are_taken_within_a_round() -> None:
    found = findings([round_(0.02, 0.021), round_(0.04, 0.044), round_(0.03, 0.045)])
    p99, p50, beside, alone = found
    assert (p99.spread.low, p99.spread.median, p99.spread.high) == pytest.approx((1.05, 1.1, 1.5))
    assert p99.met
    assert (p99.ours, p99.theirs) == ("44.0 ms", "30.0 ms")
    assert (p50.met, beside.spread.median, alone.spread.median) == (None, 9.0, 200.0)


def test_a_chat_that_pays_too_much_is_told() -> None:
    assert not findings([round_(0.02, 0.0235)])[0].met


def test_the_texts_are_those_of_the_reference() -> None:
    made = texts()
    assert made == texts()
    assert len(made) == COUNT
    assert json.loads(REFERENCE.read_text(encoding="utf-8"))["texts"] == made


@pytest.mark.model
def test_the_command_measures_real_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embeddings", "--tokens", "3", "--rounds", "1", "--threads", "1"]
    assert cli.main([*command, "--gpu-layers", "0", "--out", str(tmp_path)]) == 0
    assert "sentences per second, without chats" in capsys.readouterr().out
    results = json.loads((tmp_path / "embeddings.json").read_text())
    assert results["rounds"][0]["sentences_per_second"] > 0
    assert (tmp_path / "embeddings.md").read_text().startswith("# Embeddings beside chats")


@pytest.mark.model
def test_a_model_that_makes_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embeddings", "--embedding-model", "default", "--threads", "1"]) == 1
    assert "makes no embeddings" in capsys.readouterr().err
