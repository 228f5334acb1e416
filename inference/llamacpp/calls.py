"""Questions to the engine process and their answers, matched by number."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from inference.errors import EngineError, EngineUnavailable, InvalidRequest
from inference.llamacpp.messages import Message, Refused, Reply, to_error

Value: TypeAlias = str | tuple[int, ...] | int
Answer = TypeVar("Answer", str, tuple[int, ...], int)


class Calls:
    """The questions of one engine that have no answer yet; one event loop owns `_open`."""

    def __init__(self, send: Callable[[Message], None], *, answer_seconds: float) -> None:
        self._send = send
        self._answer_seconds = answer_seconds
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[Value]] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, question: Callable[[int], Message], kind: type[Answer]) -> Answer:
        """Send the question made with a fresh number; its answer, which must be a `kind`.

        Raises what the process refuses it with, `EngineUnavailable` when no answer came
        in time or the process ended, `InvalidRequest` for what has no encoding.
        """
        number = next(self._numbers)
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(question(number))
            async with asyncio.timeout(self._answer_seconds):
                value = await answer
        except ValueError as error:
            raise InvalidRequest("The request holds text that is not Unicode.") from error
        except OverflowError as error:
            raise InvalidRequest("The request holds a number that is too large.") from error
        except TimeoutError:
            raise EngineUnavailable("The engine did not answer in time.") from None
        finally:
            del self._open[number]
        if not isinstance(value, kind):
            raise EngineError("The engine gave an answer of the wrong kind.")
        return value

    def answer(self, message: Reply | Refused) -> None:
        """Take an answer. Those that nobody waits for any more are dropped."""
        waiting = self._open.get(message.call)
        if waiting is None or waiting.done():
            return
        if isinstance(message, Reply):
            waiting.set_result(message.value)
        else:
            waiting.set_exception(to_error(message.failure))

    def end_all(self, error: Callable[[], EngineError]) -> None:
        """No answer will come: the process is gone."""
        for waiting in self._open.values():
            if not waiting.done():
                waiting.set_exception(error())
