"""Builds what an engine process for embeddings consists of.

Such a process gives way. On a processor it would take time slices from the threads that
decode a chat beside it, which wait for one another at every layer: one of them held up by
a few milliseconds holds up all. So it runs at a lower priority there, with fewer
threads, in short batches. On a GPU it is a client like any other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.embeddings.context import TEXTS_MAX, EmbeddingContext
from inference.llamacpp.embeddings.intake import EmbeddingIntake
from inference.llamacpp.embeddings.loop import EmbeddingLoop
from inference.llamacpp.messages import Message, WorkerConfig
from inference.llamacpp.sizes import DEFAULT_CONTEXT
from inference.llamacpp.threads import physical_cores
from inference.status import ModelInfo

NICENESS: Final = 15
"""How much further down than the server, on the scale of nice(2).

Beside a chat that keeps every core busy this leaves a thirtieth of one. On two cores, with
two threads of its own, the chat's slowest gaps were then 1.04 times as long as without
embeddings (12 rounds), at 12 steps 1.3 times and at 19, which cannot be worse, 1.2 times:
noise is as large. Embeddings were twice as fast at 12, and less than half as fast at 19.
"""

BATCH_TOKENS: Final = 128
"""Of a batch on a processor, where larger ones are no faster."""

AUTOGROUP: Final = Path("/proc/self/autogroup")

CERTAIN: Final = ("qwen3", "qwen3vl")
"""Architectures whose scores are probabilities: llama.cpp has put them through a softmax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAssembly:
    """The loaded model and all that works on it; `loop` runs on the step thread."""

    model: Model
    intake: EmbeddingIntake
    context: EmbeddingContext
    loop: EmbeddingLoop
    info: ModelInfo

    def close(self) -> None:
        """Free everything, when the loop has ended."""
        self.context.close()
        self.model.close()


def makes_embeddings(model: Model) -> bool:
    """Whether the file says how tokens become one vector: then it is not for generating."""
    pooling = model.meta(f"{_architecture(model)}.pooling_type".encode())
    return pooling is not None and pooling not in ("", "0", "-1")


def assemble_embedding(
    config: WorkerConfig,
    model: Model,
    *,
    steps: Executor,
    send: Callable[[Message], object],
    device: str,
) -> EmbeddingAssembly:
    """Build the rest around a model that makes embeddings.

    `steps` is the step thread, `send` takes what the loop says, `device` is where the
    model computes. Raises `ModelLoadError`.
    """
    on_processor = device == "CPU"
    # Positions beyond what it was trained for do not exist.
    length = min(config.context or DEFAULT_CONTEXT, model.train_context)
    batch = BATCH_TOKENS if on_processor else max(length, config.batch_tokens)
    threads = _threads(config, on_processor=on_processor)
    if on_processor:
        _give_way()
    made = steps.submit(EmbeddingContext, model, tokens=max(batch, length), threads=threads)
    context = made.result()
    if not context.length:
        raise ModelLoadError("this model's vectors have no length")
    return EmbeddingAssembly(
        model=model,
        intake=EmbeddingIntake(model, context=length, ranks=context.ranks),
        context=context,
        loop=EmbeddingLoop(
            context,
            send=send,
            batch_tokens=batch,
            batch_texts=TEXTS_MAX,
            max_waiting=config.max_waiting,
            certain=_architecture(model) in CERTAIN,
        ),
        info=ModelInfo(
            id=config.model_id,
            description=model.description(),
            quantization=model.quantization(),
            parameters=model.parameters,
            size_bytes=model.size_bytes,
            vocab_size=model.vocab_size,
            context_length=length,
            train_context_length=model.train_context,
            has_chat_template=False,
            engine="llamacpp",
            device=device,
            layout="none",
            lanes=TEXTS_MAX,
            cache_tokens=0,
            threads=threads,
            embedding_length=0 if context.ranks else context.length,
            reranks=context.ranks,
        ),
    )


def _give_way() -> None:
    """Lower the priority of the process, for all of its threads that are still to come.

    Where Linux groups processes by session, as on a desktop, priorities count inside of a
    session only, and each engine process has one of its own: then the group's is what
    counts (sched(7), "The autogroup feature").
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(NICENESS))


def _threads(config: WorkerConfig, *, on_processor: bool) -> int:
    """Half of the cores, so that whoever decodes beside it has some to itself."""
    cores = physical_cores()
    most = max(1, cores // 2) if on_processor else cores
    return min(config.threads or most, most)


def _architecture(model: Model) -> str:
    return model.meta(b"general.architecture") or ""
