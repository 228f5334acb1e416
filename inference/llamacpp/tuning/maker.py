"""Requantized files: how they are made, and made again where a profile lacks them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.jobs import Done, Requantize, Runner
from inference.llamacpp.tuning.places import TuningPlaces, commit
from inference.llamacpp.tuning.plan import Original, expected_bytes
from inference.llamacpp.tuning.profile import Key, Profile, Weights, read_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Makes the original in other formats. Immutable; `run` and `say` are how it acts."""

    original: Original
    key: Key
    places: TuningPlaces
    run: Runner
    say: Callable[[str], None]
    threads: int

    def require_space(self, formats: Sequence[str], *, beside: int = 0) -> None:
        """Raise `TuningError` unless what is missing fits on the disk, and `beside` bytes."""
        missing = [f for f in formats if not self.places.weights_file(self.key, f).exists()]
        needed = sum(expected_bytes(self.original, format) for format in missing)
        self.places.require_space(needed + beside)

    def make(self, format: str) -> Path:
        """The complete file, made unless it is there. Raises `JobFailed`."""
        final = self.places.weights_file(self.key, format)
        if final.exists():
            return final
        part = final.with_name(final.name + ".part")
        self.say(f"making {format} from {self.original.quantization}")
        job = Requantize(
            source=str(self.original.path), target=str(part), format=format, threads=self.threads
        )
        try:
            self.run(job, Done)
            commit(part, final)
        finally:
            part.unlink(missing_ok=True)
        return final

    def weights(self, formats: Collection[str]) -> list[Weights]:
        """What a profile says of these files, which are there."""
        return [self._entry(format) for format in sorted(formats)]

    def complete(self) -> Profile:
        """Make what the choices of the profile lack, and measure nothing.

        Writes the profile and returns it. Raises `TuningError`, also when there is none, or
        when a file does not become the one that was measured.
        """
        with self.places.exclusive(self.key):
            try:
                profile = self._complete()
                self.places.save(profile)
            finally:
                self.places.drop_unused(self.key)
        return profile

    def _complete(self) -> Profile:
        profile = read_profile(self.places.profile(self.key), self.key)
        if profile is None:
            raise TuningError(f"{self.original.id} has no tuned profile for this machine yet")
        formats = sorted(profile.chosen_formats())
        measured = {weights.format: weights for weights in profile.weights}
        for format in formats:
            if not self._is_there(measured.get(format)):
                self.places.weights_file(self.key, format).unlink(missing_ok=True)
        self.require_space(formats)
        for format in formats:
            self.make(format)
        made = self.weights(formats)
        for weights in made:
            if measured.get(weights.format, weights) != weights:
                raise TuningError(
                    f"llama.cpp makes another {weights.format} now than the one that was "
                    "measured; tune again without --weights-only"
                )
        return msgspec.structs.replace(profile, weights=made)

    def _is_there(self, weights: Weights | None) -> bool:
        try:
            return weights is not None and self.places.verified(weights).is_file()
        except WeightsMissing:
            return False

    def _entry(self, format: str) -> Weights:
        path = self.places.weights_file(self.key, format)
        return Weights(
            format=format,
            name=path.name,
            size=path.stat().st_size,
            sha256=self.places.fingerprint(path),
        )
