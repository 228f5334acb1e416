"""What `headrace serve` prints once the model is loaded: what runs, where, how to try it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from inference.types import ModelInfo
from models.progress import megabytes


def banner(
    info: ModelInfo,
    *,
    version: str,
    url: str,
    loopback: bool,
    api_key_file: Path | None,
    key_store: Path | None = None,
    profile: str | None = None,
) -> str:
    """The start-up lines, ending in a command that can be pasted into a shell.

    `profile` says which weights are served, where there is a choice.
    """
    reach = "this machine only" if loopback else "all who reach this address"
    files = [str(path) for path in (api_key_file, key_store) if path is not None]
    if files:
        keys = f"wanted from every client, {' and '.join(files)}"
    elif loopback:
        keys = "none, so loopback only; to serve others: --host ADDR --api-key-file FILE"
    else:
        keys = "NONE: anybody who reaches this address can use the model"
    rows = {
        "model": f"{info.id}, {_size(info)}",
        "quantization": info.quantization or "unknown",
        **({} if profile is None else {"profile": profile}),
        "engine": f"{info.engine}, {_count(info.threads, 'thread')}",
        "device": info.device,
        "layout": f"{info.layout}, {_count(info.lanes, 'lane')}",
        "context": f"{info.context_length} tokens a sequence, cache {info.cache_tokens} tokens",
        "address": f"{url} ({reach})",
        "keys": keys,
    }
    width = max(map(len, rows))
    lines = [f"Headrace {version} is ready.", ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in rows.items()]
    return "\n".join([*lines, "", "Try it:", curl(url, api_key_file, named=bool(files)), ""])


def curl(url: str, api_key_file: Path | None, *, named: bool = False) -> str:
    """One shell line that streams an answer.

    It reads the key from its file, or is `named` and takes it from `$HEADRACE_API_KEY`: no
    secret here.
    """
    body = json.dumps(
        {
            "model": "default",
            "stream": True,
            "messages": [{"role": "user", "content": "Tell me about rivers."}],
        },
        separators=(",", ":"),
    )
    key = ' -H "Authorization: Bearer $HEADRACE_API_KEY"' if named else ""
    if api_key_file is not None:
        path = shlex.quote(str(api_key_file.absolute()))
        key = f' -H "Authorization: Bearer $({FIRST_KEY} {path})"'
    return (
        f"curl -N {shlex.quote(url + '/v1/chat/completions')}{key} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


FIRST_KEY = "grep -m1 -v -e '^#' -e '^$'"
"""The first line of a key file that is neither empty nor a comment."""


def _size(info: ModelInfo) -> str:
    parts = []
    if info.parameters:
        parts.append(f"{info.parameters / 1e6:.0f}M parameters")
    if info.size_bytes:
        # The file is a little larger: it holds the vocabulary as well.
        parts.append(f"{megabytes(info.size_bytes)} of weights")
    return ", ".join(parts) or info.description


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
