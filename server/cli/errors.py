"""What a command says when it cannot do what was asked."""

from __future__ import annotations


class CommandError(Exception):
    """One line for the user and the exit code: 2 when they can mend it, 1 otherwise."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code
