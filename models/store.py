"""The local store: one directory for each file, and nothing half-named in it.

    <root>/<id>-<hash>/<file>         complete and verified, or not there
    <root>/<id>-<hash>/<file>.part    being fetched, or left to be resumed
    <root>/<id>-<hash>/.fetch/        room for a source to work in, removed afterwards
    <root>/locks/  <root>/stamps/     see locks.py and verification.py

The hash in the directory's name keeps two versions of an entry apart. A file gets its
name by a rename within its directory, after it was verified and written to disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.entry import Entry, PathSource
from models.errors import HashMismatch, StoreFailed
from models.locks import file_lock
from models.progress import megabytes, say
from models.verification import check, is_stamped, stamp

_HASH_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Store:
    """The files under `root`; shared by all processes of a user through its locks."""

    root: Path

    def path_of(self, entry: Entry) -> Path:
        """Where the entry's file is, or will be."""
        if isinstance(entry.source, PathSource):
            return Path(entry.source.path)
        return self.root / self._key(entry) / entry.file

    def has(self, entry: Entry) -> bool:
        """Whether there is a file; it says nothing about what is in it."""
        return self.path_of(entry).is_file()

    def verify(self, entry: Entry, *, trust_stamp: bool = True, progress: bool = False) -> None:
        """Return only if the file is the entry's; raises NotPulled or HashMismatch.

        With `trust_stamp` an earlier result for the very same file is enough.
        """
        path = self.path_of(entry)
        if trust_stamp and is_stamped(path, entry, stamps=self._stamps):
            return
        status = check(path, entry, progress=progress)
        stamp(path, status, entry, stamps=self._stamps)

    def is_verified(self, entry: Entry) -> bool:
        """Whether the file is here and an earlier check found it right. Reads no content."""
        return self.has(entry) and is_stamped(self.path_of(entry), entry, stamps=self._stamps)

    @contextmanager
    def exclusive(self, entry: Entry, *, progress: bool) -> Iterator[Path]:
        """Hold the entry's lock; gives its directory. Empty directories do not stay.

        Raises StoreFailed for whatever the disk refuses inside the block.
        """
        directory = self.root / self._key(entry)

        def on_wait() -> None:
            say(f"{entry.id}: another process is fetching it; waiting", show=progress)

        try:
            with file_lock(self.root / "locks" / f"{self._key(entry)}.lock", on_wait=on_wait):
                directory.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(directory / ".fetch", ignore_errors=True)  # of a killed process
                try:
                    yield directory
                finally:
                    shutil.rmtree(directory / ".fetch", ignore_errors=True)
                    with contextlib.suppress(OSError):
                        directory.rmdir()  # fails, as it should, when something is in it
        except OSError as error:
            where = error.filename or self.root
            raise StoreFailed(f"{entry.id}: {where}: {error.strerror or error}") from error

    def commit(self, entry: Entry, part: Path, *, progress: bool) -> Path:
        """Verify a fetched file and give it its name; a wrong one is deleted.

        Raises HashMismatch.
        """
        try:
            check(part, entry, progress=progress)
        except HashMismatch:
            part.unlink(missing_ok=True)
            raise
        _sync(part)
        final = part.replace(self.path_of(entry))
        _sync(final.parent)
        # The rename set a new change time, so the status is taken again.
        stamp(final, final.stat(), entry, stamps=self._stamps)
        return final

    def require_space(self, entry: Entry, directory: Path, *, needed: int) -> None:
        """Raise StoreFailed unless the disk has `needed` bytes free."""
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise StoreFailed(
                f"{entry.id}: fetching needs {megabytes(needed)} in {self.root}, "
                f"and {megabytes(free)} are free"
            )

    @property
    def _stamps(self) -> Path:
        return self.root / "stamps"

    @staticmethod
    def _key(entry: Entry) -> str:
        return f"{entry.id}-{entry.sha256[:_HASH_LETTERS]}"


def _sync(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
