"""The wheel that hatchling builds: what is in it is what runs in the image."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "inference", "conversation", "server", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name in wheel.namelist() if name.endswith(".py")} == modules
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops - set(PACKAGES) == {top for top in tops if top.endswith(".dist-info")}


def test_holds_the_catalogue_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "models/catalog.toml" in names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "headrace = server.cli:main" in wheel.read(name).decode()


def test_carries_no_weights(wheel: zipfile.ZipFile) -> None:
    assert max(info.file_size for info in wheel.infolist()) < 1_000_000
