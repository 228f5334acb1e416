"""Who gets in: what one key may use, what the server holds, and how long the queue may be.

Every generation enters with a ticket (`server.tickets`), whatever API asked for it.
`Admission.check` asks the same questions without taking anything, so that most refusals
cost no more than a request's head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference.status import EngineStats
from server.access.client import Client
from server.backlog import Backlog
from server.errors import ApiError
from server.rates import WINDOW_SECONDS, RateWindow

RETRY_AFTER_SECONDS = 1.0
RETRY_MAX_SECONDS = 600.0
"""Estimates beyond this are not worth telling."""

PROMPT_SHARE = 0.5
"""Of the limit, which a request's own prompt counts for at most.

With nobody in front it is always let in: it can be served no sooner, and a price that is
wrong, because the machine stood still, is only found out by paying it.
"""

TELLING_SHARE = 0.25
"""Of the limit, which expectations below are not compared with what came: others decide."""


@dataclass(slots=True)
class Account:
    """What one client uses now. Mutable; owned by `Admission`."""

    in_flight: int = 0
    connections: int = 0
    requests: RateWindow = field(default_factory=RateWindow)
    tokens: RateWindow = field(default_factory=RateWindow)

    def idle(self, now: float) -> bool:
        """Whether forgetting it would change nothing."""
        windows = self.requests.reset_seconds(now) + self.tokens.reset_seconds(now)
        return not (self.in_flight or self.connections or windows)


@dataclass(frozen=True, slots=True)
class Line:
    """Who waits for one model: those that were let in, and its engine's latest snapshot."""

    backlog: Backlog
    stats: Callable[[], EngineStats]


