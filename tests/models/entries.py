"""Entries and files for tests."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import msgspec

from models.entry import Entry, HubSource, PackageSource, Source
from tests.models.gguf_files import gguf_bytes
from tests.models.hub_server import REPO, REVISION

CONTENT = gguf_bytes(tensor_data=300_000)
HUB_SOURCE = HubSource(repo=REPO, revision=REVISION, path="tiny.gguf")


def make_entry(source: Source = HUB_SOURCE, *, content: bytes = CONTENT, id: str = "tiny") -> Entry:
    """An entry for `content`."""
    return Entry(
        id=id,
        source=source,
        file="tiny.gguf",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        license="MIT",
        quantization="Q8_0",
        capabilities=("chat",),
    )


def package_source(
    directory: Path, *, content: bytes = CONTENT, name: str = "tiny-weights"
) -> PackageSource:
    """Build a wheel in `directory` that carries `content` and depends on something absent."""
    module = name.replace("-", "_")
    wheel = directory / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}/tiny.gguf", content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            "Requires-Dist: a-package-that-is-nowhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PackageSource(
        package=name,
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=f"{module}/tiny.gguf",
    )


def changed(entry: Entry, **fields: object) -> Entry:
    """The entry with some fields replaced."""
    return msgspec.structs.replace(entry, **fields)
