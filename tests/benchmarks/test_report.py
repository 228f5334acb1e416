"""Reports say what the records say, in well-formed tables, pictures and pages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from benchmarks import session as sessions
from benchmarks.html_report import render_html
from benchmarks.layout import cells
from benchmarks.records import Outcome
from benchmarks.report import overview, remarks, render_markdown, tables
from benchmarks.session import Session
from benchmarks.svg import Chart, Series, distribution, render
from tests.benchmarks.samples import record, session


def test_a_session_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    sessions.save(session(), path)
    assert sessions.load(path) == session()


def test_levels_are_grouped_with_their_rounds() -> None:
    first, second = cells(session())
    assert (first.title, second.title) == ("short, 1 at a time", "short, 4 at a time")
    assert [m.round for m in first.by_label["A"]] == [0, 1]


def test_the_overview_has_the_ratios() -> None:
    table = overview(session())
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert row["tokens per second"] == "2.00 (2.00 to 2.00)"
    assert row["TTFT p50"] == "0.500 (0.500 to 0.500)"


def test_one_server_alone_has_figures_and_no_ratios() -> None:
    alone = session(labels=("A",))
    [tokens] = [row for row in tables(cells(alone)[0])[0].rows if row[0].startswith("tokens per")]
    assert tokens[1:] == ("2.00 (2.00 to 2.00)",)
    assert "A / B" not in render_markdown(alone)
    assert render_html(alone)


def test_every_row_of_every_markdown_table_has_its_columns() -> None:
    for block in render_markdown(session()).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def _with_runs(change: dict[str, object]) -> Session:
    made = session()
    return replace(
        made,
        measurements=tuple(replace(m, **change) for m in made.measurements),  # type: ignore[arg-type]
    )


def test_what_spoils_a_measurement_is_said() -> None:
    failed = record(outcome=Outcome.FAILED, error="HTTP 500: oops")
    run = replace(session().measurements[0].run, records=(failed, record()), client_cpu_seconds=0.9)
    found = " ".join(remarks(cells(_with_runs({"run": run, "other_cpu_share": 0.5}))[0]))
    assert "HTTP 500" in found
    assert "client used up to 90%" in found
    assert "idle server used up to 50%" in found


def test_answers_are_compared_between_the_sides() -> None:
    assert "2 of 2 answers were the same text on both sides." in remarks(cells(session())[0])


def test_groups_get_tables_of_their_own() -> None:
    mixed = (record(group="chat"), record(group="document"))
    run = replace(session().measurements[0].run, records=mixed)
    captions = [table.caption for table in tables(cells(_with_runs({"run": run}))[0])]
    assert captions == ["all requests", "chat", "document"]


def test_the_page_escapes_what_comes_from_outside() -> None:
    page = render_html(session(peer="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


finite = st.floats(0, 1e6, allow_nan=False)


@given(values=st.lists(finite, max_size=60), log_x=st.booleans())
def test_any_values_draw_a_well_formed_picture(values: list[float], log_x: bool) -> None:
    series = (distribution("a & b", values), Series(name="c", points=((1.0, 0.5),)))
    chart = Chart(title="<t>", x_label="x", y_label="y", series=series, log_x=log_x)
    picture = ElementTree.fromstring(render(chart))
    lines = [each for each in picture.iter("polyline") if each.get("points")]
    numbers = [float(n) for line in lines for n in line.get("points", "").replace(",", " ").split()]
    assert all(0 <= n <= 560 for n in numbers)


def test_a_chart_without_values_says_so() -> None:
    chart = Chart(title="t", x_label="x", y_label="y", series=(distribution("a", []),))
    assert "nothing to show" in render(chart)


@given(values=st.lists(finite, min_size=1, max_size=2000))
def test_a_distribution_ends_at_its_largest_value(values: list[float]) -> None:
    points = distribution("d", values).points
    assert points[-1] == (max(values), 1.0)
    assert len(points) <= 802
    assert not any(math.isnan(y) for _, y in points)
