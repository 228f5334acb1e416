"""A model's chat templates and what they say about it.

A GGUF file may have several: the default one, and one for prompts with tools under the
same key and `.tool_use`, as Transformers writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inference.dialects import detect, dialect_of, thinking_of
from inference.errors import ModelLoadError, TemplateError
from inference.llamacpp.bindings import TEMPLATE_KEY, Model
from inference.llamacpp.prompting.template import ChatTemplate
from inference.requests import ChatPrompt

TOOL_TEMPLATE_KEY = TEMPLATE_KEY + b".tool_use"


class Prompts:
    """Writes the text of chat prompts for one model. Immutable.

    `dialect` is the name of the one that its templates are written for, `thinking` the
    marks of its reasoning, where it has any. `special_marks` are those of both that are
    special tokens, with their ids.
    """

    def __init__(self, model: Model, *, source: str, limit_seconds: float) -> None:
        """Compile the templates of `model`, or `source` in their place, if there is one.

        `limit_seconds` bounds one rendering. Raises `ModelLoadError` for a `source` that
        is no template.
        """
        self._problem = "This model has no chat template; use /v1/completions."
        default = source or model.meta(TEMPLATE_KEY)
        tools = None if source else model.meta(TOOL_TEMPLATE_KEY)
        self._template = self._compiled(default, model, limit_seconds)
        if source and self._template is None:
            raise ModelLoadError(self._problem)
        self._with_tools = self._compiled(tools, model, limit_seconds) or self._template
        known = default if self._with_tools is self._template else tools
        self.dialect = detect(known)
        self.thinking = thinking_of(known)
        marks = (*dialect_of(self.dialect).marks, *(self.thinking or ()))
        self.special_marks = tuple(_special(model, marks))
        self._model = model
        self._shown = {token: mark.encode() for mark, token in self.special_marks}

    @property
    def available(self) -> bool:
        """Whether there is a template at all."""
        return self._template is not None

    def piece(self, token: int) -> bytes:
        """The bytes of a generated token, those of marks included.

        For most requests special tokens show nothing; who looks for calls needs to see them.
        """
        return self._shown.get(token) or self._model.piece(token)

    def render(self, prompt: ChatPrompt) -> str:
        """The text that the chat template makes of `prompt`. Raises `TemplateError`."""
        prompt = dialect_of(self.dialect).prepare(prompt)
        template = self._with_tools if prompt.tools else self._template
        if template is None:
            raise TemplateError(self._problem, param="messages")
        return template.render(prompt)

    def _compiled(
        self, source: str | None, model: Model, limit_seconds: float
    ) -> ChatTemplate | None:
        if source is None:
            return None
        try:
            return ChatTemplate(
                source, bos=model.bos_text(), eos=model.eos_text(), limit_seconds=limit_seconds
            )
        except TemplateError as error:
            self._problem = str(error)
            return None


def _special(model: Model, marks: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Those marks that are one token each, which stands for no text."""
    for mark in marks:
        tokens = model.tokenize(mark, add_special=False, parse_special=True)
        if len(tokens) == 1 and not model.piece(tokens[0]):
            yield mark, tokens[0]
