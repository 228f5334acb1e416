"""What the commands' options have in common."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Protocol

from benchmarks.peers import PeerError


class Commands(Protocol):
    """What `add_subparsers` returns, as far as commands need it."""

    def add_parser(self, name: str, *, help: str) -> argparse.ArgumentParser:
        """A parser for the command `name`."""


def numbers(text: str) -> tuple[int, ...]:
    """An option of whole numbers above 0 with commas. Raises `ArgumentTypeError`."""
    return tuple(positive(part) for part in text.split(","))


def positive(text: str) -> int:
    """An option of a whole number above 0. Raises `ArgumentTypeError`."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, not {text!r}")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """An option that is a piece of a command line. Raises `ArgumentTypeError`."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def api_key(variable: str | None) -> str:
    """The key in that environment variable; empty for None. Raises `PeerError`."""
    if variable is None:
        return ""
    if not (key := os.environ.get(variable)):
        raise PeerError(f"the variable {variable} holds no key")
    return key