class Admission:
    """Counts what generates, by client and in all.

    Mutable: the two limits, `in_flight`, a line for each model, the accounts by client. Owner: the
    event loop's thread.
    """

    def __init__(
        self,
        max_requests: int,
        *,
        max_queue_ttft_seconds: float = 0.0,
        stats: Callable[[], EngineStats] = EngineStats,
        count_refusal: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stats` is the default engine's latest snapshot; `count_refusal` is told a reason."""
        self.max_requests = max_requests
        self.max_queue_ttft_seconds = max_queue_ttft_seconds
        self.in_flight = 0
        self.backlog = Backlog()
        self._line = Line(self.backlog, stats)
        self._lines: dict[str, Line] = {}
        self._count_refusal = count_refusal
        self.clock = clock
        self._accounts: dict[str, Account] = {}
        self._forgot_at = clock()

    def add_line(self, model: str, stats: Callable[[], EngineStats]) -> None:
        """Count those who ask for `model` by themselves: it has an engine of its own."""
        self._lines[model] = Line(Backlog(), stats)

    def line(self, model: str) -> Line:
        """Where requests for a model wait; the default model's unless it has one of its own."""
        return self._lines.get(model, self._line)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one place for the length of a `with`, for work that generates nothing.

        Raises `ApiError` 429 at once when there is none: whoever is refused early can
        go elsewhere, whoever waits in a long queue learns nothing.
        """
        self._require_place()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def check(
        self,
        client: Client,
        *,
        prompt_tokens: int = 0,
        queues: bool = True,
        model: str | None = None,
    ) -> float:
        """Raise `ApiError` 429 or 503 when a request would be refused now.

        Returns in how many seconds its first token is expected, 0 when that does not matter:
        one that never has a first token does not queue for a lane. While the `model` is not
        known, the shortest line counts.
        """
        self._require_own(client, prompt_tokens)
        self._require_place()
        return self._require_ttft(client, prompt_tokens, model) if queues else 0.0

    @contextmanager
    def connection(self, client: Client, *, must: bool) -> Iterator[None]:
        """Count an open request of `client` for the length of a `with`.

        Raises `ApiError` 429 when it has too many, unless it `must` be let in.
        """
        account, limit = self._account(client), client.limits.connections
        if not must and limit is not None and account.connections >= limit:
            self._refuse("client_connections")
            raise ApiError(
                429,
                "too_many_connections",
                f"This API key has {limit} connections open, which is all it may have.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        account.connections += 1
        try:
            yield
        finally:
            account.connections -= 1

    def rate_headers(self, client: Client) -> list[tuple[bytes, bytes]]:
        """The client's rates as OpenAI's `x-ratelimit-*` headers; none without limits."""
        account, now = self._account(client), self.clock()
        headers = []
        for name, limit, window in (
            ("requests", client.limits.requests_per_minute, account.requests),
            ("tokens", client.limits.tokens_per_minute, account.tokens),
        ):
            if limit is None:
                continue
            for figure, value in (
                ("limit", str(limit)),
                ("remaining", str(max(0, limit - window.used(now)))),
                ("reset", f"{window.reset_seconds(now):.3f}s"),
            ):
                headers.append((f"x-ratelimit-{figure}-{name}".encode(), value.encode()))
        return headers

    def take(
        self, client: Client, *, prompt_tokens: int, queues: bool = True, model: str = ""
    ) -> tuple[Account, float]:
        """Count a request in, for a ticket; also returns what `check` does.

        Raises `ApiError` as `check` does.
        """
        expected = self.check(client, prompt_tokens=prompt_tokens, queues=queues, model=model)
        account = self._account(client)
        account.in_flight += 1
        self.in_flight += 1
        return account, expected

    def give_back(self, account: Account) -> None:
        """Count a request out."""
        account.in_flight -= 1
        self.in_flight -= 1

    def _require_own(self, client: Client, prompt_tokens: int) -> None:
        """Hold a client to its own limits."""
        account, limits, now = self._account(client), client.limits, self.clock()
        if limits.requests is not None and account.in_flight >= limits.requests:
            self._refuse("client_requests")
            raise ApiError(
                429,
                "too_many_requests",
                f"This API key has {limits.requests} requests running, which is all it may have.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        for name, limit, window, amount in (
            ("requests", limits.requests_per_minute, account.requests, 1),
            ("tokens", limits.tokens_per_minute, account.tokens, max(1, prompt_tokens)),
        ):
            wait = 0.0 if limit is None else window.wait_seconds(amount, limit, now)
            if wait > 0.0:
                self._refuse(f"{name}_per_minute")
                raise ApiError(
                    429,
                    "rate_limit_exceeded",
                    f"This API key may use {limit} {name} per minute.",
                    retry_after_seconds=wait,
                )

    def _require_place(self) -> None:
        if self.in_flight >= self.max_requests:
            self._refuse("server_requests")
            raise ApiError(
                429,
                "too_many_requests",
                f"The server is already handling {self.max_requests} requests.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def _require_ttft(self, client: Client, prompt_tokens: int, model: str | None) -> float:
        target = self.max_queue_ttft_seconds
        if target <= 0.0:
            return 0.0
        lines = [self._line, *self._lines.values()] if model is None else [self.line(model)]
        queue, own = min(self._expected(line, client, prompt_tokens) for line in lines)
        expected = queue + min(own, PROMPT_SHARE * target)
        if expected > target:
            self._refuse("queue_ttft")
            raise ApiError(
                503,
                "queue_too_long",
                "The queue is too long: a first token could not be expected in time.",
                retry_after_seconds=min(expected - target, RETRY_MAX_SECONDS),
            )
        return queue + own if expected >= TELLING_SHARE * target else 0.0

    def _expected(self, line: Line, client: Client, prompt_tokens: int) -> tuple[float, float]:
        """Seconds until a first token: those in the line, and those for the prompt itself."""
        stats, now = line.stats(), self.clock()
        priority = client.limits.priority
        queue = line.backlog.queue_seconds(client.id, priority=priority, stats=stats, now=now)
        return queue, line.backlog.prompt_seconds(prompt_tokens, stats)

    def _account(self, client: Client) -> Account:
        account = self._accounts.get(client.id)
        if account is None:
            self._forget_idle()
            account = self._accounts[client.id] = Account()
        return account

    def _forget_idle(self) -> None:
        now = self.clock()
        if now - self._forgot_at >= WINDOW_SECONDS:
            self._forgot_at = now
            self._accounts = {id: a for id, a in self._accounts.items() if not a.idle(now)}

    def _refuse(self, reason: str) -> None:
        self._count_refusal(reason)
