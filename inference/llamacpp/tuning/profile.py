"""A profile: what was measured for one model on one machine, and the weights that were kept.

What a class serves under a preference follows from the candidates (choice.py) and is not
written down: no file can contradict its own figures.

It holds for one original file (by its SHA-256), one processor and one release of
llama-cpp-python: another of any of the three has other kernels or other weights, and
needs a measurement of its own. The file's name is made from all three.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from inference.llamacpp.tuning.choice import (
    BOUNDS,
    CHOICES,
    PREFERENCES,
    Candidate,
    choice_name,
    choose,
)
from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.toml import dumps

VERSION = 2
WITH_CHOICES = 1
"""The version that knew one preference, and held its choices; they follow from the rest."""

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")]


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profile holds for. `machine` describes processor, cores and GPUs in words."""

    model_sha256: Sha256
    machine: str
    llama_cpp_python: str

    def file_name(self) -> str:
        """The profile's own file name."""
        rest = f"{self.machine}\n{self.llama_cpp_python}".encode()
        return f"{self.model_sha256[:16]}-{hashlib.sha256(rest).hexdigest()[:12]}.toml"


class Weights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A requantized file in the cache; `name` is a plain file name, never a path."""

    format: str
    name: FileName
    size: int
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A choice that is faster than the original, under its name; `score` says how much."""

    name: str
    preference: str
    candidate: Candidate
    score: float


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All measured `candidates`, the original among them, and the files of the chosen."""

    version: int
    model: str
    quantization: str
    created: str
    rounds: int
    key: Key
    weights: list[Weights] = []
    candidates: list[Candidate]

    def chosen(self, name: str) -> Candidate:
        """What `name` of `CHOICES` serves."""
        return choose(self.candidates, name)

    def chosen_formats(self) -> set[str]:
        """The formats that any choice serves, the original's aside."""
        return {self.chosen(name).trial.format for name in CHOICES} - {ORIGINAL}

    def weights_of(self, candidate: Candidate) -> Weights | None:
        """The candidate's file; None means the original. Raises `WeightsMissing`."""
        format = candidate.trial.format
        if format == ORIGINAL:
            return None
        found = next((w for w in self.weights if w.format == format), None)
        if found is None:
            raise WeightsMissing(f"its profile was made without weights in {format}")
        return found

    def offers(self) -> Iterator[Offer]:
        """For each preference the most faithful class that serves other weights.

        What has no weights is not offered, and nothing is offered twice.
        """
        left = {weights.format for weights in self.weights}
        for preference in PREFERENCES:
            offer = self._best(preference)
            if offer is not None and offer.candidate.trial.format in left:
                left.remove(offer.candidate.trial.format)
                yield offer

    def _best(self, preference: str) -> Offer | None:
        for bound in BOUNDS:
            name = choice_name(bound, preference)
            candidate = self.chosen(name)
            if candidate.trial.format != ORIGINAL:
                score = PREFERENCES[preference].score(candidate)
                return Offer(name=name, preference=preference, candidate=candidate, score=score)
        return None

    def _check(self) -> None:
        """Raise `ValueError` when nothing could be chosen from these figures."""
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")
        for candidate in self.candidates:
            figures = candidate.ratio
            if not all(
                0 < figure < math.inf
                for figure in (figures.prefill, figures.single, figures.streams)
            ):
                raise ValueError(f"the ratios of {candidate.trial.format} are no ratios")
        if not any(
            c.trial.format == ORIGINAL and c.quality.divergence == 0 for c in self.candidates
        ):
            raise ValueError("the original is not among the candidates")


def write_profile(profile: Profile) -> str:
    """The profile as TOML."""
    return dumps(msgspec.to_builtins(profile))


def parse_profile(text: str) -> Profile:
    """Read what `write_profile` wrote, now or when it wrote choices as well.

    Raises `ValueError` for anything else.
    """
    profile = msgspec.convert(_without_choices(tomllib.loads(text)), Profile)
    profile._check()
    return profile


def _without_choices(table: dict[str, Any]) -> dict[str, Any]:
    """The table in the present version, if it is of one that can be brought there."""
    if table.get("version") != WITH_CHOICES:
        return table
    kept = {key: value for key, value in table.items() if key != "choices"}
    return {**kept, "version": VERSION}


def read_profile(path: Path, key: Key) -> Profile | None:
    """The profile at `path`; None when there is none.

    Raises `TuningError` for a file that cannot be read, is damaged, or is another key's.
    """
    try:
        profile = parse_profile(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's and tomllib's errors are ValueErrors
        raise TuningError(f"the profile {path} cannot be used: {error}") from error
    if profile.key != key:
        raise TuningError(f"the profile {path} is for another model or machine")
    return profile
