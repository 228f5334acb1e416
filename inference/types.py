"""What goes into an engine and what comes out.

These are `msgspec.Struct`s because they cross the socket between the server and the
engine process as they are: one definition, checked on arrival. All are frozen.

A generation yields `Accepted`, then `Queued` while it has to wait, then `Started` (both
again after a preemption), then any number of `Delta`s, then exactly one `Finished`; or
it raises an `EngineError` at any point. After `Accepted` there may be a `Restarted` at
any point, and `Queued` and `Started` may follow it again. Times are seconds, counts are
tokens.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

TOP_LOGPROBS_MAX = 20
LOGIT_BIAS_MAX_ENTRIES = 1024
STOP_MAX_STRINGS = 16
STOP_MAX_CHARS = 256


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the plain values below: immutable, compared by content."""


class ToolCall(Value, frozen=True, kw_only=True):
    """A call that the model made earlier; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class ChatMessage(Value, frozen=True, kw_only=True):
    """One message as the chat template sees it.

    An assistant's may have `tool_calls` and the `reasoning` that came before its content;
    the result of a call has the role `tool` and names the call by `tool_call_id`.
    """

    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Value, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class TextPrompt(Value, frozen=True, kw_only=True, tag="text"):
    """Raw text. `add_special` lets the vocabulary add its BOS where it wants one."""

    text: str
    add_special: bool = True


class TokensPrompt(Value, frozen=True, kw_only=True, tag="tokens"):
    """Token ids, used as they are."""

    tokens: tuple[int, ...]


class ChatPrompt(Value, frozen=True, kw_only=True, tag="chat"):
    """Messages and tools for the model's own chat template.

    `add_generation_prompt` opens the assistant's turn, as a chat completion needs.
    `variables` are further names that the template may look at, such as `enable_thinking`.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    add_generation_prompt: bool = True
    variables: tuple[tuple[str, bool | int | float | str], ...] = ()


Prompt: TypeAlias = TextPrompt | TokensPrompt | ChatPrompt


class SamplingParams(Value, frozen=True, kw_only=True):
    """How the next token is drawn. The defaults are llama.cpp's.

    `temperature` 0 is greedy: the most likely token, whatever the other filters say.
    `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1, `presence_penalty` 0 and
    `frequency_penalty` 0 each switch their filter off. Penalties look back over the
    last `PENALTY_WINDOW` tokens, prompt included. `logit_bias` holds (token id, bias)
    pairs. `seed` None draws one; the engine client fills it in before sending, so the
    same random stream can be taken up again.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.8
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 40
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.95
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] | None = None


PENALTY_WINDOW = 64


class JsonSchema(Value, frozen=True, kw_only=True, tag="json_schema"):
    """A JSON value that the schema, a JSON text, accepts."""

    schema: str


class Regex(Value, frozen=True, kw_only=True, tag="regex"):
    """The whole text matches the pattern, anchored at both ends."""

    pattern: str


class Choice(Value, frozen=True, kw_only=True, tag="choice"):
    """The whole text is one of the options."""

    options: tuple[str, ...]


class Grammar(Value, frozen=True, kw_only=True, tag="grammar"):
    """The text follows a context-free grammar: llguidance's Lark, or llama.cpp's GBNF."""

    syntax: Literal["lark", "gbnf"]
    text: str


Constraint: TypeAlias = JsonSchema | Regex | Choice | Grammar
"""What a generated text must be; no token is drawn that would make it impossible."""


class Thinking(Value, frozen=True, kw_only=True):
    """How a model marks its reasoning, and how many tokens it may spend on it.

    At `budget_tokens` the end mark is written for it; None leaves it its time. A constraint
    holds from behind the end mark on.
    """

    start: str
    end: str
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None


StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=STOP_MAX_CHARS)]


class GenerationRequest(Value, frozen=True, kw_only=True):
    """One sequence to generate.

    `max_tokens` None means: until the context is full. `min_tokens` and `ignore_eos`
    hold back the end-of-generation tokens (and, up to `min_tokens`, the stop strings).
    `logprobs` None sends none, 0 the chosen token's, n also the n most likely ones,
    computed from the raw logits before any filter. `client` is who asked, for fair
    shares; a higher `priority` goes first. `constraint` bounds what may be generated.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    stop: Annotated[tuple[StopString, ...], Meta(max_length=STOP_MAX_STRINGS)] = ()
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    constraint: Constraint | None = None
    thinking: Thinking | None = None
    client: str = ""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0


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


class Delta(Value, frozen=True, kw_only=True, tag="delta"):
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


class ModelInfo(Value, frozen=True, kw_only=True):
    """What is loaded, as the start-up lines and `/v1/models` show it.

    `dialect` is how it writes tool calls, a name of `inference.dialects`, and `thinking`
    the start and end marks of its reasoning, where it has any. `embedding_length` is the
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
    embedding_length: int = 0
    reranks: bool = False


class EngineStats(Value, frozen=True, kw_only=True):
    """A snapshot of the engine. Counters only ever grow within one engine process.

    `waiting_tokens` are prompt tokens of the waiting sequences, and
    `expected_wait_seconds` is when a request that came now might start;
    `prefill_token_seconds` is what a prompt token costs, 0 while that is unknown.

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
