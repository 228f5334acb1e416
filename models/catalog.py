"""The catalogue: the entries that ship with Headrace, and the user's own over them.

A user's entry with the id of a shipped one takes its place, and so does a user's
`default`. So a new release never breaks a catalogue that worked before.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from models.entry import Entry, Table
from models.errors import CatalogError, UnknownModel
from models.places import Places, default_places

DEFAULT_ALIAS = "default"


class CatalogFile(Table, frozen=True):
    """The top level of a `catalog.toml`, entries not yet checked."""

    default: str = ""
    models: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All known models, shipped ones first; `default` is the id behind that word."""

    entries: tuple[Entry, ...]
    default: str

    def get(self, id: str) -> Entry:
        """The entry with this id, or the default one for `default`.

        Raises UnknownModel, with the ids that come close.
        """
        wanted = self.default if id == DEFAULT_ALIAS else id
        for entry in self.entries:
            if entry.id == wanted:
                return entry
        known = [entry.id for entry in self.entries]
        close = difflib.get_close_matches(wanted, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UnknownModel(
            f"no model is called {wanted!r}.{hint} `headrace models list` shows them all."
        )


def load_catalog(places: Places | None = None) -> Catalog:
    """Read the shipped catalogue and the user's.

    Raises CatalogError, which names the file, the entry and the field.
    """
    shipped = resources.files("models").joinpath("catalog.toml").read_text(encoding="utf-8")
    default, entries = parse_catalog(shipped, where="the shipped catalogue")
    merged = {entry.id: entry for entry in entries}
    user_file = (places or default_places()).user_catalog
    text = read_user_catalog(user_file)
    if text:
        user_default, entries = parse_catalog(text, where=str(user_file))
        default = user_default or default
        merged |= {entry.id: entry for entry in entries}
    if default not in merged:
        raise CatalogError(f"{user_file}: default: no entry is called {default!r}")
    for entry in merged.values():
        if entry.draft is not None and entry.draft not in merged:
            raise CatalogError(
                f"{user_file}: entry {entry.id!r}: draft: no entry is called {entry.draft!r}"
            )
        if entry.base is not None:
            base = merged.get(entry.base)
            if base is None or base.base is not None:
                what = "no entry is called" if base is None else "this is an adapter itself:"
                raise CatalogError(f"{user_file}: entry {entry.id!r}: base: {what} {entry.base!r}")
    return Catalog(entries=tuple(merged.values()), default=default)


def read_user_catalog(path: Path) -> str:
    """The text of the user's catalogue, empty if there is none; raises CatalogError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: is not UTF-8 text") from error


def parse_catalog(text: str, *, where: str) -> tuple[str, tuple[Entry, ...]]:
    """Check one catalogue file: its default (may be empty) and its entries.

    `where` names the file in the messages of CatalogError.
    """
    try:
        file = msgspec.convert(tomllib.loads(text), CatalogFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CatalogError(f"{where}: {error}") from error
    entries: dict[str, Entry] = {}
    for raw in file.models:
        entry = parse_entry(raw, where=where)
        if entry.id in entries:
            raise CatalogError(f"{where}: entry {entry.id!r}: id: appears twice")
        entries[entry.id] = entry
    return file.default, tuple(entries.values())


def parse_entry(raw: dict[str, Any], *, where: str) -> Entry:
    """Check one entry; `where` says in the message of CatalogError whose it is."""
    try:
        return msgspec.convert(raw, Entry)
    except msgspec.ValidationError as error:
        id = raw.get("id")
        name = repr(id) if isinstance(id, str) else "without an id"
        raise CatalogError(f"{where}: entry {name}: {_field_first(str(error))}") from error


def _field_first(message: str) -> str:
    """Turn msgspec's "Expected … - at `$.field`" into "field: expected …"."""
    found = re.fullmatch(r"(.*) - at `\$\.(.*)`", message, flags=re.DOTALL)
    if not found:
        return message
    return f"{found[2]}: {found[1][:1].lower()}{found[1][1:]}"
