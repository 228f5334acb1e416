"""What the scripted engine plays: lanes, delays, replies and faults, from a TOML file.

    lanes = 4
    load_seconds = 0.5

    [[rules]]
    match = "(?i)weather"
    reply = "It rains."
    token_seconds = 0.05

    [[rules]]
    match = "crash"
    fault = { kind = "die", after_tokens = 3, restart_seconds = 1.0 }

The first rule whose `match` is found in the last user text applies; without one the
answer is made of words up to `max_tokens`, with no delay and no fault.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=86_400.0)]
Tokens: TypeAlias = Annotated[int, Meta(ge=0)]


class ScriptError(ValueError):
    """The script cannot be read or holds something it must not; the message names it."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of a script: immutable, unknown keys refused."""


class Restart(Part, frozen=True, tag_field="kind", tag="restart"):
    """The engine ends after so many tokens and restarts, and all its sequences go on."""

    after_tokens: Tokens = 0
    restart_seconds: Seconds = 1.0


class Die(Part, frozen=True, tag_field="kind", tag="die"):
    """The engine ends after so many tokens, with all its sequences, and restarts.

    With a `restart_error` it tries, and has then failed for good, for that reason.
    """

    after_tokens: Tokens = 0
    restart_seconds: Seconds = 1.0
    restart_error: str = ""


class Fail(Part, frozen=True, tag_field="kind", tag="fail"):
    """This sequence alone ends with `DecodeFailed` after so many tokens."""

    after_tokens: Tokens = 0


class Hang(Part, frozen=True, tag_field="kind", tag="hang"):
    """This sequence stops sending after so many tokens and never ends by itself."""

    after_tokens: Tokens = 0


class RefuseTemplate(Part, frozen=True, tag_field="kind", tag="template_error"):
    """The chat template refuses the messages, before anything starts."""


class Wait(Part, frozen=True):
    """A place in the queue that a request is told, and how long it then stands there."""

    position: Annotated[int, Meta(ge=1)]
    expected_seconds: Seconds = 0.0
    seconds: Seconds = 0.0


Fault: TypeAlias = Restart | Die | Fail | Hang | RefuseTemplate


class Rule(Part, frozen=True):
    """How to answer the requests it applies to.

    `match` is a regular expression, searched in the last user text; None matches all.
    `reply` is the whole answer; None makes one up from words, as long as `max_tokens`
    allows, or `DEFAULT_WORDS` where the request names no limit. The first token comes
    after `first_token_seconds`, each further one `token_seconds` later. Before it starts
    the request is told the places of `queued`, one after the other. `fault` befalls the
    first `fault_times` requests of the rule, all of them when that is None.
    """

    match: str | None = None
    reply: str | None = None
    first_token_seconds: Seconds = 0.0
    token_seconds: Seconds = 0.0
    queued: tuple[Wait, ...] = ()
    fault: Fault | None = None
    fault_times: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        """Refuse a broken regular expression while the script is read."""
        if self.match is not None:
            try:
                re.compile(self.match)
            except re.error as error:
                raise ValueError(f"match is not a regular expression: {error}") from error

    def applies_to(self, text: str) -> bool:
        """Whether this rule is for a request whose last user text is `text`."""
        return self.match is None or re.search(self.match, text) is not None


DEFAULT_WORDS = 64


class Script(Part, frozen=True):
    """One scripted engine. `load_error`, when given, is what loading fails with.

    `expected_wait_seconds` is what its statistics say while all lanes are busy. `dialect`
    is how its replies write tool calls, a name of `inference.dialects`, and `thinking` the
    marks around the reasoning in them, where it has any. With an `embedding_length`, or
    where it `reranks`, it generates nothing, but makes vectors or scores, each request in
    `embedding_seconds`.
    """

    lanes: Annotated[int, Meta(ge=1)] = 16
    context_length: Annotated[int, Meta(ge=1)] = 8192
    max_waiting: Annotated[int, Meta(ge=0)] = 1024
    expected_wait_seconds: Seconds = 0.0
    load_seconds: Seconds = 0.0
    load_error: str = ""
    dialect: str = "generic"
    thinking: tuple[str, str] | None = None
    embedding_length: Annotated[int, Meta(ge=0, le=65_536)] = 0
    embedding_seconds: Seconds = 0.0
    reranks: bool = False
    rules: tuple[Rule, ...] = ()


def load_script(path: Path) -> Script:
    """Read a script from a TOML file. Raises `ScriptError`, naming file and key."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Script)
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ScriptError(f"{path}: {error}") from error
