"""The scheduler's side of drafts: who can use how many, and which the plan holds.

`speculation` decides what they are worth; the cells and tokens they may take are
counted here. Pure.
"""

from __future__ import annotations

from collections import abc
from dataclasses import replace

from inference.llamacpp.scheduling.asking import Asking, Offer
from inference.llamacpp.scheduling.lanes import Lanes
from inference.llamacpp.scheduling.sequence import Entry, Sequence
from inference.llamacpp.scheduling.speculation import Speculator
from inference.llamacpp.scheduling.steptime import StepTime


class Drafting:
    """Puts drafts into steps of decodes alone; without a speculator, none.

    Mutable: the speculator. Owner: the scheduler.
    """

    def __init__(
        self, speculator: Speculator | None, lanes: Lanes, time: StepTime, *, batch_tokens: int
    ) -> None:
        """A step holds `batch_tokens`; `lanes` and `time` are only read."""
        self._speculator = speculator
        self._lanes = lanes
        self._time = time
        self._batch_tokens = batch_tokens

    @property
    def drafted(self) -> int:
        """Draft tokens computed so far."""
        return 0 if self._speculator is None else self._speculator.drafted

    @property
    def accepted(self) -> int:
        """Draft tokens that were right."""
        return 0 if self._speculator is None else self._speculator.accepted

    def asking(self, running: abc.Sequence[Sequence]) -> Asking | None:
        """What to ask a draft model before a step of `running`; None before one with prefill."""
        if self._speculator is None or any(s.missing > 1 for s in running):
            return None
        return self._speculator.ask(*self._limits(running), self._time)

    def offer(self, offer: Offer) -> None:
        """Take in what the draft model answered."""
        if self._speculator is not None:
            self._speculator.offer(offer)

    def extend(self, decodes: list[Entry], decoding: abc.Sequence[Sequence]) -> list[Entry]:
        """The entries `decodes` of the sequences `decoding`, with drafts where they pay."""
        if self._speculator is None or not decodes:
            return decodes
        limits, room = self._limits(decoding)
        chosen = self._speculator.drafts(limits, room, self._time)
        return [
            replace(entry, tokens=[*entry.tokens, *draft], drafts=len(draft))
            if (draft := chosen.get(entry.id))
            else entry
            for entry in decodes
        ]

    def learn(self, sequence: Sequence, drawn: abc.Sequence[int], *, drafts: int) -> None:
        """`drawn` came after what a sequence knows; `drafts` were computed for it."""
        if self._speculator is not None:
            self._speculator.learn(sequence.id, sequence.tokens, drawn, drafts=drafts)

    def forget(self, id: str) -> None:
        """The sequence is over."""
        if self._speculator is not None:
            self._speculator.forget(id)

    def _limits(self, decoding: abc.Sequence[Sequence]) -> tuple[dict[str, int], int]:
        """The most drafts that each of `decoding` can use, and all of them together."""
        length = self._lanes.length
        limits = {s.id: max(0, min(s.limit, length) - len(s.tokens) - 1) for s in decoding}
        return limits, min(self._lanes.free, self._batch_tokens) - len(decoding)
