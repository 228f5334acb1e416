"""`add`: a GGUF file of the user's becomes an entry of the user's catalogue."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.catalog import load_catalog, parse_entry, read_user_catalog
from models.entry import Capability, Entry, PathSource, Sampling
from models.errors import CatalogError, DuplicateModel, NotGguf, StoreFailed
from models.gguf_metadata import GgufMetadata, read_gguf
from models.locks import file_lock
from models.places import Places, default_places
from models.verification import sha256_of

POOLING_RANK = 4
"""llama.cpp's number for a head that scores pairs; 0 and below: nothing is pooled."""

_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a GGUF file says about itself, in the words of the catalogue."""

    context_length: int | None
    quantization: str
    license: str
    capabilities: tuple[Capability, ...]
    notes: str
    sampling: Sampling


def describe(path: Path, *, kind: Literal["model", "adapter"] = "model") -> Description:
    """Read a GGUF file's header; raises NotGguf, also for files that are no whole model.

    `kind` is what it has to be.
    """
    metadata = read_gguf(path)
    found = metadata.text("general.type") or "model"
    if found != kind:
        hint = "; name its model with --base" if found == "adapter" else ""
        raise NotGguf(f"{path} is no {kind} that can be served: its type is {found}{hint}")
    if metadata.architecture in ("", "clip"):
        named = metadata.architecture or "not named"
        raise NotGguf(f"{path} is no model that can be served: its architecture is {named}")
    parts = metadata.number("split.count")
    if parts is not None and parts > 1:
        raise NotGguf(
            f"{path} is one of {parts} parts of a model; `llama-gguf-split --merge` joins them"
        )
    return Description(
        context_length=metadata.context_length,
        quantization=metadata.quantization,
        license=metadata.text("general.license")[:200] or "unknown",
        capabilities=_capabilities(metadata),
        notes=metadata.text("general.name")[:2000],
        sampling=_sampling(metadata),
    )


def add(
    file: Path,
    *,
    id: str | None = None,
    base: str | None = None,
    scale: float = 1.0,
    places: Places | None = None,
    progress: bool = True,
) -> Entry:
    """Write an entry for `file` into the user's catalogue; the file stays where it is.

    Without `id` the file's name is taken. With `base` the file is a LoRA adapter of that
    entry, which applies at `scale`. Raises NotGguf, UnknownModel, DuplicateModel,
    CatalogError for an id or a base that cannot be one, and StoreFailed.
    """
    places = places or default_places()
    path = Path(os.path.abspath(file))  # links stay: a hub's cache links to nameless blobs
    described = describe(path) if base is None else _describe_adapter(path, base, places)
    if path.suffix != ".gguf" or not _is_utf8(path):
        raise NotGguf(f"{path!s:.200}: the name must be UTF-8 and end in .gguf")
    try:
        # The lock comes before the look for duplicates: two commands may add at once.
        with file_lock(places.user_catalog.with_suffix(".lock")):
            chosen = id if id is not None else id_from(path)
            _refuse_duplicates(chosen, path, places)
            entry = _entry(chosen, path, described, base=base, scale=scale, progress=progress)
            _append(entry, places.user_catalog)
    except OSError as error:
        raise StoreFailed(f"{error.filename or path}: {error.strerror}") from error
    return entry


def id_from(path: Path) -> str:
    """An id made from a file's name: lower case, other characters than `a-z0-9._-` as `-`."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:96]
    return name if name not in ("", "default") else "model"


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same place, links followed; neither has to exist."""
    return os.path.realpath(one) == os.path.realpath(other)


def to_toml(entry: Entry) -> str:
    """The entry as a piece of a `catalog.toml`; fields at their defaults are left out."""
    fields = msgspec.to_builtins(entry)
    tables = {"source": fields.pop("source"), "sampling": entry.sampling.given()}
    del fields["sampling"]
    if entry.base is None:
        del fields["scale"]
    lines = ["[[models]]", *_assignments(fields)]
    for name, table in tables.items():
        if table:
            lines += ["", f"[models.{name}]", *_assignments(table)]
    return "\n".join(lines) + "\n"


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _assignments(table: dict[str, object]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value not in (None, "")]


def _toml(value: object) -> str:
    # JSON's strings, numbers and arrays are TOML's too, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _capabilities(metadata: GgufMetadata) -> tuple[Capability, ...]:
    pooling = metadata.number(f"{metadata.architecture}.pooling_type") or 0
    if pooling > 0:
        return ("rerank",) if pooling == POOLING_RANK else ("embeddings",)
    if metadata.text("tokenizer.chat_template"):
        return ("chat", "completion")
    return ("completion",)


def _sampling(metadata: GgufMetadata) -> Sampling:
    """The recommendations in the header, without those outside our ranges.

    They are float32 values: rounding gives back 0.2 for 0.20000000298.
    """
    given = Sampling()
    for name, key in _SAMPLING_KEYS.items():
        value = metadata.number(key)
        if value is not None:
            with contextlib.suppress(msgspec.ValidationError):
                given = msgspec.convert(given.given() | {name: round(value, 6)}, Sampling)
    return given


def _refuse_duplicates(id: str, path: Path, places: Places) -> None:
    entries = load_catalog(places).entries
    for entry in entries:
        if isinstance(entry.source, PathSource) and is_same_file(entry.source.path, path):
            raise DuplicateModel(f"{path} is already in the catalogue, as {entry.id!r}")
    if any(entry.id == id for entry in entries):
        raise DuplicateModel(f"the id {id!r} is already in the catalogue; choose another (--id)")


def _entry(
    id: str,
    path: Path,
    described: Description,
    *,
    base: str | None,
    scale: float,
    progress: bool,
) -> Entry:
    raw: dict[str, Any] = {
        "id": id,
        "source": {"type": "path", "path": str(path)},
        "file": path.name,
        "size": path.stat().st_size,
        "sha256": sha256_of(path, progress=progress),
        "license": described.license,
        "quantization": described.quantization,
        "capabilities": described.capabilities,
        "notes": described.notes,
        "sampling": described.sampling.given(),
    }
    if described.context_length is not None:
        raw["context_length"] = described.context_length
    if base is not None:
        raw |= {"base": base, "scale": scale}
    return parse_entry(raw, where="the new entry")


def _describe_adapter(path: Path, base: str, places: Places) -> Description:
    """What an adapter does not say, its base does."""
    entry = load_catalog(places).get(base)
    if entry.base is not None:
        raise CatalogError(f"{base} is an adapter itself")
    said = describe(path, kind="adapter")
    return replace(
        said,
        context_length=entry.context_length,
        license=said.license if said.license != "unknown" else entry.license,
        capabilities=entry.capabilities,
    )


def _append(entry: Entry, catalog: Path) -> None:
    """Write old text plus new entry beside the catalogue, then rename it into place."""
    text = read_user_catalog(catalog)
    if text:
        text = text.rstrip("\n") + "\n\n"
    temporary = catalog.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + to_toml(entry))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(catalog)
