"""From the name a user gives to a verified file on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from models.adding import describe, id_from, is_same_file
from models.catalog import Catalog, load_catalog
from models.entry import Entry, PathSource
from models.errors import HashMismatch, NotGguf, UnknownModel
from models.places import Places, default_places
from models.pull import pull
from models.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The file of a LoRA adapter, and how strongly it applies."""

    path: Path
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a name stands for, whether or not its file is here."""

    id: str
    sampling: Mapping[str, float | int]
    shortest_vector: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A file that is here and is what it claims to be.

    `context_length` is what the model was trained for (tokens), None where unknown.
    `sampling` holds the recommended values of the fields of a request that are named
    like its keys: `temperature`, `top_p` and so on. `draft` is the id of the smaller
    model that its entry names to propose tokens. Where the model is an adapter, `path` is
    its base's file. `shortest_vector` is how short an embedding may be cut, None where it
    may not.
    """

    id: str
    path: Path
    quantization: str
    context_length: int | None
    sampling: Mapping[str, float | int]
    license: str
    draft: str | None = None
    shortest_vector: int | None = None
    adapters: tuple[Adapter, ...] = ()


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
    if entry.base is not None:
        base = resolve(entry.base, offline=offline, progress=progress, places=places)
        return _adapted(base, entry, store.path_of(entry))
    return LocalModel(
        id=entry.id,
        path=store.path_of(entry),
        quantization=entry.quantization,
        context_length=entry.context_length,
        sampling=MappingProxyType(entry.sampling.given()),
        license=entry.license,
        draft=entry.draft,
        shortest_vector=entry.shortest_vector,
    )


def named(name: str, *, places: Places | None = None) -> Named:
    """What `resolve` would call the model called `name`. Reads no content of catalogued files.

    Raises ModelError for a name that nobody knows, and for an unusable catalogue.
    """
    entry = _find(name, load_catalog(places or default_places()))
    if entry is not None:
        return Named(
            id=entry.id,
            sampling=MappingProxyType(entry.sampling.given()),
            shortest_vector=entry.shortest_vector,
        )
    try:
        sampling = describe(Path(name)).sampling.given()
    except NotGguf:
        sampling = {}  # whoever loads it will say so
    return Named(id=id_from(Path(name)), sampling=MappingProxyType(sampling))


def _adapted(base: LocalModel, entry: Entry, adapter: Path) -> LocalModel:
    """The base with the entry's adapter; what the entry leaves open is the base's."""
    return replace(
        base,
        id=entry.id,
        context_length=entry.context_length or base.context_length,
        sampling=MappingProxyType({**base.sampling, **entry.sampling.given()}),
        license=entry.license,
        draft=entry.draft,
        adapters=(Adapter(path=adapter, scale=entry.scale),),
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
