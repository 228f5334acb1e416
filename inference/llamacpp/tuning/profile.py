"""A profile: what was measured for one model on one machine, and what each class uses.

It holds for one original file (by its SHA-256), one processor and one release of
llama-cpp-python: another of any of the three has other kernels or other weights, and
needs a measurement of its own. The file's name is made from all three.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from inference.llamacpp.tuning.choice import BOUNDS, Candidate
from inference.llamacpp.tuning.errors import TuningError
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.toml import dumps

VERSION = 1
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


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`choices` maps each class to the index of its candidate in `candidates`."""

    version: int
    model: str
    quantization: str
    created: str
    rounds: int
    key: Key
    choices: dict[str, int]
    weights: list[Weights] = []
    candidates: list[Candidate]

    def chosen(self, name: str) -> Candidate:
        """The candidate of the class `name`."""
        return self.candidates[self.choices[name]]

    def weights_of(self, candidate: Candidate) -> Weights | None:
        """The candidate's file; None means the original."""
        return next((w for w in self.weights if w.format == candidate.trial.format), None)

    def best_offer(self) -> tuple[str, Candidate] | None:
        """The most faithful class that serves other weights, and its candidate."""
        for name in BOUNDS:
            candidate = self.chosen(name)
            if candidate.trial.format != ORIGINAL:
                return name, candidate
        return None

    def _check(self) -> None:
        """Raise `ValueError` when parts of the profile contradict each other."""
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not {VERSION}")
        if set(self.choices) != set(BOUNDS):
            raise ValueError(f"the classes are {', '.join(BOUNDS)}")
        for name, index in self.choices.items():
            if not 0 <= index < len(self.candidates):
                raise ValueError(f"{name} names no candidate")
            candidate = self.chosen(name)
            # What a class promises is checked here again, whoever wrote the file.
            if not candidate.quality.divergence <= BOUNDS[name]:
                raise ValueError(f"{name} is outside its bound")
            if candidate.trial.format != ORIGINAL and self.weights_of(candidate) is None:
                raise ValueError(f"{name} has no weights")


def write_profile(profile: Profile) -> str:
    """The profile as TOML."""
    return dumps(msgspec.to_builtins(profile))


def parse_profile(text: str) -> Profile:
    """Read what `write_profile` wrote. Raises `ValueError` for anything else."""
    profile = msgspec.convert(tomllib.loads(text), Profile)
    profile._check()
    return profile


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
