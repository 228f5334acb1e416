"""`headrace chat`: talk to a running server from the terminal.

At the prompt Ctrl-C and Ctrl-D end the session. While an answer streams Ctrl-C stops
the answer only: closing the connection frees the lane, and what was already shown
stays part of the conversation. When standard input is no terminal, all of it is one
message and the answer is all that is printed: no reasoning, no place in the queue.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import unicodedata
from pathlib import Path

from inference.events import Queued
from server.cli import COMMANDS
from server.cli.chatclient import ChatClient, ChatFailed, Message, Reasoning, read_key
from server.cli.errors import CommandError

DEFAULT_URL = "http://127.0.0.1:8080"
PROMPT = "> "
HELP = """\
/help     show this
/history  show the conversation so far
/reset    forget the conversation, keep the system message
/exit     end; so do Ctrl-D and, at the prompt, Ctrl-C
Ctrl-C while an answer streams stops the answer."""

OBEYED = frozenset({"Cc", "Cf", "Cs"})
"""Unicode's controls, invisible format characters (they may turn text around), surrogates."""

KEPT = "\n\t\u200c\u200d"
"""Of those: line end, tab, and the two joiners that scripts and emoji are written with."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chat` to the command line."""
    parser = subparsers.add_parser(
        "chat",
        help=COMMANDS["chat"],
        description="Talk to a running server. With text on standard input: one answer, then end.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--model", metavar="ID", help="default: the one that is served")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the model's")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first key is used")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Hold the session. Raises `CommandError` when it cannot begin."""
    key = None if arguments.api_key_file is None else read_key(arguments.api_key_file)
    with ChatClient(arguments.url, key=key) as client:
        model = arguments.model or client.first_model()
        session = Session(client, model, arguments.system, arguments.temperature)
        if not sys.stdin.isatty():
            return _answer_once(session, sys.stdin.read())
        print(f"{client.url}, {model}. /help shows the commands.")
        return _converse(session)


class Status:
    """A line that is shown while there is nothing else, on a terminal only.

    Mutable: how many characters of it are on the screen.
    """

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str) -> None:
        """Show `text` in place of what was shown before."""
        if sys.stdout.isatty():
            print("\r" + text.ljust(self._shown), end="", flush=True)
            self._shown = len(text)

    def clear(self) -> None:
        """Take it from the screen."""
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="", flush=True)
            self._shown = 0


class Thoughts:
    """The model's reasoning between two lines that say so, on a terminal only.

    Mutable: whether some is on the screen and has not ended, `open`.
    """

    def __init__(self) -> None:
        self.open = False

    def show(self, text: str) -> None:
        """Show some more of it."""
        if sys.stdout.isatty():
            print("" if self.open else "[thinking]\n", _printable(text), sep="", end="", flush=True)
            self.open = True

    def end(self, mark: str = "") -> None:
        """End its line, if there is one, and say what follows."""
        if self.open:
            print("\n" + mark, end="", flush=True)
            self.open = False


class Session:
    """A dialogue; `messages` holds it and changes only in `ask` and `reset`."""

    def __init__(
        self, client: ChatClient, model: str, system: str | None, temperature: float | None
    ) -> None:
        self._client = client
        self._model = model
        self._system = [] if system is None else [Message("system", system)]
        self._temperature = temperature
        self._status = Status()
        self._thoughts = Thoughts()
        self.messages = list(self._system)

    def reset(self) -> None:
        """Back to the beginning."""
        self.messages = list(self._system)

    def ask(self, text: str) -> None:
        """Print the answer to `text` as it comes, and remember both.

        An answer that broke off is remembered as far as it was shown; without any the
        question is forgotten too, so that it can be asked again. Reasoning is shown and
        not remembered. Raises `ChatFailed` and `KeyboardInterrupt`.
        """
        question = [*self.messages, Message("user", text)]
        shown: list[str] = []
        pieces = self._client.answer(question, model=self._model, temperature=self._temperature)
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    if isinstance(piece, Queued):
                        # In the middle of an answer it would cover it.
                        if not shown and not self._thoughts.open:
                            self._status.show(_waiting(piece))
                        continue
                    self._status.clear()
                    if isinstance(piece, Reasoning):
                        self._thoughts.show(piece.text)
                        continue
                    self._thoughts.end("[answer]\n")
                    shown.append(piece)
                    print(_printable(piece), end="", flush=True)
        finally:
            self._status.clear()
            self._thoughts.end()
            if shown:
                print(flush=True)
                self.messages = [*question, Message("assistant", "".join(shown))]

    @property
    def note(self) -> str:
        """What to say after an answer that did not end by itself."""
        return "[the context is full: /reset]" if self._client.finish_reason == "length" else ""


def _answer_once(session: Session, text: str) -> int:
    if not text.strip():
        raise CommandError("standard input is empty: there is nothing to answer")
    session.ask(text.strip())
    return 0


def _converse(session: Session) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` editing and a history of lines
    while True:
        try:
            text = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if text == "/exit":
            return 0
        if text.startswith("/"):
            _command(session, text)
        elif text:
            _turn(session, text)


def _turn(session: Session, text: str) -> None:
    """One question; neither a failure nor Ctrl-C ends the session."""
    try:
        session.ask(text)
    except KeyboardInterrupt:
        print("[stopped]")
    except ChatFailed as error:
        print(f"[{_printable(str(error))}]")
    else:
        if session.note:
            print(session.note)


def _command(session: Session, text: str) -> None:
    match text:
        case "/help":
            print(HELP)
        case "/reset":
            session.reset()
            print("[forgotten]")
        case "/history":
            for message in session.messages:
                print(f"{message.role}: {_printable(message.content)}")
        case _:
            print(f"[there is no {text.split()[0]}; /help shows what there is]")


def _waiting(place: Queued) -> str:
    """A place in the queue in words: `waiting, 3rd in line, about 2 s`."""
    last = place.position % 10 if place.position % 100 not in (11, 12, 13) else 0
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    seconds = math.ceil(place.expected_seconds)
    about = f", about {seconds} s" if seconds else ""
    return f"waiting, {place.position}{suffix} in line{about}"


def _printable(text: str) -> str:
    """Drop what a terminal obeys: a model must not move the cursor or set the title."""
    return "".join(
        char for char in text if char in KEPT or unicodedata.category(char) not in OBEYED
    )
