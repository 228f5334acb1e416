"""From the name a user gives to a verified file on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from models.adding import describe, id_from, is_same_file
from models.catalog import Catalog, load_catalog
from models.entry import Entry, PathSource
from models.errors import HashMismatch, UnknownModel
from models.places import Places, default_places
from models.pull import pull
from models.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A file that is here and is what it claims to be.

    `context_length` is what the model was trained for (tokens), None where unknown.
    `sampling` holds the recommended values of the fields of a request that are named
    like its keys: `temperature`, `top_p` and so on. `draft` is the id of the smaller
    model that its entry names to propose tokens.
    """

    id: str
    path: Path
    quantization: str
    context_length: int | None
    sampling: Mapping[str, float | int]
    license: str
    draft: str | None = None


def resolve(
    name: str, *, offline: bool = False, progress: bool = True, places: Places | None = None
) -> LocalModel:
    """Find the model called `name`, fetch its file if it is missing, verify its SHA-256.

    `name` is the id of a catalogue entry, `default`, or the path of a `.gguf` file. A
    file outside the catalogue has no hash to compare with: its header is read instead,
    and it must be complete. A file in the store with a wrong hash is refused and not
    replaced; `headrace models pull` does that, when it is asked to.

    Blocks. Writes progress to standard error. Raises ModelError.
    """
    places = places or default_places()
    catalog = load_catalog(places)
    entry = _find(name, catalog)
    if entry is None:
        return _from_file(Path(name))
    store = Store(places.store)
    try:
        if store.has(entry):
            store.verify(entry, progress=progress)
        else:
            pull(entry, store, offline=offline, progress=progress)
    except HashMismatch as error:
        raise HashMismatch(f"{error}. {_remedy(entry, places)}") from error
    return LocalModel(
        id=entry.id,
        path=store.path_of(entry),
        quantization=entry.quantization,
        context_length=entry.context_length,
        sampling=MappingProxyType(entry.sampling.given()),
        license=entry.license,
        draft=entry.draft,
    )


def _find(name: str, catalog: Catalog) -> Entry | None:
    """The entry behind an id, or behind the path of a registered file; None for other files."""
    try:
        return catalog.get(name)
    except UnknownModel:
        path = Path(name)
        if path.suffix != ".gguf" and "/" not in name:
            raise
    if not path.is_file():
        raise UnknownModel(f"there is no file {name}")
    for entry in catalog.entries:
        if isinstance(entry.source, PathSource) and is_same_file(entry.source.path, path):
            return entry
    return None


def _from_file(path: Path) -> LocalModel:
    described = describe(path)
    return LocalModel(
        id=id_from(path),
        path=path.absolute(),
        quantization=described.quantization,
        context_length=described.context_length,
        sampling=MappingProxyType(described.sampling.given()),
        license=described.license,
    )


def _remedy(entry: Entry, places: Places) -> str:
    if isinstance(entry.source, PathSource):
        return f"If the change was meant, take the entry out of {places.user_catalog} and add again"
    return f"`headrace models pull {entry.id}` fetches it again"
