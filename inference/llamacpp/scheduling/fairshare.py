"""Who is served next: fair shares by tokens, for each client.

Each client has a counter of the tokens computed for it, and the client with the lowest
goes first; a client that comes (back) starts at the lowest counter of those being
served, so that nobody saves up credit by being away. This is the virtual token counter
of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with its
weights: a generated token counts twice, for it takes a step of its own.

Pure: told of every token, it has no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

PROMPT_WEIGHT = 1
GENERATED_WEIGHT = 2
AGING = 16_384
"""Weighted tokens served to all while a sequence waits that raise its priority by one."""


class FairShares:
    """Counters of the clients that have something queued or running.

    Mutable state: all of it. Owner: the scheduler.
    """

    def __init__(self) -> None:
        self.total = 0  # weighted tokens served to everybody so far
        self._served: dict[str, int] = {}
        self._sequences: Counter[str] = Counter()

    @property
    def served(self) -> Mapping[str, int]:
        """Weighted tokens of each client that is here."""
        return self._served

    def enter(self, client: str) -> None:
        """A sequence of `client` was queued."""
        if not self._sequences[client]:
            self._served[client] = min(self._served.values(), default=0)
        self._sequences[client] += 1

    def leave(self, client: str) -> None:
        """A sequence of `client` has ended. Raises `KeyError` when none was here."""
        self._sequences[client] -= 1
        if self._sequences[client] < 0:
            raise KeyError(client)
        if not self._sequences[client]:
            del self._sequences[client]
            del self._served[client]

    def charge(self, client: str, *, prompt: int, generated: int) -> None:
        """So many tokens were computed for `client`."""
        weighted = PROMPT_WEIGHT * prompt + GENERATED_WEIGHT * generated
        self._served[client] += weighted
        self.total += weighted

    def rank(self, client: str, *, priority: int, since: int) -> tuple[int, int]:
        """The sort key of a sequence that waits since the total was `since`; lowest first.

        Waiting raises its priority, so that no priority starves another for ever.
        """
        aged = priority + (self.total - since) // AGING
        return (-aged, self._served[client])
