"""The examples of docs/fit.md: `python -m tests.server.cli.fit_examples` prints them."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server import cli
from tests.inference.llamacpp.shapes import write_shape

MARK = "headrace models fit"
EXAMPLES = (
    ("llama-8b", "Q4_K_M"),
    ("llama-8b", "Q8_0"),
    ("llama-70b", "Q4_K_M"),
    ("llama-70b", "Q8_0"),
)
SIZES = ("24G", "48G", "80G", "141G")
HOST = "256G"
WHOLE = ("--context", "8192", "--cache-tokens", "131072")
SHOWN = ("llama-70b", "Q4_K_M", "48G")


def render(folder: Path) -> str:
    """The tables and the example in full, as they stand in the page."""
    files = {key: write_shape(folder, *key) for key in EXAMPLES}
    lines: list[str] = []
    lines += ["On GPUs, with the settings as they are:", ""]
    lines += table(files, lambda size: ("--memory", HOST, "--gpu-memory", size))
    lines += ["", "On GPUs, with a whole context for each of the 16 lanes:", ""]
    lines += table(files, lambda size: ("--memory", HOST, "--gpu-memory", size, *WHOLE))
    lines += ["", "On the processor, with the settings as they are:", ""]
    lines += table(files, lambda size: ("--memory", size, "--gpu-layers", "0"))
    shape, format, size = SHOWN
    arguments = ("--memory", "64G", "--gpu-memory", size)
    path = files[shape, format]
    lines += ["", "One of them in full:", "", "```"]
    lines += [f"$ headrace models fit {path.name} {' '.join(arguments)}"]
    lines += run(path, *arguments).rstrip("\n").replace(str(path), path.name).splitlines()
    return "\n".join([*lines, "```", ""])


def table(files: dict[tuple[str, str], Path], arguments: Any) -> Iterator[str]:
    """A row for each file, a column for each size of memory."""
    yield f"| shape | needs | {' | '.join(size.replace('G', ' GB') for size in SIZES)} |"
    yield f"|---|---|{'---|' * len(SIZES)}"
    for (shape, format), path in files.items():
        told = [json.loads(run(path, *arguments(size), "--json")) for size in SIZES]
        on_gpu = told[0]["gpu_memory_bytes"] is not None
        needed = told[0]["gpu_memory_needed_bytes" if on_gpu else "memory_needed_bytes"]
        cells = " | ".join(map(cell, told))
        yield f"| {shape} {format} | {needed / 1e9:.1f} GB | {cells} |"


def cell(told: dict[str, Any]) -> str:
    """It fits, or what would."""
    if told["fits"]:
        return "fits"
    return "; or ".join(told["what_would_fit"]) or "no"


def run(path: Path, *arguments: str) -> str:
    """What the command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(["models", "fit", str(path), *arguments])
    return out.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(render(Path(folder)), end="")
