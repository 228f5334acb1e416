"""Builds what the engine process consists of, as its configuration says.

What decodes is built on the step thread; everything else where this is called.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from inference.errors import ModelLoadError
from inference.llamacpp.adapters import computed_by, load_adapters
from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.compiler import Compiler
from inference.llamacpp.context import Context
from inference.llamacpp.devicechains import DeviceChains, device_chains
from inference.llamacpp.draftmodel import DraftModel, load_draft
from inference.llamacpp.embeddings.assembly import (
    EmbeddingAssembly,
    assemble_embedding,
    makes_embeddings,
)
from inference.llamacpp.intake import Intake
from inference.llamacpp.messages import Message, WorkerConfig
from inference.llamacpp.numbers import Numbers, numbers_of
from inference.llamacpp.prompting.prompts import Prompts
from inference.llamacpp.rope import header, trained
from inference.llamacpp.saved.diskfiles import Origin
from inference.llamacpp.saved.diskstart import Disk, open_disk
from inference.llamacpp.saved.hostmemory import BLOCK_BYTES
from inference.llamacpp.scheduling.diskindex import DiskIndex
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.speculation import STEP_MAX, Speculator
from inference.llamacpp.sizes import CacheSizes, cache_sizes
from inference.llamacpp.steploop import StepLoop
from inference.llamacpp.threads import physical_cores
from inference.status import ModelInfo

# How long the end waits for files to be written; the server ends us after a little more.
DISK_CLOSE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The loaded model and all that works on it; `loop` runs on the step thread."""

    model: Model
    intake: Intake
    compiler: Compiler
    context: Context
    device: DeviceChains | None
    draft_model: DraftModel | None
    loop: StepLoop
    info: ModelInfo

    def close(self) -> None:
        """Free everything, when the loop has ended."""
        self.compiler.close()
        if self.context.disk is not None:
            self.context.disk.close(DISK_CLOSE_SECONDS)
        if self.device is not None:
            self.device.close()
        self.context.close()
        if self.draft_model is not None:
            self.draft_model.close()
        self.model.close()


def assemble(
    config: WorkerConfig,
    *,
    steps: Executor,
    send: Callable[[Message], object],
    progress: Callable[[float], bool],
) -> Assembly | EmbeddingAssembly:
    """Load the model that `config` names and build the rest around it.

    `steps` is the step thread, `send` takes the loop's reports, `progress` how much of
    the model is loaded (0 to 1) and says whether to go on. Raises `ModelLoadError`.
    """
    model = Model(config.model_path, gpu_layers=config.gpu_layers, progress=progress)
    if makes_embeddings(model):
        if config.adapters:
            raise ModelLoadError("adapters cannot be applied to a model that makes embeddings")
        where = _device_name(config.gpu_layers)
        return assemble_embedding(config, model, steps=steps, send=send, device=where)
    if not model.decodes_text():
        raise ModelLoadError("this model cannot generate text")
    threads = config.threads or physical_cores()
    sizes = cache_sizes(config, trained(header(config.model_path)))
    numbers = numbers_of(config)
    adapters = load_adapters(model, config.adapters)
    context = steps.submit(
        Context,
        model,
        unified=sizes.layout == "unified",
        cache_tokens=sizes.cells,
        lane_ids=sizes.lane_ids,
        batch_tokens=_batch_tokens(config),
        threads=threads,
        host_bytes=config.host_memory_bytes,
        drafts=STEP_MAX,
        numbers=numbers,
    ).result()
    steps.submit(adapters.apply, context).result()
    device = steps.submit(
        device_chains,
        config.device_sampling,
        context,
        vocab_size=model.vocab_size,
        lanes=config.lanes,
        on_gpu=_on_gpu(config.gpu_layers),
    ).result()
    prompts = Prompts(model, source=config.chat_template, limit_seconds=config.template_seconds)
    disk = _open_disk(config, context, sizes, numbers=numbers, whole=not model.shares_prefixes())
    context.disk = None if disk is None else disk.tier
    draft_model = _load_draft(config, model, steps, cells=sizes.cells, threads=threads)
    loop = StepLoop(
        _scheduler(config, model, context, sizes, index=None if disk is None else disk.index),
        context,
        send=send,
        lanes=config.lanes,
        max_waiting=config.max_waiting,
        gather_seconds=config.gather_seconds,
        seam=prompts.thinking[1] if prompts.thinking else "",
        device=device,
        draft_model=draft_model,
    )
    return Assembly(
        model=model,
        intake=Intake(model, prompts, context=sizes.length),
        compiler=Compiler(model),
        context=context,
        device=device,
        draft_model=draft_model,
        loop=loop,
        info=_info(config, model, sizes, threads=threads, prompts=prompts),
    )


