"""One running generation on the server's side, through one engine process after another."""

from __future__ import annotations

from inference.channel import Channel
from inference.errors import EngineError
from inference.events import Accepted, Delta, Event, Started
from inference.llamacpp.messages import Resumption, Submit
from inference.quarantine import MARK_TOKENS, Standing
from inference.requests import GenerationRequest

READING_SECONDS = 60.0
"""A request that is read for longer than this counts as work for steps."""


class Sequence:
    """One running generation, with all that is needed to go on with it elsewhere.

    `request` is as engine processes know it, its seed filled in; `id` is the caller's.
    `tokens` are those that arrived so far, `ended` says that no process owes anything
    more. `inside` says whether a process has it, `submitted` whether one ever had.
    `accepted` and `cached_tokens` are what the first to accept and start it said; `queued`
    and `started` are about the present one, and `_seam` is how many tokens there were when
    that took it up. Only `Sequences` changes them.
    """

    def __init__(self, request: GenerationRequest, id: str, channel: Channel[Event]) -> None:
        self.request = request
        self.id = id
        self.channel = channel
        self.tokens: list[int] = []
        self.ended = False
        self.inside = False
        self.submitted = False
        self.accepted = False
        self.cached_tokens: int | None = None
        self.outside_since = 0.0
        self._inside_since = 0.0
        self._queued = False
        self._started = False
        self._seam = 0

    @property
    def wire_id(self) -> str:
        """What engine processes call it."""
        return self.request.id

    def enter(self, now: float) -> Submit:
        """A process takes it up from where it stands; what to tell that process.

        `now` is the event loop's time.
        """
        resumes = None
        if self.submitted:
            resumes = Resumption(tokens=tuple(self.tokens), cached_tokens=self.cached_tokens)
        self.inside = self.submitted = True
        self._inside_since = now
        self._queued = self._started = False
        self._seam = len(self.tokens)
        return Submit(request=self.request, resumes=resumes)

    def drop_out(self, now: float) -> None:
        """The process that had it is gone; `now` is the event loop's time."""
        self.inside = False
        self.outside_since = now

    def take_in(self, event: Event) -> bool:
        """Keep what an event says; False if the consumer knows it already."""
        if isinstance(event, Delta):
            self.tokens.extend(event.tokens)
        elif isinstance(event, Started):
            self._started = True
            if self.cached_tokens is None:
                self.cached_tokens = event.cached_tokens
        elif isinstance(event, Accepted):
            self._queued = True
            known, self.accepted = self.accepted, True
            return not known
        return True

    @property
    def proven(self) -> bool:
        """Whether it got on well in the present process."""
        return len(self.tokens) - self._seam >= MARK_TOKENS

    def owes_steps(self, now: float) -> bool:
        """Whether the process that has it should do steps for it, at the event loop's `now`.

        While it is only read it owes none: it may be refused, and a process that refuses
        one request after the other does no steps, but does not hang either.
        """
        if not self.inside or self.ended or self.channel.parked:
            return False
        return self._queued or now - self._inside_since >= READING_SECONDS

    @property
    def standing(self) -> Standing:
        """What it is doing in the process that has it.

        One that was not accepted yet is being tokenized, and that may fail too.
        """
        if self.channel.parked or (self._queued and not self._started):
            return Standing.IDLE
        return Standing.PROVEN if self.proven else Standing.UNPROVEN

    def end(self, error: EngineError | None) -> None:
        """No further event comes; those in the channel can still be read."""
        self.ended = True
        self.channel.close(error)
