"""Who is convicted and who is not: single histories, then any history at all.

The property tests play an engine: sequences that compute a token a step each, some of
which end the process whenever they reach a certain token, and kills from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.quarantine import (
    MARK_TOKENS,
    STRIKES,
    STRIKES_IF_KILLED,
    TRIAL_STEPS,
    Quarantine,
    Standing,
)

IDLE, PROVEN, UNPROVEN = Standing.IDLE, Standing.PROVEN, Standing.UNPROVEN


def gate(**inside: Standing) -> Quarantine:
    """A gate whose process has just ended with these in it, and another is there."""
    quarantine = Quarantine()
    assert quarantine.up() == []
    for id in inside:
        assert quarantine.open(id)
    quarantine.down(inside)
    assert quarantine.judge(killed=False) is None
    return quarantine


def test_suspects_return_one_at_a_time_the_others_after_them() -> None:
    quarantine = gate(idle=IDLE, new1=UNPROVEN, old=PROVEN, new2=UNPROVEN)
    assert quarantine.up() == ["old"]
    assert not quarantine.open("fresh")
    assert quarantine.proven("old") == ["new1"]
    assert quarantine.proven("old") == []
    assert quarantine.leave("new1") == ["new2"]
    assert quarantine.parked("new2") == ["idle", "fresh"]
    assert quarantine.open("later")
    assert quarantine.trial is None


def test_a_trial_ends_after_a_number_of_steps_that_doubles_with_every_doubt() -> None:
    quarantine = gate(a=UNPROVEN, b=UNPROVEN)
    steps = TRIAL_STEPS
    for _ in range(3):
        steps *= 2
        assert quarantine.up() == ["a"]
        assert quarantine.stepped(steps - 1) == []
        assert quarantine.stepped(steps) == ["b"]
        quarantine.down({"a": UNPROVEN, "b": UNPROVEN})


def test_who_has_waited_goes_before_those_that_were_in() -> None:
    quarantine = gate(a=PROVEN, b=PROVEN, c=PROVEN)
    assert quarantine.up() == ["a"]
    assert quarantine.proven("a") == ["b"]
    assert quarantine.proven("b") == ["c"]
    quarantine.down({"a": PROVEN, "b": PROVEN, "c": PROVEN})
    assert quarantine.up() == ["a"]
    quarantine.proven("a")
    quarantine.down({"a": PROVEN, "b": PROVEN})
    assert quarantine.up() == ["c"]


def test_a_new_request_that_ends_the_process_is_convicted_at_the_second_end() -> None:
    quarantine = gate(a=PROVEN, b=PROVEN, new=UNPROVEN)
    assert quarantine.up() == ["new"]
    quarantine.down({"new": UNPROVEN})
    assert quarantine.judge(killed=False) == "new"
    assert quarantine.up() == ["a"]


def test_a_kill_proves_less() -> None:
    quarantine = gate(a=PROVEN, new=UNPROVEN)
    for strikes in range(2, STRIKES_IF_KILLED + 1):
        assert quarantine.up() == ["new"]
        quarantine.down({"new": UNPROVEN})
        convicted = quarantine.judge(killed=True)
        assert convicted == ("new" if strikes == STRIKES_IF_KILLED else None)


def test_a_proven_one_that_ends_the_process_is_found_on_trial_then_alone() -> None:
    quarantine = gate(a=PROVEN, bad=PROVEN, c=PROVEN)
    assert quarantine.up() == ["a"]
    assert quarantine.proven("a") == ["bad"]
    quarantine.down({"a": PROVEN, "bad": UNPROVEN})
    assert quarantine.judge(killed=False) is None  # it was not alone
    assert quarantine.up() == ["bad"]
    quarantine.down({"bad": UNPROVEN})
    assert quarantine.judge(killed=False) == "bad"
    assert quarantine.up() == ["c"]


def test_to_get_on_clears_of_every_suspicion() -> None:
    quarantine = gate(a=UNPROVEN)
    for _ in range(10):
        assert quarantine.up() == ["a"]
        quarantine.proven("a")
        quarantine.down({"a": PROVEN})
        assert quarantine.judge(killed=False) is None


def test_nobody_is_convicted_who_has_left() -> None:
    quarantine = gate(a=UNPROVEN)
    quarantine.up()
    quarantine.down({"a": UNPROVEN})
    assert quarantine.leave("a") == []
    assert quarantine.judge(killed=False) is None
    assert quarantine.up() == []


@dataclass(slots=True)
class Life:
    """One sequence: it ends the process with token number `fatal`, each time it gets there."""

    length: int
    fatal: int | None
    prefill: int
    tokens: int = 0
    seam: int = 0
    waiting: int = 0  # steps of prefill that are left
    inside: bool = False

    @property
    def standing(self) -> Standing:
        return PROVEN if self.tokens - self.seam >= MARK_TOKENS else UNPROVEN


@dataclass(slots=True)
class Engine:
    """Plays processes for a quarantine until every sequence has an end."""

    lives: dict[str, Life]
    quarantine: Quarantine = field(default_factory=Quarantine)
    finished: set[str] = field(default_factory=set)
    convicted: list[str] = field(default_factory=list)
    ends: int = 0
    steps: int = 0

    def start(self) -> None:
        self.steps = 0
        self.enter(self.quarantine.up())

    def enter(self, ids: Iterable[str]) -> None:
        for id in ids:
            life = self.lives[id]
            assert not life.inside
            assert self.quarantine.trial in (id, None)
            life.inside, life.seam, life.waiting = True, life.tokens, life.prefill

    def step(self) -> str | None:
        """One token for everybody inside; who ended the process, if somebody did."""
        self.steps += 1
        for id, life in list(self.inside().items()):
            if life.waiting:
                life.waiting -= 1
                continue
            if life.tokens == life.fatal:
                return id
            life.tokens += 1
            if life.tokens == life.length:
                life.inside = False
                self.finished.add(id)
                self.enter(self.quarantine.leave(id))
            elif self.quarantine.trial == id and life.standing is PROVEN:
                self.enter(self.quarantine.proven(id))
        self.enter(self.quarantine.stepped(self.steps))
        return None

    def end(self, *, killed: bool) -> None:
        self.ends += 1
        inside = self.inside()
        self.quarantine.down({id: life.standing for id, life in inside.items()})
        for life in inside.values():
            life.inside = False
        found = self.quarantine.judge(killed=killed)
        if found is not None:
            self.convicted.append(found)
        self.start()

    def inside(self) -> dict[str, Life]:
        return {id: life for id, life in self.lives.items() if life.inside}

    @property
    def left(self) -> set[str]:
        return set(self.lives) - self.finished - set(self.convicted)


lives = st.builds(
    Life,
    length=st.integers(1, 40),
    fatal=st.none() | st.integers(0, 39),
    prefill=st.integers(0, 60),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(lives, min_size=1, max_size=8), st.lists(st.integers(0, 30), max_size=8))
def test_the_guilty_are_convicted_and_nobody_else(each: list[Life], arrivals: list[int]) -> None:
    """Without kills from outside, in a bounded number of ends."""
    engine = Engine({f"s{n}": life for n, life in enumerate(each)})
    guilty = {
        id
        for id, life in engine.lives.items()
        if life.fatal is not None and life.fatal < life.length
    }
    coming = sorted(zip([*arrivals, *[0] * len(each)], engine.lives, strict=False))
    engine.start()
    for step in range(100_000):
        while coming and coming[0][0] <= step:
            id = coming.pop(0)[1]
            if engine.quarantine.open(id):
                engine.enter([id])
        if not coming and not engine.left:
            break
        if engine.step() is not None:
            engine.end(killed=False)
    assert set(engine.convicted) == guilty
    assert engine.finished == set(engine.lives) - guilty
    # Each is present at one end, found out in another, alone in the last. Beside prompts
    # that take longer than a trial it is not found out until trials have doubled twice.
    most = 3 if all(life.prefill < TRIAL_STEPS - MARK_TOKENS for life in each) else 6
    assert engine.ends <= most * len(guilty)


@settings(max_examples=300, deadline=None)
@given(st.lists(lives, min_size=1, max_size=6), st.data())
def test_kills_convict_only_whom_three_hit_in_a_row_the_last_one_alone(
    each: list[Life], data: st.DataObject
) -> None:
    engine = Engine({f"s{n}": life for n, life in enumerate(each)})
    for life in engine.lives.values():
        life.fatal = None
    engine.start()
    engine.enter([id for id in engine.lives if engine.quarantine.open(id)])
    hits = dict.fromkeys(engine.lives, 0)
    while engine.left:
        if engine.ends < 30 and data.draw(st.booleans()):
            inside = engine.inside()
            unproven = [id for id, life in inside.items() if life.standing is UNPROVEN]
            for id, life in inside.items():
                if life.standing is PROVEN:
                    hits[id] = 0
            if len(unproven) == 1:
                hits[unproven[0]] += 1
            before = len(engine.convicted)
            engine.end(killed=True)
            for id in engine.convicted[before:]:
                assert list(inside) == [id]
                assert hits[id] >= STRIKES_IF_KILLED
        for _ in range(data.draw(st.integers(1, 20))):
            engine.step()
            if not engine.left:
                break
    assert engine.finished | set(engine.convicted) == set(engine.lives)


@pytest.mark.parametrize("sequences", [1, 16])
def test_kills_that_do_not_follow_on_each_other_at_once_convict_nobody(sequences: int) -> None:
    """Fifty kills, each some tokens after the last: any number of sequences completes."""
    engine = Engine({f"s{n}": Life(600, None, 3) for n in range(sequences)})
    engine.start()
    engine.enter([id for id in engine.lives if engine.quarantine.open(id)])
    while engine.left:
        for _ in range(8 + MARK_TOKENS):
            engine.step()
            if not engine.left:
                break
        if engine.ends < 50:
            engine.end(killed=True)
    assert not engine.convicted


def test_the_limits_are_what_the_docs_say() -> None:
    assert (MARK_TOKENS, TRIAL_STEPS, STRIKES, STRIKES_IF_KILLED) == (4, 16, 2, 3)
