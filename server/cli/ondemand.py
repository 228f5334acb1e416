"""The models beside the default one: which they are, what they take, how they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import structlog

from inference.engine import Engine
from inference.errors import ModelLoadError
from inference.leases import Loadable
from inference.llamacpp.fitting.fit import estimate
from inference.llamacpp.messages import WorkerConfig
from models import LocalModel, ModelError, errors, load_catalog, named, resolve
from models.places import default_places
from models.store import Store
from server.cli.engines import engine_of, worker_config
from server.cli.errors import CommandError
from server.cli.memory import memory_of
from server.models import ServedModel
from server.settings import Settings

ALL = "catalog"
"""Stands in the setting `models` for all entries whose file is here."""

LANES = 4
HOST_MIB = 128
"""They have at most so many lanes, and so much memory for finished prefixes."""

STARTS = 2
"""So often in a row may their process end before it is ready."""

RESERVED_BYTES = 1 << 30
"""Of the machine's memory no model has this, or a tenth where that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """`bytes` of memory for all models: the GPUs' where there is a `gpu`, else the machine's."""

    gpu: bool
    bytes: int

    def weigh(self, config: WorkerConfig) -> int:
        """What an engine takes of it. Raises `ModelLoadError`."""
        footprint = estimate(config, gpu=self.gpu)
        return footprint.gpu_bytes if self.gpu else footprint.cpu_bytes


def room_of(settings: Settings) -> Room:
    """Whose memory is counted here, and how much of it models may have."""
    memory = memory_of(settings)
    there = memory.cpu if memory.gpu is None else memory.gpu
    set_bytes = settings.memory_budget << 20
    left = max(0, there - max(RESERVED_BYTES, there // 10))
    return Room(gpu=memory.gpu is not None, bytes=set_bytes or left)


def others_of(
    settings: Settings, room: Room, *, default: str
) -> Iterator[tuple[ServedModel, Loadable]]:
    """The models that are loaded on demand. Raises `CommandError` for names nobody knows.

    What is missing is fetched now. A file that cannot be had, or is broken, keeps nobody
    from being served: its model fails when it is asked for.
    """
    for name in _names(settings):
        try:
            entry = named(name)
        except ModelError as error:
            raise CommandError(f"--models {name}: {error}") from None
        if entry.id == default:
            continue
        try:
            resolve(name, offline=settings.offline)
        except ModelError as error:
            structlog.get_logger("headrace.models").error(
                "model_unusable", model=entry.id, reason=str(error)
            )
        model = ServedModel(
            id=entry.id,
            aliases=(),
            sampling=dict(entry.sampling),
            shortest_vector=entry.shortest_vector,
        )
        yield model, _loadable(settings, room, name, entry.id)


def _names(settings: Settings) -> tuple[str, ...]:
    if ALL not in settings.models:
        return settings.models
    store = Store(default_places().store)
    here = [entry.id for entry in load_catalog().entries if store.has(entry)]
    return tuple(dict.fromkeys([*(name for name in settings.models if name != ALL), *here]))


def _loadable(settings: Settings, room: Room, name: str, id: str) -> Loadable:
    def config() -> WorkerConfig:
        try:
            found = resolve(name, offline=True, progress=False)
        except ModelError as error:
            raise ModelLoadError(_sentence(error)) from error
        return _config(settings, found)

    def open() -> Engine:
        return engine_of(settings, config(), starts=STARTS)

    return Loadable(id=id, weigh=lambda: room.weigh(config()), open=open)


def _config(settings: Settings, found: LocalModel) -> WorkerConfig:
    config = worker_config(
        settings,
        found,
        path=found.path,
        threads=settings.threads,
        batch_tokens=settings.batch_tokens,
        lanes=min(settings.lanes, LANES),
        host_mib=min(settings.kv_host_memory, HOST_MIB),
        draft=None,
    )
    # What was set with one model in mind is not for others: its rope, its cache's size, a
    # context beyond what they know.
    trained = found.context_length or settings.context
    plain = WorkerConfig(model_id=found.id, model_path=config.model_path)
    return msgspec.structs.replace(
        config,
        context=min(settings.context, trained),
        cache_tokens=0,
        rope_scaling=plain.rope_scaling,
        rope_scale=plain.rope_scale,
        rope_freq_base=plain.rope_freq_base,
        yarn_original_context=plain.yarn_original_context,
    )


def _sentence(error: ModelError) -> str:
    """What a client may know of a file that cannot be used: no path."""
    match error:
        case errors.NotPulled():
            return "The model's file is not on this machine."
        case errors.HashMismatch():
            return "The model's file is not what the catalogue says."
        case errors.NotGguf():
            return "The model's file is no GGUF model, or is cut short."
        case _:
            return "The model's file cannot be used."
