"""Logs as the engine and the producer may write them, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from inference.events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Queued,
    Restarted,
    Started,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from server.streams.events import (
    Cancelled,
    Completed,
    Entry,
    Failed,
    Incomplete,
    LogEvent,
    Sequenced,
)
from server.wire.responses_body import InputItem, ResponseDetails

DETAILS = ResponseDetails(
    model="tiny",
    input=(InputItem(role="user", texts=("Hello",)),),
    temperature=0.8,
    top_p=0.95,
    metadata={"project": "mill"},
)
WITH_LOGPROBS = ResponseDetails(
    model="tiny", input=DETAILS.input, temperature=0.0, top_p=1.0, logprobs=True, top_logprobs=1
)

FAILED = Failed(status=503, code="decode_failed", message="It broke.")
ENDS: tuple[LogEvent, ...] = (
    FAILED,
    Cancelled(reason="stopped"),
    Cancelled(reason="detached"),
    Incomplete(reason="server_restarted"),
    Incomplete(reason="drain_deadline"),
)

queued = st.builds(Queued, position=st.integers(1, 9), expected_seconds=st.floats(0.0, 9.0))
started = st.builds(Started, cached_tokens=st.integers(0, 5), queue_seconds=st.just(0.1))
restarted = st.builds(Restarted, replayed_tokens=st.just(1), paused_seconds=st.just(0.5))


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    tokens = tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=3)))
    logprobs = None
    if draw(st.booleans()):
        logprobs = tuple(
            TokenLogprob(
                token=token,
                piece=bytes([token + 100]),
                logprob=-0.5,
                top=(TopLogprob(token=token, piece=b"x", logprob=-0.5),),
            )
            for token in tokens
        )
    return Delta(text=draw(st.text(max_size=3)), tokens=tokens, logprobs=logprobs)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """A whole log, or the beginning of one."""
    events: list[Event] = [Accepted(prompt_tokens=draw(st.integers(1, 50)))]
    events += draw(st.lists(queued, max_size=2))
    events.append(draw(started))
    events += draw(st.lists(st.one_of(deltas(), deltas(), queued, started, restarted), max_size=9))
    written = sum(len(event.tokens) for event in events if isinstance(event, Delta))
    usage = Usage(prompt_tokens=events[0].prompt_tokens, completion_tokens=written)  # type: ignore[union-attr]
    events.append(Finished(reason=draw(st.sampled_from(FinishReason)), usage=usage))
    log: list[LogEvent] = [*(Sequenced(index=0, event=event) for event in events), Completed()]
    if draw(st.booleans()):
        del log[draw(st.integers(0, len(log) - 1)) :]
        log += draw(st.one_of(st.just(()), st.sampled_from(ENDS).map(lambda end: (end,))))
    return [Entry(number=number, event=event) for number, event in enumerate(log)]
