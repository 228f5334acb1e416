"""The Makefile and the scripts behind it: targets, early errors, waiting in line."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("deploy/**/*.sh"), ROOT / ".ci/run"])
TARGETS = ("serve", "install", "test", "check", "bench", "faults", "clean", "help", "lock")
TOOLS = (
    "bash",
    "cat",
    "cut",
    "awk",
    "grep",
    "sort",
    "uname",
    "mkdir",
    "rm",
    "sha256sum",
    "flock",
    "dirname",
    "chmod",
)


def fake(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what deploy/environment.sh reads, with no environment in it yet."""
    shutil.copytree(ROOT / "deploy", tmp_path / "checkout/deploy")
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of the tools which every Debian has, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def environment(
    checkout: Path, programs: Path, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `deploy/environment.sh runtime` there, with only those programs."""
    return subprocess.run(
        [checkout / "deploy/environment.sh", "runtime"],
        env={"PATH": str(programs), "HOME": str(checkout), **(extra or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for target in TARGETS:
        assert f"make {target} " in shown


def test_arguments_reach_the_program() -> None:
    command = ["make", "--dry-run", "serve", "ARGS=--port 9000"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "headrace serve --port 9000" in shown


def test_quoted_arguments_of_bench_leave_the_peer_unbuilt() -> None:
    command = ["make", "--dry-run", "bench", 'ARGS=compare --a-flags "--lanes 8"']
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 'benchmarks compare --a-flags "--lanes 8"' in shown
    assert "build_peer" not in shown


def test_a_plain_bench_brings_what_builds_the_peer() -> None:
    command = ["make", "--dry-run", "bench"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert shown.index("environment.sh build") < shown.index("build_peer")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run_and_stop_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


def test_no_python(checkout: Path, programs: Path) -> None:
    fake(programs / "g++", "")
    ended = environment(checkout, programs)
    assert ended.returncode == 1
    assert "Python 3.11 or newer is needed; none was found." in ended.stderr
    assert "apt install python3" in ended.stderr


def test_python_too_old(checkout: Path, programs: Path) -> None:
    fake(programs / "g++", "")
    fake(programs / "python3", "echo 3.9")
    ended = environment(checkout, programs)
    assert ended.returncode == 1
    assert "python3 is 3.9" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_a_named_python_is_the_only_one_tried(checkout: Path, programs: Path) -> None:
    fake(programs / "g++", "")
    fake(programs / "python3", "echo 3.12")
    fake(programs / "python3.10", "echo 3.10")
    ended = environment(checkout, programs, {"PYTHON": "python3.10"})
    assert ended.returncode == 1
    assert "python3.10 is 3.10" in ended.stderr


def test_no_venv_module(checkout: Path, programs: Path) -> None:
    fake(programs / "g++", "")
    fake(programs / "python3", 'case "$*" in *version_info*) echo 3.12 ;; *) exit 1 ;; esac')
    ended = environment(checkout, programs)
    assert ended.returncode == 1
    assert "apt install python3.12-venv" in ended.stderr


def test_no_compiler(checkout: Path, programs: Path) -> None:
    fake(programs / "python3", "echo 3.12")
    ended = environment(checkout, programs)
    assert ended.returncode == 1
    assert "apt install g++" in ended.stderr
    assert not (checkout / ".venv").exists()


def services(programs: Path, *, sudo: str | None) -> subprocess.CompletedProcess[str]:
    """Run `deploy/services.sh mill` as a user whose `sudo` is that script."""
    fake(programs / "id", "echo 1000")
    fake(programs / "apt-get", "exit 1")
    if sudo is not None:
        fake(programs / "sudo", sudo)
    return subprocess.run(
        [ROOT / "deploy/services.sh", "mill"],
        env={"PATH": str(programs)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_nothing_is_installed_that_is_there(programs: Path) -> None:
    fake(programs / "mill", "")
    ended = services(programs, sudo=None)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("sudo", [None, "exit 1"])
def test_who_may_not_install_is_told_what_to_install(programs: Path, sudo: str | None) -> None:
    ended = services(programs, sudo=sudo)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "headrace: this needs mill; Debian, Ubuntu: sudo apt-get install mill"
    ]


def test_what_is_missing_is_installed_where_sudo_asks_nothing(programs: Path) -> None:
    """The fake `sudo` only writes down what it should do, and makes the program."""
    said = programs / "said"
    ended = services(
        programs,
        sudo=f"""cat >/dev/null
        echo "$*" >>{said}
        case "$*" in *" install "*" mill") ;; *) exit ;; esac
        echo >{programs}/mill && chmod +x {programs}/mill""",
    )
    assert ended.returncode == 0
    commands = said.read_text().splitlines()
    assert all(command.startswith("-n ") for command in commands)
    [update, install] = [command for command in commands if "apt-get" in command]
    assert update.endswith(" update")
    assert install.endswith(" install --no-install-recommends -y mill")


def test_an_install_that_fails_is_told_too(programs: Path) -> None:
    ended = services(programs, sudo='cat >/dev/null; case "$*" in *apt-get*) exit 1 ;; esac')
    assert ended.returncode == 1
    assert ended.stderr.endswith("sudo apt-get install mill\n")


def test_a_second_install_waits_for_the_first(checkout: Path, programs: Path) -> None:
    """It says so, and goes on once the other one's lock is gone."""
    (checkout / ".venv-state").mkdir()
    with (checkout / ".venv-state/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [checkout / "deploy/environment.sh", "runtime"],
            env={"PATH": str(programs), "HOME": str(checkout)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        assert "another make is installing" in process.stderr.readline()
        assert process.poll() is None
    with process:
        assert "is needed" in process.stderr.read()
    assert process.returncode == 1
