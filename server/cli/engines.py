"""The models that `headrace serve` serves, and the engines that load them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.errors import CommandError
from server.settings import Settings

if TYPE_CHECKING:  # `headrace serve --help` should not wait for these
    from inference.engine import Engine
    from inference.leases import Loadable
    from inference.llamacpp.messages import WorkerConfig
    from models import LocalModel
    from server.cli.ondemand import Room
    from server.models import Models, ServedModel

GATHER_MS_MAX = 25.0
"""More would save few wake-ups, and an end of the engine process would lose what it gathers."""


def models_of(settings: Settings) -> tuple[Models, str | None]:
    """All models, none loaded yet, and what to say of the default one's weights.

    Raises `CommandError`.
    """
    if settings.engine == "scripted":
        if settings.profile != "original":
            raise CommandError("--profile: the scripted engine has no weights")
        if settings.draft_model not in ("auto", "off"):
            raise CommandError("draft_model: the scripted engine has no weights")
        return _scripted(settings), None
    if settings.script is not None:
        raise CommandError("--script: only --engine scripted plays a script")
    return _llamacpp(settings)


def _llamacpp(settings: Settings) -> tuple[Models, str | None]:
    from models import ModelError, resolve
    from server.cli.memory import refuse_what_cannot_fit
    from server.cli.ondemand import others_of, room_of
    from server.models import ServedModel

    if settings.kv_disk and not settings.kv_host_memory:
        raise CommandError("--kv-disk: takes what --kv-host-memory displaces, which is 0")
    try:
        found = resolve(settings.model, offline=settings.offline)
    except ModelError as error:
        raise CommandError(f"--model {settings.model}: {error}") from None
    config, words = config_for(settings, found)
    created = int(found.path.stat().st_mtime)
    default = ServedModel(
        id=found.id,
        created=created,
        sampling=dict(found.sampling),
        shortest_vector=found.shortest_vector,
    )
    refuse_what_cannot_fit(settings, config)
    engine = engine_of(settings, config)
    if not settings.models:
        return _fleet(settings, default, engine, [], room=None), words
    room = room_of(settings)
    others = list(others_of(settings, room, default=found.id))
    left = max(0, room.bytes - _weight(config, room))
    return _fleet(settings, default, engine, others, room=left), words


def config_for(settings: Settings, found: LocalModel) -> tuple[WorkerConfig, str | None]:
    """How the default model is loaded, and what to say of its weights. Raises `CommandError`."""
    from server.cli.tuned import weights_for

    draft = _draft(settings, found)
    weights = weights_for(settings, found)
    config = worker_config(
        settings,
        found,
        path=weights.path,
        threads=weights.threads,
        batch_tokens=weights.batch_tokens,
        lanes=settings.lanes,
        host_mib=settings.kv_host_memory,
        draft=draft,
        chat_template=_chat_template(settings),
    )
    return config, weights.words


def _weight(config: WorkerConfig, room: Room) -> int:
    """What the default model takes. Raises `CommandError`."""
    from inference.errors import ModelLoadError

    try:
        return room.weigh(config)
    except ModelLoadError as error:
        raise CommandError(f"--model: {error}") from None


def _fleet(
    settings: Settings,
    default: ServedModel,
    engine: Engine,
    others: list[tuple[ServedModel, Loadable]],
    *,
    room: int | None,
) -> Models:
    """`room` is memory for the others, in bytes; None does not limit them."""
    from inference.fleet import Fleet
    from inference.slots import PoolLimits
    from server.models import Models

    limits = PoolLimits(
        models=settings.max_loaded_models - 1,
        bytes=room,
        idle_seconds=settings.unload_seconds,
    )
    fleet = Fleet(default.id, engine, [loadable for _, loadable in others], limits=limits)
    try:
        return Models(fleet, default, [model for model, _ in others])
    except ValueError as error:
        raise CommandError(f"--models: {error}") from None


def engine_of(settings: Settings, config: WorkerConfig, *, starts: int | None = None) -> Engine:
    """An engine that has not been started; `starts` bounds those in vain."""
    from inference.llamacpp.client import LlamaCppEngine
    from inference.supervisor import RestartPolicy

    policy = RestartPolicy(step_seconds=settings.step_seconds)
    if starts is not None:
        policy = RestartPolicy(step_seconds=settings.step_seconds, failed_starts_max=starts)
    return LlamaCppEngine(config, policy=policy, replay_seconds=settings.replay_seconds)


def worker_config(
    settings: Settings,
    found: LocalModel,
    *,
    path: Path,
    threads: int,
    batch_tokens: int,
    lanes: int,
    host_mib: int,
    draft: LocalModel | None,
    chat_template: str = "",
) -> WorkerConfig:
    """How an engine loads `found` from `path`: what is not given is the settings'."""
    from inference.llamacpp.messages import AdapterFile, WorkerConfig
    from models.places import default_places

    return WorkerConfig(
        model_id=found.id,
        model_path=str(path),
        adapters=tuple(
            AdapterFile(path=str(adapter.path), scale=adapter.scale) for adapter in found.adapters
        ),
        lanes=lanes,
        context=settings.context,
        cache_tokens=settings.cache_tokens,
        threads=threads,
        batch_tokens=batch_tokens,
        gpu_layers=settings.gpu_layers,
        layout=settings.layout,
        cache_type_k=settings.cache_type_k,
        cache_type_v=settings.cache_type_v,
        flash_attention=settings.flash_attention,
        rope_scaling=settings.rope_scaling,
        rope_scale=settings.rope_scale,
        rope_freq_base=settings.rope_freq_base,
        yarn_original_context=settings.yarn_original_context,
        host_memory_bytes=host_mib << 20,
        disk_bytes=settings.kv_disk << 20,
        disk_dir=str(settings.kv_disk_dir or default_places().lanes),
        disk_fetch_seconds=settings.kv_disk_seconds,
        target_itl_seconds=settings.target_itl_ms / 1000,
        # The edge would gather them for as long, but wake for each.
        gather_seconds=min(settings.coalesce_ms, GATHER_MS_MAX) / 1000,
        speculation=settings.speculation,
        draft_id="" if draft is None else draft.id,
        draft_path="" if draft is None else str(draft.path),
        device_sampling=settings.device_sampling,
        chat_template=chat_template,
        # The edge refuses first: the engine only has to hold what the edge admits.
        max_waiting=settings.max_requests * settings.max_n,
    )


