"""What comes out of an engine.

A generation yields `Accepted`, then `Queued` while it has to wait, then `Started` (both
again after a preemption, `Queued` alone where it waits after a pause and kept its cache),
then any number of `Delta`s, then exactly one `Finished`; or it raises an `EngineError` at
any point. After `Accepted` there may be a `Restarted` at any point, and `Queued` and
`Started` may follow it again. Times are seconds, counts are tokens.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from inference.requests import Value


class Embeddings(Value, frozen=True, kw_only=True, tag="embeddings"):
    """The vectors in the order of the inputs, and how many tokens each input had.

    `vectors` are little-endian float32, `length` of them for each input; each vector has
    the Euclidean length 1.
    """

    length: int
    vectors: bytes
    tokens: tuple[int, ...]


class Scores(Value, frozen=True, kw_only=True, tag="scores"):
    """How relevant each document is, 0 to 1, in their order, and the tokens of each pair."""

    scores: tuple[float, ...]
    tokens: tuple[int, ...]


class FinishReason(enum.StrEnum):
    """Why a generation ended: the model's or a stop string's end, a limit, or calls to make."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class TopLogprob(Value, frozen=True, kw_only=True):
    """A candidate token: its id, its bytes, its natural log probability."""

    token: int
    piece: bytes
    logprob: float


class TokenLogprob(Value, frozen=True, kw_only=True):
    """The chosen token and, most likely first, its competitors."""

    token: int
    piece: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class Usage(Value, frozen=True, kw_only=True):
    """Tokens read and written; `cached_tokens` of the prompt needed no prefill.

    `reasoning_tokens` are those of the completion that were reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Accepted(Value, frozen=True, kw_only=True, tag="accepted"):
    """Valid, tokenized and queued. Errors of the request itself come instead of this.

    `thinking`: the prompt ends inside the reasoning, so it begins without its start mark.
    """

    prompt_tokens: int
    thinking: bool = False


class Queued(Value, frozen=True, kw_only=True, tag="queued"):
    """It has to wait: `position` 1 is the next to start, in about `expected_seconds`.

    Said once it is known, and again, about once a second at most, when the position has
    changed. The expectation is an estimate and promises nothing.
    """

    position: int
    expected_seconds: float


class Started(Value, frozen=True, kw_only=True, tag="started"):
    """A lane was given; `cached_tokens` of the prompt come from the prefix cache."""

    cached_tokens: int
    queue_seconds: float


class Restarted(Value, frozen=True, kw_only=True, tag="restarted"):
    """The engine process ended, and another one goes on where this one was.

    It computes the prompt and `replayed_tokens` generated ones again; nothing that was
    said before is said again. `paused_seconds` is how long the sequence was in no process.
    """

    replayed_tokens: int
    paused_seconds: float


class ToolCallDelta(Value, frozen=True, kw_only=True):
    """A piece of a tool call; calls are numbered from 0.

    The first piece of a call has its `id` and its whole `name`, the others only more of
    `arguments`, which together are a JSON object.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(Value, frozen=True, kw_only=True, tag="delta", gc=False):
    """Newly generated tokens and the text that became certain with them.

    `text` may be empty: part of a character or of a possible stop string is held
    back. `logprobs`, when asked for, has one entry for each of `tokens`. An engine knows
    only text; `inference.dialects` tells `reasoning` and tool `calls` from it. Within one
    delta, reasoning comes first, then text, then calls.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class Finished(Value, frozen=True, kw_only=True, tag="finished"):
    """The normal end. `stop` is the stop string that matched, if one did."""

    reason: FinishReason
    usage: Usage
    stop: str | None = None


Event: TypeAlias = Accepted | Queued | Started | Restarted | Delta | Finished
