"""One sequence as the engine process sees it: sampler, text, limits.

The scheduler knows which tokens to compute; this knows what a sampled token means.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inference.errors import DecodeFailed
from inference.events import Delta, Finished, FinishReason, TokenLogprob, Usage
from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.steering import Steering
from inference.llamacpp.context import Context
from inference.llamacpp.detokenizer import Detokenizer
from inference.llamacpp.messages import Resumption
from inference.llamacpp.sampling.chains import SamplerChain
from inference.llamacpp.sampling.devicesampling import Profile, profile_of
from inference.llamacpp.sampling.logits import ban, highest, logprobs
from inference.requests import GenerationRequest


class Generation:
    """A request on its way through the step loop.

    Mutable: the counts, the sampler's history, the held-back text, the steering. The step
    loop owns it from the moment it is queued.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        model: Model,
        sampler: SamplerChain,
        prompt: list[int],
        max_tokens: int,
        queued_at: float,
        piece: Callable[[int], bytes] | None = None,
        opened: bool = False,
        resumes: Resumption | None = None,
    ) -> None:
        """`max_tokens` is the resolved limit; `queued_at` a monotonic time in seconds.

        `piece` gives the bytes that a token is shown as, where those are not the model's;
        `opened` says that the prompt ends inside the reasoning. With `resumes`, `sampler` is
        taken to have drawn those tokens.
        """
        self.request = request
        self.prompt = prompt
        self.resumes = resumes
        self.opened = opened
        self.queued_at = queued_at
        self.generated = 0
        self.limit = len(prompt) + max_tokens
        self.cached_tokens = None if resumes is None else resumes.cached_tokens
        self._model = model
        self._piece = piece or model.piece
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._banned = model.suppressed + (model.end_tokens if request.ignore_eos else ())
        self._text = Detokenizer(request.stop)
        self._profile = profile_of(request, banned=self._banned, vocab_size=model.vocab_size)
        self._device: SamplerChain | None = None
        self._steering: Steering | None = None
        for token in () if resumes is None else resumes.tokens:
            self._text.push(self._piece(token), check_stop=not self.held_back)
            self.generated += 1

    def steer(self, steering: Steering) -> None:
        """Let `steering` bound all tokens to come, once, before it is queued.

        It is shown what was generated in another process. Raises `DecodeFailed`.
        """
        for token in () if self.resumes is None else self.resumes.tokens:
            steering.accept(token)
        self._steering = steering

    @property
    def known(self) -> list[int]:
        """The prompt and what was generated in another process."""
        return self.prompt if self.resumes is None else [*self.prompt, *self.resumes.tokens]

    @property
    def held_back(self) -> bool:
        """Whether it may not end yet, unless its steering leaves nothing else."""
        return self.generated < self.request.min_tokens

    @property
    def profile(self) -> Profile | None:
        """What a chain on the device would have to do for the next token; None: the host must."""
        return None if self.held_back or self._steered() is not None else self._profile

    @property
    def remaining(self) -> int:
        """How many tokens it may still generate."""
        return self._max_tokens - self.generated

    def stay_on_host(self) -> None:
        """Never sample on the device: its drafts are being checked."""
        self._profile = None

    def sample_in(self, chain: SamplerChain | None) -> None:
        """Take the next tokens from `chain`, attached to its lane, or sample them here."""
        self._device = chain
        if chain is None:
            self._sampler.recall()
        else:
            self._sampler.lend(chain)

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()

    def sample(self, context: Context, index: int) -> tuple[int, list[Delta | Finished]]:
        """Draw the next token from the logits at batch `index`; returns it and its events.

        Raises `DecodeFailed` when the logits leave nothing to choose from, or the steering
        fails.
        """
        held_back = self.held_back
        scores: tuple[TokenLogprob, ...] | None = None
        if self._device is None:
            token, scores = self._draw(context, index)
        else:
            token = self._device.sampled(context.handle, index, self._model.vocab_size)
        if token is None:
            raise DecodeFailed("The model produced no usable logits for this sequence.")
        self.generated += 1
        if token in self._model.end_token_set:
            return token, self._finish(FinishReason.STOP)
        if self._steering is not None:
            self._steering.accept(token)
        text = self._text.push(self._piece(token), check_stop=not held_back)
        events: list[Delta | Finished] = [Delta(text=text.text, tokens=(token,), logprobs=scores)]
        if text.stop is not None:
            events.append(self._finished(FinishReason.STOP, text.stop))
        elif self._steering is not None and self._steering.finished:
            events += self._finish(FinishReason.STOP)
        elif self.generated >= self._max_tokens:
            events += self._finish(FinishReason.LENGTH)
        return token, events

    def _draw(
        self, context: Context, index: int
    ) -> tuple[int | None, tuple[TokenLogprob, ...] | None]:
        """The next token, None without usable logits, and its log probabilities if wanted."""
        row = raw = context.logits(index)
        wanted = self.request.logprobs
        steering = self._steered()
        banned = (*self._banned, *self._model.end_tokens) if self.held_back else self._banned
        if wanted is not None and (banned or steering is not None):
            # The caller's log probabilities are those of the row as it was.
            raw = row.copy()
        if steering is not None:
            steering.mask(row)
        if banned:
            ban(row, banned)
        token = highest(row)
        if token is None and steering is not None and steering.complete and row.max() == -np.inf:
            # It was to go on, and nothing can follow: the steering has the last word.
            token = self._model.end_tokens[0]
        elif token is not None and not self._sampler.takes_highest:
            token = self._sampler.sample(context.handle, index)
        if token is None or wanted is None:
            return token, None
        return token, (logprobs(raw, token, wanted, self._model.piece),)

    def _steered(self) -> Steering | None:
        """What bounds the next token, if anything does."""
        return None if self._steering is None or self._steering.free else self._steering

    def _finish(self, reason: FinishReason) -> list[Delta | Finished]:
        held = self._text.flush()
        events: list[Delta | Finished] = []
        if held:
            events.append(
                Delta(text=held, tokens=(), logprobs=None if self.request.logprobs is None else ())
            )
        return [*events, self._finished(reason, None)]

    def _finished(self, reason: FinishReason, stop: str | None) -> Finished:
        usage = Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=self.generated,
            cached_tokens=self.cached_tokens or 0,
        )
        return Finished(reason=reason, usage=usage, stop=stop)
