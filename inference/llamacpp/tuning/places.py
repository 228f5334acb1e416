"""Where profiles and requantized files lie, and how they get their names.

    <cache>/headrace/tuned/<source hash>-<format>-<release>.gguf   complete, or not there
    <cache>/headrace/tuned/<...>.gguf.part                         being written
    <data>/headrace/profiles/<source hash>-<machine hash>.toml

A file gets its name by a rename within its directory, after it was written to disk.
What a killed process left is removed by the next one, under the lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.profile import Key, Profile, Weights, parse_profile, write_profile
from models.locks import file_lock
from models.places import Places
from models.progress import megabytes, say
from models.verification import fingerprint, known_fingerprint

HASH_LETTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlaces:
    """Directories; `stamps` is the model store's, so a pulled file is not hashed again."""

    weights: Path
    profiles: Path
    stamps: Path

    @classmethod
    def beside(cls, places: Places) -> TuningPlaces:
        """The directories that belong to a user's model store and catalogue."""
        return cls(
            weights=places.store.parent / "tuned",
            profiles=places.user_catalog.parent / "profiles",
            stamps=places.store / "stamps",
        )

    def profile(self, key: Key) -> Path:
        """Where the profile of `key` is, or will be."""
        return self.profiles / key.file_name()

    def weights_file(self, key: Key, format: str) -> Path:
        """Where the original in another format is, or will be."""
        name = f"{key.model_sha256[:HASH_LETTERS]}-{format}-{key.llama_cpp_python}.gguf"
        return self.weights / name

    def fingerprint(self, path: Path, *, progress: bool = False) -> str:
        """The SHA-256 of a file. Raises `TuningError` when it cannot be read."""
        try:
            return fingerprint(path, stamps=self.stamps, progress=progress)
        except OSError as error:
            raise TuningError(f"{path} cannot be read: {error.strerror}") from error

    def known_fingerprint(self, path: Path) -> str | None:
        """The SHA-256 of a file if it was hashed before and has not changed since."""
        try:
            return known_fingerprint(path, stamps=self.stamps)
        except OSError:
            return None

    def verified(self, weights: Weights) -> Path:
        """The file of `weights`, if it is the one that was measured.

        Raises `WeightsMissing` when it is gone or another, `TuningError` for what is unreadable.
        """
        path = self.weights / weights.name
        if not path.is_file():
            raise WeightsMissing(f"{path} is gone")
        if path.stat().st_size != weights.size or self.fingerprint(path) != weights.sha256:
            raise WeightsMissing(f"{path} is not the file that was measured: its SHA-256 differs")
        return path

    @contextmanager
    def exclusive(self, key: Key) -> Iterator[Path]:
        """Hold the lock of the original; gives a directory to work in, removed afterwards.

        Raises `TuningError` for whatever the disk refuses inside the block.
        """
        short = key.model_sha256[:HASH_LETTERS]
        work = self.weights / f"{short}.work"
        try:
            with file_lock(
                self.weights / "locks" / f"{short}.lock",
                on_wait=lambda: say("another process tunes this model; waiting"),
            ):
                self._clean(short, work)
                work.mkdir()
                try:
                    yield work
                finally:
                    self._clean(short, work)
        except OSError as error:
            where = error.filename or self.weights
            raise TuningError(f"{where}: {error.strerror or error}") from error

    def require_space(self, needed: int) -> None:
        """Raise `TuningError` unless `needed` bytes are free for weights."""
        free = shutil.disk_usage(self.weights).free
        if free < needed:
            raise TuningError(
                f"tuning needs up to {megabytes(needed)} in {self.weights}, "
                f"and {megabytes(free)} are free; fewer --formats need less"
            )

    def save(self, profile: Profile) -> Path:
        """Write the profile under its name, at once or not at all."""
        path = self.profile(profile.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(write_profile(profile), encoding="utf-8")
            commit(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def drop_unused(self, key: Key) -> None:
        """Delete the original's requantized files that no profile names."""
        used = set()
        for path in self.profiles.glob("*.toml"):
            try:
                used |= {weights.name for weights in parse_profile(path.read_text("utf-8")).weights}
            except ValueError:
                continue  # damaged, or of another release: it cannot be served either
        for path in self.weights.glob(f"{key.model_sha256[:HASH_LETTERS]}-*.gguf"):
            if path.name not in used:
                path.unlink()

    def _clean(self, short: str, work: Path) -> None:
        """Remove what is unfinished; only the holder of the lock may."""
        shutil.rmtree(work, ignore_errors=True)
        for part in self.weights.glob(f"{short}-*.part"):
            part.unlink(missing_ok=True)


def commit(part: Path, final: Path) -> None:
    """Give a finished file its name once its content is on the disk. Raises OSError."""
    for path, move in ((part, True), (final.parent, False)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if move:
            part.replace(final)
