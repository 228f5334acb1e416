"""The engine process: `python -m inference.llamacpp.worker --fd N`.

Two threads. The main one reads the socket, renders templates (its time limit is a
signal, which only the main thread can take) and tokenizes. The step thread decodes.
They share the inbox of the step loop and nothing else that changes.

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
from pathlib import Path
from typing import assert_never

import llama_cpp

from inference.errors import EngineError, ModelLoadError, TemplateError
from inference.llamacpp.bindings import TEMPLATE_KEY, Model
from inference.llamacpp.connection import Connection
from inference.llamacpp.context import Context
from inference.llamacpp.devicechains import device_chains
from inference.llamacpp.diskfiles import Origin
from inference.llamacpp.diskstart import Disk, open_disk, weights_digest
from inference.llamacpp.draftmodel import DraftModel, load_draft
from inference.llamacpp.hostcache import HostCache
from inference.llamacpp.hostmemory import BLOCK_BYTES
from inference.llamacpp.intake import Intake
from inference.llamacpp.messages import (
    Abort,
    ApplyTemplate,
    CountTokens,
    Detokenize,
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
from inference.llamacpp.scheduler import Scheduler
from inference.llamacpp.sizes import CacheSizes, cache_sizes
from inference.llamacpp.speculation import STEP_MAX, Speculator
from inference.llamacpp.steploop import Close, StepLoop
from inference.llamacpp.template import ChatTemplate
from inference.llamacpp.threads import physical_cores
from inference.types import ModelInfo

PROGRESS_STEP = 0.01
# How long the end waits for files to be written; the server ends us after a little more.
DISK_CLOSE_SECONDS = 3.0


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
    """The loaded model, the step loop and the intake, wired together."""

    def __init__(self, config: WorkerConfig, connection: Connection) -> None:
        """Load everything; tells the server how far it is. Raises `ModelLoadError`."""
        self._connection = connection
        self._model = Model(
            config.model_path, gpu_layers=config.gpu_layers, progress=self._progress()
        )
        if not self._model.decodes_text():
            raise ModelLoadError("this model cannot generate text")
        threads = config.threads or physical_cores()
        sizes = cache_sizes(config, train_context=self._model.train_context)
        batch_tokens = max(config.batch_tokens, config.lanes)
        # OpenMP keeps a team of threads for every thread that computes, and lets them
        # sleep instead of spin as soon as all teams together exceed the processors: one
        # computation on the main thread, and each decode would take three times as long.
        self._steps = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="steps", initializer=_block_alarms
        )
        self._context = self._steps.submit(
            Context,
            self._model,
            unified=sizes.layout == "unified",
            cache_tokens=sizes.cells,
            lane_ids=sizes.lane_ids,
            batch_tokens=batch_tokens,
            threads=threads,
            host_bytes=config.host_memory_bytes,
            drafts=STEP_MAX,
        ).result()
        self._device = self._steps.submit(
            device_chains,
            config.device_sampling,
            self._context,
            vocab_size=self._model.vocab_size,
            lanes=config.lanes,
            on_gpu=_on_gpu(config.gpu_layers),
        ).result()
        template, problem = self._chat_template(config)
        self._intake = Intake(self._model, template, problem=problem, context=sizes.length)
        share = self._model.shares_prefixes()
        speculator = Speculator() if share and config.speculation == "auto" else None
        disk = self._open_disk(config, sizes, whole=not share)
        self._context.disk = None if disk is None else disk.tier
        lent = 0 if disk is None else disk.tier.lend_bytes
        self._draft_model = self._load_draft(config, cells=sizes.cells, threads=threads)
        scheduler = Scheduler(
            sizes.lanes(),
            HostCache(
                capacity=self._context.host.blocks * BLOCK_BYTES - lent,
                token_bytes=self._context.bytes_per_token,
                block_bytes=BLOCK_BYTES,
                whole=not share,
            ),
            running=config.lanes,
            batch_tokens=batch_tokens,
            target_seconds=config.target_itl_seconds,
            share=share,
            speculator=speculator,
            disk=None if disk is None else disk.index,
        )
        self._loop = StepLoop(
            scheduler,
            self._context,
            send=connection.send,
            lanes=config.lanes,
            max_waiting=config.max_waiting,
            device=self._device,
            draft_model=self._draft_model,
        )
        self._info = ModelInfo(
            id=config.model_id,
            description=self._model.description(),
            quantization=self._model.quantization(),
            parameters=self._model.parameters,
            size_bytes=self._model.size_bytes,
            vocab_size=self._model.vocab_size,
            context_length=sizes.length,
            train_context_length=self._model.train_context,
            has_chat_template=template is not None,
            engine="llamacpp",
            device=_device(config.gpu_layers),
            layout=sizes.layout,
            lanes=config.lanes,
            cache_tokens=sizes.cells,
            threads=threads,
        )

    def _open_disk(self, config: WorkerConfig, sizes: CacheSizes, *, whole: bool) -> Disk | None:
        """The disk tier that `config` asks for, None without one."""
        if not config.disk_bytes:
            return None
        origin = Origin(
            model=weights_digest(Path(config.model_path)),
            llama_cpp=llama_cpp.__version__,
            layout=sizes.layout,
            device=_device(config.gpu_layers),
            token_bytes=self._context.bytes_per_token,
        )
        return open_disk(
            Path(config.disk_dir),
            capacity=config.disk_bytes,
            origin=origin,
            memory=self._context.host,
            fetch_seconds=config.disk_fetch_seconds,
            whole=whole,
        )

    def _load_draft(self, config: WorkerConfig, *, cells: int, threads: int) -> DraftModel | None:
        """The draft model that `config` asks for. Raises `ModelLoadError`."""
        if not config.draft_path or config.speculation == "off":
            return None
        draft = load_draft(
            config.draft_path,
            id=config.draft_id,
            target=self._model,
            target_id=config.model_id,
            gpu_layers=config.gpu_layers,
        )
        made = self._steps.submit(
            DraftModel, draft, lanes=config.lanes, cells=cells, threads=threads
        )
        return made.result()

    def serve(self) -> None:
        """Announce readiness and handle messages until the server has gone."""
        steps = self._steps.submit(self._run_steps)
        self._connection.send(Ready(info=self._info))
        try:
            while (message := self._connection.receive()) is not None:
                self._handle(message)
        finally:  # also when a message cannot be read: no loop may outlive this thread
            self._loop.inbox.put(Close())
        steps.result()
        if self._context.disk is not None:
            self._context.disk.close(DISK_CLOSE_SECONDS)
        if self._device is not None:
            self._device.close()
        self._context.close()
        if self._draft_model is not None:
            self._draft_model.close()
        self._model.close()

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit(request=request, resumes=resumes):
                try:
                    self._loop.inbox.put(self._intake.generation(request, resumes))
                except Exception as error:
                    event = SequenceEvent(id=request.id, event=_failure(error))
                    self._connection.send(Report(events=(event,), stats=self._loop.stats))
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

    def _answer(
        self, call: Tokenize | Detokenize | ApplyTemplate | CountTokens
    ) -> str | tuple[int, ...] | int:
        match call:
            case Tokenize(text=text, add_special=add_special, parse_special=parse_special):
                return tuple(
                    self._model.tokenize(text, add_special=add_special, parse_special=parse_special)
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

    def _chat_template(self, config: WorkerConfig) -> tuple[ChatTemplate | None, str]:
        """The file's chat template, or why there is none."""
        source = self._model.meta(TEMPLATE_KEY)
        if source is None:
            return None, "This model has no chat template; use /v1/completions."
        try:
            template = ChatTemplate(
                source,
                bos=self._model.bos_text(),
                eos=self._model.eos_text(),
                limit_seconds=config.template_seconds,
            )
        except TemplateError as error:
            return None, str(error)
        return template, ""

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


def _on_gpu(gpu_layers: int) -> bool:
    """Whether a GPU has layers; the output layer is the first that one gets."""
    return gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())


def _device(gpu_layers: int) -> str:
    if not _on_gpu(gpu_layers):
        return "CPU"
    return "GPU" if gpu_layers < 0 else f"GPU ({gpu_layers} layers)"


if __name__ == "__main__":
    main()
