"""Admission without a server: what is taken, charged, refused and given back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
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
    Usage,
)
from inference.requests import ChatMessage, ChatPrompt, TextPrompt, TokensPrompt, Tool
from inference.status import EngineStats
from server.access.client import ANYBODY, Client, KeyLimits
from server.admission import Admission
from server.backlog import Stage
from server.errors import ApiError
from server.rates import WINDOW_SECONDS
from server.tickets import Ticket, estimate_tokens

END = Finished(reason=FinishReason.STOP, usage=Usage(prompt_tokens=1, completion_tokens=1))
BEGIN = Started(cached_tokens=0, queue_seconds=0.0)


class Desk:
    """An admission whose clock, engine and refusals the test holds."""

    def __init__(self, max_requests: int = 100, *, ttft: float = 0.0) -> None:
        self.now = 1000.0
        self.stats = EngineStats()
        self.refused: list[str] = []
        self.admission = Admission(
            max_requests,
            max_queue_ttft_seconds=ttft,
            stats=lambda: self.stats,
            count_refusal=self.refused.append,
            clock=lambda: self.now,
        )

    def ticket(self, client: Client = ANYBODY, *, tokens: int = 10, copies: int = 1) -> Ticket:
        return Ticket(self.admission, client, route="/test", prompt_tokens=tokens, copies=copies)

    def headers(self, client: Client) -> dict[str, str]:
        return {
            name.decode(): value.decode() for name, value in self.admission.rate_headers(client)
        }


def limited(**limits: int) -> Client:
    return Client(id="k_limited", limits=KeyLimits(**limits))


def refusal(desk: Desk, ticket: Ticket, reason: str) -> ApiError:
    with pytest.raises(ApiError) as caught, ticket:
        raise AssertionError("it was let in")
    assert desk.refused[-1] == reason
    return caught.value


def play(ticket: Ticket, *, prompt: int, generated: int, index: int = 0) -> None:
    ticket.observe(index, Accepted(prompt_tokens=prompt))
    ticket.observe(index, Queued(position=1, expected_seconds=1.0))
    ticket.observe(index, BEGIN)
    for _ in range(generated):
        ticket.observe(index, Delta(text="x", tokens=(1,)))
    ticket.observe(index, END)


def test_a_place_is_given_back_whatever_happens() -> None:
    desk = Desk()
    for error in (None, ValueError, asyncio.CancelledError, KeyboardInterrupt):
        with suppress(ValueError, asyncio.CancelledError, KeyboardInterrupt), desk.ticket() as _:
            assert desk.admission.in_flight == 1
            assert desk.admission.backlog.waiting == 1
            if error is not None:
                raise error
        assert desk.admission.in_flight == 0
        assert desk.admission.backlog.waiting == desk.admission.backlog.running == 0


def test_a_key_has_only_so_many_requests_at_once() -> None:
    desk, client = Desk(), limited(requests=2)
    with desk.ticket(client), desk.ticket(client):
        error = refusal(desk, desk.ticket(client), "client_requests")
        assert (error.status, error.code) == (429, "too_many_requests")
        assert error.retry_after_seconds
        with desk.ticket(Client(id="other")):
            assert desk.admission.in_flight == 3
    with desk.ticket(client):
        pass


def test_a_key_has_only_so_many_connections() -> None:
    desk, client = Desk(), limited(connections=1)
    with desk.admission.connection(client, must=False):
        with (
            pytest.raises(ApiError, match="1 connections") as caught,
            desk.admission.connection(client, must=False),
        ):
            pass
        assert caught.value.code == "too_many_connections"
        with desk.admission.connection(client, must=True):
            pass
        with desk.admission.connection(Client(id="other"), must=False):
            pass
    with desk.admission.connection(client, must=False):
        pass
    assert desk.refused == ["client_connections"]


def test_requests_a_minute() -> None:
    desk, client = Desk(), limited(requests_per_minute=2)
    for _ in range(2):
        with desk.ticket(client):
            pass
        desk.now += 10.0
    error = refusal(desk, desk.ticket(client), "requests_per_minute")
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.retry_after_seconds == pytest.approx(40.0)
    assert desk.headers(client) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "50.000s",
    }
    desk.now += 40.0
    with desk.ticket(client):
        pass


def test_tokens_a_minute_are_those_that_were_used() -> None:
    desk, client = Desk(), limited(tokens_per_minute=100)
    with desk.ticket(client, tokens=40) as _:
        assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "60"
    ticket = desk.ticket(client, tokens=40)
    with ticket:
        assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "20"
        play(ticket, prompt=25, generated=10)
        assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "25"
    assert (ticket.prompt_tokens, ticket.completion_tokens) == (25, 10)
    with desk.ticket(client, tokens=25):
        pass
    error = refusal(desk, desk.ticket(client, tokens=1), "tokens_per_minute")
    assert error.retry_after_seconds == pytest.approx(WINDOW_SECONDS)


def test_a_stream_may_go_over_and_the_next_one_waits() -> None:
    desk, client = Desk(), limited(tokens_per_minute=100)
    ticket = desk.ticket(client, tokens=1)
    with ticket:
        play(ticket, prompt=1, generated=500)
    with pytest.raises(ApiError):
        desk.admission.check(client)
    assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "0"


def test_copies_share_their_prompt() -> None:
    desk, client = Desk(), limited(tokens_per_minute=1000)
    ticket = desk.ticket(client, tokens=90, copies=3)
    with ticket:
        assert desk.admission.backlog.waiting == 3
        assert desk.admission.backlog._tokens[Stage.SENT] == 90
        for index in range(3):
            play(ticket, prompt=100, generated=2, index=index)
    assert (ticket.prompt_tokens, ticket.completion_tokens) == (100, 6)
    assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "894"


def test_limits_that_change_hold_from_the_next_request_on() -> None:
    desk = Desk()
    with desk.ticket(limited(requests=5)), desk.ticket(limited(requests=5)):
        refusal(desk, desk.ticket(limited(requests=2)), "client_requests")
        with desk.ticket(limited(requests=3)):
            pass
        desk.admission.max_requests = 2
        refusal(desk, desk.ticket(ANYBODY), "server_requests")


def test_a_first_token_that_cannot_come_in_time_is_refused_with_a_time() -> None:
    desk = Desk(ttft=30.0)
    desk.stats = EngineStats(lanes_total=1, waiting=0, expected_wait_seconds=10.0)
    first = desk.ticket()
    with first:
        first.observe(0, BEGIN)
        for _ in range(3):
            desk.ticket().__enter__()
        error = refusal(desk, desk.ticket(), "queue_ttft")
        assert (error.status, error.code) == (503, "queue_too_long")
        assert error.retry_after_seconds == pytest.approx(10.0)
        with desk.ticket(Client(id="somebody else")):
            pass
        desk.admission.max_queue_ttft_seconds = 0.0
        with desk.ticket():
            pass


def test_what_was_let_in_since_the_engine_spoke_counts() -> None:
    desk = Desk(ttft=10.0)
    desk.stats = EngineStats(
        lanes_total=2, running=2, expected_first_seconds=4.0, place_seconds=1.0
    )
    let_in = [desk.ticket() for _ in range(7)]
    for ticket in let_in:
        ticket.__enter__()
    refusal(desk, desk.ticket(), "queue_ttft")
    for ticket in let_in:
        ticket.observe(0, Accepted(prompt_tokens=10))
    with desk.ticket():  # the engine knows them all, and says that it is no longer
        pass


def test_a_prompt_that_takes_longer_than_the_limit_waits_for_nobody_and_is_let_in() -> None:
    desk = Desk(ttft=10.0)
    desk.stats = EngineStats(lanes_total=2, place_seconds=0.1, prefill_token_seconds=1.0)
    with desk.ticket(tokens=100):
        refusal(desk, desk.ticket(), "queue_ttft")
    desk.stats = EngineStats(
        lanes_total=2, running=2, place_seconds=0.1, expected_first_seconds=4.9
    )
    with desk.ticket(tokens=100):
        pass
    desk.stats = EngineStats(
        lanes_total=2,
        running=2,
        place_seconds=0.1,
        expected_first_seconds=5.1,
        prefill_token_seconds=1.0,
    )
    refusal(desk, desk.ticket(tokens=100), "queue_ttft")


def test_late_first_tokens_make_admission_careful() -> None:
    desk = Desk(ttft=10.0)
    desk.stats = EngineStats(
        lanes_total=2, running=2, expected_first_seconds=6.0, place_seconds=1.0
    )
    for _ in range(20):
        ticket = desk.ticket(tokens=0)
        with ticket:
            desk.now += 12.0
            ticket.observe(0, Delta(text="x", tokens=(1,)))
            desk.now += 100.0
            ticket.observe(0, Delta(text="x", tokens=(1,)))
        if desk.admission.backlog._late > 1.0:
            break
    refusal(desk, desk.ticket(tokens=0), "queue_ttft")


@pytest.mark.parametrize(
    "surprise",
    [Queued(position=1, expected_seconds=9.0), Restarted(replayed_tokens=0, paused_seconds=9.0)],
)
def test_what_nobody_could_expect_teaches_nothing(surprise: Event) -> None:
    desk = Desk(ttft=10.0)
    desk.stats = EngineStats(
        lanes_total=2, running=2, expected_first_seconds=6.0, place_seconds=1.0
    )
    for _ in range(20):
        ticket = desk.ticket(tokens=0)
        with ticket:
            ticket.observe(0, surprise)
            desk.now += 100.0
            ticket.observe(0, Delta(text="x", tokens=(1,)))
    assert desk.admission.backlog._late == 1.0


def test_a_refusal_takes_nothing() -> None:
    desk, client = Desk(max_requests=1), limited(requests_per_minute=5, tokens_per_minute=50)
    with desk.ticket():
        refusal(desk, desk.ticket(client), "server_requests")
    assert desk.headers(client)["x-ratelimit-remaining-requests"] == "5"
    assert desk.headers(client)["x-ratelimit-remaining-tokens"] == "50"
    assert desk.admission.backlog.waiting == 0


def test_idle_accounts_are_forgotten_and_used_ones_are_not() -> None:
    desk = Desk()
    busy = limited(requests_per_minute=9)
    with desk.admission.connection(Client(id="k_open"), must=False):
        for number in range(50):
            with desk.ticket(Client(id=f"k_{number}")):
                pass
        desk.now += 2 * WINDOW_SECONDS
        with desk.ticket(busy):
            pass
        assert set(desk.admission._accounts) == {"k_open", busy.id}


@given(
    st.lists(
        st.sampled_from(["accepted", "queued", "restarted", "started", "delta", "finished"]),
        max_size=30,
    )
)
def test_events_in_any_order_leave_nothing_behind(words: list[str]) -> None:
    desk = Desk()
    events: dict[str, Event] = {
        "accepted": Accepted(prompt_tokens=7),
        "queued": Queued(position=1, expected_seconds=0.0),
        "restarted": Restarted(replayed_tokens=0, paused_seconds=1.0),
        "started": BEGIN,
        "delta": Delta(text="", tokens=(1, 2)),
        "finished": END,
    }
    ticket = desk.ticket(copies=2)
    with ticket:
        for number, word in enumerate(words):
            ticket.observe(number % 2, events[word])
    backlog = desk.admission.backlog
    assert backlog.waiting == backlog.running == 0
    assert backlog._tokens[Stage.SENT] == backlog._tokens[Stage.WAITING] == 0.0
    assert desk.admission.in_flight == 0
    ticket.observe(0, BEGIN)  # too late to matter
    assert backlog.running == 0


def test_prompts_are_estimated_from_their_size() -> None:
    assert estimate_tokens(TokensPrompt(tokens=(1, 2, 3))) == 3
    assert estimate_tokens(TextPrompt(text="")) == 1
    assert 20 <= estimate_tokens(TextPrompt(text="x" * 100)) <= 30
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="x" * 100),) * 2)
    assert 50 <= estimate_tokens(chat) <= 70
    with_tool = msgspec.structs.replace(chat, tools=(Tool(name="f", parameters="x" * 400),))
    assert estimate_tokens(with_tool) >= estimate_tokens(chat) + 80
