"""Which weights exist, where they come from, whether they are what they claim."""

from models.catalog import Catalog, load_catalog
from models.entry import Entry
from models.errors import ModelError, UnknownModel
from models.places import Places
from models.resolve import LocalModel, resolve

__all__ = [
    "Catalog",
    "Entry",
    "LocalModel",
    "ModelError",
    "Places",
    "UnknownModel",
    "load_catalog",
    "resolve",
]
