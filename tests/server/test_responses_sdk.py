"""The Responses API as OpenAI's SDK sees it, against a real socket and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
from openai.types.responses import (
    Response,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseStreamEvent,
)

from inference.scripted import Fail, Rule, Script
from inference.scripted.script import Wait
from server.auth import ApiKeys
from server.settings import Settings
from tests.server.harness import Running, in_thread

SCRIPT = Script(
    rules=(
        Rule(match="crash", fault=Fail(after_tokens=2)),
        Rule(match="weather", reply="It rains in the valley."),
        Rule(match="busy", reply="Now.", queued=(Wait(position=2, expected_seconds=0.1),)),
        Rule(match="for ever", reply="On and on and on.", token_seconds=3600.0),
    )
)
WHOLE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@dataclass(frozen=True)
class Two:
    """Two clients of one server."""

    ada: openai.OpenAI
    bob: openai.OpenAI
    server: Running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), coalesce_ms=0.0)
    with in_thread(SCRIPT, keys=ApiKeys(["first", "second"]), settings=settings) as running:
        yield running


@pytest.fixture
def two(server: Running) -> Iterator[Two]:
    options = {"base_url": f"{server.url}/v1", "max_retries": 0, "timeout": 30.0}
    with (
        openai.OpenAI(api_key="first", **options) as ada,  # type: ignore[arg-type]
        openai.OpenAI(api_key="second", **options) as bob,  # type: ignore[arg-type]
    ):
        yield Two(ada, bob, server)


def kinds(events: list[ResponseStreamEvent]) -> list[str]:
    """The types of the events, those of equal neighbours once."""
    types = [event.type for event in events]
    return [kind for i, kind in enumerate(types) if i == 0 or types[i - 1] != kind]


def text_of(events: list[ResponseStreamEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def message_of(response: Response) -> tuple[ResponseOutputMessage, ResponseOutputText]:
    """The one output item, and its one part."""
    (item,) = response.output
    assert isinstance(item, ResponseOutputMessage)
    (part,) = item.content
    assert isinstance(part, ResponseOutputText)
    return item, part


def test_create(two: Two) -> None:
    made = two.ada.responses.create(
        model="default",
        input="weather",
        instructions="Be brief.",
        metadata={"mill": "4"},
        temperature=0.5,
    )
    assert made.output_text == "It rains in the valley."
    assert (made.status, made.instructions, made.metadata) == (
        "completed",
        "Be brief.",
        {"mill": "4"},
    )
    assert (made.temperature, made.model, made.error) == (0.5, "scripted", None)
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.completed_at is not None
    assert two.ada.responses.retrieve(made.id) == made


def test_the_conversation_goes_on_with_the_output(two: Two) -> None:
    first = two.ada.responses.create(model="default", input="weather")
    again = two.ada.responses.create(
        model="default",
        input=[
            {"role": "user", "content": "weather"},
            *(item.model_dump() for item in first.output),  # type: ignore[list-item]
            {"role": "user", "content": "weather"},
        ],
    )
    assert again.output_text == first.output_text


def test_a_stream(two: Two) -> None:
    events = list(two.ada.responses.create(model="default", input="weather", stream=True))
    assert kinds(events) == WHOLE
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert text_of(events) == "It rains in the valley."
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "It rains in the valley."
    assert two.ada.responses.retrieve(events[-1].response.id).output == events[-1].response.output


def test_a_stream_goes_on_after_any_event(two: Two) -> None:
    events = list(two.ada.responses.create(model="default", input="weather", stream=True))
    assert events[0].type == "response.created"
    response_id = events[0].response.id
    assert list(two.ada.responses.retrieve(response_id, stream=True)) == events
    for after in range(len(events)):
        rest = two.ada.responses.retrieve(response_id, stream=True, starting_after=after)
        assert list(rest) == events[after + 1 :]
    with pytest.raises(openai.BadRequestError) as beyond:
        two.ada.responses.retrieve(response_id, stream=True, starting_after=len(events))
    assert beyond.value.param == "starting_after"


def test_the_sdks_own_reader_of_streams(two: Two) -> None:
    with two.ada.responses.stream(model="default", input="weather") as stream:
        response_id = next(iter(stream)).response.id  # type: ignore[union-attr]
        stream.until_done()
        assert stream.get_final_response().output_text == "It rains in the valley."
    with two.ada.responses.stream(response_id=response_id, starting_after=5) as resumed:
        assert next(iter(resumed)).sequence_number == 6
        assert resumed.get_final_response().id == response_id


def test_the_place_in_the_queue(two: Two) -> None:
    events = list(two.ada.responses.create(model="default", input="busy", stream=True))
    assert kinds(events)[:3] == ["response.created", "response.queued", "response.in_progress"]


def test_in_the_background(two: Two) -> None:
    made = two.ada.responses.create(model="default", input="for ever", background=True)
    assert made.status in ("queued", "in_progress")
    with two.ada.responses.retrieve(made.id, stream=True) as stream:
        seen = []
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    now = two.ada.responses.retrieve(made.id)
    assert (now.status, now.output_text, now.background) == ("in_progress", "O", True)
    assert now.usage is None
    cancelled = two.ada.responses.cancel(made.id)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", "O")
    assert two.ada.responses.cancel(made.id) == cancelled
    last = seen[-1].sequence_number
    rest = list(two.ada.responses.retrieve(made.id, stream=True, starting_after=last))
    assert kinds(rest) == [*WHOLE[5:-1], "response.incomplete"]
    assert rest[0].sequence_number == last + 1
    assert rest[-1].response == cancelled  # type: ignore[union-attr]


def test_in_the_background_and_followed(two: Two) -> None:
    stream = two.ada.responses.create(
        model="default", input="weather", background=True, stream=True
    )
    assert text_of(list(stream)) == "It rains in the valley."


def test_what_ran_into_its_limit_is_incomplete(two: Two) -> None:
    made = two.ada.responses.create(model="default", input="weather", max_output_tokens=2)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    stream = two.ada.responses.create(
        model="default", input="weather", max_output_tokens=2, stream=True
    )
    assert list(stream)[-1].type == "response.incomplete"


def test_log_probabilities(two: Two) -> None:
    asked = {
        "model": "default",
        "input": "weather",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    made = two.ada.responses.create(**asked)  # type: ignore[call-overload]
    assert isinstance(made, Response)
    _, part = message_of(made)
    assert part.logprobs is not None
    assert "".join(each.token for each in part.logprobs) == made.output_text
    assert {len(each.top_logprobs) for each in part.logprobs} == {2}
    events = list(two.ada.responses.create(**asked, stream=True))  # type: ignore[call-overload]
    shown = [
        each.token
        for event in events
        if event.type == "response.output_text.delta"
        for each in event.logprobs
    ]
    assert "".join(shown) == made.output_text


def test_a_failure(two: Two) -> None:
    with pytest.raises(openai.InternalServerError) as broken:
        two.ada.responses.create(model="default", input="crash")
    assert broken.value.code == "decode_failed"
    events = list(two.ada.responses.create(model="default", input="crash", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert str(last.response.error.code) == "decode_failed"
    assert message_of(last.response)[0].status == "incomplete"
    assert two.ada.responses.retrieve(last.response.id).status == "failed"


def test_the_input_is_listed(two: Two) -> None:
    made = two.ada.responses.create(
        model="default",
        input=[
            {"role": "user", "content": "weather"},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": [{"type": "input_text", "text": "weather"}]},
        ],
    )
    items = two.ada.responses.input_items.list(made.id, order="asc", limit=2)
    assert [item.role for item in items.data] == ["user", "assistant"]  # type: ignore[union-attr]
    assert len(list(items)) == 3, "the SDK asks for the next page by itself"
    (newest,) = two.ada.responses.input_items.list(made.id, limit=1).data
    assert newest.to_dict()["content"] == [{"type": "input_text", "text": "weather"}]


def test_what_was_deleted_or_is_somebody_elses_or_never_was_is_not_found(two: Two) -> None:
    mine = two.ada.responses.create(model="default", input="weather").id
    gone = two.ada.responses.create(model="default", input="weather").id
    unstored = two.ada.responses.create(model="default", input="weather", store=False).id
    two.ada.responses.delete(gone)
    answers = set()
    for client, response_id in (
        (two.bob, mine),
        (two.ada, gone),
        (two.ada, unstored),
        (two.ada, "resp_0"),
    ):
        for ask in (
            client.responses.retrieve,
            client.responses.cancel,
            client.responses.delete,
            client.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError) as unknown:
                ask(response_id)
            answers.add(unknown.value.response.content)
        with pytest.raises(openai.NotFoundError) as unknown:
            client.responses.retrieve(response_id, stream=True, starting_after=3)
        answers.add(unknown.value.response.content)
    assert len(answers) == 1
    assert two.ada.responses.retrieve(mine).id == mine


def test_what_runs_can_be_deleted(two: Two) -> None:
    made = two.ada.responses.create(model="default", input="for ever", background=True)
    two.ada.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        two.ada.responses.retrieve(made.id)


def test_refusals_name_the_parameter(two: Two) -> None:
    ask = two.ada.responses.create
    with pytest.raises(openai.BadRequestError) as tools:
        ask(model="default", input="x", tools=[{"type": "web_search"}])
    assert (tools.value.param, tools.value.code) == ("tools[0].type", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as unkept:
        ask(model="default", input="x", background=True, store=False)
    assert unkept.value.param == "background"
    with pytest.raises(openai.BadRequestError) as long:
        ask(model="default", input="x " * 10_000, background=True)
    assert (long.value.param, long.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-9", input="x")


def test_a_request_that_was_refused_leaves_nothing_behind(two: Two) -> None:
    before = {each["id"] for each in listed(two.ada)}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            two.ada.responses.create(model="default", input="x " * 10_000, stream=stream)
    assert {each["id"] for each in listed(two.ada)} == before


def listed(client: openai.OpenAI) -> list[dict[str, str]]:
    return client.get("/streams", cast_to=dict)["data"]  # type: ignore[no-any-return]
