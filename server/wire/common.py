"""What chat and plain completions share: sampling fields, limits, usage, projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from inference.events import Event, Usage
from inference.requests import (
    LOGIT_BIAS_MAX_ENTRIES,
    STOP_MAX_CHARS,
    STOP_MAX_STRINGS,
    SamplingParams,
)
from server.errors import invalid

Body = TypeVar("Body", bound="Envelope")

MAX_TOKENS_CEILING = 100_000_000
SEEDS = 0xFFFF_FFFF
LOWEST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON does not have; OpenAI uses the same."""

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF)]
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKENS_CEILING)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2.0, le=2.0)]
Hint: TypeAlias = Annotated[str, Meta(max_length=512)]


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to stream. Only `include_usage` asks for something this server does."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(Struct, frozen=True, kw_only=True):
    """The fields of both families. None is the same as leaving the field out.

    `user`, `safety_identifier` and `prompt_cache_key` are accepted and change nothing:
    OpenAI uses them for abuse reports and for routing to a warm cache.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1024)] | None = None
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_CEILING)] | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]],
            Meta(max_length=LOGIT_BIAS_MAX_ENTRIES),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    user: Hint | None = None
    safety_identifier: Hint | None = None
    prompt_cache_key: Hint | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request is checked against: the server's settings and the loaded model.

    `max_n` bounds the sequences one request starts, prompts times `n`. `max_tokens` 0
    leaves that to the context. Counts are tokens, but for `max_n`.
    """

    max_n: int
    max_tokens: int
    context_length: int
    vocab_size: int


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def sampling_of(
    fields: GenerationFields, defaults: Mapping[str, float | int], limits: Limits
) -> SamplingParams:
    """The request's own values, else the model's recommendations, else llama.cpp's.

    `top_k` -1 switches the filter off, as 0 does. Seeds of 64 bits, which OpenAI
    allows, are folded into the engine's 32. Raises `ApiError` 400.
    """
    given = {name: getattr(fields, name) for name in _SAMPLING}
    values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    values["top_k"] = max(0, int(values.get("top_k", SamplingParams().top_k)))
    return SamplingParams(
        **values,
        logit_bias=_logit_bias(fields.logit_bias or {}, limits.vocab_size),
        seed=None if fields.seed is None else fields.seed % SEEDS,
    )


def reseeded(sampling: SamplingParams, copy: int) -> SamplingParams:
    """The same, for the n-th copy of a sequence: another seed, if one was given."""
    if sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + copy) % SEEDS)


def _logit_bias(given: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    for token in given:
        # isdecimal alone would let other scripts' digits through.
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise invalid("The keys of `logit_bias` must be token ids.", "logit_bias")
        if int(token) >= vocab_size:
            raise invalid(
                f"The keys of `logit_bias` must be below {vocab_size}, the size of the vocabulary.",
                "logit_bias",
            )
    return tuple((int(token), bias) for token, bias in given.items())


def stop_of(fields: GenerationFields) -> tuple[str, ...]:
    """The stop strings. Raises `ApiError` 400 for too many, empty or too long ones."""
    stop = fields.stop
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if len(strings) > STOP_MAX_STRINGS:
        raise invalid(f"`stop` takes at most {STOP_MAX_STRINGS} strings.", "stop")
    for index, string in enumerate(strings):
        if not 1 <= len(string) <= STOP_MAX_CHARS:
            raise invalid(
                f"A stop string has 1 to {STOP_MAX_CHARS} characters.",
                "stop" if isinstance(stop, str) else f"stop[{index}]",
            )
    return tuple(strings)


def check_counts(fields: GenerationFields, *, prompts: int, limits: Limits) -> int:
    """Check `n`, and what is only allowed with `stream`. Returns `n`. Raises `ApiError`."""
    n = fields.n or 1
    if n * prompts > limits.max_n:
        param = "n" if n > 1 else "prompt"
        raise invalid(f"A request may start at most {limits.max_n} sequences.", param)
    options = fields.stream_options
    if options is not None:
        if not fields.stream:
            raise invalid("`stream_options` needs `stream`.", "stream_options")
        if options.include_obfuscation:
            raise invalid(
                "`stream_options.include_obfuscation` is not supported by this server.",
                "stream_options.include_obfuscation",
                "unsupported_parameter",
            )
    return n


def max_tokens_of(given: int | None, param: str, min_tokens: int, limits: Limits) -> int | None:
    """The bound on generated tokens: the request's, else the server's, else None.

    Raises `ApiError` 400 when it is above the server's limit or the context, or below
    `min_tokens`.
    """
    ceiling = limits.max_tokens or limits.context_length
    if given is not None and given > ceiling:
        raise invalid(f"`{param}` is {given}; this server allows {ceiling}.", param)
    bound = given if given is not None else limits.max_tokens or None
    if min_tokens > (bound or ceiling):
        raise invalid(
            f"`min_tokens` is {min_tokens}; this request allows {bound or ceiling}.", "min_tokens"
        )
    return bound


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    """How much of the prompt came from the prefix cache (tokens)."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """How much of the completion was reasoning (tokens)."""

    reasoning_tokens: int


class UsageBody(Struct, frozen=True, kw_only=True):
    """Tokens of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_of(usages: Sequence[Usage], n: int) -> UsageBody:
    """Settle a request's usage from its sequences', which come prompt by prompt.

    Each prompt counts once, whatever `n`; of its `n` sequences the one that found least
    in the cache says how much of it was cached before the request.
    """
    groups = [usages[start : start + n] for start in range(0, len(usages), n)]
    prompt = sum(group[0].prompt_tokens for group in groups)
    completion = sum(usage.completion_tokens for usage in usages)
    reasoning = sum(usage.reasoning_tokens for usage in usages)
    cached = sum(min(usage.cached_tokens for usage in group) for group in groups)
    return UsageBody(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def finite(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


class Envelope(Struct, frozen=True, kw_only=True):
    """What every chunk and the whole response repeat. `created` is a Unix time.

    Each kind of them derives from this, and says what `object` it is.
    """

    id: str
    object: str = ""
    created: int
    model: str
    system_fingerprint: str

    def around(self, kind: type[Body]) -> Callable[..., Body]:
        """What builds bodies of a kind with this envelope, given the rest of their fields."""
        return partial(
            kind,
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
        )


class Projection(Protocol):
    """How one API shows a request's events; it keeps what the next chunk depends on."""

    def show(self, index: int, event: Event) -> Sequence[Struct]:
        """Build the chunks of the next event of sequence `index`; often one, maybe none."""

    def end(self, usages: Sequence[Usage]) -> Sequence[Struct]:
        """Build the chunks that follow when all sequences have finished."""


class Summary(Protocol):
    """How one API shows a request as a whole."""

    def add(self, index: int, event: Event) -> None:
        """Take in the next event of sequence `index`."""

    def body(self, usages: Sequence[Usage]) -> Struct:
        """Build the response, once all sequences have finished."""
