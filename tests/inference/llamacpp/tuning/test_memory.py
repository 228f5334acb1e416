from pathlib import Path

from inference.llamacpp.tuning.memory import GIB, available_bytes, needed_bytes


def machine(root: Path, *, available: str = "", limit: str = "", used: str = "") -> Path:
    for path, text in (
        ("proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {available} kB\n" if available else ""),
        ("sys/fs/cgroup/memory.max", limit),
        ("sys/fs/cgroup/memory.current", used),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_what_is_available(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, available="2048")) == 2048 * 1024


def test_a_container_limit_counts_what_is_used(tmp_path: Path) -> None:
    root = machine(tmp_path, available="2048", limit="1000000", used="400000")
    assert available_bytes(root) == 600_000
    assert available_bytes(machine(tmp_path, available="2048", limit="max")) == 2048 * 1024


def test_unknown_is_unknown(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_a_model_needs_more_than_its_file() -> None:
    assert needed_bytes(10 * GIB) > 11 * GIB
