"""`headrace serve`: settings, model, engine and application, put together and run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from server.cli import COMMANDS, installed
from server.cli.errors import CommandError
from server.cli.options import CompactHelp, add_settings
from server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:  # `headrace serve --help` should not wait for these
    from inference.engine import Engine
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
    return serve(settings)


def serve(settings: Settings) -> int:
    """Bind, find the model, and serve it. What is quick to fail comes first."""
    from server.app import create_app
    from server.cli.banner import banner
    from server.cli.hosting import Hosting
    from server.cli.listen import bind
    from server.logs import configure_logging

    configure_logging(
        format=settings.log_format, level=settings.log_level, log_prompts=settings.log_prompts
    )
    keys = _keys(settings)
    listener = bind(settings)
    with listener.socket:
        engine, model, profile = _engine(settings)

        def announce() -> None:
            text = banner(
                engine.info,
                version=installed("headrace") or "",
                url=listener.url,
                loopback=listener.loopback,
                api_key_file=settings.api_key_file,
                profile=profile,
            )
            print(text, flush=True)

        app = create_app(settings, engine, model=model, keys=keys)
        Hosting(
            app=app,
            engine=engine,
            settings=settings,
            listener=listener,
            on_ready=announce,
            on_stop=app.state.edge.lifecycle.drain,
        ).run()
    return 0


def _keys(settings: Settings) -> ApiKeys | None:
    from server.auth import ApiKeys
    from server.keyfile import KeyFileError

    if settings.api_key_file is None:
        return None
    try:
        return ApiKeys.load(settings.api_key_file)
    except KeyFileError as error:
        raise CommandError(f"--api-key-file {error}") from None


def _engine(settings: Settings) -> tuple[Engine, ServedModel, str | None]:
    """The engine, not yet started, the model under the name that clients use, its profile."""
    if settings.engine == "scripted":
        if settings.profile != "original":
            raise CommandError("--profile: the scripted engine has no weights")
        return *_scripted(settings), None
    if settings.script is not None:
        raise CommandError("--script: only --engine scripted plays a script")
    return _llamacpp(settings)


def _llamacpp(settings: Settings) -> tuple[Engine, ServedModel, str | None]:
    from inference.llamacpp.client import LlamaCppEngine
    from inference.llamacpp.messages import WorkerConfig
    from models import ModelError, resolve
    from server.cli.tuned import weights_for
    from server.served import ServedModel

    try:
        found = resolve(settings.model, offline=settings.offline)
    except ModelError as error:
        raise CommandError(f"--model {settings.model}: {error}") from None
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
        target_itl_seconds=settings.target_itl_ms / 1000,
        # The edge refuses first: the engine only has to hold what the edge admits.
        max_waiting=settings.max_requests * settings.max_n,
    )
    created = int(found.path.stat().st_mtime)
    model = ServedModel(id=found.id, created=created, sampling=dict(found.sampling))
    return LlamaCppEngine(config), model, weights.words


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
