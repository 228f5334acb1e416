"""The engine process: `python -m inference.llamacpp.worker --fd N`.

Two threads. The main one reads the socket, renders templates (its time limit is a
signal, which only the main thread can take) and tokenizes. The step thread decodes.
They share the inbox of the step loop and nothing else that changes. A third begins with
the first constraint, which it compiles.

When the socket ends, so does the process: an engine never outlives its server.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import assert_never

from inference.errors import EngineError, InvalidRequest, ModelLoadError
from inference.llamacpp.assembly import Assembly, assemble
from inference.llamacpp.connection import Connection
from inference.llamacpp.desk import Desk
from inference.llamacpp.embeddings.assembly import EmbeddingAssembly
from inference.llamacpp.messages import (
    Abort,
    ApplyTemplate,
    CountTokens,
    Detokenize,
    Embed,
    Failure,
    LoadFailed,
    Loading,
    Park,
    Ping,
    Pong,
    Ready,
    Refused,
    Reply,
    Report,
    Resume,
    SequenceEvent,
    Submit,
    Tokenize,
    ToWorker,
    WorkerConfig,
    to_failure,
)
from inference.llamacpp.steploop import Close

PROGRESS_STEP = 0.01


def main() -> None:
    """Serve one socket until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    connection = Connection(socket.socket(fileno=parser.parse_args().fd))
    # On a failed assertion ggml would attach a debugger and print a page before it ends.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    # A terminal's Ctrl-C goes to the whole group; only the server decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = connection.receive()
    if not isinstance(config, WorkerConfig):
        return
    try:
        worker = Worker(config, connection)
    except ModelLoadError as error:
        connection.send(LoadFailed(reason=str(error)))
        return
    worker.serve()


class Worker:
    """Passes messages between the server and the step loop. Immutable, once it is made."""

    def __init__(self, config: WorkerConfig, connection: Connection) -> None:
        """Load everything; tells the server how far it is. Raises `ModelLoadError`."""
        self._connection = connection
        # OpenMP keeps a team of threads for every thread that computes, and lets them
        # sleep instead of spin as soon as all teams together exceed the processors: one
        # computation on the main thread, and each decode would take three times as long.
        self._steps = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="steps", initializer=_block_alarms
        )
        self._assembly = assemble(
            config, steps=self._steps, send=connection.send, progress=self._progress()
        )
        self._model, self._intake = self._assembly.model, self._assembly.intake
        self._loop = self._assembly.loop
        self._desk = self._open_desk()

    def serve(self) -> None:
        """Announce readiness and handle messages until the server has gone."""
        steps = self._steps.submit(self._run_steps)
        self._connection.send(Ready(info=self._assembly.info))
        try:
            while (message := self._connection.receive()) is not None:
                self._handle(message)
        finally:  # also when a message cannot be read: no loop may outlive this thread
            self._loop.inbox.put(Close())
        steps.result()
        self._assembly.close()

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit() | Embed():
                try:
                    self._take(message)
                except Exception as error:
                    self._refuse(message.request.id, error)
            case Abort() | Park() | Resume() if self._desk is not None:
                self._desk.obey(message)
            case Abort() | Park() | Resume():
                self._loop.inbox.put(message)
            case Tokenize() | Detokenize() | ApplyTemplate() | CountTokens():
                try:
                    self._connection.send(Reply(call=message.call, value=self._answer(message)))
                except Exception as error:
                    self._connection.send(Refused(call=message.call, failure=_failure(error)))
            case Ping():
                self._connection.send(Pong())
            case WorkerConfig():
                raise ValueError("a second configuration")
            case _:
                assert_never(message)

    def _take(self, message: Submit | Embed) -> None:
        """Hand a request to the loop. Raises `EngineError` for one that it cannot be."""
        match self._desk or self._assembly, message:
            case Desk() as desk, Submit():
                desk.submit(message)
            case EmbeddingAssembly(intake=reader, loop=worker), Embed(request=asked):
                worker.inbox.put(reader.job(asked))
            case _, Embed():
                raise InvalidRequest("This model does not make embeddings.", param="model")
            case _:
                raise InvalidRequest("This model generates no text.", param="model")

    def _open_desk(self) -> Desk | None:
        """Where requests for text wait for their constraint; None without such requests."""
        match self._assembly:
            case Assembly(intake=intake, compiler=compiler, loop=loop):
                return Desk(intake, compiler, put=loop.inbox.put, refuse=self._refuse)
            case EmbeddingAssembly():
                return None

    def _refuse(self, id: str, error: Exception) -> None:
        """Tell the server that a request cannot be run. Any thread may."""
        event = SequenceEvent(id=id, event=_failure(error))
        self._connection.send(Report(events=(event,), stats=self._loop.stats))

    def _answer(
        self, call: Tokenize | Detokenize | ApplyTemplate | CountTokens
    ) -> str | tuple[int, ...] | int:
        match call:
            case Tokenize(text=text, add_special=add_special, parse_special=parse_special):
                return tuple(
                    self._intake.tokenize(
                        text, add_special=add_special, parse_special=parse_special
                    )
                )
            case Detokenize(tokens=tokens):
                return self._model.detokenize(tokens)
            case ApplyTemplate(prompt=prompt):
                return self._intake.render(prompt)
            case CountTokens(prompt=prompt):
                return len(self._intake.tokens(prompt))

    def _run_steps(self) -> None:
        try:
            self._loop.run()
        except BaseException:
            # Without its step loop the process is of no use; the supervisor starts another.
            traceback.print_exc()
            os._exit(1)

    def _progress(self) -> Callable[[float], bool]:
        """Report loading progress, at most a hundred times; False once nobody listens."""
        told = 0.0

        def tell(done: float) -> bool:
            nonlocal told
            if done - told < PROGRESS_STEP and done < 1.0:
                return True
            told = done
            return self._connection.send(Loading(progress=done))

        return tell


def _block_alarms() -> None:
    """The template's time limit is a signal for the main thread alone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})


def _failure(error: Exception) -> Failure:
    """An error for the server. One that nobody foresaw fails its own request only.

    Its message may hold prompt text, so only its place and class reach the log.
    """
    if isinstance(error, EngineError):
        return to_failure(error)
    print("".join(traceback.format_tb(error.__traceback__)), type(error).__name__, file=sys.stderr)
    return to_failure(EngineError("The engine could not read this request."))


if __name__ == "__main__":
    main()
