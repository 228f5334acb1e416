"""Whom a draft model is asked for tokens, for how many, and when it is only tried."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.scheduling.asking import (
    CHUNK_LEAST,
    CHUNK_MOST,
    EXPLORE_DRAFTS,
    EXPLORE_LEAST,
    EXPLORE_MOST,
    Asker,
    Asking,
    Candidate,
    Cost,
    Offer,
)


def asker(*, round_seconds: float, reading_seconds: float = 1e-4, drafts: int = 1) -> Asker:
    """One that knows what a round of `drafts` and a token that is read take."""
    made = Asker()
    made.learn(
        Offer(
            costs=(
                Cost(drafts=drafts, reading=0, seconds=round_seconds),
                Cost(drafts=0, reading=10, seconds=10 * reading_seconds),
            )
        )
    )
    return made


def candidate(
    share: float, *, id: str = "a", looked: float = 0.0, size: int = 50, left: int = 100
) -> Candidate:
    """A sequence whose every draft is right with the chance `share`."""
    chances = tuple(share**depth for depth in range(1, min(left, 12) + 1))
    return Candidate(id=id, chances=chances, looked=looked, looked_drafts=1, size=size, left=left)


def ask(
    made: Asker,
    candidates: Sequence[Candidate],
    *,
    seconds: float = 0.1,
    price: float = 0.01,
    room: int = 32,
) -> Asking | None:
    return made.ask(
        candidates, room=room, tokens=float(len(candidates)), seconds=seconds, price=price
    )


def test_a_quick_model_that_is_mostly_right_is_asked() -> None:
    asking = ask(asker(round_seconds=0.01), [candidate(0.8)])
    assert asking is not None
    (asked,) = asking.asks
    # Drafts cost a fifth of a plain step each, but with them a step gives more: the fourth
    # is the last that raises 1 + 0.8 + 0.8^2 + ... over 1 + 0.2 + 0.2 + ...
    assert asked.drafts == 4
    assert asked.reading == 50


def test_a_model_as_slow_as_the_other_is_never_worth_it() -> None:
    made = asker(round_seconds=0.1)
    assert ask(made, [candidate(1.0)]) is None


def test_what_a_lookup_gives_for_nothing_is_not_paid_for() -> None:
    made = asker(round_seconds=0.01)
    assert ask(made, [candidate(0.8, looked=3.0)]) is None
    assert ask(made, [candidate(0.8, looked=0.1)]) is not None


def test_more_sequences_share_the_price_of_a_round() -> None:
    made = asker(round_seconds=0.05, drafts=8)
    made.learn(Offer(costs=(Cost(drafts=1, reading=0, seconds=0.05),)))
    many = [candidate(0.7, id=f"s{n}") for n in range(8)]
    together = made.ask(many, room=32, tokens=8.0, seconds=0.2, price=0.001)
    alone = made.ask(many[:1], room=32, tokens=8.0, seconds=0.2, price=0.001)
    assert together is not None
    assert {ask.id for ask in together.asks} == {each.id for each in many}
    assert alone is None


def test_a_long_prompt_must_promise_to_be_worth_reading() -> None:
    made = asker(round_seconds=0.01, reading_seconds=0.01)
    soon_over = ask(made, [candidate(0.8, size=4000, left=20)])
    long_answer = ask(made, [candidate(0.8, size=4000, left=1000)])
    assert soon_over is not None
    assert long_answer is not None
    assert soon_over.asks[0].reading < 100 < long_answer.asks[0].reading


def test_reading_lengthens_a_step_by_half_at_most() -> None:
    made = asker(round_seconds=1e-5, reading_seconds=0.001)
    for seconds, chunk in ((0.1, 50), (0.001, CHUNK_LEAST), (9.0, CHUNK_MOST)):
        asking = ask(made, [candidate(0.8)], seconds=seconds, price=0.0)
        assert asking is not None
        assert abs(asking.chunk - chunk) <= 1


def test_what_does_not_pay_is_tried_now_and_then_and_ever_more_rarely() -> None:
    made = asker(round_seconds=0.2)
    tries: list[int] = []
    for step in range(4000):
        asking = ask(made, [candidate(0.5, id="short", size=9), candidate(0.5, id="long")])
        if asking is not None:
            (asked,) = asking.asks
            assert (asked.id, asked.drafts) == ("short", EXPLORE_DRAFTS)
            tries.append(step)
            made.learn(Offer(drafts={"short": [1, 2, 3]}))
            made.tried("short", right=False)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert tries[0] == EXPLORE_LEAST - 1
    assert gaps == [min(EXPLORE_LEAST << n, EXPLORE_MOST) for n in range(1, len(tries))]


def test_a_try_that_was_right_is_followed_by_another_at_once() -> None:
    made = asker(round_seconds=0.2)
    for _ in range(EXPLORE_LEAST - 1):
        assert ask(made, [candidate(0.5)]) is None
    for _ in range(5):
        assert ask(made, [candidate(0.5)]) is not None
        made.learn(Offer(drafts={"a": [1, 2, 3]}))
        made.tried("a", right=True)


def test_a_try_goes_on_while_it_is_read_and_not_where_it_is_declined() -> None:
    made = asker(round_seconds=0.2)
    for _ in range(EXPLORE_LEAST - 1):
        assert ask(made, [candidate(0.5)]) is None
    for _ in range(3):
        assert ask(made, [candidate(0.5)]) is not None
        made.learn(Offer(behind=frozenset({"a"})))
    assert ask(made, [candidate(0.5)]) is not None
    made.learn(Offer())
    assert ask(made, [candidate(0.5)]) is None


@given(
    shares=st.lists(st.floats(0.0, 1.0), max_size=40),
    room=st.integers(-3, 40),
    seconds=st.floats(1e-4, 1.0),
    price=st.floats(0.0, 1.0),
    rounds=st.floats(1e-5, 1.0),
)
def test_room_and_limits_hold_and_every_ask_pays(
    shares: list[float], room: int, seconds: float, price: float, rounds: float
) -> None:
    made = asker(round_seconds=rounds)
    candidates = [candidate(share, id=f"s{n}", left=n + 1) for n, share in enumerate(shares)]
    tokens = float(max(1, len(candidates)))
    asking = made.ask(candidates, room=room, tokens=tokens, seconds=seconds, price=price)
    if asking is None:
        return
    by_id = {each.id: each for each in candidates}
    assert sum(asked.drafts for asked in asking.asks) <= room
    bar = tokens / seconds * price
    for asked in asking.asks:
        assert 0 < asked.drafts <= by_id[asked.id].left
        assert all(chance > bar for chance in by_id[asked.id].chances[: asked.drafts])
