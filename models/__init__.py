"""Which weights exist, where they come from, whether they are what they claim."""

from models.catalog import Catalog, load_catalog
from models.entry import Entry
from models.errors import ModelError, UnknownModel
from models.places import Places
from models.resolve import Adapter, LocalModel, Named, named, resolve

__all__ = [
    "Adapter",
    "Catalog",
    "Entry",
    "LocalModel",
    "ModelError",
    "Named",
    "Places",
    "UnknownModel",
    "load_catalog",
    "named",
    "resolve",
]
