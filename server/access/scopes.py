"""Which paths need which scope: one table, and what it does not name is closed.

The decision reads the path that the router will read (`scope["path"]`), as it is: what
is not spelled like a row of the table is not that row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from server.access.client import Scope

OPEN: Final = "open"
"""Needs no key."""

Need: TypeAlias = Scope | Literal["open"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A path and all below it.

    `reading` is what GET and HEAD and a WebSocket's handshake need, `writing` every
    other method. With `generates`, a POST to the path itself starts a generation, or makes
    vectors: admission looks at it before its body is read. One that `queues` waits for a
    lane.
    """

    path: str
    reading: Need
    writing: Need
    generates: bool = False
    queues: bool = True

    def covers(self, path: str) -> bool:
        """Whether `path` is the rule's or below it."""
        return path == self.path or path.startswith(self.path + "/")


RULES = (
    Rule("/health", OPEN, OPEN),
    Rule("/metrics", Scope.METRICS, Scope.METRICS),
    Rule("/version", Scope.READ, Scope.READ),
    Rule("/openapi.json", Scope.READ, Scope.READ),
    Rule("/v1/models", Scope.READ, Scope.ADMIN),
    Rule("/v1/chat/completions", Scope.GENERATE, Scope.GENERATE, generates=True),
    Rule("/v1/completions", Scope.GENERATE, Scope.GENERATE, generates=True),
    Rule("/v1/responses", Scope.READ, Scope.GENERATE, generates=True),
    Rule("/v1/embeddings", Scope.GENERATE, Scope.GENERATE, generates=True, queues=False),
    Rule("/v1/rerank", Scope.GENERATE, Scope.GENERATE, generates=True, queues=False),
    Rule("/v1/queue", Scope.READ, Scope.READ),
    Rule("/v1/streams", Scope.READ, Scope.GENERATE),
    Rule("/v1/ws", Scope.GENERATE, Scope.GENERATE),
    Rule("/tokenize", Scope.GENERATE, Scope.GENERATE),
    Rule("/detokenize", Scope.GENERATE, Scope.GENERATE),
    Rule("/apply-template", Scope.GENERATE, Scope.GENERATE),
)


def rule_of(path: str) -> Rule | None:
    """The rule that covers `path`; None when it is closed."""
    return next((rule for rule in RULES if rule.covers(path)), None)


def need_of(path: str, method: str) -> Need | None:
    """What a request needs; None when no key opens the path."""
    rule = rule_of(path)
    if rule is None:
        return None
    return rule.reading if method in ("GET", "HEAD") else rule.writing


def queues(path: str) -> bool:
    """Whether what a request to `path` starts waits for a lane."""
    rule = rule_of(path)
    return rule is None or rule.queues


def generates(path: str, method: str) -> bool:
    """Whether this request starts a generation."""
    rule = rule_of(path)
    return rule is not None and rule.generates and rule.path == path and method == "POST"
