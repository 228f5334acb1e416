"""Who may enter a new engine process, and who is kept out for good.

When a process ends, every sequence in it can be taken up by the next one. If one of them
caused the end, it will end the next one too, so it has to be told from the others, and
none of the others may pay for it. Four rules do that:

1. Whoever was computing is a *suspect*. Who waited for a lane, or was parked, is not.
2. Suspects return one at a time. Each is *on trial* until it has proven itself by
   `MARK_TOKENS` tokens more than it had, or until `TRIAL_STEPS` steps have passed; twice
   as many each time it was in an end unproven. Those that are through go on running. All
   others, new ones included, enter after the last suspect.
3. An end gives a *strike* to the sequence that was the only one unproven. A proven one
   has no strikes.
4. Whoever has most strikes, then whoever was unproven in most ends, returns first, and so
   at first is alone. It is convicted when the process ends with nobody else computing in
   it, at its second strike if the process ended by itself, at its third if it was killed.

So a conviction rests on an end in which it was the only one that could have been the
cause, and another one before. The innocent are never convicted when ends come from
sequences alone. A kill from outside (by an operator, for want of memory, by the watchdog
of a stalled machine) may hit anybody at any time, so it proves less: to convict an
innocent sequence, three in a row would have to hit the moments in which this one, and no
other, is unproven, the last of them when it is alone. A new request that ends processes
is convicted at the second end, one that does so later in its life at the third, one more
each where what ends them looks like a kill.

What gets `MARK_TOKENS` further in each process is never convicted; it costs pauses, and
ends by its own limit.

Pure: no clock, no messages. Ids are whatever the caller counts sequences by.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

MARK_TOKENS = 4
"""The first shows prefill and sampling, the next ones decoding, past where it had ended."""
TRIAL_STEPS = 16
"""A long prompt takes more steps; it does not keep the others out until it is computed."""
TRIAL_DOUBLINGS_MAX = 10
STRIKES = 2
STRIKES_IF_KILLED = 3


class Standing(enum.Enum):
    """What a sequence in the process was doing when that ended.

    `IDLE` computed nothing, `PROVEN` had got `MARK_TOKENS` further since it entered.
    """

    IDLE = "idle"
    PROVEN = "proven"
    UNPROVEN = "unproven"


@dataclass(slots=True)
class _Record:
    """Ends in a row in which a sequence was unproven: all, and those it was alone in that."""

    doubts: int = 0
    strikes: int = 0


class Quarantine:
    """The gate of one engine, from one process to the next.

    Mutable: `_up`, the sequences outside (`_suspects`, then `_others`, each in the order
    in which they enter), the one on trial and the steps it has left, what is held against
    whom. One event loop owns it. Methods that may open the gate return the ids that enter
    now, in order.
    """

    def __init__(self) -> None:
        self.trial: str | None = None
        self._up = False
        self._suspects: dict[str, None] = {}
        self._others: dict[str, None] = {}
        self._steps = 0
        self._steps_left = 0
        self._records: dict[str, _Record] = {}
        self._accused: str | None = None

    def open(self, id: str) -> bool:
        """Take in a new sequence: True if it enters now, else it waits for its turn."""
        if self._up and self.trial is None:
            return True
        self._others[id] = None
        return False

    def up(self) -> list[str]:
        """A process is there."""
        self._up = True
        self._steps = 0
        return self._next()

    def down(self, inside: Mapping[str, Standing]) -> None:
        """The process ended with these in it, in order of arrival; nobody enters until `up`."""
        self._up, self.trial = False, None
        unproven = [id for id, standing in inside.items() if standing is Standing.UNPROVEN]
        proven = [id for id, standing in inside.items() if standing is Standing.PROVEN]
        idle = [id for id, standing in inside.items() if standing is Standing.IDLE]
        for id in proven:
            self._records.pop(id, None)
        for id in unproven:
            self._record(id).doubts += 1
        self._accused = None
        if len(unproven) == 1:
            self._record(unproven[0]).strikes += 1
            if not proven:
                self._accused = unproven[0]
        # Among equals who has waited goes before those that were in, and the proven before
        # the others: they are the likelier to be innocent, and sooner through.
        order = [*self._suspects, *proven, *unproven]
        order.sort(key=self._suspicion, reverse=True)
        self._suspects = dict.fromkeys(order)
        self._others = dict.fromkeys((*idle, *self._others))

    def judge(self, *, killed: bool) -> str | None:
        """Say who is convicted of the last `down`, now that it is known how it came.

        `killed`: something outside ended the process. Whoever is returned has left.
        """
        accused = self._accused
        enough = STRIKES_IF_KILLED if killed else STRIKES
        if accused is None or self._records[accused].strikes < enough:
            return None
        self.leave(accused)
        return accused

    def proven(self, id: str) -> list[str]:
        """A sequence has got `MARK_TOKENS` further since it entered."""
        self._records.pop(id, None)
        return self.parked(id)

    def parked(self, id: str) -> list[str]:
        """A sequence computes nothing for now: its trial does not keep others out."""
        if id != self.trial:
            return []
        self.trial = None
        return self._next()

    def stepped(self, steps: int) -> list[str]:
        """The process has done so many steps since it is there."""
        new, self._steps = steps - self._steps, steps
        if self.trial is None:
            return []
        self._steps_left -= new
        return [] if self._steps_left > 0 else self.parked(self.trial)

    def leave(self, id: str) -> list[str]:
        """A sequence has ended, for whatever reason."""
        self._records.pop(id, None)
        self._suspects.pop(id, None)
        self._others.pop(id, None)
        if self._accused == id:
            self._accused = None
        return self.parked(id)

    def _next(self) -> list[str]:
        if not self._up:
            return []
        if self._suspects:
            self.trial = next(iter(self._suspects))
            del self._suspects[self.trial]
            record = self._records.get(self.trial)
            doubts = 0 if record is None else record.doubts
            self._steps_left = TRIAL_STEPS << min(doubts, TRIAL_DOUBLINGS_MAX)
            return [self.trial]
        entering, self._others = list(self._others), {}
        return entering

    def _record(self, id: str) -> _Record:
        return self._records.setdefault(id, _Record())

    def _suspicion(self, id: str) -> tuple[int, int]:
        """A single doubt does not count: whoever was new at that moment has it."""
        record = self._records.get(id)
        return (0, 0) if record is None else (record.strikes, max(0, record.doubts - 1))
