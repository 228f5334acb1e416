"""Key files: one API key a line, for the server and for `headrace chat`."""

from __future__ import annotations

from pathlib import Path


class KeyFileError(ValueError):
    """The key file cannot be read or holds no key. The message names the file."""


def read_keys(path: Path) -> list[str]:
    """The keys, at least one; empty lines and lines that begin with `#` do not count.

    Raises `KeyFileError`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: not UTF-8 text") from error
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise KeyFileError(f"{path}: holds no key")
    return keys
