"""What a session's measurements come to, row by row."""

from __future__ import annotations

import pytest

from benchmarks.records import Outcome, RequestRecord, Run
from benchmarks.rows import DRAFTING, PEER, ROWS, SAME, TUNED, VLLM, Row, row_findings
from benchmarks.session import Measurement, Plan, Session
from benchmarks.workloads import WORKLOADS, OpenLoop
from tests.benchmarks.samples import record

SPEEDS = {SAME: 1.0, TUNED: 0.5, VLLM: 4.0, PEER: 2.0, DRAFTING: 1.5}


def session_of(row: Row, labels: tuple[str, ...], extra: tuple[RequestRecord, ...] = ()) -> Session:
    """Two rounds in which a request takes `SPEEDS` seconds; `extra` happens to `SAME` only."""
    measurements = tuple(
        Measurement(
            label=label,
            workload=row.workload,
            level=row.level or 2.0,
            open=row.level is None,
            round=round_,
            run=Run(
                records=(
                    record(
                        times=tuple(t * SPEEDS[label] for t in (0.5, 0.6, 0.8)), end=SPEEDS[label]
                    ),
                    *(extra if label == SAME else ()),
                ),
                client_cpu_seconds=0.01,
            ),
        )
        for round_ in range(2)
        for label in labels
    )
    plan = Plan(workloads=(row.workload,), rounds=2)
    return Session(machine={}, plan=plan, served=(), measurements=measurements)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_can_be_measured(row: Row) -> None:
    is_open = isinstance(WORKLOADS[row.workload].pacing, OpenLoop)
    assert is_open == (row.level is None)
    found = list(row_findings(row, session_of(row, (TUNED, row.against))))
    assert {each.side for each in found} == {f"{TUNED} over {row.against}"}
    [speed] = [each for each in found if each.figure == "tokens per second"]
    assert speed.spread.median == pytest.approx(SPEEDS[row.against] / SPEEDS[TUNED])


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_wishes_differ_by_side() -> None:
    row = next(each for each in ROWS if each.name == "shared-prefix-8")
    found = row_findings(row, session_of(row, (SAME, TUNED, PEER)))
    waits = {each.side: each for each in found if each.figure == "TTFT p90"}
    same, tuned = waits[f"{SAME} over {PEER}"], waits[f"{TUNED} over {PEER}"]
    assert same.spread.median == pytest.approx(0.5)
    assert tuned.spread.median == pytest.approx(0.25)
    assert str(same.bound) == "≤ 0.167"
    assert str(tuned.bound) == "≤ 0.1"
    assert same.ours == "500 ms"
    assert same.theirs == "1,000 ms"


def test_vllm_is_beside_the_tuned_side() -> None:
    row = next(each for each in ROWS if each.name == "short-16-vllm")
    found = list(row_findings(row, session_of(row, (TUNED, VLLM))))
    assert [each.met for each in found] == [True] * 3


def test_a_peer_that_drafts_is_one_more_to_beat() -> None:
    row = next(each for each in ROWS if each.name == "rewrite-1")
    found = row_findings(row, session_of(row, (SAME, DRAFTING, PEER)))
    assert [each.side for each in found] == [f"{SAME} over {PEER}", f"{SAME} over {DRAFTING}"]


def test_who_is_refused_is_said_beside_the_wait() -> None:
    row = next(each for each in ROWS if each.name == "overload")
    refused = record(times=(), end=0.1, outcome=Outcome.REFUSED, error="HTTP 429")
    found = row_findings(row, session_of(row, (SAME, PEER), extra=(refused,)))
    wait, _, admitted = found
    assert wait.figure == "TTFT p99"
    assert wait.spread.median == pytest.approx(0.5)
    assert (admitted.spread.median, admitted.ours, admitted.theirs) == (0.5, "50%", "100%")
