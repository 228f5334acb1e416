"""The settings as command line options, shown by groups on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from server.settings import FILE_VARIABLE, GROUPS, Settings, flag_of, option_of

DEFAULTS = {field.name: field.default for field in fields(Settings)}


class CompactHelp(argparse.HelpFormatter):
    """One line an option and no empty lines, so that all of it is seen at once."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 34, **options})

    def format_help(self) -> str:
        """The usual text, without what separates the groups."""
        lines = super().format_help().splitlines()
        return "\n".join(line for line in lines if line.strip()) + "\n"

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Leave the options out of the usage line: they are listed right below."""
        super().add_usage(usage or "%(prog)s [options]", actions, groups, prefix)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give `parser` an option for each setting with a flag, and `--config`. Values stay text.

    `load_settings` converts and checks them, so that all sources are treated alike.
    A switch can be taken back (`--no-offline`) where the file has set it.
    """
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for name, default in DEFAULTS.items():
        option = option_of(name)
        if not option.flag:
            continue
        group = groups[option.group]
        if option.metavar:
            shown = "" if default in (None, ()) else f" ({_number(default)})"
            group.add_argument(flag_of(name), metavar=option.metavar, help=option.help + shown)
        else:
            group.add_argument(
                flag_of(name), action="store_const", const=True, default=None, help=option.help
            )
            group.add_argument(
                "--no-" + flag_of(name)[2:],
                dest=name,
                action="store_const",
                const=False,
                default=None,
                help=argparse.SUPPRESS,
            )
    groups["operation"].add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings in TOML (${FILE_VARIABLE})"
    )
    groups["operation"].add_argument("-h", "--help", action="help", help="show this and exit")


def _number(value: object) -> str:
    """200.0 as 200, anything else as it is."""
    return f"{value:g}" if isinstance(value, float) else str(value)
