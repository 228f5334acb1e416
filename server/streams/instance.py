"""Which server process this is, and which of its kind have died.

Processes that share a data directory take numbered places in it. A place is a file: its
lock says that the process lives, for the kernel lets go of it however the process ends,
and its content is the id of the responses it runs. A single server that restarts finds
its own place and id again.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

PLACES_MAX = 64


class DataDirError(Exception):
    """The data directory cannot be used. The message says why, for the operator."""


class Instance:
    """One running server. `id` names it in stores; `dead` are ids of servers that ended.

    The places of the dead are held until `buried`, so that no process can come back
    under such an id while its responses are being ended. Mutable: the open files.
    """

    def __init__(self, place: int, places_of_dead: list[int]) -> None:
        self.id = _identified(place)
        self.dead = tuple(_identified(each) for each in places_of_dead)
        self._place = place
        self._places_of_dead = places_of_dead

    def buried(self) -> None:
        """The responses of the dead have been ended: their places are free."""
        while self._places_of_dead:
            os.close(self._places_of_dead.pop())

    def close(self) -> None:
        """Let other processes take all places. Call it once."""
        self.buried()
        os.close(self._place)


def take_place(data_dir: Path) -> Instance:
    """Take the first free place in `data_dir`, which is made private if it is not there.

    Raises `DataDirError`.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _take(data_dir)
    except OSError as error:
        raise DataDirError(f"data_dir cannot be used: {error.strerror}") from error


def _take(data_dir: Path) -> Instance:
    locked: list[int] = []
    for number in range(PLACES_MAX):
        path = data_dir / f"server-{number}.id"
        if locked and not path.exists():
            break
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            locked.append(descriptor)
    if not locked:
        raise DataDirError(f"data_dir is used by {PLACES_MAX} servers already")
    return Instance(locked[0], locked[1:])


def _identified(descriptor: int) -> str:
    """The id in the file, written there if it holds none."""
    known = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
    if len(known) == 32 and known.isalnum():
        return known
    fresh = secrets.token_hex(16)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, fresh.encode(), 0)
    return fresh
