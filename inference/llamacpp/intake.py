"""From a request to a generation: template, tokens, limits. Runs on the main thread.

Everything a request can get wrong is found here, before the step loop sees it.
"""

from __future__ import annotations

import time

from inference.errors import ContextLengthExceeded, InvalidRequest, TemplateError
from inference.llamacpp.bindings import Model
from inference.llamacpp.generation import Generation
from inference.llamacpp.messages import Resumption
from inference.llamacpp.sampling import build_chain
from inference.llamacpp.template import ChatTemplate
from inference.types import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt


class Intake:
    """Reads prompts and checks requests against one model. Immutable."""

    def __init__(
        self, model: Model, template: ChatTemplate | None, *, problem: str, context: int
    ) -> None:
        """`problem` says why there is no template; `context` is a sequence's limit in tokens."""
        self._model = model
        self._template = template
        self._problem = problem
        self._context = context

    def generation(
        self, request: GenerationRequest, resumes: Resumption | None = None
    ) -> Generation:
        """Build the generation for `request`, from its start or where it `resumes`.

        Raises `RequestError`s.
        """
        prompt = self.tokens(request.prompt)
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
            resumes=resumes,
        )

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of any prompt. Raises `RequestError`s; an empty prompt is one."""
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
        return tokens

    def render(self, prompt: ChatPrompt) -> str:
        """The text the chat template makes of `prompt`. Raises `TemplateError`."""
        if self._template is None:
            raise TemplateError(self._problem, param="messages")
        return self._template.render(prompt.messages, prompt.add_generation_prompt)
