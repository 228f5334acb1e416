"""What one request did, as the client saw it.

All times are seconds on the client's monotonic clock, counted from the start of the
measurement they belong to. The definitions of TTFT, ITL and TPOT live here and nowhere
else.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import pairwise


class Outcome(enum.StrEnum):
    """How a request ended.

    `OK` had a finish reason and a proper end. `REFUSED` was turned away before it began
    (429 or 503), which an overloaded server may do. `FAILED` is everything else: other
    statuses, an error inside the stream, a stream cut short, a missed deadline.
    """

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request.

    `intended` is when it should have started: the planned arrival in an open loop, the
    moment its turn came in a closed one. `sent` is when its bytes were written, after
    connecting. `token_times` holds one arrival for each non-empty piece of text; pieces
    that came in one read share a time. `completion_tokens` comes from the server's usage
    block, or is the number of pieces when it sent none (then `counted_by` says "chunks").
    """

    id: str
    group: str
    intended: float
    sent: float
    end: float
    outcome: Outcome
    token_times: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    counted_by: str = "usage"
    finish_reason: str | None = None
    text_digest: str = ""
    status: int = 0
    error: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from the intended start to the first non-empty token."""
        return self.token_times[0] - self.intended if self.token_times else None

    @property
    def gaps(self) -> tuple[float, ...]:
        """ITL: every gap between two arrivals, in seconds; one fewer than arrivals."""
        return tuple(later - earlier for earlier, later in pairwise(self.token_times))

    @property
    def e2e(self) -> float:
        """Seconds from the intended start to the end of the response."""
        return self.end - self.intended

    @property
    def tpot(self) -> float | None:
        """(end to end − TTFT) / (tokens − 1), in seconds; None below two tokens."""
        if self.ttft is None or self.completion_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.completion_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All records of one measurement, and what it cost.

    `client_cpu_seconds` is processor time of the measuring process, `server_cpu_seconds`
    that of the server's processes (None when the server is not ours to look at).
    """

    records: tuple[RequestRecord, ...]
    client_cpu_seconds: float
    server_cpu_seconds: float | None = None
