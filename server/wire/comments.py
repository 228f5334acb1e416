"""Lines beside the events of a stream, for those who look; all other readers skip them."""

from __future__ import annotations

import re

from msgspec import Struct

from inference.events import Queued

_QUEUED = re.compile(r"queued position=(\d{1,9}) expected_start_seconds=(\d{1,9}\.\d)")


class Comment(Struct, frozen=True, kw_only=True):
    """One comment; its text is one line."""

    text: str


ENGINE_RESTARTED = Comment(text="engine restarted")
"""After a pause it goes on where it was."""


def comment_of(event: Queued) -> Comment:
    """Write a place in the queue: `queued position=3 expected_start_seconds=1.4`."""
    seconds = f"{event.expected_seconds:.1f}"
    return Comment(text=f"queued position={event.position} expected_start_seconds={seconds}")


def queued_of(comment: str) -> Queued | None:
    """Read what `comment_of` wrote; None for any other comment."""
    found = _QUEUED.fullmatch(comment)
    if found is None:
        return None
    return Queued(position=int(found[1]), expected_seconds=float(found[2]))
