"""What `POST /v1/completions` gives: chunks while it streams, or one body.

Both have the same shape. Follows OpenAI's reference
(https://platform.openai.com/docs/api-reference/completions).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from inference.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    Queued,
    Restarted,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from server.wire.comments import ENGINE_RESTARTED, Comment, comment_of
from server.wire.common import Envelope, UsageBody, finite, usage_of


class LogprobsLists(Struct, kw_only=True):
    """Log probabilities as parallel lists, one entry a token.

    `text_offset` counts characters from the start of the choice's whole text. A token
    that is not UTF-8 by itself is written `bytes:\\xe2\\x82`.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """One choice, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: LogprobsLists | None = None
    finish_reason: str | None = None


class CompletionBody(Envelope, frozen=True, kw_only=True):
    """A completion, or one event of a streamed one."""

    object: str = "text_completion"
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET


class Offsets:
    """Turns a sequence's tokens into the parallel lists, remembering where the text is.

    Mutable: how many characters came before, and the bytes of an unfinished one.
    """

    def __init__(self, start: int) -> None:
        self._chars = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def lists(self, tokens: Sequence[TokenLogprob]) -> LogprobsLists:
        """Build the lists of the next tokens."""
        lists = LogprobsLists(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            lists.tokens.append(_shown(token.piece))
            lists.token_logprobs.append(finite(token.logprob))
            lists.top_logprobs.append(_competitors(token))
            lists.text_offset.append(self._chars)
            self._chars += len(self._decoder.decode(token.piece))
        return lists


def _shown(piece: bytes) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _competitors(token: TokenLogprob) -> dict[str, float]:
    """The most likely tokens; the chosen one is always among them."""
    chosen = TopLogprob(token=token.token, piece=token.piece, logprob=token.logprob)
    return {_shown(top.piece): finite(top.logprob) for top in (*token.top, chosen)}


class CompletionProjection:
    """Shows events as chunks. Mutable: the offsets of each choice.

    `echoes` are the prompts to repeat, one for each sequence, empty where none is
    wanted.
    """

    def __init__(
        self, envelope: Envelope, *, n: int, echoes: Sequence[str], include_usage: bool
    ) -> None:
        self._chunk = envelope.around(CompletionBody)
        self._n = n
        self._echoes = echoes
        self._offsets = [Offsets(len(echo)) for echo in echoes]
        self._usage: UnsetType | None = None if include_usage else UNSET

    def show(self, index: int, event: Event) -> Sequence[CompletionBody | Comment]:
        """Build the chunks of an event: the echo first, then text, then the reason it ended."""
        match event:
            case Queued() if index == 0:  # the first choice starts first
                return (comment_of(event),)
            case Restarted() if index == 0:
                return (ENGINE_RESTARTED,)
            case Accepted() if self._echoes[index]:
                choice = CompletionChoice(index=index, text=self._echoes[index])
            case Delta(text=text, logprobs=logprobs) if text or logprobs:
                lists = self._offsets[index].lists(logprobs) if logprobs else None
                choice = CompletionChoice(index=index, text=text, logprobs=lists)
            case Finished(reason=reason):
                choice = CompletionChoice(index=index, text="", finish_reason=reason.value)
            case _:
                return ()
        return (self._chunk(choices=[choice], usage=self._usage),)

    def end(self, usages: Sequence[Usage]) -> Sequence[CompletionBody]:
        """Build the usage chunk, if it was asked for."""
        if self._usage is UNSET:
            return ()
        return (self._chunk(choices=[], usage=usage_of(usages, self._n)),)


class CompletionSummary:
    """Gathers events into a whole completion. Mutable: all of it, until `body`."""

    def __init__(
        self, envelope: Envelope, *, n: int, echoes: Sequence[str], logprobs: bool
    ) -> None:
        self._body = envelope.around(CompletionBody)
        self._n = n
        self._logprobs = logprobs
        self._texts = [[echo] for echo in echoes]
        self._tokens: list[list[TokenLogprob]] = [[] for _ in echoes]
        self._reasons = [""] * len(echoes)

    def add(self, index: int, event: Event) -> None:
        """Keep text, log probabilities and the reason of the end."""
        match event:
            case Delta(text=text, logprobs=logprobs):
                self._texts[index].append(text)
                self._tokens[index].extend(logprobs or ())
            case Finished(reason=reason):
                self._reasons[index] = reason.value

    def body(self, usages: Sequence[Usage]) -> CompletionBody:
        """Build the completion."""
        choices = [
            CompletionChoice(
                index=index,
                text="".join(texts),
                logprobs=Offsets(len(texts[0])).lists(tokens) if self._logprobs else None,
                finish_reason=reason,
            )
            for index, (texts, tokens, reason) in enumerate(
                zip(self._texts, self._tokens, self._reasons, strict=True)
            )
        ]
        return self._body(choices=choices, usage=usage_of(usages, self._n))
