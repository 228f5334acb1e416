"""From a request to a generation: template, tokens, limits. Runs on the main thread.

Everything a request can get wrong is found here, before the step loop sees it.
"""

from __future__ import annotations

import time
from functools import lru_cache, partial

from inference.dialects import opens_thinking
from inference.errors import ContextLengthExceeded, InvalidRequest
from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.guide import Guide
from inference.llamacpp.constraints.steering import Steering
from inference.llamacpp.generation import Generation
from inference.llamacpp.messages import Resumption
from inference.llamacpp.prompting.prompts import Prompts
from inference.llamacpp.sampling.chains import build_chain
from inference.llamacpp.thinking import ThinkingSteering, marks_of
from inference.requests import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt


class Intake:
    """Reads prompts and checks requests against one model. Immutable."""

    def __init__(self, model: Model, prompts: Prompts, *, context: int) -> None:
        """`context` is a sequence's limit in tokens."""
        self._model = model
        self._prompts = prompts
        self._context = context
        self._marks = lru_cache(maxsize=4)(partial(marks_of, model, piece=prompts.piece))

    def generation(
        self, request: GenerationRequest, resumes: Resumption | None = None
    ) -> Generation:
        """Build the generation for `request`, from its start or where it `resumes`.

        Raises `RequestError`s.
        """
        prompt, text = self._read(request.prompt)
        thinking = request.thinking
        room = self._context - len(prompt)
        limit = request.max_tokens
        if room < 1 or (limit is not None and limit > room):
            raise ContextLengthExceeded.counting(
                prompt_tokens=len(prompt), max_tokens=limit, context_length=self._context
            )
        sampler = build_chain(request.sampling, self._model.vocab_size)
        tokens = () if resumes is None else resumes.tokens
        sampler.accept([*prompt, *tokens])
        sampler.skip(len(tokens))
        return Generation(
            request,
            model=self._model,
            sampler=sampler,
            prompt=prompt,
            max_tokens=room if limit is None else limit,
            queued_at=time.monotonic(),
            piece=self._prompts.piece if _shows_marks(request) else None,
            opened=thinking is not None and opens_thinking(text, thinking.start),
            resumes=resumes,
        )

    def steer(self, generation: Generation, guide: Guide | None) -> None:
        """Bound what `generation` may say: by `guide`, which follows its constraint, and by
        the budget of its reasoning.

        On any thread, once, before it is queued. Raises `DecodeFailed`.
        """
        steering: Steering | None = guide
        thinking = generation.request.thinking
        if thinking is not None and (guide is not None or thinking.budget_tokens is not None):
            steering = ThinkingSteering(
                self._marks(thinking.start, thinking.end),
                budget=thinking.budget_tokens,
                guide=guide,
                opened=generation.opened,
                model_end_tokens=self._model.end_tokens,
            )
        if steering is not None:
            generation.steer(steering)

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of any prompt. Raises `RequestError`s; an empty prompt is one."""
        tokens, _ = self._read(prompt)
        return tokens

    def _read(self, prompt: Prompt) -> tuple[list[int], str]:
        """Token ids of any prompt, and its text, unless it was given as token ids."""
        text = ""
        match prompt:
            case TokensPrompt(tokens=given):
                self._model.check_tokens(given, param="prompt")
                tokens = list(given)
            case TextPrompt(text=text, add_special=add_special):
                tokens = self._model.tokenize(text, add_special=add_special, parse_special=True)
            case ChatPrompt():
                text = self.render(prompt)
                # Some templates write the BOS themselves; two would be one too many.
                bos = self._model.bos_text()
                tokens = self._model.tokenize(
                    text,
                    add_special=not (bos and text.startswith(bos)),
                    parse_special=True,
                )
        if not tokens:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return tokens, text

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def render(self, prompt: ChatPrompt) -> str:
        """The text the chat template makes of `prompt`. Raises `TemplateError`."""
        return self._prompts.render(prompt)


def _shows_marks(request: GenerationRequest) -> bool:
    """Whether somebody will look for the marks of calls and reasoning in the text."""
    tools = isinstance(request.prompt, ChatPrompt) and bool(request.prompt.tools)
    return tools or request.thinking is not None
