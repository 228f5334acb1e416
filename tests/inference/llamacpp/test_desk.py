"""Requests that wait for their constraint: what overtakes them, and what finds them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llguidance import LLMatcher

from inference.errors import InvalidRequest
from inference.llamacpp.constraints.compiler import Compiler, Outcome
from inference.llamacpp.constraints.guide import Guide
from inference.llamacpp.constraints.trial import tokenizer_of
from inference.llamacpp.desk import Desk
from inference.llamacpp.intake import Intake
from inference.llamacpp.messages import Abort, Park, Resume, Submit
from inference.requests import GenerationRequest, Regex, TextPrompt
from tests.inference.llamacpp.constraints.letters import SIZE, VOCABULARY


class Generation:
    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.guide: Guide | None = None
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Office:
    """An intake, a compiler that does what it is told, and the two ways out."""

    def __init__(self) -> None:
        self.put: list[Any] = []
        self.refused: list[tuple[str, Exception]] = []
        self.orders: list[tuple[Callable[[], bool], Callable[[Outcome], None]]] = []
        self.made: dict[str, Generation] = {}
        self.desk = Desk(
            cast(Intake, self),
            cast(Compiler, self),
            put=self.put.append,
            refuse=lambda id, error: self.refused.append((id, error)),
        )

    def generation(self, request: GenerationRequest, resumes: object) -> Generation:
        if request.id == "bad":
            raise InvalidRequest("bad")
        self.made[request.id] = Generation(request)
        return self.made[request.id]

    def steer(self, generation: Generation, guide: Guide | None) -> None:
        generation.guide = guide

    def ask(
        self,
        constraint: object,
        *,
        client: str,
        wanted: Callable[[], bool],
        then: Callable[[Outcome], None],
        patient: bool,
    ) -> None:
        self.orders.append((wanted, then))

    def submit(self, id: str, *, constrained: bool) -> None:
        constraint = Regex(pattern="a") if constrained else None
        self.desk.submit(
            Submit(
                request=GenerationRequest(id=id, prompt=TextPrompt(text="x"), constraint=constraint)
            )
        )


def a_guide() -> Guide:
    matcher = LLMatcher(tokenizer_of(VOCABULARY), LLMatcher.grammar_from_regex("a"))
    return Guide(matcher, SIZE)


def test_who_has_no_constraint_does_not_wait_for_who_has() -> None:
    office = Office()
    office.submit("slow", constrained=True)
    office.submit("quick", constrained=False)
    office.desk.obey(Park(id="quick"))
    assert office.put == [office.made["quick"], Park(id="quick")]
    wanted, then = office.orders[0]
    assert wanted()
    guide = a_guide()
    then(guide)
    assert office.put[2:] == [office.made["slow"]]
    assert office.made["slow"].guide is guide
    assert not wanted()


def test_commands_keep_their_order_behind_the_request() -> None:
    office = Office()
    office.submit("a", constrained=True)
    office.desk.obey(Park(id="a"))
    office.desk.obey(Resume(id="a"))
    assert office.put == []
    office.orders[0][1](a_guide())
    office.desk.obey(Park(id="a"))
    assert office.put == [office.made["a"], Park(id="a"), Resume(id="a"), Park(id="a")]


def test_an_abort_ends_the_waiting() -> None:
    office = Office()
    office.submit("a", constrained=True)
    office.desk.obey(Abort(id="a"))
    wanted, then = office.orders[0]
    assert not wanted()
    assert office.made["a"].closed
    then(a_guide())
    assert office.put == []
    assert office.refused == []


def test_faults_reach_who_asked() -> None:
    office = Office()
    office.submit("bad", constrained=True)
    office.submit("a", constrained=True)
    error = InvalidRequest("no", param="constraint")
    office.orders[0][1](error)
    assert [id for id, _ in office.refused] == ["bad", "a"]
    assert office.refused[1][1] is error
    assert office.made["a"].closed
    office.desk.obey(Abort(id="a"))  # the step loop knows what to do with it
    assert office.put == [Abort(id="a")]