def _chat_template(settings: Settings) -> str:
    """The source of the template that is set, none without. Raises `CommandError`."""
    if settings.chat_template is None:
        return ""
    try:
        source = settings.chat_template.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"chat_template {settings.chat_template}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"chat_template {settings.chat_template}: not UTF-8") from None
    if not source.strip():
        raise CommandError(f"chat_template {settings.chat_template}: empty")
    return source


def _draft(settings: Settings, found: LocalModel) -> LocalModel | None:
    """The model that drafts for the one that was `found`: its entry's, or what is set."""
    from models import ModelError, resolve

    name = found.draft if settings.draft_model == "auto" else settings.draft_model
    if name is None or name == "off" or settings.speculation == "off":
        return None
    try:
        return resolve(name, offline=settings.offline)
    except ModelError as error:
        raise CommandError(f"draft_model {name}: {error}") from None


def _scripted(settings: Settings) -> Models:
    """Engines that need no model. They take the names of any, to stand in for them."""
    from inference.leases import Loadable
    from inference.scripted import Script, ScriptedEngine, ScriptError, load_script
    from server.cli.ondemand import ALL
    from server.models import ServedModel

    try:
        script = Script() if settings.script is None else load_script(settings.script)
    except ScriptError as error:
        raise CommandError(f"--script {error}") from None

    def loadable(id: str) -> Loadable:
        return Loadable(id=id, weigh=lambda: 0, open=lambda: ScriptedEngine(script, model_id=id))

    name = "scripted" if settings.model == "default" else settings.model
    others = [
        (ServedModel(id=other, aliases=()), loadable(other))
        for other in settings.models
        if other not in (name, ALL)
    ]
    engine = ScriptedEngine(script, model_id=name)
    return _fleet(settings, ServedModel(id=name), engine, others, room=None)
