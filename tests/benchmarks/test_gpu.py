"""The command for a GPU host: what llama.cpp's programs say, and the report made of it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import cli, gpu
from benchmarks.cache import PeerCache
from benchmarks.gpu_report import FormatResult, Results, render
from benchmarks.make_model import write_f16
from benchmarks.peers import PeerError
from benchmarks.raw import SERVER_VARIABLE, Decode, Programs, parse_decode, parse_prefill
from benchmarks.roofline import Footprint
from benchmarks.session import Bandwidth
from benchmarks.vocabulary import read_vocabulary
from server.environment import load_settings
from tests.benchmarks.made_models import SMALL, write_vocabulary
from tests.benchmarks.samples import session

DECODE_LINES = """
main: something before
{"n_kv_max": 384, "pp": 128, "tg": 64, "pl": 8, "n_kv": 1536, "t_pp": 0.5, "speed_pp": 2048.0, \
"t_tg": 0.64, "speed_tg": 800.0, "t": 1.14, "speed": 1347.4}
"""
PREFILL_LINES = '{"build_commit": "x", "n_prompt": 512, "n_gen": 0, "avg_ts": 242.5}\n'


def _result(*, raw: bool = True, labels: tuple[str, ...] = ("A", "B")) -> FormatResult:
    return FormatResult(
        format="Q8_0",
        file_bytes=2_000_000,
        footprint=Footprint(weights=1_000_000, kv_token=1000),
        decode=parse_decode(DECODE_LINES) if raw else (),
        prefill=parse_prefill(PREFILL_LINES) if raw else (),
        session=session(labels=labels),
    )


def _results(result: FormatResult) -> Results:
    return Results(
        machine={"gpu": "NVIDIA Mill 9000"},
        shape="tiny",
        parameters=1_000_000_000,
        roofs=(Bandwidth(bytes_per_second=1e9, source="made up"),),
        notes=("There is no GPU here.",),
        formats=(result,),
    )


def test_llama_cpps_figures_are_read() -> None:
    [decode] = parse_decode(DECODE_LINES)
    assert decode.step_seconds == pytest.approx(0.01)
    assert decode.tokens_per_second == pytest.approx(800)
    assert decode.context_tokens == 128 + 31.5
    [prefill] = parse_prefill(PREFILL_LINES)
    assert (prefill.tokens, prefill.rate) == (512, 242.5)


@pytest.mark.parametrize("text", ["", "no figures", '{"pp": "many"}'])
def test_what_is_no_figure_is_said(text: str) -> None:
    with pytest.raises(PeerError, match=r"llama\.cpp's benchmark wrote"):
        parse_decode(text)


def test_the_report_has_the_share_of_bandwidth() -> None:
    report = render(_results(_result()))
    moved = 1_000_000 + 8 * 159.5 * 1000
    share = moved / 0.01 / 1e9
    [row] = [line for line in report.splitlines() if line.startswith("| 8 |")]
    assert row.endswith(f"| {100 * share:.1f} % |")
    assert "| 512 | 242 |" in report
    assert "> There is no GPU here." in report
    # TPOT is half a second, the cache holds ten prompt tokens and one of the two answered.
    served = (1_000_000 + 4 * 11 * 1000) / 0.5 / 1e9
    [*_, row] = [line for line in report.splitlines() if "decode's share of bandwidth, %" in line]
    assert row.startswith("| short, 4 at a time |")
    assert f"{100 * served:#.3g} (" in row


@pytest.mark.parametrize("labels", [("A",), ("A", "B")])
def test_every_row_has_its_columns(labels: tuple[str, ...]) -> None:
    for block in render(_results(_result(raw=len(labels) == 2, labels=labels))).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def test_results_can_be_kept() -> None:
    results = _results(_result())
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_programs_are_looked_for_beside_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, str(tmp_path / "llama-server"))
    cache = PeerCache(directory=tmp_path)
    assert Programs.find(cache) is None
    for name in ("llama-server", "llama-bench", "llama-batched-bench"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken >&2\nexit 4\n")
        (tmp_path / name).chmod(0o755)
    programs = Programs.find(cache)
    assert programs is not None
    with pytest.raises(PeerError, match="ended with 4:\n  broken"):
        programs.decode(tmp_path, (1,), 1)


@pytest.mark.parametrize(
    ("listing", "devices"),
    [("Available devices:\\n  (none)", ""), ("Available devices:\\n  CUDA0: Mill", "CUDA0: Mill")],
)
def test_the_peers_devices_are_known(tmp_path: Path, listing: str, devices: str) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(f"#!/bin/sh\nprintf '{listing}\\n'\n")
    program.chmod(0o755)
    assert Programs(directory=tmp_path).devices() == devices


def test_a_gpu_that_the_build_cannot_use_is_said() -> None:
    assert gpu.build_notes(["NVIDIA H200"], offload=True) == ()
    assert "built without a GPU" in gpu.build_notes(["NVIDIA H200"], offload=False)[0]
    assert "no GPU here" in gpu.build_notes([], offload=False)[0]


def test_a_peers_decode_step_counts_all_sequences() -> None:
    one = Decode(pp=1, tg=10, batch=1, seconds=1.0)
    assert replace_batch(one, 4).tokens_per_second == 4 * one.tokens_per_second


def replace_batch(decode: Decode, batch: int) -> Decode:
    return msgspec.structs.replace(decode, batch=batch)


def test_on_a_gpu_drawing_there_is_compared_with_drawing_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of the same model that differ in nothing but where tokens are drawn."""
    started: list[list[str]] = []

    def compare(arguments: list[str]) -> int:
        started.append(arguments)
        return 3 if len(started) == 2 else 0

    model = tmp_path / "tiny.Q8_0.gguf"
    write_f16(SMALL, read_vocabulary(write_vocabulary(tmp_path / "v.gguf")), model)
    monkeypatch.setenv(SERVER_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setattr(gpu, "gpu_names", lambda: ("NVIDIA Mill 9000",))
    monkeypatch.setattr("benchmarks.bandwidth.gpu_offload", lambda: True)
    monkeypatch.setattr("benchmarks.bandwidth.device_copy", lambda: None)
    monkeypatch.setattr(cli, "main", compare)
    out = tmp_path / "an out"
    arguments = ["--out", str(out), "--models", str(tmp_path), "--no-build", "--shape", "tiny"]
    arguments += ["--formats", "Q8_0", "--concurrency", "1,2"]
    assert gpu.main(arguments) == 3
    ordinary, sampling = started
    assert "--b" not in ordinary
    both = cli.build_parser().parse_args(sampling)
    assert (both.a, both.b, both.concurrency) == ("headrace", "headrace", (1, 2))
    chosen = [
        load_settings(flags={}, environ={}, file=Path(flags[1]))
        for flags in (both.a_flags, both.b_flags)
    ]
    assert [each.device_sampling for each in chosen] == ["on", "off"]
    assert {each.speculation for each in chosen} == {"off"}


def test_the_whole_command_without_gpu_and_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripted engine answers for a model that was made before."""
    model = tmp_path / "tiny.Q8_0.gguf"
    write_f16(SMALL, read_vocabulary(write_vocabulary(tmp_path / "v.gguf")), model)
    program = tmp_path / "headrace"
    headrace = Path(sys.executable).with_name("headrace")
    program.write_text(f'#!/bin/sh\nexec {headrace} "$@" --engine scripted\n')
    program.chmod(0o755)
    monkeypatch.setenv("HEADRACE_BENCH_HEADRACE", str(program))
    monkeypatch.setenv(SERVER_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setattr(gpu, "gpu_names", tuple)
    arguments = ["--out", str(tmp_path / "out"), "--models", str(tmp_path), "--no-build"]
    arguments += ["--formats", "Q8_0", "--workload", "short", "--concurrency", "1,2"]
    assert gpu.main([*arguments, "--rounds", "1"]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "There is no GPU here" in report
    assert "No build of the peer is at hand" in report
    assert "| short, 2 at a time | decode's share of bandwidth, % |" in report
    kept = msgspec.json.decode((tmp_path / "out" / "gpu.json").read_bytes(), type=Results)
    roofs = [b.bytes_per_second for b in (kept.roofs[0], kept.formats[0].session.bandwidth) if b]
    assert roofs == sorted(roofs, reverse=True)
    assert "share of the roofline" in (tmp_path / "out" / "Q8_0" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--formats", "Q9"], "'Q9' is none of"), (["--concurrency", "0"], "whole number")],
)
def test_wrong_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
