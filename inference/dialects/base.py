"""What a dialect is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference.dialects.calls import Opening
from inference.dialects.offer import Offer
from inference.dialects.parser import Parser, new_call_id
from inference.requests import ChatPrompt, Constraint


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(ABC):
    """How a family of models writes tool calls. Immutable.

    `name` is what `ModelInfo.dialect` says. `openings` are how calls begin, and `marks`
    the texts around them: where the vocabulary has those as special tokens, they have to
    be shown as text when an answer may make calls.
    """

    name: str
    marks: tuple[str, ...]
    openings: tuple[Opening, ...]

    def prepare(self, prompt: ChatPrompt) -> ChatPrompt:
        """The prompt as the chat template can take it; the engine asks before it renders."""
        return prompt

    @abstractmethod
    def constraint(
        self,
        offer: Offer,
        *,
        special: Iterable[tuple[str, int]] = (),
        answer: Constraint | None = None,
        thinks: bool = False,
    ) -> Constraint:
        """What holds an answer to calls that the tools' schemas accept.

        Where no call is required, text is free up to the mark that begins one, or follows
        `answer`. `special` is `ModelInfo.special_marks`; a model that `thinks` may put a line
        or two between its reasoning and a call that has to come. Raises `InvalidRequest` for
        parameters that are no schema of an object, and for a grammar as `answer`.
        """

    def parser(
        self,
        offer: Offer | None,
        thinking: tuple[str, str] | None,
        *,
        new_id: Callable[[], str] = new_call_id,
    ) -> Parser:
        """What reads one answer; `thinking` are the marks of the model's reasoning.

        Without an offer it finds no calls, without marks no reasoning.
        """
        return Parser(self.openings, offer, thinking, new_id=new_id)
