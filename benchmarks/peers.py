"""The servers to compare, as plugins: each knows how it is started and spoken to.

A peer turns a `Setting` into a `Launch`, and does nothing else: `servers.py` starts the
process. A peer of your own is any object with this shape; name it on the command line as
`package.module:attribute`.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from benchmarks.cache import PeerCache, VllmCache
from benchmarks.workloads import Workload

BUILD_REMEDY = "build it with: python -m benchmarks.build_peer"
VLLM_REMEDY = "make it with: python -m benchmarks.build_vllm_peer"
# Keys and values of a token in a model of eight billion weights with grouped queries.
VLLM_TOKEN_BYTES = 128 * 1024


class PeerError(Exception):
    """A peer cannot be used; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a peer is asked to serve.

    `model` is a file, a directory or an id, as the peer understands it. `lanes` is the
    largest number of requests at once. `program` replaces the peer's own executable,
    `flags` are added to its command line last, so they win. `scratch` is a directory for
    files it needs, `cache` where built peers lie. `url` is only for a server that runs already.
    """

    model: str
    threads: int
    lanes: int
    workload: Workload
    port: int
    scratch: Path
    cache: PeerCache
    program: str | None = None
    flags: tuple[str, ...] = ()
    url: str | None = None

    @property
    def base_url(self) -> str:
        """Where a server started on `port` answers."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start and address a server; an empty `argv` means: it runs already.

    `model` is the name to send in requests; None takes the first of `/v1/models`. `extra`
    joins every request body. `version_argv` prints the version for the report. `note` is
    anything a reader of the report must know about this peer.
    """

    base_url: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/v1/models"
    model: str | None = "default"
    extra: Mapping[str, object] = field(default_factory=lambda: {"ignore_eos": True})
    version_argv: tuple[str, ...] = ()
    note: str = ""


class Peer(Protocol):
    """A kind of server. Calling it plans a launch, starting nothing; raises `PeerError`."""

    def __call__(self, setting: Setting) -> Launch:
        """Plan how to serve `setting`."""


def headrace(setting: Setting) -> Launch:
    """Headrace itself, through its console script."""
    beside = Path(sys.executable).with_name("headrace")
    program = _program(setting, "HEADRACE_BENCH_HEADRACE", beside, "make serve installs it")
    return Launch(
        base_url=setting.base_url,
        argv=(
            *(program, "serve", "--model", setting.model),
            *("--host", "127.0.0.1", "--port", str(setting.port)),
            *("--threads", str(setting.threads), "--lanes", str(setting.lanes)),
            *("--context", str(_lane_context(setting))),
            *("--cache-tokens", str(_lane_context(setting) * setting.lanes)),
            *("--log-level", "warning", *setting.flags),
        ),
        # What it stores of answers is no part of the user's own state.
        env={"HEADRACE_DATA_DIR": str(setting.scratch / f"headrace-{setting.port}")},
        ready_path="/health/ready",
    )


def llama_server(setting: Setting) -> Launch:
    """llama.cpp's own server, with the flags that serve the workload best.

    One unified cache lets a slot use what others leave free, and was faster on short and
    shared prompts; long distinct prompts were faster with a cache split by slot.
    """
    program = _program(
        setting, "HEADRACE_BENCH_LLAMA_SERVER", setting.cache.program("llama-server"), BUILD_REMEDY
    )
    split = setting.workload.context_tokens > 1024 and not setting.workload.shares_prefix
    return Launch(
        base_url=setting.base_url,
        argv=(
            *(program, "--model", setting.model, "--host", "127.0.0.1"),
            *("--port", str(setting.port), "--threads", str(setting.threads)),
            *("--parallel", str(setting.lanes), "--no-kv-unified" if split else "--kv-unified"),
            *("--ctx-size", str(_lane_context(setting) * setting.lanes)),
            *("--flash-attn", "on", "--no-ui", "--alias", "default"),
            *setting.flags,
        ),
        ready_path="/health",
        version_argv=(program, "--version"),
    )


def llama_cpp_python(setting: Setting) -> Launch:
    """The batching example server that llama-cpp-python's source ships.

    `program` is a Python that has llama-cpp-python, fastapi, openai, safetensors, uvicorn
    and websockets; the example itself comes with `python -m benchmarks.build_peer`.
    """
    program = _program(
        setting, "HEADRACE_BENCH_LLAMA_CPP_PYTHON", None, "name a Python that has its requirements"
    )
    example = setting.cache.example_server
    if not example.exists():
        raise PeerError(f"{example} is missing; {BUILD_REMEDY}")
    config = setting.scratch / f"llama-cpp-python-{setting.port}.json"
    model = {
        "path": setting.model,
        "alias": "default",
        "n_ctx": _lane_context(setting) * setting.lanes,
        "n_seq_max": setting.lanes,
        "n_batch": 512,
        "n_ubatch": 512,
        "threads": setting.threads,
        "threads_batch": setting.threads,
        "kv_unified": True,
        "flash_attn": True,
    }
    server = {"host": "127.0.0.1", "port": setting.port}
    config.write_text(json.dumps({"server": server, "model": model}))
    return Launch(
        base_url=setting.base_url,
        argv=(program, str(example), "-C", str(config), *setting.flags),
        note="ignores ignore_eos: an answer may end before max_tokens",
    )


def vllm(setting: Setting) -> Launch:
    """vLLM's own server. `model` is a directory of safetensors, a hub id, or a GGUF file
    that `build_vllm_peer` has brought into that format.

    On a processor it would keep one core free for itself, so cores are given by name; the
    cache has room for every lane, and a gibibyte for the prefixes that it keeps in there.
    """
    program = _program(setting, "HEADRACE_BENCH_VLLM", _vllm_program(), VLLM_REMEDY)
    cores = sorted(os.sched_getaffinity(0))[: setting.threads]
    tokens = _lane_context(setting) * setting.lanes
    return Launch(
        base_url=setting.base_url,
        argv=(
            *(program, "serve", setting.model, "--host", "127.0.0.1"),
            *("--port", str(setting.port), "--served-model-name", "default"),
            *("--max-model-len", str(_lane_context(setting))),
            *("--max-num-seqs", str(setting.lanes)),
            *setting.flags,
        ),
        env={
            "OMP_NUM_THREADS": str(setting.threads),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": str(1 + math.ceil(tokens * VLLM_TOKEN_BYTES / 2**30)),
            "VLLM_NO_USAGE_STATS": "1",
        },
        ready_path="/health",
        version_argv=(program, "--version"),
        note="serves its own weights format, not the GGUF file",
    )


def _vllm_program() -> Path | str | None:
    built = VllmCache.usual().venv / "bin" / "vllm"
    return built if built.exists() else shutil.which("vllm")


def url(setting: Setting) -> Launch:
    """Any server that runs already."""
    if setting.url is None or not setting.url.startswith(("http://", "https://")):
        raise PeerError("name a server that runs already by its URL: http://HOST:PORT")
    return Launch(base_url=setting.url.rstrip("/").removesuffix("/v1"), model=None)


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "headrace": headrace,
        "llama-server": llama_server,
        "llama-cpp-python": llama_cpp_python,
        "vllm": vllm,
        "url": url,
    }
)


def find_peer(name: str) -> Peer:
    """Look a peer up by name, URL or `package.module:attribute`. Raises `PeerError`."""
    if name.startswith(("http://", "https://")):
        return url
    if name in PEERS:
        return PEERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise PeerError(f"unknown peer {name!r}; known: {', '.join(PEERS)}, or a URL")
    try:
        peer: Callable[[Setting], Launch] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PeerError(f"cannot load the peer {name!r}: {error}") from error
    return cast(Peer, peer)


def _lane_context(setting: Setting) -> int:
    """Tokens one request may use: the workload's need, rounded up to a power of two."""
    return max(512, 1 << (setting.workload.context_tokens - 1).bit_length())


def _program(setting: Setting, variable: str, usual: Path | str | None, remedy: str) -> str:
    """The executable: named on the command line, else by environment, else the usual place."""
    named = setting.program or os.environ.get(variable)
    found = shutil.which(named or str(usual)) if named or usual else None
    if found is None:
        raise PeerError(f"{named or usual or variable} was not found; {remedy}, or set {variable}")
    return found