def _batch_tokens(config: WorkerConfig) -> int:
    """A step must have room for a token of each lane."""
    return max(config.batch_tokens, config.lanes)


def _scheduler(
    config: WorkerConfig,
    model: Model,
    context: Context,
    sizes: CacheSizes,
    *,
    index: DiskIndex | None,
) -> Scheduler:
    share = model.shares_prefixes()
    lent = 0 if context.disk is None else context.disk.lend_bytes
    host = HostCache(
        capacity=context.host.blocks * BLOCK_BYTES - lent,
        token_bytes=context.bytes_per_token,
        block_bytes=BLOCK_BYTES,
        whole=not share,
    )
    return Scheduler(
        sizes.lanes(),
        host,
        running=config.lanes,
        batch_tokens=_batch_tokens(config),
        target_seconds=config.target_itl_seconds,
        share=share,
        speculator=Speculator() if share and config.speculation == "auto" else None,
        disk=index,
    )


def _open_disk(
    config: WorkerConfig, context: Context, sizes: CacheSizes, *, numbers: Numbers, whole: bool
) -> Disk | None:
    """The disk tier that `config` asks for, None without one."""
    if not config.disk_bytes:
        return None
    origin = Origin(
        model=computed_by(config),
        llama_cpp=llama_cpp.__version__,
        layout=sizes.layout,
        device=_device_name(config.gpu_layers),
        numbers=str(numbers),
        token_bytes=context.bytes_per_token,
    )
    return open_disk(
        Path(config.disk_dir),
        capacity=config.disk_bytes,
        origin=origin,
        memory=context.host,
        fetch_seconds=config.disk_fetch_seconds,
        whole=whole,
    )


def _load_draft(
    config: WorkerConfig, target: Model, steps: Executor, *, cells: int, threads: int
) -> DraftModel | None:
    """The draft model that `config` asks for. Raises `ModelLoadError`."""
    if not config.draft_path or config.speculation == "off":
        return None
    draft = load_draft(
        config.draft_path,
        id=config.draft_id,
        target=target,
        target_id=config.model_id,
        gpu_layers=config.gpu_layers,
    )
    made = steps.submit(DraftModel, draft, lanes=config.lanes, cells=cells, threads=threads)
    return made.result()


def _info(
    config: WorkerConfig, model: Model, sizes: CacheSizes, *, threads: int, prompts: Prompts
) -> ModelInfo:
    return ModelInfo(
        id=config.model_id,
        description=model.description(),
        quantization=model.quantization(),
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        vocab_size=model.vocab_size,
        context_length=sizes.length,
        train_context_length=model.train_context,
        has_chat_template=prompts.available,
        dialect=prompts.dialect,
        thinking=prompts.thinking,
        special_marks=prompts.special_marks,
        engine="llamacpp",
        device=_device_name(config.gpu_layers),
        layout=sizes.layout,
        lanes=config.lanes,
        cache_tokens=sizes.cells,
        threads=threads,
    )


def _on_gpu(gpu_layers: int) -> bool:
    """Whether a GPU has layers; the output layer is the first that one gets."""
    return gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())


def _device_name(gpu_layers: int) -> str:
    if not _on_gpu(gpu_layers):
        return "CPU"
    return "GPU" if gpu_layers < 0 else f"GPU ({gpu_layers} layers)"
