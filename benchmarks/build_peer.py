"""Build the honest peer: llama-server of the very llama.cpp that Headrace runs on.

`python -m benchmarks.build_peer` downloads the source of the installed llama-cpp-python,
which carries all of llama.cpp, checks it against the lock file, and builds
`llama-server`, `llama-bench` and `llama-batched-bench` from it into the user's cache. It
needs a C++ compiler, cmake and ninja; `make bench` brings the last two.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import PeerCache, llama_cpp_python_version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
BUILD_LOCK = ROOT / "deploy" / "locks" / "build.lock"
PACKAGE = "llama-cpp-python"
PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
)


class BuildError(Exception):
    """A step failed, or a tool is missing; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build: of which version, into which cache, with which further CMake flags."""

    version: str
    cache: PeerCache
    cmake_flags: tuple[str, ...] = ()
    jobs: int = os.cpu_count() or 1

    def done(self) -> bool:
        """Whether every program is there."""
        return all(self.cache.program(name).exists() for name in PROGRAMS)

    def fetch(self, sdist: Path | None = None) -> None:
        """Put the source in its place: from `sdist`, or downloaded by pip.

        Raises `BuildError` where the lock file has no hash for this version.
        """
        if (self.cache.source / "vendor" / "llama.cpp" / "CMakeLists.txt").exists():
            return
        self.cache.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache.directory) as scratch:
            archive = sdist or self._download(Path(scratch))
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            top = next(path for path in Path(scratch).iterdir() if path.is_dir())
            # Renamed when complete: what bears the final name is whole.
            shutil.rmtree(self.cache.source, ignore_errors=True)
            top.rename(self.cache.source)

    def _download(self, directory: Path) -> Path:
        pinned = directory / "pinned.txt"
        pinned.write_text(pinned_lines(self.version))
        _run(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE),
                *("--require-hashes", "--requirement", str(pinned)),
                # pip asks the source for its name and version, with these build tools.
                *("--build-constraint", str(BUILD_LOCK), "--dest", str(directory)),
            ]
        )
        return next(directory.glob("*.tar.gz"))

    def configure(self) -> None:
        """Run CMake."""
        _run(
            [
                *(_tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"),
                *("-S", str(self.cache.source / "vendor" / "llama.cpp")),
                *("-B", str(self.cache.build), *CMAKE_FLAGS, *self.cmake_flags),
            ]
        )

    def compile(self) -> None:
        """Build the programs; about ten minutes on two cores."""
        _run([_tool("ninja"), "-C", str(self.cache.build), "-j", str(self.jobs), *PROGRAMS])


def pinned_lines(version: str, lock: Path = LOCK) -> str:
    """The lock file's requirement for llama-cpp-python, with its hashes.

    Raises `BuildError` when there is no such file, or it pins another version.
    """
    try:
        text = lock.read_text()
    except OSError as error:
        raise BuildError(f"{lock}: {error.strerror}; give the source as --sdist FILE") from None
    found = re.search(rf"^{re.escape(f'{PACKAGE}=={version}')} .*(?:\n +--hash=.*)+", text, re.M)
    if found is None:
        raise BuildError(
            f"{lock.name} has no hash for {PACKAGE} {version}, which is installed here; "
            "give its source as --sdist FILE"
        )
    return found[0] + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Build unless everything is built; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build_peer", description="Build llama-server for comparisons."
    )
    parser.add_argument(
        "--sdist", type=Path, metavar="FILE", help="source archive, for offline use"
    )
    parser.add_argument("--cmake-flags", default="", metavar="'...'", help="such as -DGGML_CUDA=ON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--configure-only", action="store_true", help="stop before compiling")
    options = parser.parse_args(argv)
    version = llama_cpp_python_version()
    if version is None:
        print("build_peer: llama-cpp-python is not installed here", file=sys.stderr)
        return 1
    build = Build(
        version=version,
        cache=PeerCache.of_version(version),
        cmake_flags=tuple(shlex.split(options.cmake_flags)),
        jobs=options.jobs,
    )
    try:
        if not build.done():
            build.fetch(options.sdist)
            build.configure()
            if not options.configure_only:
                build.compile()
    except BuildError as error:
        print(f"build_peer: {error}", file=sys.stderr)
        return 1
    print(build.cache.program("llama-server").parent)
    return 0


def _tool(name: str) -> str:
    """A build tool: beside this Python first, where pip puts it, else on the path."""
    beside = Path(sys.executable).with_name(name)
    if found := shutil.which(str(beside)) or shutil.which(name):
        return found
    raise BuildError(f"{name} is missing; pip install {name}")


def _run(argv: Iterable[str]) -> None:
    command = list(argv)
    print("+", shlex.join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise BuildError(f"this failed: {shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
