"""Every setting of the server.

A value comes from the first of: a flag (`--max-body-bytes`), a variable
(`HEADRACE_MAX_BODY_BYTES`), the TOML file (`max_body_bytes = 2097152`), the default.
All three spell the name of the field below. The command line is generated from the
fields, so a new setting is one new field. Settings that few will ever change have no
flag: `headrace serve --help` has to fit one screen. `server.environment` puts the values
together.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from inference.llamacpp.cachetypes import CacheType

PREFIX = "HEADRACE_"
FILE_VARIABLE = PREFIX + "CONFIG"

GROUPS = ("model", "network", "engine", "limits", "operation")
"""The order in which `headrace serve --help` shows the settings."""


@dataclass(frozen=True, slots=True)
class Option:
    """How the command line shows a setting; a switch has no `metavar`.

    Without a `flag` only a variable or the file sets it.
    """

    group: str
    metavar: str
    help: str
    flag: bool = True


NotEmpty = Meta(min_length=1)
Natural = Meta(ge=0, le=100_000_000)
Positive = Meta(ge=1, le=1_000_000)
Lanes = Meta(ge=1, le=128)  # two ids each, of the 256 that llama.cpp has
Seconds = Meta(ge=0.0, le=86_400.0)
STREAM_STORES = r"^(off|sqlite|(redis|rediss|unix|sqlite|postgresql)(\+[a-z0-9]+)?://.+)$"
Deadline = Meta(gt=0.0, le=86_400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `headrace serve` runs with. Immutable; build it with `load_settings`.

    `port` 0 takes any free port. `context`, `cache_tokens` and `threads` 0 leave the
    choice to the engine, `gpu_layers` -1 is all of them, `max_tokens_limit` 0 is the
    context. `models` may be loaded beside the default one, `catalog` among them stands for
    all whose file is here; `max_loaded_models` counts the default one too, and so does
    `memory_budget`, in MiB. `kv_host_memory` and `kv_disk` are in MiB; `kv_disk_dir` None is
    `headrace/kv` in the user's cache directory. For `data_dir` None see `data_dir_of`.
    """

    model: Annotated[str, NotEmpty, Option("model", "ID|PATH", "catalogue id or .gguf file")] = (
        "default"
    )
    models: Annotated[
        tuple[str, ...],
        Meta(max_length=1000),
        Option("model", "IDS", "others, loaded on demand; catalog: all"),
    ] = ()
    profile: Annotated[
        Literal[
            "original",
            "near-lossless",
            "near-lossless/latency",
            "near-lossless/throughput",
            "balanced",
            "balanced/latency",
            "balanced/throughput",
            "fast",
            "fast/latency",
            "fast/throughput",
        ],
        Option("model", "NAME", "weights, see `headrace tune`"),
    ] = "original"
    engine: Annotated[
        Literal["llamacpp", "scripted"], Option("model", "NAME", "llamacpp or scripted")
    ] = "llamacpp"
    script: Annotated[Path | None, Option("model", "FILE", "what the scripted engine plays")] = None
    offline: Annotated[bool, Option("model", "", "never download a model")] = False
    chat_template: Annotated[
        Path | None, Option("model", "FILE", "in place of the model's own", flag=False)
    ] = None

    max_loaded_models: Annotated[
        int, Meta(ge=1, le=64), Option("model", "N", "in memory at once", flag=False)
    ] = 3
    memory_budget: Annotated[
        int,
        Meta(ge=0, le=1 << 30),
        Option("model", "MIB", "memory for all models, 0: what there is", flag=False),
    ] = 0
    unload_seconds: Annotated[
        float, Seconds, Option("model", "S", "idle time of one on demand, 0: any", flag=False)
    ] = 300.0

    host: Annotated[str, NotEmpty, Option("network", "ADDR", "address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535), Option("network", "N", "port to listen on, 0 for any")
    ] = 8080
    api_key_file: Annotated[Path | None, Option("network", "FILE", "accepted keys, one a line")] = (
        None
    )
    key_store: Annotated[
        Path | None, Option("network", "FILE", "keys of `headrace keys`", flag=False)
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(max_length=100),
        Option("network", "NAMES", "Host headers to answer", flag=False),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(max_length=100),
        Option("network", "ORIGINS", "sites whose pages may ask", flag=False),
    ] = ()
    allow_unauthenticated: Annotated[
        bool, Option("network", "", "listen beyond loopback without keys")
    ] = False

    lanes: Annotated[int, Lanes, Option("engine", "N", "sequences that run at once")] = 16
    context: Annotated[int, Natural, Option("engine", "N", "tokens a sequence, 0: chosen")] = 0
    cache_tokens: Annotated[int, Natural, Option("engine", "N", "KV cache cells, 0: chosen")] = 0
    threads: Annotated[
        int, Meta(ge=0, le=1024), Option("engine", "N", "decoding threads, 0: chosen")
    ] = 0
    gpu_layers: Annotated[
        int, Meta(ge=-1, le=100_000), Option("engine", "N", "layers on the GPU, -1: all")
    ] = -1
    batch_tokens: Annotated[
        int, Meta(ge=16, le=65_536), Option("engine", "N", "most prompt tokens in one step")
    ] = 512
    layout: Annotated[
        Literal["auto", "unified", "split"], Option("engine", "NAME", "cache: auto, unified, split")
    ] = "auto"
    cache_type_k: Annotated[
        CacheType, Option("engine", "NAME", "format of keys in the cache", flag=False)
    ] = "f16"
    cache_type_v: Annotated[
        CacheType, Option("engine", "NAME", "format of values in the cache", flag=False)
    ] = "f16"
    flash_attention: Annotated[
        Literal["auto", "on", "off"], Option("engine", "NAME", "auto, on, off", flag=False)
    ] = "auto"
    rope_scaling: Annotated[
        Literal["file", "none", "linear", "yarn"],
        Option("engine", "NAME", "how positions are stretched: file, none, linear", flag=False),
    ] = "file"
    rope_scale: Annotated[
        float, Meta(ge=0.0, le=1024.0), Option("engine", "N", "times that context", flag=False)
    ] = 0.0
    rope_freq_base: Annotated[
        float, Meta(ge=0.0, le=1e12), Option("engine", "N", "0: the file's", flag=False)
    ] = 0.0
    yarn_original_context: Annotated[
        int, Natural, Option("engine", "N", "tokens before scaling, 0: the file's", flag=False)
    ] = 0
    check_memory: Annotated[
        bool, Option("engine", "", "load nothing that cannot fit", flag=False)
    ] = True
    kv_host_memory: Annotated[
        int, Meta(ge=0, le=1 << 24), Option("engine", "MIB", "host memory for finished prefixes")
    ] = 1024
    kv_disk: Annotated[
        int, Meta(ge=0, le=1 << 30), Option("engine", "MIB", "disk for what does not fit there")
    ] = 0
    kv_disk_dir: Annotated[
        Path | None, Option("engine", "DIR", "where its files are", flag=False)
    ] = None
    kv_disk_seconds: Annotated[
        float, Seconds, Option("engine", "S", "longest wait for a prefix on disk", flag=False)
    ] = 2.0
    speculation: Annotated[
        Literal["auto", "off"], Option("engine", "NAME", "draft tokens: auto, off", flag=False)
    ] = "auto"
    draft_model: Annotated[
        str,
        NotEmpty,
        Option("engine", "ID|PATH", "proposes tokens; auto: the catalogue's, off", flag=False),
    ] = "auto"
    device_sampling: Annotated[
        Literal["auto", "on", "off"],
        Option("engine", "NAME", "draw tokens on the device: auto, on, off", flag=False),
    ] = "auto"
    step_seconds: Annotated[
        float, Deadline, Option("engine", "S", "longest step, beyond: it hangs", flag=False)
    ] = 30.0
    replay_seconds: Annotated[
        float, Deadline, Option("engine", "S", "time to hold streams for a restart", flag=False)
    ] = 60.0
    target_itl_ms: Annotated[
        float, Meta(gt=0.0, le=60_000.0), Option("engine", "MS", "inter-token latency to hold")
    ] = 400.0

    max_requests: Annotated[
        int, Positive, Option("limits", "N", "running and waiting, beyond: 429")
    ] = 256
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30), Option("limits", "N", "size of a request")
    ] = 2 * 1024 * 1024
    max_n: Annotated[int, Meta(ge=1, le=128), Option("limits", "N", "choices a request")] = 16
    max_tokens_limit: Annotated[
        int, Natural, Option("limits", "N", "largest max_tokens, 0: the context")
    ] = 0
    max_queue_ttft_seconds: Annotated[
        float, Seconds, Option("limits", "S", "expected first token, beyond: 503", flag=False)
    ] = 30.0
    body_seconds: Annotated[
        float,
        Meta(gt=0.0, le=3600.0),
        Option("limits", "S", "time to receive a request", flag=False),
    ] = 30.0
    disconnect_grace_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time a request outlives its client", flag=False)
    ] = 0.0
    drain_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time for streams to end at shutdown")
    ] = 30.0
    load_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time to wait for a model, 0: any", flag=False)
    ] = 300.0
    queue_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time to wait for a lane, 0: any", flag=False)
    ] = 300.0
    first_token_seconds: Annotated[
        float, Seconds, Option("limits", "S", "from a lane to the first token, 0: any", flag=False)
    ] = 600.0
    between_tokens_seconds: Annotated[
        float, Seconds, Option("limits", "S", "longest silence after it, 0: any", flag=False)
    ] = 120.0
    response_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time for a whole response, 0: any", flag=False)
    ] = 3600.0
    heartbeat_seconds: Annotated[
        float, Seconds, Option("limits", "S", "silence before a heartbeat, 0: none", flag=False)
    ] = 15.0

    max_connections: Annotated[
        int, Positive, Option("network", "N", "connections with a request on them", flag=False)
    ] = 1024
    reserved_connections: Annotated[
        int, Positive, Option("network", "N", "more, for health and metrics", flag=False)
    ] = 32
    max_head_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20), Option("network", "N", "size of a head", flag=False)
    ] = 64 * 1024
    max_headers: Annotated[
        int, Meta(ge=1, le=10_000), Option("network", "N", "headers of a request", flag=False)
    ] = 100
    head_seconds: Annotated[
        float, Deadline, Option("network", "S", "time to receive a head", flag=False)
    ] = 10.0
    write_seconds: Annotated[
        float, Deadline, Option("network", "S", "time a reader may stand still", flag=False)
    ] = 30.0
    keep_alive_seconds: Annotated[
        float, Deadline, Option("network", "S", "time between two requests", flag=False)
    ] = 75.0
    peer_seconds: Annotated[
        float,
        Meta(ge=1.0, le=86_400.0),
        Option("network", "S", "time until a silent peer counts as gone", flag=False),
    ] = 60.0
    write_buffer_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 24), Option("network", "N", "unsent, in the server", flag=False)
    ] = 16 * 1024
    send_buffer_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 24),
        Option("network", "N", "unsent, in the kernel, 0: its choice", flag=False),
    ] = 64 * 1024
    websocket_responses: Annotated[
        int, Meta(ge=1, le=1024), Option("network", "N", "responses on a WebSocket", flag=False)
    ] = 16
    websocket_messages_per_second: Annotated[
        float,
        Meta(gt=0.0, le=10_000.0),
        Option("network", "N", "messages read from a WebSocket", flag=False),
    ] = 20.0
    websocket_ping_seconds: Annotated[
        float, Deadline, Option("network", "S", "time between two pings", flag=False)
    ] = 20.0
    websocket_pong_seconds: Annotated[
        float, Deadline, Option("network", "S", "time to answer a ping", flag=False)
    ] = 20.0
    websocket_idle_seconds: Annotated[
        float, Deadline, Option("network", "S", "time a WebSocket may do nothing", flag=False)
    ] = 600.0

    data_dir: Annotated[
        Path | None, Option("operation", "DIR", "where state is kept", flag=False)
    ] = None
    stream_store: Annotated[
        str,
        Meta(pattern=STREAM_STORES),
        Option("operation", "URL", "sqlite, off, or a URL of Redis or SQL", flag=False),
    ] = "sqlite"
    coalesce_ms: Annotated[
        float,
        Meta(ge=0.0, le=1000.0),
        Option("operation", "MS", "time to gather tokens for one event, 0: none", flag=False),
    ] = 25.0
    detach_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time a reader may be away, 0: any", flag=False)
    ] = 300.0
    keep_seconds: Annotated[
        float, Seconds, Option("limits", "S", "time an ended response stays at hand", flag=False)
    ] = 60.0
    retention_seconds: Annotated[
        int,
        Meta(ge=1, le=10 * 365 * 86_400),
        Option("limits", "S", "time an ended response stays stored", flag=False),
    ] = 30 * 86_400
    max_live_responses: Annotated[
        int, Positive, Option("limits", "N", "responses in memory", flag=False)
    ] = 1024
    vllm_metrics: Annotated[bool, Option("operation", "", "metrics also under vllm: names")] = False
    log_format: Annotated[
        Literal["console", "json"], Option("operation", "NAME", "console or json")
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option("operation", "NAME", "debug, info, warning or error"),
    ] = "info"
    log_prompts: Annotated[bool, Option("operation", "", "prompts and answers in the log")] = False


TYPES: Mapping[str, Any] = typing.get_type_hints(Settings, include_extras=True)
"""The fields' types with range and `Option`, in the order of declaration."""


def option_of(name: str) -> Option:
    """How the command line shows the field of that name."""
    return next(extra for extra in TYPES[name].__metadata__ if isinstance(extra, Option))


def flag_of(name: str) -> str:
    """The command line's spelling of a field: `--max-body-bytes`."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment's spelling of a field: `HEADRACE_MAX_BODY_BYTES`."""
    return PREFIX + name.upper()
