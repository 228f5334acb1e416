"""The `headrace` command: `serve`, `models`, `keys`, `tune`, `doctor`, `chat`, `version`.

Each subcommand is a module with `add_parser(subparsers)`, which sets `run` to a
function from the parsed arguments to an exit code. Only the module of the command that
was typed is imported, so `headrace --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from server.cli.errors import CommandError

COMMANDS = {
    "serve": "serve a model over HTTP",
    "models": "list, fetch, verify and add models, say what fits",
    "keys": "create, list and revoke API keys",
    "tune": "measure faster weights formats and settings for this machine",
    "doctor": "check processor, GPU, llama.cpp and directories",
    "chat": "talk to a running server",
    "version": "show the versions of Headrace and its engine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 1 a failure at work, 2 a wrong argument or setting, 130 Ctrl-C.
    Errors that a user can mend are one line on standard error, never a traceback.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parsed = _parser(arguments).parse_args(arguments)
        code: int = parsed.run(parsed)
    except CommandError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`headrace models list | head`). Python
        # would complain when it flushes standard output at exit: give it another.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # argparse: --help, or a wrong argument
        return stop.code if isinstance(stop.code, int) else 2
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that shows its own usage when it does not know an argument.

    argparse lets the outermost parser complain, whose usage says nothing about the
    options of the command that was typed.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The whole parser; commands other than the typed one are names and help only."""
    parser = _Parser(
        prog="headrace",
        description="Serve quantized language models from your own machine.",
        epilog="`headrace COMMAND --help` explains one command.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    typed = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == "version":
            subparsers.add_parser(name, help=summary).set_defaults(run=_version)
        elif name == typed:
            importlib.import_module(f"server.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _version(_arguments: argparse.Namespace) -> int:
    for name in ("headrace", "llama-cpp-python", "uvicorn", "starlette"):
        print(f"{name:<18}{installed(name) or 'not installed'}")
    print(f"{'python':<18}{platform.python_version()}")
    return 0


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
