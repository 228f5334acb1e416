"""`python -m tests.fuzz TARGET [libFuzzer's options]`, in an environment that has atheris."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Search until something breaks, or for as long as `-max_total_time` says."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["server", "benchmarks", "uvicorn", "websockets"]):
        targets = importlib.import_module("tests.fuzz.targets")
    if not arguments or arguments[0] not in targets.TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz {'|'.join(targets.TARGETS)} [options]")
    name, *options = arguments
    logging.disable()  # what is logged of broken requests would be the slowest of all
    found = Path("build") / "fuzz"
    corpus = found / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    own = [f"-artifact_prefix={found}/", "-timeout=10"]
    atheris.Setup([sys.argv[0], *own, *options, str(corpus)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
