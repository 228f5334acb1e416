"""Which requests wait and which run, as their own clients may see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import assert_never

from inference.events import Accepted, Delta, Event, Finished, Queued, Restarted, Started


@dataclass(slots=True, kw_only=True)
class Listing:
    """One request on the board. Mutable: the task that reads its events owns it.

    `waiting` holds, for each of its sequences that has not started, the place it was
    told last and when; None until it was told one.
    """

    id: str
    client: str
    sequences: int
    since: float
    prompt_tokens: int = 0
    waiting: dict[int, tuple[Queued, float] | None] = field(default_factory=dict)

    def observe(self, index: int, event: Event) -> None:
        """Take note of the next event of sequence `index`, now."""
        match event:
            case Delta() | Started() | Finished():  # the most frequent first
                self.waiting.pop(index, None)
            case Accepted(prompt_tokens=tokens):
                self.prompt_tokens += tokens
            case Queued():
                self.waiting[index] = (event, monotonic())
            case Restarted():
                pass  # it keeps its place until it is told another
            case _:
                assert_never(event)

    def place(self, now: float) -> tuple[int | None, float | None]:
        """Where its next sequence to start stands, and in how many seconds it may start.

        None and None when none waits, or none was told its place yet.
        """
        told = [each for each in self.waiting.values() if each is not None]
        if not told:
            return None, None
        queued, at = min(told, key=lambda each: each[0].position)
        return queued.position, max(0.0, queued.expected_seconds - (now - at))


class QueueBoard:
    """All requests that generate, in order of arrival.

    Mutable: the listings by id. Owner: the event loop's thread.
    """

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}

    def enter(self, id: str, client: str, *, sequences: int) -> Listing:
        """Show a request until it leaves."""
        listing = Listing(
            id=id,
            client=client,
            sequences=sequences,
            since=monotonic(),
            waiting=dict.fromkeys(range(sequences)),
        )
        self._listings[id] = listing
        return listing

    def leave(self, listing: Listing) -> None:
        """Take a request down."""
        del self._listings[listing.id]

    def of(self, client: str) -> list[Listing]:
        """The requests of one client."""
        return [listing for listing in self._listings.values() if listing.client == client]
