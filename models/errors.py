"""What can go wrong with model files, as one hierarchy.

    ModelError
    ├── CatalogError     a catalogue file is wrong; the message names entry and field
    ├── UnknownModel     no entry has this id, and no file has this path
    ├── DuplicateModel   the id or the file is already in the catalogue
    ├── NotGguf          the file is no GGUF model, or is cut short
    ├── NotPulled        the file is not here, and fetching it was not allowed
    ├── FetchFailed      the source did not hand over the file
    ├── HashMismatch     the file is not what the catalogue says; it is never loaded
    └── StoreFailed      the local disk refused: full, read-only, not permitted

Messages are one sentence or two, for the person at the terminal. They say what to do
next where something can be done.
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of everything this package raises on purpose."""


class CatalogError(ModelError):
    """A catalogue file cannot be read, or one of its entries is wrong."""


class UnknownModel(ModelError):
    """Neither the id of a catalogue entry nor the path of a file."""


class DuplicateModel(ModelError):
    """The id, or the file, is already in the catalogue."""


class NotGguf(ModelError):
    """The file is no GGUF model that can be served, or is cut short."""


class NotPulled(ModelError):
    """The file is not on this machine, and fetching it was not allowed."""


class FetchFailed(ModelError):
    """The source did not hand over the file."""


class HashMismatch(ModelError):
    """The file's size or SHA-256 is not the catalogue's."""


class StoreFailed(ModelError):
    """The local disk refused: full, read-only or not permitted."""
