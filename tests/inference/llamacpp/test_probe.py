import subprocess
import sys

import msgspec
import pytest

from inference.llamacpp.probe import Build, parse_system_info


def test_system_info_of_a_processor_build() -> None:
    text = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | LLAMAFILE = 1 | "
    assert parse_system_info(text) == ("SSE3", "AVX2", "LLAMAFILE")


def test_system_info_of_other_backends_is_not_the_processors() -> None:
    text = "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : AVX = 1 | FMA = 1 | "
    assert parse_system_info(text) == ("AVX", "FMA")
    assert parse_system_info("") == ()


def test_importing_the_probe_does_not_load_the_library() -> None:
    code = "import inference.llamacpp.probe, sys; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_probe_prints_one_line_of_json() -> None:
    pytest.importorskip("llama_cpp")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "inference.llamacpp.probe"],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    build = msgspec.json.decode(line, type=Build)
    assert build.version
    assert done.stderr == ""
