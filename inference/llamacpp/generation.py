"""One sequence as the engine process sees it: sampler, text, limits.

The scheduler knows which tokens to compute; this knows what a sampled token means.
"""

from __future__ import annotations

from inference.errors import DecodeFailed
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import Context
from inference.llamacpp.detokenizer import Detokenizer
from inference.llamacpp.sampling import SamplerChain, ban, highest, logprobs
from inference.types import Delta, Finished, FinishReason, GenerationRequest, TokenLogprob, Usage


class Generation:
    """A request on its way through the step loop.

    Mutable: the counts, the sampler's history, the held-back text. The step loop owns
    it from the moment it is queued.
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
    ) -> None:
        """`max_tokens` is the resolved limit; `queued_at` a monotonic time in seconds."""
        self.request = request
        self.prompt = prompt
        self.queued_at = queued_at
        self.generated = 0
        self.cached_tokens: int | None = None
        self._model = model
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._banned = model.suppressed + (model.end_tokens if request.ignore_eos else ())
        self._text = Detokenizer(request.stop)

    def close(self) -> None:
        """Free the sampler."""
        self._sampler.close()

    def sample(self, context: Context, index: int) -> tuple[int, list[Delta | Finished]]:
        """Draw the next token from the logits at batch `index`; returns it and its events.

        Raises `DecodeFailed` when the logits leave nothing to choose from.
        """
        held_back = self.generated < self.request.min_tokens
        banned = (*self._banned, *self._model.end_tokens) if held_back else self._banned
        row = raw = context.logits(index)
        if banned:
            # The caller's log probabilities are those of the row as it was.
            raw = row.copy() if self.request.logprobs is not None else row
            ban(row, banned)
        best = highest(row)
        if best is None:
            raise DecodeFailed("The model produced no usable logits for this sequence.")
        sampler = self._sampler
        token = best if sampler.takes_highest else sampler.sample(context.handle, index)
        self.generated += 1
        if token in self._model.end_token_set:
            return token, self._finish(FinishReason.STOP)
        text = self._text.push(self._model.piece(token), check_stop=not held_back)
        scores: tuple[TokenLogprob, ...] | None = None
        if self.request.logprobs is not None:
            scores = (logprobs(raw, token, self.request.logprobs, self._model.piece),)
        events: list[Delta | Finished] = [Delta(text=text.text, tokens=(token,), logprobs=scores)]
        if text.stop is not None:
            events.append(self._finished(FinishReason.STOP, text.stop))
        elif self.generated >= self._max_tokens:
            events += self._finish(FinishReason.LENGTH)
        return token, events

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
