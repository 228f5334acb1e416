"""Chunks add up to the whole message, however its deltas were cut and merged."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from inference.events import Accepted, Delta, Event, Finished, FinishReason, ToolCallDelta, Usage
from server.streams.coalescing import Coalescer
from server.streams.events import Sequenced
from server.wire.chat_events import ChatProjection, ChatSummary
from server.wire.common import Envelope

ENVELOPE = Envelope(id="chatcmpl-1", created=1, model="m", system_fingerprint="f")
USAGE = Usage(prompt_tokens=3, completion_tokens=9, reasoning_tokens=2)
texts = st.text("ab{", min_size=1, max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """An answer as a dialect's parser tells it: reasoning, text, calls, in any pieces."""
    deltas = [Delta(reasoning=text, text="", tokens=(1,)) for text in draw(st.lists(texts))]
    deltas += [Delta(text=text, tokens=(1,)) for text in draw(st.lists(texts))]
    for index in range(draw(st.integers(0, 3))):
        head = ToolCallDelta(index=index, id=f"call_{index}", name="weather")
        deltas.append(Delta(text="", tokens=(1,), calls=(head,)))
        deltas += [
            Delta(text="", tokens=(1,), calls=(ToolCallDelta(index=index, arguments=text),))
            for text in draw(st.lists(texts))
        ]
    called = any(delta.calls for delta in deltas)
    reason = FinishReason.TOOL_CALLS if called else FinishReason.STOP
    return [Accepted(prompt_tokens=3), *deltas, Finished(reason=reason, usage=USAGE)]


def merged(events: list[Event], flushes: list[bool]) -> list[Event]:
    """The events as a producer writes them, gathered until a flush."""
    coalescer = Coalescer()
    ready: list[Sequenced] = []
    for event, flush in zip(events, flushes, strict=False):
        ready += coalescer.add(Sequenced(index=0, event=event))
        ready += coalescer.flush() if flush else []
    return [each.event for each in ready]


def put_together(events: list[Event]) -> dict[str, Any]:
    """What a client makes of the chunks, in the way of OpenAI's guide."""
    projection = ChatProjection(ENVELOPE, n=1, include_usage=True)
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for event in events:
        for chunk in projection.show(0, event):
            choice = msgspec.to_builtins(chunk)["choices"][0]
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            message["reasoning_content"] += delta.get("reasoning_content", "")
            for piece in delta.get("tool_calls", ()):
                calls = message["tool_calls"]
                if piece["index"] == len(calls):
                    calls.append({key: piece[key] for key in ("id", "type", "function")})
                else:
                    assert set(piece) == {"index", "function"}
                    assert set(piece["function"]) == {"arguments"}
                    calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


def whole(events: list[Event]) -> dict[str, Any]:
    summary = ChatSummary(ENVELOPE, n=1, logprobs=False)
    for event in events:
        summary.add(0, event)
    choice = msgspec.to_builtins(summary.body([USAGE]))["choices"][0]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": message.get("tool_calls", []),
        "finish_reason": choice["finish_reason"],
    }


@given(events=answers(), data=st.data())
def test_chunks_add_up_to_the_message(events: list[Event], data: st.DataObject) -> None:
    flushes = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    shown = merged(events, flushes)
    assert put_together(events) == put_together(shown) == whole(events) == whole(shown)


def test_content_is_null_only_beside_calls() -> None:
    head = ToolCallDelta(index=0, id="call_0", name="weather", arguments="{}")
    calling = [Delta(text="", tokens=(1,), calls=(head,))]
    for events, content in ((calling, None), ([], "")):
        summary = ChatSummary(ENVELOPE, n=1, logprobs=False)
        for event in events:
            summary.add(0, event)
        assert summary.body([USAGE]).choices[0].message.content == content


def test_usage_counts_reasoning() -> None:
    body = ChatSummary(ENVELOPE, n=2, logprobs=False).body([USAGE, USAGE])
    assert body.usage.completion_tokens_details.reasoning_tokens == 4
