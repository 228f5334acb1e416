"""`headrace serve`: settings, model, engine and application, put together and run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli import COMMANDS, installed
from server.cli.errors import CommandError
from server.cli.options import CompactHelp, add_settings
from server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:  # `headrace serve --help` should not wait for these
    from inference.engine import Engine
    from models import LocalModel
    from server.auth import ApiKeys
    from server.served import ServedModel

EPILOG = (
    "Each option can also be a variable (HEADRACE_MAX_N) or a line of the file (max_n = 4); "
    "a flag wins over a variable, a variable over the file."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description="Serve one model over HTTP, in the shape of the OpenAI API.",
        epilog=EPILOG,
        formatter_class=CompactHelp,
        add_help=False,
        allow_abbrev=False,
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. Raises `CommandError` for whatever keeps the server from running."""
    try:
        settings = load_settings(flags=vars(arguments), file=arguments.config)
    except SettingsError as error:
        raise CommandError(str(error)) from None
    return serve(
        settings, again=lambda: load_settings(flags=vars(arguments), file=arguments.config)
    )


def serve(settings: Settings, *, again: Callable[[], Settings]) -> int:
    """Bind, find the model, and serve it. What is quick to fail comes first.

    `again` puts the settings together once more, for a reload.
    """
    from server.app import create_app
    from server.cli.banner import banner
    from server.cli.hosting import Hosting
    from server.cli.listen import bind
    from server.logs import configure_logging
    from server.reload import Reload
    from server.systemd import Notifier

    configure_logging(
        format=settings.log_format, level=settings.log_level, log_prompts=settings.log_prompts
    )
    _check_data_dir(settings)
    store = _key_store(settings)
    keys = _keys(settings, store)
    listener = bind(settings, keyed=keys is not None)
    with listener.socket:
        engine, model, profile = _engine(settings)

        def announce() -> None:
            text = banner(
                engine.info,
                version=installed("headrace") or "",
                url=listener.url,
                loopback=listener.loopback,
                api_key_file=settings.api_key_file,
                key_store=store,
                profile=profile,
            )
            print(text, flush=True)

        app = create_app(settings, engine, model=model, keys=keys)
        Hosting(
            app=app,
            edge=app.state.edge,
            listener=listener,
            on_ready=announce,
            on_reload=Reload(
                load=again, settings=settings, admission=app.state.edge.admission, keys=keys
            ),
            notifier=Notifier.of(),
        ).run()
    return 0


def _check_data_dir(settings: Settings) -> None:
    from server.streams.instance import DataDirError
    from server.streams.opening import check_data_dir

    try:
        check_data_dir(settings)
    except DataDirError as error:
        raise CommandError(
            f"{error}; name another one with HEADRACE_DATA_DIR, or keep no streams with "
            "HEADRACE_STREAM_STORE=off"
        ) from None


def _key_store(settings: Settings) -> Path | None:
    """The key store to follow: the one that is set, or the usual one if there is one.

    Once it is there keys are needed, also when all of them have been revoked.
    """
    from models.places import default_places
    from server.access.store import default_store

    if settings.key_store is not None:
        return settings.key_store
    usual = default_store(default_places().user_catalog.parent)
    return usual if usual.exists() else None


def _keys(settings: Settings, store: Path | None) -> ApiKeys | None:
    from server.auth import ApiKeys, KeyFiles
    from server.keyfile import KeyFileError, read_keys

    plain = settings.api_key_file
    if plain is not None:
        try:
            read_keys(plain)
        except KeyFileError as error:
            raise CommandError(f"--api-key-file {error}") from None
    if plain is None and store is None:
        return None
    try:
        return ApiKeys(files=KeyFiles(plain=plain, store=store))
    except KeyFileError as error:
        raise CommandError(f"key store {error}") from None


def _engine(settings: Settings) -> tuple[Engine, ServedModel, str | None]:
    """The engine, not yet started, the model under the name that clients use, its profile."""
    if settings.engine == "scripted":
        if settings.profile != "original":
            raise CommandError("--profile: the scripted engine has no weights")
        if settings.draft_model not in ("auto", "off"):
            raise CommandError("draft_model: the scripted engine has no weights")
        return *_scripted(settings), None
    if settings.script is not None:
        raise CommandError("--script: only --engine scripted plays a script")
    return _llamacpp(settings)


def _llamacpp(settings: Settings) -> tuple[Engine, ServedModel, str | None]:
    from inference.llamacpp.client import LlamaCppEngine
    from inference.llamacpp.messages import WorkerConfig
    from inference.supervisor import RestartPolicy
    from models import ModelError, resolve
    from models.places import default_places
    from server.cli.tuned import weights_for
    from server.served import ServedModel

    if settings.kv_disk and not settings.kv_host_memory:
        raise CommandError("--kv-disk: takes what --kv-host-memory displaces, which is 0")
    try:
        found = resolve(settings.model, offline=settings.offline)
    except ModelError as error:
        raise CommandError(f"--model {settings.model}: {error}") from None
    draft = _draft(settings, found)
    weights = weights_for(settings, found)
    config = WorkerConfig(
        model_id=found.id,
        model_path=str(weights.path),
        lanes=settings.lanes,
        context=settings.context,
        cache_tokens=settings.cache_tokens,
        threads=weights.threads,
        batch_tokens=weights.batch_tokens,
        gpu_layers=settings.gpu_layers,
        layout=settings.layout,
        host_memory_bytes=settings.kv_host_memory << 20,
        disk_bytes=settings.kv_disk << 20,
        disk_dir=str(settings.kv_disk_dir or default_places().lanes),
        disk_fetch_seconds=settings.kv_disk_seconds,
        target_itl_seconds=settings.target_itl_ms / 1000,
        speculation=settings.speculation,
        draft_id="" if draft is None else draft.id,
        draft_path="" if draft is None else str(draft.path),
        device_sampling=settings.device_sampling,
        # The edge refuses first: the engine only has to hold what the edge admits.
        max_waiting=settings.max_requests * settings.max_n,
    )
    created = int(found.path.stat().st_mtime)
    model = ServedModel(id=found.id, created=created, sampling=dict(found.sampling))
    engine = LlamaCppEngine(
        config,
        policy=RestartPolicy(step_seconds=settings.step_seconds),
        replay_seconds=settings.replay_seconds,
    )
    return engine, model, weights.words


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


def _scripted(settings: Settings) -> tuple[Engine, ServedModel]:
    """The engine that needs no model. It takes the name of any, to stand in for it."""
    from inference.scripted import Script, ScriptedEngine, ScriptError, load_script
    from server.served import ServedModel

    try:
        script = Script() if settings.script is None else load_script(settings.script)
    except ScriptError as error:
        raise CommandError(f"--script {error}") from None
    name = "scripted" if settings.model == "default" else settings.model
    return ScriptedEngine(script, model_id=name), ServedModel(id=name)
