"""The lock files pin everything, by hash, and say what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted([*ROOT.glob("requirements*.lock"), *ROOT.glob("deploy/locks/*.lock")])
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: Path) -> list[str]:
    """One logical line for each pinned package, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def pins(lock: Path) -> dict[str, set[str]]:
    """Versions by name; more than one where they depend on the Python version."""
    found: dict[str, set[str]] = {}
    for entry in entries(lock):
        requirement = Requirement(entry.split("--hash", 1)[0].strip())
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


def pyproject(*groups: str) -> list[Requirement]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [table["dependency-groups"][group] for group in groups]
    return [
        Requirement(text) for texts in (table["project"]["dependencies"], *named) for text in texts
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_is_pinned_with_hashes(lock: Path) -> None:
    assert entries(lock)
    for entry in entries(lock):
        assert HASH.search(entry), entry[:80]
    assert pins(lock)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_lock_names_an_index(lock: Path) -> None:
    """Whoever installs uses the index of their own pip."""
    assert "://" not in lock.read_text()
    assert "index" not in "".join(entries(lock))


@pytest.mark.parametrize(
    ("lock", "groups"),
    [("requirements.lock", ["build"]), ("requirements-dev.lock", ["build", "dev"])],
)
def test_locks_satisfy_pyproject(lock: str, groups: list[str]) -> None:
    locked = pins(ROOT / lock)
    for requirement in pyproject(*groups):
        versions = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_tests_run_with_the_versions_that_are_served() -> None:
    served, tested = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-dev.lock")
    assert {name: tested.get(name) for name in served} == served


def test_inputs_and_locks_come_in_pairs() -> None:
    folder = ROOT / "deploy/locks"
    assert {path.stem for path in folder.glob("*.in")} == {
        path.stem for path in folder.glob("*.lock")
    }
    for source in folder.glob("*.in"):
        locked = pins(source.with_suffix(".lock"))
        for line in source.read_text().splitlines():
            if line and not line.startswith("#"):
                requirement = Requirement(line)
                versions = locked[canonicalize_name(requirement.name)]
                assert all(requirement.specifier.contains(version) for version in versions)


def test_two_generations_of_the_openai_sdk_are_locked() -> None:
    (old,) = pins(ROOT / "deploy/locks/openai2.lock")["openai"]
    (new,) = pins(ROOT / "requirements-dev.lock")["openai"]
    assert (old.split(".")[0], new.split(".")[0]) == ("2", "3")
