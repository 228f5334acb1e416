"""How many requests may be in the server at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ApiError

RETRY_AFTER_SECONDS = 1.0


class Admission:
    """Counts requests that generate, running and waiting together.

    Mutable: `in_flight`, owned by the event loop's thread.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self.in_flight = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place for the length of a `with`.

        Raises `ApiError` 429 at once when there is none: whoever is refused early can
        go elsewhere, whoever waits in a long queue learns nothing.
        """
        if self.in_flight >= self._max_requests:
            raise ApiError(
                429,
                "too_many_requests",
                f"The server is already handling {self._max_requests} requests.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
