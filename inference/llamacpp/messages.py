"""What the server and the engine process say to each other.

One Unix socket pair, inherited by the child: no name in the file system, nobody else
can connect, and either side sees the other's end as end of file. Each message is a
32-bit little-endian length and a MessagePack body (https://msgpack.org), decoded into
the structs below and nothing else.
"""

from __future__ import annotations

import struct
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from inference import errors
from inference.events import Embeddings, Event, Scores
from inference.llamacpp.cachetypes import CacheType
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    Prompt,
    RerankRequest,
)
from inference.status import EngineStats, ModelInfo

HEADER = struct.Struct("<I")
MESSAGE_MAX_BYTES = 256 * 1024 * 1024


class Message(Struct, frozen=True, kw_only=True, tag=True):
    """Base of every message; its class name travels as the tag."""


class AdapterFile(Struct, frozen=True, kw_only=True):
    """A LoRA adapter: a GGUF file, and how strongly it applies; at scale 0 not at all."""

    path: str
    scale: float = 1.0


class WorkerConfig(Message, frozen=True, kw_only=True):
    """Everything the engine process needs to know to load and schedule.

    `adapters` apply to every sequence: llama.cpp knows them by context.

    `lanes` is how many sequences run at once, `context` the most tokens one sequence
    may hold (0: as much as the model was trained for, 8192 at most), `cache_tokens`
    the cells of the whole KV cache (0: the larger of `context` and 1024 a lane).
    `batch_tokens` bounds one step's prefill when nobody is decoding. `gpu_layers` -1
    means all. `host_memory_bytes` bounds what is kept of finished sequences outside the
    cache, `disk_bytes` what of that goes on to files under `disk_dir` (0: none), for
    which a sequence waits `disk_fetch_seconds` at most. `layout` is "unified", "split",
    or "auto": split where every lane can have its whole context in the cache. Keys and
    values are kept in `cache_type_k` and `cache_type_v`, of which a quantized one for
    values needs flash attention. `rope_scale` is how many times the original context
    `rope_scaling` makes of it; there, 0 and "file" are what the file says.
    Tokens of steps shorter than `gather_seconds` are sent together.
    `max_waiting` bounds the queue. `speculation` "auto" drafts tokens where that
    measurably pays, and loads `draft_id` from `draft_path`, if given, to propose some
    of them. `device_sampling` "auto" draws tokens in the model's graph where that is a
    GPU's and measurably pays, "on" wherever llama.cpp can. `chat_template` is the source
    of one that takes the place of the file's.
    """

    model_id: str
    model_path: str
    adapters: tuple[AdapterFile, ...] = ()
    lanes: int = 16
    context: int = 0
    cache_tokens: int = 0
    threads: int = 0
    batch_tokens: int = 512
    gpu_layers: int = -1
    layout: Literal["auto", "unified", "split"] = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    rope_scaling: Literal["file", "none", "linear", "yarn"] = "file"
    rope_scale: float = 0.0
    rope_freq_base: float = 0.0
    yarn_original_context: int = 0
    host_memory_bytes: int = 1 << 30
    disk_bytes: int = 0
    disk_dir: str = ""
    disk_fetch_seconds: float = 2.0
    target_itl_seconds: float = 0.4
    gather_seconds: float = 0.0
    max_waiting: int = 1024
    speculation: Literal["auto", "off"] = "auto"
    draft_id: str = ""
    draft_path: str = ""
    device_sampling: Literal["auto", "on", "off"] = "auto"
    chat_template: str = ""
    template_seconds: float = 2.0


class Resumption(Struct, frozen=True, kw_only=True):
    """How far a sequence had come in a process that is gone.

    `tokens` are those it had generated and the server received. `cached_tokens` is what
    it was told when it started first, None where it had not started.
    """

    tokens: tuple[int, ...] = ()
    cached_tokens: int | None = None


class Submit(Message, frozen=True, kw_only=True):
    """Run this request; answers are `SequenceEvent`s under its id.

    With `resumes` it goes on behind those tokens, as if it had generated them here, and
    is queued however long the queue is: it was accepted before.
    """

    request: GenerationRequest
    resumes: Resumption | None = None


