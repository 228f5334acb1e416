import json
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from inference.llamacpp.probe import Build
from models.places import Places
from server.cli import main
from server.cli.diagnosis import Diagnosis, diagnose, judge, read_build, rebuild
from server.cli.doctor import as_json, render
from server.cli.machine import Gpu, Machine, Processor

H200 = Gpu(vendor="NVIDIA", name="NVIDIA H200", memory_mib=143771, driver="570.86.15")
MI300 = Gpu(vendor="AMD", name="gfx942")


def machine(*gpus: Gpu, features: tuple[str, ...] = ("avx2",)) -> Machine:
    return Machine(
        processor=Processor(name="EPYC", cores=2, threads=4, features=features),
        memory_bytes=8 * 1024**3,
        cpu_limit=1.5,
        gpus=gpus,
    )


def build(*backends: str, gpu: bool = False, features: tuple[str, ...] = ("AVX2",)) -> Build:
    return Build(version="0.3.36", backends=backends, gpu_offload=gpu, features=features)


def prints(built: Build) -> tuple[str, ...]:
    """A command that stands in for the probe."""
    return ("echo", msgspec.json.encode(built).decode())


def places(root: Path) -> Places:
    return Places(store=root / "cache" / "models", user_catalog=root / "data" / "catalog.toml")


def diagnosed(tmp_path: Path, found: Machine, built: Build) -> Diagnosis:
    return diagnose(found, places(tmp_path), prints(built))


def test_a_processor_and_a_build_that_fit_have_no_problem(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, machine(), build())
    assert diagnosis.problems == ()
    text = render(diagnosis)
    assert "Nothing to mend." in text
    assert "EPYC, 2 cores, 4 threads, limited to 1.5" in text
    assert "8.0 GiB" in text
    assert "not here yet: `headrace models pull" in text


@pytest.mark.parametrize(("gpu", "switch"), [(H200, "GGML_CUDA"), (MI300, "GGML_HIP")])
def test_a_gpu_that_the_build_cannot_use_comes_with_the_command(
    tmp_path: Path, gpu: Gpu, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    diagnosis = diagnosed(tmp_path, machine(gpu), build())
    (problem,) = diagnosis.problems
    assert gpu.name in problem.text
    words = shlex.split(problem.mend)
    assert words[0] == f"CMAKE_ARGS=-D{switch}=on"
    assert words[1:5] == [sys.executable, "-m", "pip", "install"]
    assert {"--force-reinstall", "--no-cache-dir", "--no-binary"} < set(words)
    assert words[-1].startswith("llama-cpp-python==")
    assert problem.mend in render(diagnosis)


def test_an_environment_that_make_keeps_is_mended_by_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "head race" / ".venv"
    venv.mkdir(parents=True)
    (venv / ".stamp-llama").touch()
    monkeypatch.setattr(sys, "prefix", str(venv))
    words = shlex.split(rebuild("GGML_CUDA"))
    assert words == ["make", "-C", str(venv.parent), "install", "CMAKE_ARGS=-DGGML_CUDA=on"]


def test_a_gpu_that_is_used_is_no_problem(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, machine(H200), build("cuda", gpu=True, features=()))
    assert diagnosis.problems == ()
    assert "NVIDIA H200, 140 GiB, driver 570.86.15" in render(diagnosis)
    assert "can use a GPU, built for cuda" in render(diagnosis)


def test_a_build_with_cuda_that_finds_no_gpu_points_at_the_driver() -> None:
    (problem,) = judge(machine(H200), build("cuda"), "")
    assert "built for NVIDIA GPUs but cannot use" in problem.text
    assert "driver" in problem.mend
    assert "CMAKE_ARGS" not in problem.mend


def test_unused_processor_features_matter_only_without_a_gpu() -> None:
    features = ("avx2", "avx512f")
    (problem,) = judge(machine(features=features), build(), "")
    assert "the processor has AVX512, this build" in problem.text
    assert problem.mend == rebuild("GGML_NATIVE")
    assert list(judge(machine(H200, features=features), build("cuda", gpu=True), "")) == []


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("kill -ILL $$", "it was built for another processor (illegal instruction)"),
        ("kill -SEGV $$", "loading it ends the process (SIGSEGV)"),
        ("echo first >&2; echo 'no libllama.so' >&2; exit 1", "no libllama.so"),
        ("exit 3", "exit code 3"),
        ("exit 0", "exit code 0"),
    ],
)
def test_a_library_that_does_not_load_is_told_from_how_it_ends(
    tmp_path: Path, script: str, failure: str
) -> None:
    diagnosis = diagnose(machine(), places(tmp_path), ("bash", "-c", script))
    assert (diagnosis.build, diagnosis.failure) == (None, failure)
    assert f"warning: llama.cpp does not load: {failure}" in render(diagnosis)


def test_a_probe_that_cannot_run_is_a_failure() -> None:
    found, failure = read_build(("headrace-no-such-program",))
    assert found is None
    assert "could not be asked" in failure


def test_what_comes_before_the_probes_own_line_is_ignored() -> None:
    line = msgspec.json.encode(build()).decode()
    assert read_build(("printf", "%s\n", "llama.cpp says something", line)) == (build(), "")


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    diagnosis = diagnosed(tmp_path, machine(), build())
    (problem,) = diagnosis.problems
    assert "not writable" in problem.text
    assert "XDG_CACHE_HOME" in problem.mend


def test_a_broken_catalogue_is_shown_and_not_raised(tmp_path: Path) -> None:
    catalog = places(tmp_path).user_catalog
    catalog.parent.mkdir()
    catalog.write_text("nonsense = ")
    assert "unusable catalogue" in diagnosed(tmp_path, machine(), build()).model


def test_names_from_drivers_are_escaped(tmp_path: Path) -> None:
    text = render(diagnosed(tmp_path, machine(Gpu(vendor="AMD", name="\x1b[2J")), build()))
    assert "\x1b" not in text


def test_json_holds_all_of_it(tmp_path: Path) -> None:
    found = json.loads(as_json(diagnosed(tmp_path, machine(H200), build())))
    assert found["machine"]["gpus"][0]["name"] == "NVIDIA H200"
    assert found["build"]["version"] == "0.3.36"
    assert found["cache"]["path"] == str(tmp_path / "cache" / "models")
    # Which command mends it depends on how this environment was made.
    assert "CMAKE_ARGS=" in found["problems"][0]["mend"]


def test_the_command_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["problems"] else 0)
    assert found["machine"]["processor"]["threads"] >= 1
