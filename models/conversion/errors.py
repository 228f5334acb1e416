"""Why a model cannot be converted."""

from __future__ import annotations


class ConversionFailed(Exception):
    """The files are not a model of this kind, or not one that the result could express."""
