"""How the storing of a log goes, and what follows from it for memory and for readers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Storing(enum.StrEnum):
    """How the storing of a log goes.

    OFF       not stored: entries are visible at once; memory keeps the last `kept_*`
    ON        visible once the store has them, so nothing that was seen can be lost;
              what is stored may leave memory, readers that are behind read the store
    BEHIND    the store fails: visible at once, memory keeps what is not stored yet; until
              the store has all that was shown
    LOST      memory could not bridge the failure, or somebody else has ended the stored
              copy: as OFF from here on
    """

    OFF = "off"
    ON = "on"
    BEHIND = "behind"
    LOST = "lost"

    @property
    def wanted(self) -> bool:
        """Whether what is appended now is still to be stored."""
        return self in (Storing.ON, Storing.BEHIND)


CHANGES: Final[Mapping[Storing, frozenset[Storing]]] = {
    Storing.OFF: frozenset(),
    Storing.ON: frozenset({Storing.BEHIND, Storing.LOST}),
    Storing.BEHIND: frozenset({Storing.ON, Storing.LOST}),
    Storing.LOST: frozenset(),
}
"""Which changes there are; `EventLog` refuses others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """How far a producer may run ahead, and what memory holds of one log.

    `high_*` ahead of the reader that is furthest hold the producer until `low_entries`
    and half of `high_bytes` are left. `kept_*` stay in memory for readers that come or
    come back. `unstored_*` may wait for a store that fails before the log is LOST.
    Bytes are those of the encoded events.
    """

    high_entries: int = 128
    low_entries: int = 32
    high_bytes: int = 256 * 1024
    kept_entries: int = 256
    kept_bytes: int = 512 * 1024
    unstored_entries: int = 4096
    unstored_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        """What is ahead of a reader must fit into what is kept for one that comes back."""
        if not 0 <= self.low_entries < self.high_entries <= self.kept_entries:
            raise ValueError("need 0 <= low_entries < high_entries <= kept_entries")
        if not 0 < self.high_bytes <= self.kept_bytes:
            raise ValueError("need 0 < high_bytes <= kept_bytes")
