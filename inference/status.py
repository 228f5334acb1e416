"""What an engine says of itself: its model, its figures, its state."""

from __future__ import annotations

import enum

from inference.requests import Value


class ModelInfo(Value, frozen=True, kw_only=True):
    """What is loaded, as the start-up lines and `/v1/models` show it.

    `dialect` is how it writes tool calls, a name of `inference.dialects`, and `thinking`
    the start and end marks of its reasoning, where it has any; `special_marks` are those of
    the dialect's marks that are special tokens, with their ids. `embedding_length` is the
    length of its vectors where it makes them, 0 where it generates text; `reranks` where
    it scores a query against a document instead.
    """

    id: str
    description: str
    quantization: str
    parameters: int
    size_bytes: int
    vocab_size: int
    context_length: int
    train_context_length: int
    has_chat_template: bool
    engine: str
    device: str
    layout: str
    lanes: int
    cache_tokens: int
    threads: int
    dialect: str = "generic"
    thinking: tuple[str, str] | None = None
    special_marks: tuple[tuple[str, int], ...] = ()
    embedding_length: int = 0
    reranks: bool = False


class EngineStats(Value, frozen=True, kw_only=True):
    """A snapshot of the engine. Counters only ever grow within one engine process.

    `waiting_tokens` are prompt tokens of the waiting sequences, and
    `expected_wait_seconds` is when a request that came now might start, and
    `expected_first_seconds` when its first token might come, besides what its own prompt
    takes; `place_seconds` is what each further request in front adds to that, but for its
    prompt. `prefill_token_seconds` is what a prompt token costs. These are 0 while they
    are unknown.

    `cache_used` and `cache_total` are cells of the KV cache, `host_used` and
    `host_total` bytes of host memory for finished prefixes, `disk_used` and
    `disk_total` bytes of files with more of them, which were written `disk_stores` times
    and read `disk_fetches` times. `prefix_queries` and
    `prefix_hits` count prompt tokens looked up and found. `device_sampled_tokens` are those
    of `generation_tokens` that were drawn in the model's graph.
    """

    running: int = 0
    waiting: int = 0
    parked: int = 0
    waiting_tokens: int = 0
    expected_wait_seconds: float = 0.0
    expected_first_seconds: float = 0.0
    place_seconds: float = 0.0
    prefill_token_seconds: float = 0.0
    lanes_total: int = 0
    cache_used: int = 0
    cache_total: int = 0
    host_used: int = 0
    host_total: int = 0
    disk_used: int = 0
    disk_total: int = 0
    disk_stores: int = 0
    disk_fetches: int = 0
    disk_failures: int = 0
    disk_fetch_timeouts: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    device_sampled_tokens: int = 0
    draft_tokens: int = 0
    draft_tokens_accepted: int = 0
    step_seconds: float = 0.0
    decode_seconds: float = 0.0


class EngineState(enum.StrEnum):
    """Where the engine is in its life; only READY takes requests."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    CLOSED = "closed"


class EngineHealth(Value, frozen=True, kw_only=True):
    """State, why it is so, how far a load has come (0 to 1), and what happened so far.

    `restarts` counts processes that replaced one that had been ready, `hangs` those of
    them that were ended because no step came. `replays` counts sequences that a new
    process took up, each time, `quarantined` those that were given up as the cause.
    """

    state: EngineState
    reason: str = ""
    load_progress: float = 0.0
    restarts: int = 0
    hangs: int = 0
    replays: int = 0
    quarantined: int = 0
