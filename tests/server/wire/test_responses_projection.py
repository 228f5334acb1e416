"""Every log shows as a lawful stream of events, and as the same one each time."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from inference.events import (
    Accepted,
    Delta,
    Finished,
    FinishReason,
    Queued,
    Restarted,
    Started,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from server.streams.events import (
    Cancelled,
    Completed,
    Entry,
    Incomplete,
    LogEvent,
    Sequenced,
    State,
    Terminal,
    decode,
    encode,
    state_after,
)
from server.wire.comments import Comment, queued_of
from server.wire.responses_body import (
    FunctionCallItem,
    OutputItem,
    OutputMessage,
    ReasoningItem,
    ResponseBody,
    ResponseDetails,
)
from server.wire.responses_body import decode as decode_details
from server.wire.responses_body import encode as encode_details
from server.wire.responses_events import Numbered, TextDelta, TextDone, Whole
from server.wire.responses_projection import ResponsesProjection, Shown
from tests.server.wire.responses_logs import DETAILS, FAILED, WITH_LOGPROBS, logs

KINDS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
either = st.sampled_from((DETAILS, WITH_LOGPROBS))

GRAMMAR = re.compile(
    r"(created( queued)?( in_progress( output_item\.added content_part\.added"
    r"( output_text\.delta)*( output_text\.done content_part\.done output_item\.done)?)?)?"
    r"( completed| failed| incomplete)?)?"
)


def projection(details: ResponseDetails = DETAILS) -> ResponsesProjection:
    return ResponsesProjection("resp_1f", details, created_at=1_700_000_000.9)


def shown(log: Sequence[Entry], details: ResponseDetails = DETAILS) -> list[Shown]:
    fresh = projection(details)
    return [each for entry in log for each in fresh.show(entry)]


def numbered(log: Sequence[Entry], details: ResponseDetails = DETAILS) -> list[Numbered]:
    return [event for event in shown(log, details) if isinstance(event, Numbered)]


def words(events: Sequence[Numbered]) -> str:
    names = [str(event.__struct_config__.tag) for event in events]
    return " ".join(name.removeprefix("response.") for name in names)


def final(log: Sequence[Entry], details: ResponseDetails = DETAILS) -> ResponseBody:
    fresh = projection(details)
    for entry in log:
        fresh.show(entry, ended_at=1_700_000_009.9)
    return fresh.body()


def log_of(*events: LogEvent) -> list[Entry]:
    return [Entry(number=number, event=event) for number, event in enumerate(events)]


def at(*events: Accepted | Started | Delta | Finished) -> list[Sequenced]:
    return [Sequenced(index=0, event=event) for event in events]


def text_of(item: OutputItem) -> str:
    assert isinstance(item, OutputMessage)
    return item.content[0].text


BEGUN = at(Accepted(prompt_tokens=7), Started(cached_tokens=3, queue_seconds=0.0))
SOME = at(Delta(text="It ra", tokens=(1, 2)))


def finished(reason: FinishReason) -> list[Sequenced]:
    usage = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
    return at(Finished(reason=reason, usage=usage))


@given(log=logs(), details=either)
def test_the_logs_are_lawful_and_show_as_lawful_streams(
    log: list[Entry], details: ResponseDetails
) -> None:
    state = State.QUEUED
    for entry in log:
        state = state_after(state, entry.event)
    events = numbered(log, details)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert GRAMMAR.fullmatch(words(events)), words(events)
    ends = re.findall(r"(?<![.\w])(completed|failed|incomplete)", words(events))
    assert len(ends) == (1 if log and log[-1].last else 0)


@given(log=logs(), details=either, data=st.data())
def test_a_stream_resumed_after_any_event_is_the_rest_of_the_whole(
    log: list[Entry], details: ResponseDetails, data: st.DataObject
) -> None:
    """Whoever resumes has only what a store gives back, in another process, and reads on."""
    whole = numbered(log, details)
    after = data.draw(st.integers(-1, len(whole)))
    upto = data.draw(st.integers(0, len(log)))
    other = projection(decode_details(encode_details(details)))
    resumed: list[Shown] = []
    for entry in log[:upto]:
        resumed += other.show(Entry(number=entry.number, event=decode(encode(entry.event))))
    for entry in log[upto:]:
        resumed += other.show(entry)
    rest = [each for each in resumed if isinstance(each, Numbered)]
    assert [event for event in rest if event.sequence_number > after] == whole[after + 1 :]
    assert other.number == len(whole)


@given(log=logs(), details=either)
def test_what_was_shown_stands(log: list[Entry], details: ResponseDetails) -> None:
    """More entries only add events, and the parts always make the whole."""
    fresh = projection(details)
    seen: list[Shown] = []
    for upto, entry in enumerate(log, start=1):
        seen += fresh.show(entry)
        assert seen == shown(log[:upto], details)
        text = "".join(each.delta for each in seen if isinstance(each, TextDelta))
        body = fresh.body()
        assert "".join(text_of(item) for item in body.output) == text
        for each in seen:
            if isinstance(each, TextDone):
                assert each.text == text
        if isinstance(entry.event, Terminal):
            assert isinstance(seen[-1], Whole)
            assert seen[-1].response == body


@given(log=logs(), details=either)
def test_everything_is_as_the_sdk_has_it(log: list[Entry], details: ResponseDetails) -> None:
    for event in numbered(log, details):
        if isinstance(event, Whole) and event.response.incomplete_details is not None:
            continue  # reasons of our own
        if isinstance(event, Whole) and event.response.error is not None:
            continue
        raw = msgspec.json.encode(event)
        assert KINDS.validate_json(raw).type == event.__struct_config__.tag


@given(log=logs())
def test_numbers_do_not_depend_on_log_probabilities_that_nobody_asked_for(
    log: list[Entry],
) -> None:
    def without(entry: Entry) -> Entry:
        match entry.event:
            case Sequenced(event=Delta() as delta):
                plain = Delta(text=delta.text, tokens=delta.tokens)
                return Entry(number=entry.number, event=Sequenced(index=0, event=plain))
            case _:
                return entry

    assert shown(log) == shown([without(entry) for entry in log])


@pytest.mark.parametrize(
    ("end", "status", "reason", "last"),
    [
        (Cancelled(reason="stopped"), "cancelled", None, "incomplete"),
        (Incomplete(reason="server_restarted"), "incomplete", "server_restarted", "incomplete"),
        (FAILED, "failed", None, "failed"),
    ],
)
def test_an_answer_that_has_begun_is_closed_by_any_end(
    end: Terminal, status: str, reason: str | None, last: str
) -> None:
    log = log_of(*BEGUN, *SOME, end)
    body = final(log)
    assert (body.status, body.completed_at) == (status, None)
    assert (body.incomplete_details.reason if body.incomplete_details else None) == reason
    assert (body.error.code if body.error else None) == (
        "decode_failed" if status == "failed" else None
    )
    (item,) = body.output
    assert (item.status, text_of(item)) == ("incomplete", "It ra")
    assert body.usage is not None
    assert (body.usage.input_tokens, body.usage.output_tokens) == (7, 2)
    assert body.usage.input_tokens_details.cached_tokens == 3
    assert words(numbered(log)).endswith(
        f"output_text.delta output_text.done content_part.done output_item.done {last}"
    )


def test_an_end_before_the_first_word_has_no_output() -> None:
    log = log_of(*BEGUN, Cancelled(reason="stopped"))
    assert words(numbered(log)) == "created in_progress incomplete"
    assert final(log).output == ()


def test_the_good_end_says_when_it_was_and_what_it_took() -> None:
    body = final(log_of(*BEGUN, *SOME, *finished(FinishReason.STOP), Completed()))
    assert (body.status, body.created_at, body.completed_at) == (
        "completed",
        1_700_000_000,
        1_700_000_009,
    )
    response = Response.model_validate_json(msgspec.json.encode(body))
    assert response.output_text == "It ra"
    assert response.usage is not None
    assert response.usage.total_tokens == 9


def test_the_limit_of_tokens_makes_it_incomplete() -> None:
    log = log_of(*BEGUN, *SOME, *finished(FinishReason.LENGTH), Completed())
    body = final(log)
    assert body.status == body.output[0].status == "incomplete"
    assert Response.model_validate_json(msgspec.json.encode(body)).incomplete_details is not None
    assert words(numbered(log)).endswith("output_item.done incomplete")


def test_places_and_restarts_are_comments_that_take_no_number() -> None:
    place = Queued(position=2, expected_seconds=1.0)
    log = log_of(
        BEGUN[0],
        Sequenced(index=0, event=place),
        Sequenced(index=0, event=Queued(position=1, expected_seconds=0.5)),
        BEGUN[1],
        *SOME,
        Sequenced(index=0, event=Restarted(replayed_tokens=2, paused_seconds=1.0)),
        *finished(FinishReason.STOP),
        Completed(),
    )
    comments = [each.text for each in shown(log) if isinstance(each, Comment)]
    assert [queued_of(text) for text in comments] == [
        place,
        Queued(position=1, expected_seconds=0.5),
        None,
    ]
    assert comments[-1] == "engine restarted"
    assert words(numbered(log)).startswith("created queued in_progress output_item.added")


def test_before_anything_has_happened_it_is_queued() -> None:
    body = projection().body()
    assert (body.status, body.output, body.usage) == ("queued", (), None)
    assert Response.model_validate_json(msgspec.json.encode(body)).status == "queued"


HEAD = ToolCallDelta(index=0, id="call_a", name="weather", arguments="{")
OTHER = ToolCallDelta(index=1, id="call_b", name="time", arguments="{}")
ANSWER = at(
    Delta(text="", reasoning="Hm", tokens=(1,)),
    Delta(text="Wait", reasoning="m.", tokens=(2, 3)),
    Delta(text=".", tokens=(4,), calls=(HEAD,)),
    Delta(text="", tokens=(5,), calls=(ToolCallDelta(index=0, arguments="}"), OTHER)),
)
MADE = at(
    Finished(
        reason=FinishReason.TOOL_CALLS,
        usage=Usage(prompt_tokens=7, completion_tokens=5, reasoning_tokens=3),
    )
)


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    log = log_of(*BEGUN, *ANSWER, *MADE, Completed())
    assert words(numbered(log)).split() == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        "output_item.added",
        *("function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    body = final(log)
    thought, said, *calls = body.output
    assert isinstance(thought, ReasoningItem)
    assert thought.content[0].text == "Hmm."
    assert text_of(said) == "Wait."
    told = []
    for call in calls:
        assert isinstance(call, FunctionCallItem)
        told.append((call.call_id, call.name, call.arguments, call.status))
    assert told == [
        ("call_a", "weather", "{}", "completed"),
        ("call_b", "time", "{}", "completed"),
    ]
    assert len({item.id for item in body.output}) == 4
    assert body.usage is not None
    assert body.usage.output_tokens_details.reasoning_tokens == 3
    raw = msgspec.json.encode(body)
    assert Response.model_validate_json(raw).output[2].type == "function_call"
    for event in numbered(log):
        raw = msgspec.json.encode(event)
        assert KINDS.validate_json(raw).type == event.__struct_config__.tag


def test_a_call_that_was_cut_is_incomplete() -> None:
    log = log_of(*BEGUN, *ANSWER[:3], *finished(FinishReason.LENGTH), Completed())
    call = final(log).output[-1]
    assert isinstance(call, FunctionCallItem)
    assert (call.status, call.arguments) == ("incomplete", "{")
    assert "arguments.done" not in words(numbered(log))


def test_log_probabilities_without_text_wait_for_it() -> None:
    """The tokens of a call's mark are no text, and open no message."""
    marks = at(Delta(text="", tokens=(1,), logprobs=(logprob(1),)))
    log = log_of(*BEGUN, *marks, *at(Delta(text="", tokens=(2,), calls=(HEAD,))))
    assert "output_text" not in words(numbered(log, WITH_LOGPROBS))
    text = at(Delta(text="\u00e9", tokens=(2,), logprobs=(logprob(2),)))
    log = log_of(*BEGUN, *marks, *text)
    (delta,) = [each for each in numbered(log, WITH_LOGPROBS) if isinstance(each, TextDelta)]
    assert len(delta.logprobs) == 2


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token=token, piece=b"x", logprob=-0.5)
