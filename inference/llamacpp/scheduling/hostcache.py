"""The index of saved prefixes: those in host memory, and another of those on disk.

A lane's cells can be copied out and in again (`llama_state_seq_get_data`) for a
thousandth of what computing them costs. So what a finished or preempted sequence has
computed is saved here and its cells are free at once: every cell in use costs every
token of every running sequence, because attention steps over it.

Pure: this knows tokens and keys; the bytes belong to whoever carries the operations out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inference.llamacpp.scheduling.lanes import common_prefix

LEAST_TOKENS = 16  # shorter ones are computed faster than they are looked up
# Loading copies the whole entry, however little of it is wanted.
LEAST_SHARE = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One entry: the tokens whose cells it holds, in order of position."""

    key: int
    tokens: tuple[int, ...]


class Change(NamedTuple):
    """What saving did: the new entry if there is one, and the entries it cost.

    All that the `replaced` held is in the new entry; the `displaced` made room for it.
    """

    saved: Saved | None = None
    replaced: Sequence[Saved] = ()
    displaced: Sequence[Saved] = ()


class HostCache:
    """Saved prefixes, the least recently used first.

    Mutable state: the entries, their total, those that are held. Owner: the scheduler.
    """

    def __init__(
        self, *, capacity: int, token_bytes: int = 1, block_bytes: int = 1, whole: bool = False
    ) -> None:
        """Keep at most `capacity` bytes; `whole` where an entry cannot be cut (see `match`).

        An entry takes `token_bytes` for each token, rounded up to whole blocks.
        """
        self.capacity = capacity
        self.used = 0
        self._token_bytes = token_bytes
        self._block_bytes = block_bytes
        self._whole = whole
        self._entries: dict[int, Saved] = {}
        self._held: set[int] = set()
        self._keys = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def match(self, tokens: Sequence[int]) -> tuple[int, Saved | None]:
        """The entry worth loading that shares the longest prefix with `tokens`, and how much.

        Where entries are only usable `whole`, as with recurrent models, an entry counts
        if all of it is a prefix. Entries that are `reserve`d do not count yet.
        """
        wanted = tuple(tokens)
        best, found = 0, None
        for entry in reversed(self._entries.values()):
            # To share more than the best so far, an entry must agree right after it.
            if min(len(wanted), len(entry.tokens)) <= best or entry.tokens[best] != wanted[best]:
                continue
            shared = common_prefix(entry.tokens, wanted)
            least = len(entry.tokens) if self._whole else LEAST_SHARE * len(entry.tokens)
            if shared > best and shared >= least and entry.key not in self._held:
                best, found = shared, entry
        return best, found

    def touch(self, key: int) -> None:
        """Mark an entry as used just now."""
        self._entries[key] = self._entries.pop(key)

    def save(self, tokens: Sequence[int]) -> Change:
        """Make an entry for `tokens`, in place of others where needed.

        Without an entry nothing changes: it would be too short or too long, a longer
        one already begins with it, or too much is held.
        """
        if len(tokens) < LEAST_TOKENS:
            return Change()
        kept = tuple(tokens)
        replaced = []
        for entry in list(self._entries.values()):
            if entry.key in self._held:
                continue
            shared = common_prefix(entry.tokens, kept)
            if shared == len(kept) and not self._whole:
                self.touch(entry.key)
                return Change()
            if shared == len(entry.tokens):
                replaced.append(entry)
        return self._enter(kept, replaced)

    def reserve(self, tokens: Sequence[int]) -> Change:
        """Make an entry that is neither matched nor displaced until it is `release`d.

        It replaces nothing: what it will hold is only on its way.
        """
        change = self._enter(tuple(tokens), [])
        if change.saved is not None:
            self._held.add(change.saved.key)
        return change

    def release(self, key: int) -> None:
        """The entry may be used: it is held no more."""
        self._held.discard(key)

    def remove(self, key: int) -> None:
        """Forget an entry, held or not."""
        self._held.discard(key)
        self._drop(self._entries[key])

    def clear(self) -> list[Saved]:
        """Forget all entries but those that are held; returns them, the newest first."""
        gone = [entry for entry in reversed(self._entries.values()) if entry.key not in self._held]
        for entry in gone:
            self._drop(entry)
        return gone

    def _enter(self, kept: tuple[int, ...], replaced: list[Saved]) -> Change:
        room = self.capacity - self.used + sum(self.cost(entry.tokens) for entry in replaced)
        staying = self._held.union(entry.key for entry in replaced)
        displaced = []
        for entry in self._entries.values():
            if room >= self.cost(kept):
                break
            if entry.key not in staying:
                displaced.append(entry)
                room += self.cost(entry.tokens)
        if room < self.cost(kept):
            return Change()
        for entry in (*replaced, *displaced):
            self._drop(entry)
        saved = Saved(key=next(self._keys), tokens=kept)
        self._entries[saved.key] = saved
        self.used += self.cost(kept)
        return Change(saved, replaced, displaced)

    def cost(self, tokens: Sequence[int]) -> int:
        """The bytes that an entry for `tokens` takes."""
        blocks = -(-len(tokens) * self._token_bytes // self._block_bytes)
        return blocks * self._block_bytes

    def _drop(self, entry: Saved) -> None:
        del self._entries[entry.key]
        self.used -= self.cost(entry.tokens)
