"""What `POST /v1/chat/completions` gives: chunks while it streams, or one body.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

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
from server.wire.calls import CallBody, CallChunk, Calls, chunk_of
from server.wire.comments import ENGINE_RESTARTED, Comment, comment_of
from server.wire.common import Envelope, UsageBody, finite, usage_of


class TopTokenBody(Struct, frozen=True, kw_only=True):
    """A token with its log probability; `bytes` since a token may be half a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenBody(TopTokenBody, frozen=True, kw_only=True):
    """The token that was chosen, and its competitors."""

    top_logprobs: list[TopTokenBody]


class LogprobsBody(Struct, frozen=True, kw_only=True):
    """The log probabilities of a choice or of a chunk."""

    content: list[TokenBody]
    refusal: None = None


class DeltaBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the message: the reasoning, then the text, then calls."""

    role: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallChunk] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """What a chunk adds to one choice."""

    index: int
    delta: DeltaBody
    logprobs: LogprobsBody | None = None
    finish_reason: str | None = None


class ChatChunk(Envelope, frozen=True, kw_only=True):
    """One event of a streamed chat completion."""

    object: str = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET


class MessageBody(Struct, frozen=True, kw_only=True):
    """The assistant's message; `content` is null where it only makes calls."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallBody] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    """One choice of a whole chat completion."""

    index: int
    message: MessageBody
    logprobs: LogprobsBody | None
    finish_reason: str


class ChatBody(Envelope, frozen=True, kw_only=True):
    """A whole chat completion."""

    object: str = "chat.completion"
    choices: list[ChatChoice]
    usage: UsageBody


class ChatProjection:
    """Shows events as chat completion chunks. Keeps nothing between them."""

    def __init__(self, envelope: Envelope, *, n: int, include_usage: bool) -> None:
        self._chunk = envelope.around(ChatChunk)
        self._n = n
        self._usage: UnsetType | None = None if include_usage else UNSET

    def show(self, index: int, event: Event) -> Sequence[ChatChunk | Comment]:
        """Build the chunks of an event: the role first, then text, then the reason it ended."""
        match event:
            case Queued() if index == 0:  # the first choice starts first
                return (comment_of(event),)
            case Restarted() if index == 0:
                return (ENGINE_RESTARTED,)
            case Accepted():
                choice = ChunkChoice(index=index, delta=DeltaBody(role="assistant", content=""))
            case Delta(text=text, logprobs=logprobs) if not event.reasoning and not event.calls:
                if not text and not logprobs:
                    return ()
                choice = ChunkChoice(
                    index=index, delta=DeltaBody(content=text), logprobs=_logprobs(logprobs)
                )
            case Delta():
                choice = ChunkChoice(
                    index=index, delta=_delta(event), logprobs=_logprobs(event.logprobs)
                )
            case Finished(reason=reason):
                choice = ChunkChoice(index=index, delta=DeltaBody(), finish_reason=reason.value)
            case _:
                return ()
        return (self._chunk(choices=[choice], usage=self._usage),)

    def end(self, usages: Sequence[Usage]) -> Sequence[ChatChunk]:
        """Build the usage chunk, if it was asked for."""
        if self._usage is UNSET:
            return ()
        return (self._chunk(choices=[], usage=usage_of(usages, self._n)),)


class ChatSummary:
    """Gathers events into a whole chat completion."""

    def __init__(self, envelope: Envelope, *, n: int, logprobs: bool) -> None:
        self._body = envelope.around(ChatBody)
        self._logprobs = logprobs
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._reasonings: list[list[str]] = [[] for _ in range(n)]
        self._calls = [Calls() for _ in range(n)]
        self._tokens: list[list[TokenBody]] = [[] for _ in range(n)]
        self._reasons = [""] * n

    def add(self, index: int, event: Event) -> None:
        """Keep text, reasoning, calls, log probabilities and the reason of the end."""
        match event:
            case Delta(text=text, logprobs=logprobs):
                self._texts[index].append(text)
                self._reasonings[index].append(event.reasoning)
                self._calls[index].add(event.calls)
                self._tokens[index].extend(map(token_body, logprobs or ()))
            case Finished(reason=reason):
                self._reasons[index] = reason.value

    def body(self, usages: Sequence[Usage]) -> ChatBody:
        """Build the completion."""
        choices = [
            ChatChoice(
                index=index,
                message=self._message(index),
                logprobs=LogprobsBody(content=tokens) if self._logprobs else None,
                finish_reason=self._reasons[index],
            )
            for index, tokens in enumerate(self._tokens)
        ]
        return self._body(choices=choices, usage=usage_of(usages, len(choices)))

    def _message(self, index: int) -> MessageBody:
        text, reasoning = "".join(self._texts[index]), "".join(self._reasonings[index])
        calls = self._calls[index].bodies()
        return MessageBody(
            content=text if text or not calls else None,
            reasoning_content=reasoning or UNSET,
            tool_calls=calls or UNSET,
        )


def _delta(event: Delta) -> DeltaBody:
    return DeltaBody(
        reasoning_content=event.reasoning or UNSET,
        content=event.text or UNSET,
        tool_calls=[chunk_of(call) for call in event.calls] or UNSET,
    )


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> LogprobsBody | None:
    return LogprobsBody(content=[token_body(token) for token in tokens]) if tokens else None


def token_body(token: TokenLogprob) -> TokenBody:
    """A chosen token as OpenAI writes it."""
    return TokenBody(
        token=token.piece.decode("utf-8", "replace"),
        logprob=finite(token.logprob),
        bytes=list(token.piece),
        top_logprobs=[_top(top) for top in token.top],
    )


def _top(top: TopLogprob) -> TopTokenBody:
    return TopTokenBody(
        token=top.piece.decode("utf-8", "replace"),
        logprob=finite(top.logprob),
        bytes=list(top.piece),
    )
