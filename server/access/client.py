"""Who asks, what they may do, and how much of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct


class Scope(enum.StrEnum):
    """What a key opens; `server.access.scopes` says which paths need which."""

    GENERATE = "generate"
    READ = "read"
    METRICS = "metrics"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)

Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class KeyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one key may use; None does not limit.

    `requests` counts those that generate at the same time, `connections` those open at
    the same time, readers of streams included. `tokens_per_minute` are prompt and
    generated tokens together. A higher `priority` goes first in the engine's queue.
    """

    requests: Count | None = None
    connections: Count | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whoever holds a key. `id` names it in fair shares, as owner and in logs.

    `name` is what the key's maker called it, empty for keys without a name.
    """

    id: str
    name: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: KeyLimits = field(default_factory=KeyLimits)


ANYBODY = Client(id="")
"""Who asks a server without keys, and whoever asks for health."""
