"""The life of one connection.

    HANDSHAKE --accepted--> OPEN --drain--> DRAINING --empty--> CLOSED
                             |                 |
                             +-------cut-------+--> ENDING --empty, late--> CLOSED

While OPEN the client begins, resumes, stops and lets go of responses. While DRAINING
the server stops: what is followed is followed to its end, and nothing new is taken. In
ENDING all responses have been ended, and their last events are still sent. A client
that has gone ends everything at once, from everywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Phase(enum.StrEnum):
    """Where a connection is in its life."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    DRAINING = "draining"
    ENDING = "ending"
    CLOSED = "closed"


class Happening(enum.StrEnum):
    """What takes a connection on.

    `CUT`: the server ends now. `EMPTY`: nothing is followed any more. `LATE`: the last
    events were waited for long enough. `IDLE`: the client did nothing for long. `GONE`:
    it has left. `FAILED`: an error of ours.
    """

    ACCEPTED = "accepted"
    DRAIN = "drain"
    CUT = "cut"
    EMPTY = "empty"
    LATE = "late"
    IDLE = "idle"
    GONE = "gone"
    FAILED = "failed"


_ENDS: Final = {
    Happening.IDLE: Phase.CLOSED,
    Happening.GONE: Phase.CLOSED,
    Happening.FAILED: Phase.CLOSED,
}

TRANSITIONS: Final[Mapping[Phase, Mapping[Happening, Phase]]] = {
    Phase.HANDSHAKE: {
        Happening.ACCEPTED: Phase.OPEN,
        Happening.GONE: Phase.CLOSED,
    },
    Phase.OPEN: {
        Happening.DRAIN: Phase.DRAINING,
        Happening.CUT: Phase.ENDING,
        **_ENDS,
    },
    Phase.DRAINING: {
        Happening.EMPTY: Phase.CLOSED,
        Happening.CUT: Phase.ENDING,
        **_ENDS,
    },
    Phase.ENDING: {
        # The drain's beginning and its end may come together, the end by two ways.
        Happening.DRAIN: Phase.ENDING,
        Happening.CUT: Phase.ENDING,
        Happening.EMPTY: Phase.CLOSED,
        Happening.LATE: Phase.CLOSED,
        **_ENDS,
    },
    Phase.CLOSED: {},
}
"""The phase that follows a phase and a happening; what is not here is illegal."""

CLOSES: Final[Mapping[Happening, tuple[int, str]]] = {
    Happening.EMPTY: (1001, "the server is stopping"),
    Happening.LATE: (1001, "the server is stopping"),
    Happening.IDLE: (4408, "idle"),
    Happening.FAILED: (1011, "internal error"),
}
"""The close code and the reason for what closes an open connection (RFC 6455, 7.4).

Codes from 4000 on are an application's own; this one follows HTTP's 408.
"""


class IllegalTransition(RuntimeError):
    """A mistake in the program: the table does not allow this step."""


def phase_after(phase: Phase, happening: Happening) -> Phase:
    """The phase that follows. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[phase][happening]
    except KeyError:
        raise IllegalTransition(f"{happening} cannot follow in phase {phase}") from None
