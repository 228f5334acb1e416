import subprocess
import sys

import pytest

from server.cli import COMMANDS, main
from server.cli.errors import CommandError


def test_version_names_headrace_and_its_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    out = capsys.readouterr().out
    assert "headrace" in out
    assert "llama-cpp-python" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["serve", "--nope"], ["chat", "--temperature", "x"]]
)
def test_wrong_arguments_are_exit_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error:" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (["serve", "--layuot", "x"], "usage: headrace serve [options]"),
        (["chat", "--nope"], "usage: headrace chat "),
        (["models", "list", "--nope"], "usage: headrace models list "),
        (["--nope", "version"], "usage: headrace [-h] COMMAND"),
    ],
)
def test_an_unknown_option_shows_the_usage_of_its_command(
    argv: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(usage)
    assert "unrecognized arguments: --" in err


def test_help_imports_nothing_heavy() -> None:
    heavy = {"uvicorn", "starlette", "structlog", "httpx2", "huggingface_hub", "numpy", "llama_cpp"}
    code = (
        "import sys; from server.cli import main; main(['--help']); main(['serve', '--help']);"
        f"sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


@pytest.mark.parametrize("width", ["80", "100"])
def test_serve_help_fits_one_screen(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main(["serve", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= int(width)
    assert {"model:", "network:", "engine:", "limits:", "operation:"} <= set(lines)
    for flag in ("--model", "--host", "--gpu-layers", "--api-key-file", "--config"):
        assert sum(line.split()[0] == flag for line in lines) == 1


def test_a_command_error_is_one_line() -> None:
    assert str(CommandError("a\nb\t c")) == "a b c"
