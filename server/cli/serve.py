"""`headrace serve`: settings, model, engine and application, put together and run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli import COMMANDS, installed
from server.cli.errors import CommandError
from server.cli.options import CompactHelp, add_settings
from server.environment import SettingsError, load_settings
from server.settings import Settings

if TYPE_CHECKING:  # `headrace serve --help` should not wait for these
    from server.auth import ApiKeys

EPILOG = (
    "Each option can also be a variable (HEADRACE_MAX_N) or a line of the file (max_n = 4); "
    "a flag wins over a variable, a variable over the file."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description="Serve models over HTTP, in the shape of the OpenAI API.",
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
    """Bind, find the models, and serve them. What is quick to fail comes first.

    `again` puts the settings together once more, for a reload.
    """
    from server.app import create_app
    from server.cli.banner import banner
    from server.cli.engines import models_of
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
        models, profile = models_of(settings)

        def announce() -> None:
            text = banner(
                models.default.info,
                version=installed("headrace") or "",
                url=listener.url,
                loopback=listener.loopback,
                api_key_file=settings.api_key_file,
                key_store=store,
                profile=profile,
                others=[served.id for served in models.all[1:]],
            )
            print(text, flush=True)

        app = create_app(settings, models, keys=keys)
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
