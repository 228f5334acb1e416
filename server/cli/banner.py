"""What `headrace serve` prints once the model is loaded: what runs, where, how to try it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.status import ModelInfo
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
    others: Sequence[str] = (),
) -> str:
    """The start-up lines, ending in a command that can be pasted into a shell.

    `profile` says which weights are served, where there is a choice, `others` which models
    are loaded on demand.
    """
    reach = "this machine only" if loopback else "all who reach this address"
    files = [str(path) for path in (api_key_file, key_store) if path is not None]
    if files:
        keys = f"wanted from every client, {' and '.join(files)}"
    elif loopback:
        keys = "none, so loopback only; to serve others: headrace keys create NAME, --host ADDR"
    else:
        keys = "NONE: anybody who reaches this address can use the model"
    rows = {
        "model": f"{info.id}, {_size(info)}",
        "quantization": info.quantization or "unknown",
        **({} if profile is None else {"profile": profile}),
        "engine": f"{info.engine}, {_count(info.threads, 'thread')}",
        "device": info.device,
        **_room(info),
        **({"on demand": _listed(others)} if others else {}),
        "address": f"{url} ({reach})",
        "keys": keys,
    }
    width = max(map(len, rows))
    lines = [f"Headrace {version} is ready.", ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in rows.items()]
    example = curl(url, api_key_file, named=bool(files), example=_example(info))
    return "\n".join([*lines, "", "Try it:", example, ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request to try: its path, and its fields besides the model."""

    path: str
    fields: Mapping[str, object]


CHAT = Example(
    path="/v1/chat/completions",
    fields={"stream": True, "messages": [{"role": "user", "content": "Tell me about rivers."}]},
)
EMBED = Example(path="/v1/embeddings", fields={"input": "A river bends."})
RERANK = Example(
    path="/v1/rerank", fields={"query": "rivers", "documents": ["A river bends.", "Bread rises."]}
)


def curl(
    url: str, api_key_file: Path | None, *, named: bool = False, example: Example = CHAT
) -> str:
    """One shell line with a request; that of a chat streams an answer.

    It reads the key from its file, or is `named` and takes it from `$HEADRACE_API_KEY`: no
    secret here.
    """
    body = json.dumps({"model": "default", **example.fields}, separators=(",", ":"))
    key = ' -H "Authorization: Bearer $HEADRACE_API_KEY"' if named else ""
    if api_key_file is not None:
        path = shlex.quote(str(api_key_file.absolute()))
        key = f' -H "Authorization: Bearer $({FIRST_KEY} {path})"'
    return (
        f"curl -N {shlex.quote(url + example.path)}{key} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


NAMES_SHOWN = 5

FIRST_KEY = "grep -m1 -v -e '^#' -e '^$'"
"""The first line of a key file that is neither empty nor a comment."""


def _example(info: ModelInfo) -> Example:
    if info.embedding_length:
        return EMBED
    return RERANK if info.reranks else CHAT


def _room(info: ModelInfo) -> dict[str, str]:
    """How much it holds: of a model that generates lanes and cells, of another inputs."""
    if info.embedding_length or info.reranks:
        made = f"{info.embedding_length} dimensions" if info.embedding_length else "scores"
        return {"makes": made, "context": f"{info.context_length} tokens an input"}
    cache = f"cache {info.cache_tokens} tokens"
    return {
        "layout": f"{info.layout}, {_count(info.lanes, 'lane')}",
        "context": f"{info.context_length} tokens a sequence, {cache}",
    }


def _size(info: ModelInfo) -> str:
    parts = []
    if info.parameters:
        parts.append(f"{info.parameters / 1e6:.0f}M parameters")
    if info.size_bytes:
        # The file is a little larger: it holds the vocabulary as well.
        parts.append(f"{megabytes(info.size_bytes)} of weights")
    return ", ".join(parts) or info.description


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