class Embed(Message, frozen=True, kw_only=True):
    """Make vectors or scores.

    Answered by the `SequenceEvent` `Accepted` under the request's id and then `Embedded`,
    or by a `Failure` in place of either.
    """

    request: EmbeddingRequest | RerankRequest


class Abort(Message, frozen=True, kw_only=True):
    """End a sequence, or an `Embed`, without a further event. Unknown ids are ignored."""

    id: str


class Park(Message, frozen=True, kw_only=True):
    """Take a sequence out of the batch, keeping its cache, until `Resume`."""

    id: str


class Resume(Message, frozen=True, kw_only=True):
    """Undo `Park`."""

    id: str


class Tokenize(Message, frozen=True, kw_only=True):
    """Answered by `Reply` with a list of token ids."""

    call: int
    text: str
    add_special: bool
    parse_special: bool


class Detokenize(Message, frozen=True, kw_only=True):
    """Answered by `Reply` with text."""

    call: int
    tokens: tuple[int, ...]


class ApplyTemplate(Message, frozen=True, kw_only=True):
    """Answered by `Reply` with text."""

    call: int
    prompt: ChatPrompt


class CountTokens(Message, frozen=True, kw_only=True):
    """Answered by `Reply` with a count."""

    call: int
    prompt: Prompt


class Ping(Message, frozen=True, kw_only=True):
    """Answered by `Pong`, so that the server knows the process still reads."""


class Loading(Message, frozen=True, kw_only=True):
    """How much of the model is loaded, 0 to 1."""

    progress: float


class Ready(Message, frozen=True, kw_only=True):
    """The model is loaded; from here on requests are taken."""

    info: ModelInfo


class LoadFailed(Message, frozen=True, kw_only=True):
    """The model cannot be loaded; the process ends."""

    reason: str


class Failure(Message, frozen=True, kw_only=True):
    """An `EngineError` on its way to the server."""

    code: str
    text: str
    param: str | None = None


class SequenceEvent(Message, frozen=True, kw_only=True):
    """One event of one sequence. After `Finished` or `Failure` none follows."""

    id: str
    event: Event | Failure


class Report(Message, frozen=True, kw_only=True):
    """All events of one step, in order, and the state after it."""

    events: tuple[SequenceEvent, ...]
    stats: EngineStats


class Reply(Message, frozen=True, kw_only=True):
    """The answer to the call of that number."""

    call: int
    value: str | tuple[int, ...] | int


class Refused(Message, frozen=True, kw_only=True):
    """The failure of the call of that number."""

    call: int
    failure: Failure


class Embedded(Message, frozen=True, kw_only=True):
    """What an `Embed` asked for."""

    id: str
    value: Embeddings | Scores


class Pong(Message, frozen=True, kw_only=True):
    """The answer to `Ping`."""


ToWorker: TypeAlias = (
    WorkerConfig
    | Submit
    | Embed
    | Abort
    | Park
    | Resume
    | Tokenize
    | Detokenize
    | ApplyTemplate
    | CountTokens
    | Ping
)
ToServer: TypeAlias = Loading | Ready | LoadFailed | Report | Embedded | Reply | Refused | Pong

encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(ToWorker)
to_server = msgspec.msgpack.Decoder(ToServer)


def frame(message: Message) -> bytes:
    """Encode one message with its length. Raises `ValueError` above `MESSAGE_MAX_BYTES`."""
    body = encoder.encode(message)
    if len(body) > MESSAGE_MAX_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit")
    return HEADER.pack(len(body)) + body


_BY_CODE: dict[str, type[errors.EngineError]] = {
    cls.code: cls
    for cls in (
        errors.ContextLengthExceeded,
        errors.TemplateError,
        errors.InvalidRequest,
        errors.EngineOverloaded,
        errors.EngineUnavailable,
        errors.DecodeFailed,
    )
}


def to_failure(error: errors.EngineError) -> Failure:
    """Put an error on the wire."""
    param = error.param if isinstance(error, errors.RequestError) else None
    return Failure(code=error.code, text=str(error), param=param)


def to_error(failure: Failure) -> errors.EngineError:
    """Take an error off the wire; a code nobody knows becomes a plain `EngineError`."""
    kind = _BY_CODE.get(failure.code, errors.EngineError)
    if issubclass(kind, errors.RequestError):
        return kind(failure.text, param=failure.param)
    return kind(failure.text)
