"""A log as the events, and as the object, of OpenAI's Responses API: pure.

What is shown depends on nothing but the response's details and the prefix of its log:
numbers are counted, never stored. So whoever projects the same log again gets the same
events, and a stream that is resumed after an event goes on with exactly the next one.

    created  queued?  in_progress?
    what `server.wire.responses_output` tells of the items
    completed | failed | incomplete

An item that has begun is closed whatever happens. OpenAI has no event for a
cancellation, so it is `response.incomplete` with the status `cancelled`.
"""

from __future__ import annotations

import enum
from typing import TypeAlias, assert_never

from inference.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Queued,
    Restarted,
    Started,
)
from server.streams.events import (
    Cancelled,
    Completed,
    Entry,
    Failed,
    Incomplete,
    Sequenced,
    Terminal,
)
from server.wire.chat_events import TokenBody, token_body
from server.wire.comments import ENGINE_RESTARTED, Comment, comment_of
from server.wire.responses_body import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseBody,
    ResponseDetails,
    ResponseError,
    ResponseUsage,
    Status,
)
from server.wire.responses_events import (
    Created,
    InProgress,
    QueuedForALane,
    ResponseCompleted,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
)
from server.wire.responses_output import Output

Shown: TypeAlias = ResponseEvent | Comment

AT_LIMIT = IncompleteDetails(reason="max_output_tokens")


class Stage(enum.IntEnum):
    """How far the events have come; it only grows."""

    NOTHING = 0
    CREATED = 1
    QUEUED = 2
    RUNNING = 3
    ENDED = 4


class ResponsesProjection:
    """Shows the log of one response, fed with its entries from the first on.

    `created_at` is a Unix time in seconds. Mutable, owned by whoever feeds it: `number`,
    that of the next event, and what the entries so far have said.
    """

    def __init__(self, response_id: str, details: ResponseDetails, *, created_at: float) -> None:
        self.number = 0
        self._id = response_id
        self._output = Output(response_id, self._take)
        self._details = details
        self._created_at = int(created_at)
        self._ended_at: int | None = None
        self._stage = Stage.NOTHING
        self._status: Status = "queued"
        self._error: ResponseError | None = None
        self._incomplete: IncompleteDetails | None = None
        self._prompt_tokens: int | None = None
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._reasoning_tokens = 0
        self._reason = FinishReason.STOP
        self._events: list[Shown] = []

    def show(self, entry: Entry, *, ended_at: float | None = None) -> list[Shown]:
        """What the next entry adds: its events, and comments beside them.

        `ended_at` is the Unix time of the end, where the entry is one and it is known.
        """
        if self._stage is Stage.NOTHING:
            self._stage = Stage.CREATED
            self._events.append(Created(sequence_number=self._take(), response=self.body()))
        match entry.event:
            case Sequenced(event=event):
                self._sequence(event)
            case terminal:
                self._end(terminal, ended_at)
        shown, self._events = self._events, []
        return shown

    def body(self) -> ResponseBody:
        """The response as far as the entries so far tell."""
        details = self._details
        return ResponseBody(
            id=self._id,
            created_at=self._created_at,
            status=self._status,
            background=details.background,
            completed_at=self._ended_at if self._status == "completed" else None,
            error=self._error,
            incomplete_details=self._incomplete,
            instructions=details.instructions,
            max_output_tokens=details.max_output_tokens,
            metadata=details.metadata,
            model=details.model,
            output=self._output.items(),
            parallel_tool_calls=details.parallel_tool_calls,
            prompt_cache_key=details.prompt_cache_key,
            safety_identifier=details.safety_identifier,
            reasoning={"effort": details.effort, "summary": None},
            store=details.store,
            temperature=details.temperature,
            text={"format": details.format},
            tool_choice=details.tool_choice,
            tools=details.tools,
            top_logprobs=details.top_logprobs,
            top_p=details.top_p,
            usage=self._usage() if self._stage is Stage.ENDED else None,
            user=details.user,
        )

    # What entries say.

    def _sequence(self, event: Event) -> None:
        match event:
            case Accepted(prompt_tokens=tokens):
                self._prompt_tokens = tokens
            case Queued():
                self._queued(event)
            case Started(cached_tokens=cached):
                if self._stage < Stage.RUNNING:  # a preempted sequence starts again
                    self._cached_tokens = cached
                self._run()
            case Restarted():
                self._events.append(ENGINE_RESTARTED)
            case Delta():
                self._delta(event)
            case Finished(reason=reason, usage=usage):
                self._reason = reason
                self._prompt_tokens, self._cached_tokens = usage.prompt_tokens, usage.cached_tokens
                self._completion_tokens = usage.completion_tokens
                self._reasoning_tokens = usage.reasoning_tokens
                self._run()
                if not self._output.begun:
                    self._events += self._output.open_message()
                cut = reason is FinishReason.LENGTH
                self._events += self._output.close("incomplete" if cut else "completed")
            case _:
                assert_never(event)

    def _queued(self, event: Queued) -> None:
        if self._stage < Stage.QUEUED:
            self._stage = Stage.QUEUED
            self._events.append(QueuedForALane(sequence_number=self._take(), response=self.body()))
        self._events.append(comment_of(event))

    def _delta(self, event: Delta) -> None:
        self._completion_tokens += len(event.tokens)
        logprobs: tuple[TokenBody, ...] = ()
        if self._details.logprobs:
            logprobs = tuple(map(token_body, event.logprobs or ()))
        self._run()
        if event.reasoning:
            self._events += self._output.think(event.reasoning)
        if event.text or logprobs:
            self._events += self._output.say(event.text, logprobs)
        for call in event.calls:
            self._events += self._output.call(call)

    def _end(self, terminal: Terminal, ended_at: float | None) -> None:
        self._events += self._output.close("incomplete")
        self._stage = Stage.ENDED
        self._ended_at = None if ended_at is None else int(ended_at)
        kind: type[ResponseCompleted | ResponseFailed | ResponseIncomplete] = ResponseIncomplete
        match terminal:
            case Completed() if self._reason is FinishReason.LENGTH:
                self._status, self._incomplete = "incomplete", AT_LIMIT
            case Completed():
                self._status, kind = "completed", ResponseCompleted
            case Failed(code=code, message=message, param=param):
                self._status, kind = "failed", ResponseFailed
                self._error = ResponseError(code=code, message=message, param=param)
            case Cancelled():
                self._status = "cancelled"
            case Incomplete(reason=reason):
                self._status, self._incomplete = "incomplete", IncompleteDetails(reason=reason)
            case _:
                assert_never(terminal)
        self._events.append(kind(sequence_number=self._take(), response=self.body()))

    # What is shown when a stage is reached.

    def _run(self) -> None:
        if self._stage < Stage.RUNNING:
            self._stage, self._status = Stage.RUNNING, "in_progress"
            self._events.append(InProgress(sequence_number=self._take(), response=self.body()))

    # Small things.

    def _take(self) -> int:
        self.number += 1
        return self.number - 1

    def _usage(self) -> ResponseUsage | None:
        """What was used, also where the engine came to no end; None before it said anything."""
        if self._prompt_tokens is None:
            return None
        return ResponseUsage(
            input_tokens=self._prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=self._cached_tokens),
            output_tokens=self._completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._reasoning_tokens),
            total_tokens=self._prompt_tokens + self._completion_tokens,
        )
