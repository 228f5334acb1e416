"""What a measuring process is asked, and what it answers: one JSON object each way."""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Struct


class Job(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of every job; its class name travels as the tag."""


class Effort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is computed for one figure of speed.

    Prefill takes `prefill_tokens` at once; decoding takes `steps` steps, by one stream
    and by `streams`. Each of the three is repeated until `seconds` have passed.
    """

    prefill_tokens: int = 512
    steps: int = 24
    streams: int = 16
    seconds: float = 1.5


class MeasureSpeed(Job, frozen=True, kw_only=True):
    """Answered by `Timing`."""

    path: str
    threads: int
    batch_tokens: int
    gpu_layers: int
    effort: Effort


class RecordReference(Job, frozen=True, kw_only=True):
    """Write the original's logits on the shipped text to `logits`; answered by `Quality`."""

    path: str
    logits: str
    tokens: int
    threads: int
    gpu_layers: int


class MeasureQuality(Job, frozen=True, kw_only=True):
    """Compare with the logits that `RecordReference` wrote; answered by `Quality`."""

    path: str
    logits: str
    tokens: int
    threads: int
    gpu_layers: int


class Requantize(Job, frozen=True, kw_only=True):
    """Write `source` to `target` in another format; answered by `Done`."""

    source: str
    target: str
    format: str
    threads: int


class Done(Struct, frozen=True, kw_only=True):
    """The file is there."""


AnyJob: TypeAlias = MeasureSpeed | RecordReference | MeasureQuality | Requantize
R = TypeVar("R")


class Runner(Protocol):
    """Runs one job in a process of its own."""

    def __call__(self, job: AnyJob, answer: type[R]) -> R:
        """The job's answer. Raises `JobFailed`."""
        ...


job_decoder = msgspec.json.Decoder(AnyJob)
