"""The index of prefixes kept in host memory.

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

from inference.llamacpp.lanes import common_prefix

LEAST_TOKENS = 16  # shorter ones are computed faster than they are looked up
# Loading copies the whole entry, however little of it is wanted.
LEAST_SHARE = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One entry: the tokens whose cells it holds, in order of position."""

    key: int
    tokens: tuple[int, ...]


class HostCache:
    """Saved prefixes, the least recently used first.

    Mutable state: the entries and their total. Owner: the scheduler.
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
        self._keys = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def match(self, tokens: Sequence[int]) -> tuple[int, Saved | None]:
        """The entry worth loading that shares the longest prefix with `tokens`, and how much.

        Where entries are only usable `whole`, as with recurrent models, an entry counts
        if all of it is a prefix.
        """
        wanted = tuple(tokens)
        best, found = 0, None
        for entry in reversed(self._entries.values()):
            # To share more than the best so far, an entry must agree right after it.
            if min(len(wanted), len(entry.tokens)) <= best or entry.tokens[best] != wanted[best]:
                continue
            shared = common_prefix(entry.tokens, wanted)
            least = len(entry.tokens) if self._whole else LEAST_SHARE * len(entry.tokens)
            if shared > best and shared >= least:
                best, found = shared, entry
        return best, found

    def touch(self, key: int) -> None:
        """Mark an entry as used just now."""
        self._entries[key] = self._entries.pop(key)

    def save(self, tokens: Sequence[int]) -> tuple[Saved | None, list[int]]:
        """Make an entry for `tokens`; returns it and the keys it replaces or displaces.

        None when it is too short or too long, or a longer entry already begins with it.
        """
        if len(tokens) < LEAST_TOKENS or self._cost(tokens) > self.capacity:
            return None, []
        kept = tuple(tokens)
        dropped: list[int] = []
        for entry in list(self._entries.values()):
            shared = common_prefix(entry.tokens, kept)
            if shared == len(kept) and not self._whole:
                self.touch(entry.key)
                return None, []
            if shared == len(entry.tokens):
                dropped.append(self._drop(entry.key))
        while self.used + self._cost(kept) > self.capacity:
            dropped.append(self._drop(next(iter(self._entries))))
        saved = Saved(key=next(self._keys), tokens=kept)
        self._entries[saved.key] = saved
        self.used += self._cost(kept)
        return saved, dropped

    def _cost(self, tokens: Sequence[int]) -> int:
        blocks = -(-len(tokens) * self._token_bytes // self._block_bytes)
        return blocks * self._block_bytes

    def _drop(self, key: int) -> int:
        self.used -= self._cost(self._entries.pop(key).tokens)
        return key
