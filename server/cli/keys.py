"""`headrace keys`: create, list, limit and revoke API keys.

A key is printed once, on standard output and nothing else with it; the store keeps its
digest. A running server notices a change within a second. Exit codes: 0 all is well; 1
it is not, and one line says why; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from models.places import default_places
from server.access.client import ALL_SCOPES, KeyLimits, Scope
from server.access.store import KeyRecord, KeyStore, default_store, state_of
from server.cli.errors import CommandError
from server.environment import SettingsError, load_settings
from server.keyfile import KeyFileError
from server.logs import escape

DEFAULT_SCOPES = (Scope.GENERATE, Scope.READ)
LIMITS = tuple(field.name for field in msgspec.structs.fields(KeyLimits))
SECONDS_OF = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
EXPIRES_MAX_DAYS = 36_500


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` and its commands to the parser of `headrace`."""
    parser = subparsers.add_parser("keys", help="create, list and revoke API keys")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("create", help="make a key, and show it this once")
    command.add_argument("name", metavar="NAME", help="whose it is, for lists and logs")
    command.add_argument(
        "--scope",
        action="append",
        choices=sorted(scope.value for scope in ALL_SCOPES),
        help="what it opens, may be repeated (generate and read)",
    )
    command.add_argument("--expires", metavar="AGE", help="such as 90d, 12h, 2w (never)")
    _add_limit(command)
    _add_store(command, _create)

    command = commands.add_parser("list", help="all keys, without the keys themselves")
    _add_store(command, _list)

    command = commands.add_parser("limit", help="give a key other limits")
    command.add_argument("id", metavar="ID")
    _add_limit(command)
    _add_store(command, _limit)

    command = commands.add_parser("revoke", help="take a key back for good")
    command.add_argument("id", metavar="ID")
    _add_store(command, _revoke)


def _add_limit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help=f"may be repeated: {', '.join(LIMITS)}",
    )


def _add_store(command: argparse.ArgumentParser, run: object) -> None:
    command.add_argument("--store", type=Path, metavar="FILE", help="key store (setting key_store)")
    command.set_defaults(run=run)


def store_path(given: Path | None) -> Path:
    """Where the store is: as given, as set, or beside the user's model catalogue."""
    try:
        configured = given or load_settings(flags={}).key_store
    except SettingsError as error:
        raise CommandError(str(error)) from None
    return configured or default_store(default_places().user_catalog.parent)


def _create(args: argparse.Namespace) -> int:
    now = datetime.now(UTC).replace(microsecond=0)
    path = store_path(args.store)
    try:
        record, key = KeyStore(path).create(
            args.name,
            scopes=[Scope(scope) for scope in args.scope or DEFAULT_SCOPES],
            limits=limits_of(args.limit),
            now=now,
            expires=None if args.expires is None else now + age_of(args.expires),
        )
    except msgspec.ValidationError:
        raise CommandError("NAME: 1 to 64 printable characters are needed") from None
    except KeyFileError as error:
        raise CommandError(str(error), exit_code=1) from None
    print(key, flush=True)
    until = "for good" if record.expires is None else f"until {_day(record.expires)}"
    _say(f"key {record.id} for {record.name} is in {path}, {until}")
    _say("this is the only time that it is shown")
    return 0


def _list(args: argparse.Namespace) -> int:
    path = store_path(args.store)
    try:
        records = KeyStore(path).read() if path.exists() else ()
    except KeyFileError as error:
        raise CommandError(str(error), exit_code=1) from None
    header = ("ID", "NAME", "STATE", "CREATED", "EXPIRES", "SCOPES", "LIMITS")
    _print_table([header, *(_row(record) for record in records)])
    return 0


def _limit(args: argparse.Namespace) -> int:
    limits = limits_of(args.limit)
    try:
        record = KeyStore(store_path(args.store)).limit(args.id, limits)
    except KeyFileError as error:
        raise CommandError(str(error), exit_code=1) from None
    _say(f"key {record.id} for {record.name} has the limits: {_shown(record.limits)}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        record = KeyStore(store_path(args.store)).revoke(args.id, now=now)
    except KeyFileError as error:
        raise CommandError(str(error), exit_code=1) from None
    _say(f"key {record.id} for {record.name} is revoked")
    return 0


def limits_of(words: Iterable[str]) -> KeyLimits:
    """Read `NAME=N` words. Raises `CommandError` for names and numbers that do not fit."""
    given: dict[str, str] = {}
    for word in words:
        name, _, number = word.partition("=")
        name = name.replace("-", "_")
        if name not in LIMITS:
            raise CommandError(f"--limit {word}: the names are {', '.join(LIMITS)}")
        try:
            msgspec.convert({name: number}, KeyLimits, strict=False)
        except msgspec.ValidationError:
            lowest = "-100 to 100" if name == "priority" else "1 and up"
            raise CommandError(f"--limit {word}: expected a whole number, {lowest}") from None
        given[name] = number
    return msgspec.convert(given, KeyLimits, strict=False)


def age_of(text: str) -> timedelta:
    """Read an age such as `90d`. Raises `CommandError`."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([mhdw])", text)
    seconds = int(found[1]) * SECONDS_OF[found[2]] if found else 0
    if not 0 < seconds <= EXPIRES_MAX_DAYS * SECONDS_OF["d"]:
        raise CommandError(f"--expires {text}: expected such as 30m, 12h, 90d, 2w")
    return timedelta(seconds=seconds)


def _row(record: KeyRecord) -> Sequence[str]:
    return (
        record.id,
        record.name,
        state_of(record),
        _day(record.created),
        "never" if record.expires is None else _day(record.expires),
        " ".join(record.scopes),
        _shown(record.limits),
    )


def _shown(limits: KeyLimits) -> str:
    given = msgspec.to_builtins(limits)
    return " ".join(f"{name}={value}" for name, value in given.items()) or "none"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (escape(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _say(line: str) -> None:
    print(f"headrace: {escape(line)}", file=sys.stderr)
