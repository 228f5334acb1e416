"""Who is here, in which phase, and in what order they are served.

Pure: it knows ids, phases and priorities, and nothing of cells.
"""

from __future__ import annotations

from collections import abc

from inference.llamacpp.scheduling.fairshare import FairShares
from inference.llamacpp.scheduling.sequence import Phase, Sequence


class Roster:
    """The sequences by id.

    Mutable: the sequences, once by id and once by phase, and what their clients were
    served. Owner: the scheduler; its parts read, and change phases only through `move`.
    """

    def __init__(self) -> None:
        self.shares = FairShares()
        self._sequences: dict[str, Sequence] = {}
        self._phases: dict[Phase, dict[str, Sequence]] = {phase: {} for phase in Phase}
        self._orders = 0

    def __contains__(self, id: str) -> bool:
        return id in self._sequences

    def __getitem__(self, id: str) -> Sequence:
        return self._sequences[id]

    def all(self) -> list[Sequence]:
        """Everybody, in the order they came."""
        return list(self._sequences.values())

    def add(
        self, id: str, tokens: abc.Sequence[int], *, client: str, priority: int, limit: int
    ) -> None:
        """Queue a new sequence that knows `tokens`. Raises `ValueError` when `id` is taken."""
        if id in self._sequences:
            raise ValueError(f"{id} is already here")
        self._orders += 1
        self.shares.enter(client)
        sequence = Sequence(
            id=id,
            tokens=list(tokens),
            client=client,
            priority=priority,
            order=self._orders,
            since=self.shares.total,
            limit=limit,
            prompt_tokens=len(tokens),
        )
        self._sequences[id] = self._phases[sequence.phase][id] = sequence

    def remove(self, id: str) -> Sequence:
        """End a sequence and forget it; returns it. Raises `KeyError` when it is not here."""
        sequence = self._sequences.pop(id)
        del self._phases[sequence.phase][id]
        sequence.to(Phase.ENDED)
        self.shares.leave(sequence.client)
        return sequence

    def move(self, sequence: Sequence, phase: Phase) -> None:
        """Change the phase of a sequence. Raises `IllegalTransition`."""
        before = sequence.phase
        sequence.to(phase)
        del self._phases[before][sequence.id]
        self._phases[phase][sequence.id] = sequence

    def count(self, phase: Phase) -> int:
        """How many sequences are in `phase`."""
        return len(self._phases[phase])

    def of(self, phase: Phase) -> list[Sequence]:
        """Sequences in `phase`: by priority, then who came first."""
        return sorted(self._phases[phase].values(), key=_rank)

    def queue(self) -> list[Sequence]:
        """Waiting sequences: by priority, then the client with the least, then who came first."""

        def rank(s: Sequence) -> tuple[int, int, int]:
            return (*self.shares.rank(s.client, priority=s.priority, since=s.since), s.order)

        return sorted(self._phases[Phase.WAITING].values(), key=rank)

    def idle_holders(self) -> list[Sequence]:
        """Sequences that hold a lane without running, the last to be served first."""
        return [*reversed(self._holding(Phase.PARKED)), *reversed(self._holding(Phase.WAITING))]

    def _holding(self, phase: Phase) -> list[Sequence]:
        holding = [s for s in self._phases[phase].values() if s.lane is not None]
        return sorted(holding, key=_rank)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.order
