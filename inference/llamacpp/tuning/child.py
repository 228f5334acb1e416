"""The measuring process: `python -m inference.llamacpp.tuning.child JOB`.

Does one job and prints its answer as the last line of standard output. Ends when its
standard input does, for then its parent has gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.resources import files

import msgspec
import numpy as np

from inference.errors import ModelLoadError
from inference.llamacpp.bindings import Model
from inference.llamacpp.tuning.choice import Quality, Speed, Timing
from inference.llamacpp.tuning.divergence import Comparison
from inference.llamacpp.tuning.errors import TuningError
from inference.llamacpp.tuning.jobs import (
    AnyJob,
    Done,
    Effort,
    MeasureQuality,
    MeasureSpeed,
    RecordReference,
    Requantize,
    job_decoder,
)
from inference.llamacpp.tuning.session import Session, offloads, requantize

CHUNK = 64
"""Positions whose logits are held at a time; also the batch, so that all formats agree."""

WARM_UP_TOKENS = 16
STREAM_PROMPT_TOKENS = 16
QUIET = 0.95
PATIENCE = 4


def main() -> int:
    """Do the job of the command line. A failure is one line on standard error."""
    # A terminal's Ctrl-C goes to the whole group; the parent decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = work(job_decoder.decode(sys.argv[1]))
    except (TuningError, ModelLoadError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(msgspec.json.encode(answer).decode(), flush=True)
    return 0


def work(job: AnyJob) -> Timing | Quality | Done:
    """Do one job. Raises `JobFailed` or `ModelLoadError`."""
    match job:
        case Requantize():
            requantize(job.source, job.target, format=job.format, threads=job.threads)
            return Done()
        case MeasureSpeed():
            return speed(job)
        case RecordReference() | MeasureQuality():
            return quality(job)


def speed(job: MeasureSpeed) -> Timing:
    """Tokens a second of the three kinds of work, on the shipped text."""
    model = _load(job.path, job.gpu_layers)
    effort = job.effort
    # Sixteen streams for a small cache; a short context bounds the prompt.
    prompt = min(effort.prefill_tokens, model.train_context)
    text = text_tokens(model, prompt)
    most = max(len(text), effort.streams * (STREAM_PROMPT_TOKENS + effort.steps))
    session = Session(
        model,
        cells=most,
        lanes=effort.streams,
        batch_tokens=max(job.batch_tokens, effort.streams * STREAM_PROMPT_TOKENS),
        threads=job.threads,
        outputs=effort.streams,
    )
    batch = min(job.batch_tokens, len(text))

    def prefill() -> int:
        for start in range(0, len(text), batch):
            chunk = text[start : start + batch]
            last = len(chunk) - 1
            session.decode([(t, start + i, 0, i == last) for i, t in enumerate(chunk)])
        return len(text)

    def decode(streams: int) -> Callable[[], int]:
        def run() -> int:
            for step in range(effort.steps):
                at = STREAM_PROMPT_TOKENS + step
                session.decode([(text[at % len(text)], at, s, True) for s in range(streams)])
            return streams * effort.steps

        return run

    def prepare(streams: int) -> Callable[[], None]:
        def run() -> None:
            session.clear()
            prompt = text[:STREAM_PROMPT_TOKENS]
            session.decode([(t, i, s, False) for s in range(streams) for i, t in enumerate(prompt)])

        return run

    prepare(1)()  # the first computation pays for pages and buffers
    # A GPU computes while its processor waits, so busy processors prove nothing there.
    threads = job.threads if job.gpu_layers == 0 or not offloads() else 0
    prompts = _rate(session.clear, prefill, effort, threads)
    single = _rate(prepare(1), decode(1), effort, threads)
    streams = _rate(prepare(effort.streams), decode(effort.streams), effort, threads)
    session.close()
    model.close()
    return Timing(
        speed=Speed(prefill=prompts[0], single=single[0], streams=streams[0]),
        quiet=prompts[1] and single[1] and streams[1],
    )


def quality(job: RecordReference | MeasureQuality) -> Quality:
    """Compare with the recorded logits, or record and compare with itself."""
    model = _load(job.path, job.gpu_layers)
    tokens = text_tokens(model, min(job.tokens, model.train_context))
    shape = (len(tokens) - 1, model.vocab_size)  # nothing follows the last one
    if isinstance(job, RecordReference):
        reference = np.lib.format.open_memmap(job.logits, "w+", np.float32, shape)
    else:
        reference = np.load(job.logits, mmap_mode="r")
        if reference.shape != shape:
            raise TuningError("the vocabulary is not the original's")
    session = Session(
        model, cells=len(tokens), lanes=1, batch_tokens=CHUNK, threads=job.threads, outputs=CHUNK
    )
    comparison = Comparison()
    for start in range(0, shape[0], CHUNK):
        end = min(start + CHUNK, shape[0])
        session.decode([(tokens[i], i, 0, True) for i in range(start, end)])
        logits = session.logits(end - start)
        if isinstance(job, RecordReference):
            reference[start:end] = logits
        targets = np.array(tokens[start + 1 : end + 1], dtype=np.int64)
        comparison.add(reference[start:end], logits, targets)
    session.close()
    model.close()
    return comparison.result()


def text_tokens(model: Model, count: int) -> list[int]:
    """The shipped text in the model's tokens, cut to `count`. Raises `TuningError`."""
    text = files("inference.llamacpp.tuning").joinpath("prose.txt").read_text(encoding="utf-8")
    tokens = model.tokenize(text, add_special=True, parse_special=False)[:count]
    if len(tokens) < STREAM_PROMPT_TOKENS:
        raise TuningError("this model's context is too short to be measured")
    return tokens


def _load(path: str, gpu_layers: int) -> Model:
    model = Model(path, gpu_layers=gpu_layers, progress=lambda _: True)
    if not model.decodes_text():
        raise ModelLoadError("this model cannot generate text")
    return model


def _rate(
    prepare: Callable[[], None], run: Callable[[], int], effort: Effort, threads: int
) -> tuple[float, bool]:
    """The highest rate (tokens a second) of all runs within the effort; whether one was quiet.

    The highest, for what disturbs a run can only make it slower; the median over fresh
    processes comes afterwards. llama.cpp's threads compute or spin all the time: where
    the process had less processor time than that, somebody else took it, and one run
    more is tried, up to `PATIENCE` times the effort. 0 threads: this cannot be told.
    """
    best, spent, quiet = 0.0, 0.0, False
    while not best or spent < effort.seconds * (1 if quiet else PATIENCE):
        prepare()
        began, busy = time.monotonic(), time.process_time()
        tokens = run()
        seconds, busy = time.monotonic() - began, time.process_time() - busy
        best = max(best, tokens / seconds)
        spent += seconds
        quiet = quiet or busy >= QUIET * threads * seconds
    return best, quiet


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
