"""From a request and its rule to tokens, text and log probabilities."""

from __future__ import annotations

import codecs
import math

from inference.errors import ContextLengthExceeded, InvalidRequest
from inference.events import TokenLogprob, TopLogprob
from inference.requests import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokensPrompt
from inference.scripted import pieces
from inference.scripted.script import DEFAULT_WORDS, Rule
from inference.stops import StopMatcher


def render(prompt: ChatPrompt) -> str:
    """The scripted chat template: a line `role: content` for each message."""
    lines = [f"{message.role}: {message.content}\n" for message in prompt.messages]
    if prompt.add_generation_prompt:
        lines.append("assistant:")
    return "".join(lines)


def prompt_tokens(prompt: Prompt) -> int:
    """Tokens of the prompt. Raises `InvalidRequest` for ids outside the vocabulary."""
    match prompt:
        case TextPrompt(text=text):
            return len(pieces.tokenize(text))
        case ChatPrompt():
            return len(pieces.tokenize(render(prompt)))
        case TokensPrompt(tokens=tokens):
            if not pieces.known(tokens):
                raise InvalidRequest("A token id is outside the vocabulary.", param="prompt")
            return len(tokens)


def last_user_text(prompt: Prompt) -> str:
    """What rules are matched against: the last message of the user or of a tool, or the
    whole raw prompt."""
    match prompt:
        case TextPrompt(text=text):
            return text
        case TokensPrompt(tokens=tokens):
            return pieces.detokenize(tokens) if pieces.known(tokens) else ""
        case ChatPrompt(messages=messages):
            asking = (each.content for each in reversed(messages) if each.role in ("user", "tool"))
            return next(asking, "")


def token_limit(request: GenerationRequest, prompt: int, context_length: int) -> int:
    """Most tokens this request may get. Raises `ContextLengthExceeded` where it cannot fit."""
    room = context_length - prompt
    if room < (request.max_tokens or 1):
        raise ContextLengthExceeded.counting(
            prompt_tokens=prompt, max_tokens=request.max_tokens, context_length=context_length
        )
    return request.max_tokens or room


def check_bias(request: GenerationRequest) -> None:
    """Raise `InvalidRequest` where `logit_bias` names an id outside the vocabulary."""
    if not pieces.known(token for token, _ in request.sampling.logit_bias):
        raise InvalidRequest("A token id is outside the vocabulary.", param="logit_bias")


class Answer:
    """The tokens of an answer: `length` of them, `limit` at most.

    The reply ends it, or `DEFAULT_WORDS` where nothing else does. Where `min_tokens` or
    `ignore_eos` ask for more than the reply has, made-up words follow it.
    """

    def __init__(
        self, rule: Rule, request: GenerationRequest, *, prompt_tokens: int, limit: int
    ) -> None:
        self._reply = [] if rule.reply is None else pieces.tokenize(rule.reply)
        self._seed = (request.sampling.seed or 0) if request.sampling.temperature > 0 else 0
        self._words_from = prompt_tokens
        if request.ignore_eos or (rule.reply is None and request.max_tokens is not None):
            wanted = limit
        else:
            wanted = DEFAULT_WORDS if rule.reply is None else len(self._reply)
        self.length = min(limit, max(wanted, request.min_tokens))
        self.ends_by_itself = self.length < limit

    def token(self, number: int) -> int:
        """The token of that number, counted from 0."""
        if number < len(self._reply):
            return self._reply[number]
        return pieces.word_at(self._seed, self._words_from + number)


def logprobs(token: int, request: GenerationRequest) -> tuple[TokenLogprob, ...] | None:
    """Made-up log probabilities, where asked for: 1/2 for the chosen, then 1/4, 1/8, ..."""
    if request.logprobs is None:
        return None
    ranks = range(request.logprobs)
    ids = [(token + rank) % pieces.VOCAB_SIZE for rank in ranks]
    top = tuple(
        TopLogprob(token=other, piece=pieces.piece(other), logprob=-math.log(2) * (rank + 1))
        for rank, other in zip(ranks, ids, strict=True)
    )
    chosen = TokenLogprob(token=token, piece=pieces.piece(token), logprob=-math.log(2), top=top)
    return (chosen,)


class Transcript:
    """Bytes of tokens in, certain text out: whole characters, no part of a stop string.

    `stop` is the stop string that matched, None until one does. None can match before
    `min_tokens` tokens are there.
    """

    def __init__(self, *, stop: tuple[str, ...], min_tokens: int) -> None:
        self.stop: str | None = None
        self._unarmed = min_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(stop)

    def feed(self, token: int, *, last: bool) -> str:
        """Add one token; the text that became certain with it, possibly none.

        After the `last` one nothing can complete what is held back, so that is certain too.
        """
        text = self._utf8.decode(pieces.piece(token), last)
        self._unarmed -= 1
        certain, self.stop = self._matcher.push(text, armed=self._unarmed < 0)
        return certain + self._matcher.flush() if last else certain
