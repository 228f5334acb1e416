"""Which weights a peer is given: a path, a catalogue id, a directory in vLLM's format."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.cache import VllmCache
from benchmarks.peers import VLLM_REMEDY, PeerError

READ_GGUF = frozenset({"headrace", "llama-server", "llama-cpp-python"})


def model_for(peer: str, name: str) -> str:
    """What `peer` is asked to serve for `name`: a file, a directory, or just that name.

    Raises `PeerError`.
    """
    if peer == "vllm":
        return safetensors(name)
    return model_file(name) if peer in READ_GGUF else name


def model_file(name: str) -> str:
    """A path as it is; a catalogue id as the path of its file, fetched when missing.

    Raises `PeerError`.
    """
    if Path(name).exists():
        return name
    try:
        models = importlib.import_module("models")
        return str(models.resolve(name, progress=True).path)
    except Exception as error:
        raise PeerError(f"no model file for {name!r}: {error}") from error


def safetensors(name: str) -> str:
    """A directory or hub id as it is; a GGUF file as what `build_vllm_peer` made of it.

    Raises `PeerError` when it has made nothing of it yet.
    """
    if Path(name).is_dir():
        return name
    try:
        file = Path(model_file(name))
    except PeerError:
        return name
    made = VllmCache.usual().model(file)
    if not made.is_dir():
        raise PeerError(f"{file.name} is not in vLLM's format yet; {VLLM_REMEDY}")
    return str(made)
