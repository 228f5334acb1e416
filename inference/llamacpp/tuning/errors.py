"""What keeps a model from being tuned, or a profile from being used."""

from __future__ import annotations


class TuningError(Exception):
    """One sentence or two for the person at the terminal."""


class JobFailed(TuningError):
    """A measuring process ended without a result; the message is what it said last."""


class WeightsMissing(TuningError):
    """A profile is there, but not the file that it says to serve; that can be made again."""
