"""Where model files and the user's catalogue live on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`store` holds fetched files, `user_catalog` the entries which the user added.

    Beside the store lies what engines compute with the models: `lanes`.
    """

    store: Path
    user_catalog: Path

    @property
    def lanes(self) -> Path:
        """Where saved lanes of the KV cache are kept."""
        return self.store.parent / "kv"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Places:
        """Follow the XDG base directory specification: relative values are ignored."""
        return cls(
            store=_base(environ, "XDG_CACHE_HOME", ".cache") / "headrace" / "models",
            user_catalog=_base(environ, "XDG_DATA_HOME", ".local/share")
            / "headrace"
            / "catalog.toml",
        )


def default_places() -> Places:
    """The places of the current user: the only reading of the environment in `models`."""
    return Places.from_environ(os.environ)


def _base(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    value = Path(environ.get(variable, ""))
    if value.is_absolute():
        return value
    home = environ.get("HOME", "")
    return (Path(home) if home else Path.home()) / fallback
