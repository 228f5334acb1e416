"""The benchmark of constrained answers: its schemas, its verdicts, its report."""

from __future__ import annotations

import math

import jsonschema

from benchmarks.structured import Results, render
from benchmarks.structured_cases import cases
from benchmarks.structured_run import Answers, Cost, cost_cases, middle, valid


def test_there_are_thirty_schemas_and_all_are_schemas() -> None:
    every = cases()
    assert len({case.name for case in every}) == 30
    for case in (*every, *cost_cases()):
        jsonschema.Draft202012Validator.check_schema(case.schema)


def test_valid_means_json_and_the_schema() -> None:
    schema = {"type": "integer", "minimum": 3}
    assert valid("4", schema)
    assert not valid("2", schema)
    assert not valid("4 4", schema)


def test_the_report_has_every_figure() -> None:
    cost = Cost(
        name="x", first=0.05, again=0.03, plain=0.02, token=0.011, plain_token=0.010, tokens=40
    )
    found = Answers(
        ended=3, valid=2, invalid=("tree",), unfinished={"list": 2}, refused=("a: HTTP 400",)
    )
    results = Results(
        machine={"cpu": "fast"},
        costs={"headrace": [[cost], [cost]]},
        together={"headrace": [(100.0, 90.0)]},
        answers=found,
    )
    report = render(results)
    assert "| x | 20.0 | 50.0 | 30.0 | 10.0 | 11.0 | 40 |" in report
    assert "| headrace | 100 | 90.0 |" in report
    assert "2 of 3 answers that ended are valid. Not valid: tree." in report
    assert "tokens: list (2). Failed: a: HTTP 400." in report
    assert math.isnan(middle([math.nan]))
