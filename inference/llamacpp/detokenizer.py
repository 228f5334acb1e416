"""From the bytes of tokens to text that may be shown."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from inference.stops import StopMatcher

_new_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text that became certain, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class Detokenizer:
    """Joins the pieces of one sequence: whole characters only, stop strings cut off.

    A token may end inside a character: its bytes wait for the next one. Bytes that can
    never become UTF-8 turn into U+FFFD, as Unicode recommends for each maximal part of
    an ill-formed sequence. Owned by one thread.

    A stop string counts when the token that completes it was pushed with `check_stop`.
    So below `min_tokens` nothing stops; a stop string that begins below and ends above
    it does, and is cut off as a whole: otherwise its tail would be shown as text. One
    that is complete below `min_tokens` is ordinary text.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Start empty. Raises `ValueError` for an empty stop string."""
        self._decoder = _new_decoder(errors="replace")
        self._matcher = StopMatcher(stop)
        self._stopped = False

    def push(self, piece: bytes, *, check_stop: bool = True) -> Text:
        """Take one token's bytes; after a stop string matched everything is dropped."""
        text, stop = self._matcher.push(self._decoder.decode(piece), armed=check_stop)
        self._stopped = stop is not None
        return Text(text=text, stop=stop)

    def flush(self) -> str:
        """End the text: what was held back, and U+FFFD for a character left incomplete."""
        tail = self._decoder.decode(b"", final=True)
        return self._matcher.flush() + ("" if self._stopped else tail)
