"""`headrace models fit`, its examples in the docs, and serving only what can fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server import cli as program
from server.cli.errors import CommandError
from server.cli.memory import parse_size
from tests.inference.llamacpp.shapes import write_shape
from tests.server.cli.fit_examples import EXAMPLES, MARK, render

FIT = Path(__file__).parents[3] / "docs" / "fit.md"


@pytest.fixture
def headrace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command; gives the exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = program.main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Headrace = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24G", 24 * 10**9),
        ("1.5GB", 15 * 10**8),
        ("2GiB", 2 << 30),
        ("512m", 512 * 10**6),
        ("7", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_what_fits_is_said_with_its_parts(headrace: Headrace, tmp_path: Path) -> None:
    path = write_shape(tmp_path, "llama-8b", "Q8_0")
    code, out, _ = headrace(
        "models", "fit", str(path), "--memory", "64G", "--gpu-memory", "24G", "--lanes", "4"
    )
    assert code == 0
    assert out.endswith("fits.\n")
    assert "KV cache (8,192 cells)" in out


def test_what_does_not_fit_is_refused_with_what_would(headrace: Headrace, tmp_path: Path) -> None:
    path = write_shape(tmp_path, "llama-8b", "Q8_0")
    arguments = ["models", "fit", str(path), "--memory", "12G", "--gpu-layers", "0"]
    code, out, _ = headrace(*arguments)
    assert code == 1
    assert "does not fit: it needs" in out
    assert "  kv_host_memory" in out
    code, out, _ = headrace(*arguments, "--json")
    told = json.loads(out)
    assert (code, told["fits"], told["gpu_memory_bytes"]) == (1, False, None)
    assert told["memory_needed_bytes"] > 12 * 10**9
    assert told["what_would_fit"]
    smaller = headrace(*arguments, "--cache-type", "q8_0", "--kv-host-memory", "0")
    assert smaller[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nothing-here"], "nothing-here", 1),
        (["FILE", "--memory", "lots"], "--memory: lots is no size", 2),
        (["FILE", "--lanes", "0"], "--lanes", 2),
        (["FILE", "--context", "9000"], "beyond the 8192 tokens", 1),
        (["FILE", "--cache-type", "q3"], "--cache-type-k: expected f16", 2),
    ],
)
def test_what_contradicts_itself_is_one_line(
    headrace: Headrace, tmp_path: Path, arguments: list[str], message: str, code: int
) -> None:
    path = write_shape(tmp_path, "llama-8b", "Q8_0")
    given = [str(path) if word == "FILE" else word for word in arguments]
    ended, out, err = headrace("models", "fit", *given)
    assert ended == code
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_serve_refuses_in_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.cli import memory
    from server.cli.engines import models_of
    from server.cli.machine import Machine, Processor
    from server.settings import Settings

    machine = Machine(
        processor=Processor(name="p", cores=1, threads=1, features=()),
        memory_bytes=6 * 10**9,
        cpu_limit=None,
        gpus=(),
    )
    monkeypatch.setattr(memory, "read_machine", lambda: machine)
    path = write_shape(tmp_path, "llama-8b", "Q8_0")
    settings = Settings(model=str(path))
    with pytest.raises(
        CommandError, match=r"does not fit: it needs .* there are 6\.00 GB"
    ) as found:
        models_of(settings)
    assert "HEADRACE_CHECK_MEMORY=false" in str(found.value)
    models, _ = models_of(Settings(model=str(path), check_memory=False))
    assert models.default.id


def test_the_examples_in_the_docs_are_what_the_command_says(tmp_path: Path) -> None:
    told = FIT.read_text().partition(f"<!-- {MARK} -->\n")[2].partition(f"<!-- /{MARK} -->")[0]
    assert told == render(tmp_path)
    assert all(shape in told for shape, _ in EXAMPLES)
