"""Who may start: waiting sequences, while there are lanes and cells for them. Pure."""

from __future__ import annotations

from inference.llamacpp.scheduling.prefixes import Prefixes
from inference.llamacpp.scheduling.queueview import Habits
from inference.llamacpp.scheduling.roster import Roster
from inference.llamacpp.scheduling.sequence import Phase, Sequence
from inference.llamacpp.scheduling.space import Space

HEADROOM = 8  # free cells per running sequence before another is admitted


class Admitter:
    """Lets waiting sequences run.

    Mutable: whether cells were short when it last looked, the counters, and through its
    inputs the phases, the lanes and the habits. Owner: the scheduler.
    """

    def __init__(
        self, roster: Roster, space: Space, prefixes: Prefixes, habits: Habits, *, running: int
    ) -> None:
        """At most `running` sequences at once; `habits` learn what each start found."""
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._roster = roster
        self._space = space
        self._prefixes = prefixes
        self._habits = habits
        self._max_running = running
        self._short_of_cells = False

    @property
    def lanes(self) -> int:
        """How many sequences run when as many do as can."""
        return self._roster.count(Phase.RUNNING) if self._short_of_cells else self._max_running

    @property
    def expects(self) -> bool:
        """Whether somebody may start with the next plan."""
        free = self.lanes - self._roster.count(Phase.RUNNING)
        return free > 0 and self._roster.count(Phase.WAITING) > 0

    def admit(self) -> dict[str, int]:
        """Let those in the queue run, one after the other, who find a lane and cells.

        Returns those that start, for the first time or after they were preempted, with
        the tokens they need not compute.
        """
        started: dict[str, int] = {}
        self._short_of_cells = False
        slots = self._max_running - self._roster.count(Phase.RUNNING)
        if slots <= 0:
            return started
        for sequence in self._roster.queue():
            if not slots:
                break
            if self._prefixes.awaited_by(sequence):
                continue
            if sequence.lane is None:
                if not self._has_room(sequence):
                    self._short_of_cells = True
                    break  # nobody overtakes: the next in line gets the room when there is some
                self._prefixes.open(sequence)
            self._roster.move(sequence, Phase.RUNNING)
            slots -= 1
            if not sequence.announced:
                started[sequence.id] = sequence.shared
                self._announce(sequence)
        return started

    def _announce(self, sequence: Sequence) -> None:
        sequence.announced = True
        self._habits.started(prompt=len(sequence.tokens), shared=sequence.shared)
        self.prefix_queries += len(sequence.tokens)
        self.prefix_hits += sequence.shared

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether all that a sequence knows fits beside what the running ones are promised."""
        running = self._roster.of(Phase.RUNNING)
        if not running:
            return True
        promised = sum(s.missing + HEADROOM for s in running)
        room = self._space.lanes.room(promised) + self._space.held_by_idle()
        return len(sequence.tokens) - self._prefixes.in_lanes(sequence) <= room
