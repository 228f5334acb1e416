"""What a soak makes of its samples."""

from __future__ import annotations

from collections import Counter

from benchmarks.soak import FIGURES, LANES, MEMORY, TASKS, Sample, Soaked

QUIET = (100e6, 500e6, 30.0, 12.0, 0.0, 0.0, 4e6)


def sample(minute: float, figure: int = MEMORY, more: float = 0.0) -> Sample:
    values = list(QUIET)
    values[figure] += more
    return Sample(minute=minute, values=tuple(values))


STEADY = (sample(10), sample(20), sample(30))
LATER = sample(31)


def soaked(samples: tuple[Sample, ...] = STEADY, end: Sample = LATER, wrong: str = "") -> Soaked:
    tally = Counter({"read": 7})
    if wrong:
        tally[wrong] = 2
    return Soaked(minutes=30, samples=samples, warm=sample(9), end=end, kills=5, tally=tally)


def test_what_stays_the_same_is_well() -> None:
    assert soaked().problems() == []


def test_memory_that_grows_by_more_than_a_tenth_leaks() -> None:
    assert soaked((sample(10), sample(20, MEMORY, 4e6), sample(30, MEMORY, 8e6))).problems() == []
    grown = soaked((sample(10), sample(20, MEMORY, 8e6), sample(30, MEMORY, 16e6)))
    assert grown.slope(MEMORY) == 0.8e6
    assert grown.problems() == ["the server's memory grows"]


def test_what_is_left_when_all_is_quiet_leaks() -> None:
    assert soaked(end=sample(31, TASKS, 1)).problems() == ["tasks: 1 more when quiet than before"]
    assert soaked(end=sample(31, LANES, 2)).problems()


def test_a_visit_that_went_wrong_fails_it() -> None:
    wrong = soaked(wrong="wrong: read: a gap")
    assert wrong.problems() == ["2 times wrong: read: a gap"]
    assert "7 visits, 5 kills of the engine, 2 visits that went wrong" in wrong.markdown()


def test_the_table_has_a_row_for_each_figure() -> None:
    rows = soaked().markdown().splitlines()[4:]
    assert [row.split("|")[1].strip().partition(",")[0] for row in rows] == [
        name for name, _, _ in FIGURES
    ]
