"""One answer on its way from text to reasoning, text and calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from inference.dialects.calls import CallFinder, Opening
from inference.dialects.offer import Offer
from inference.dialects.pieces import Pieces
from inference.dialects.reasoning import Reasoner
from inference.events import Delta


def new_call_id() -> str:
    """An id that nobody can guess, in the form that OpenAI's have."""
    return f"call_{secrets.token_hex(12)}"


class Parser:
    """Tells reasoning, text and calls apart while one answer is being written.

    The result does not depend on the pieces in which the text comes, and no text makes
    it fail: what is no call is text. Without an offer nothing is a call, without marks
    nothing is reasoning. Mutable state, owned by one caller: everything.
    """

    def __init__(
        self,
        openings: Sequence[Opening],
        offer: Offer | None,
        thinking: tuple[str, str] | None,
        *,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`openings` are the dialect's; `thinking` the marks around reasoning."""
        self._pieces = Pieces()
        self._reasoner = None if thinking is None else Reasoner(thinking, self._pieces)
        self._finder = (
            None if offer is None else CallFinder(openings, offer, self._pieces, new_id=new_id)
        )

    @property
    def thinking(self) -> bool:
        """Whether what comes next is known to be reasoning."""
        return self._reasoner is not None and self._reasoner.inside

    @property
    def called(self) -> bool:
        """Whether the answer has calls, all of them complete."""
        return self._finder is not None and self._finder.called

    def begin(self, *, thinking: bool) -> None:
        """Before any text: whether the prompt has begun the reasoning."""
        if thinking and self._reasoner is not None:
            self._reasoner.open()

    def push(self, text: str) -> list[Delta]:
        """Take more text; returns what became certain, as deltas without tokens."""
        if self._reasoner is not None:
            text = self._reasoner.push(text)
        self._pass_on(text)
        return self._pieces.take()

    def flush(self) -> list[Delta]:
        """The text has ended; returns what was held back."""
        if self._reasoner is not None:
            self._pass_on(self._reasoner.flush())
        if self._finder is not None:
            self._finder.flush()
        return self._pieces.take()

    def _pass_on(self, text: str) -> None:
        if self._finder is not None:
            self._finder.push(text)
        else:
            self._pieces.say(text)
