"""The agreement of three clients: the judgement, and the command with stand-ins for two."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import agree, cli
from benchmarks.agreement import Verdict, agreement_table, judge
from benchmarks.client import Client, Target
from benchmarks.peers import PeerError
from benchmarks.tools import Aiperf, BuiltIn, Figures, Load, Locust, Tool
from benchmarks.workloads import WORKLOADS
from tests.benchmarks.made_models import write_vocabulary
from tests.benchmarks.samples import DONE, FINISH, HEAD, piece, serving

TOOLS: tuple[Tool, ...] = (BuiltIn(), Locust("locust"), Aiperf("aiperf", Path()))
NAMES = [each.name for each in TOOLS]


def figures(**changes: float) -> Figures:
    values: dict[str, float] = {
        "ttft_p50": 0.5,
        "ttft_p90": 0.8,
        "itl_p50": 0.02,
        "tokens_per_second": 100.0,
        **changes,
    }
    return Figures(requests=4, tokens=64, **values)


def verdicts(*rounds: Mapping[str, Figures]) -> dict[tuple[str, str], Verdict]:
    return {(v.tool, v.figure.field): v for v in judge(rounds, TOOLS, 0.10)}


def test_within_the_tolerance_they_agree() -> None:
    near = figures(ttft_p50=0.54, tokens_per_second=91.0)
    found = verdicts({"built-in": figures(), "locust": near, "aiperf": figures()})
    assert all(each.agrees for each in found.values())
    assert found["locust", "ttft_p50"].off == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ttft_p50": 0.56}, "ttft_p50"),
        ({"ttft_p90": 0.6}, "ttft_p90"),
        ({"itl_p50": 0.0235}, "itl_p50"),
        ({"tokens_per_second": 89.0}, "tokens_per_second"),
    ],
)
def test_beyond_it_they_do_not(changes: dict[str, float], field: str) -> None:
    found = verdicts({"built-in": figures(), "locust": figures(), "aiperf": figures(**changes)})
    assert [key for key, each in found.items() if not each.agrees] == [("aiperf", field)]


def test_locust_may_round() -> None:
    """At half a second its digits are tens of milliseconds, so it may be off by five more."""
    off = figures(ttft_p50=0.554)
    found = verdicts({"built-in": figures(), "locust": off, "aiperf": off})
    assert found["locust", "ttft_p50"].agrees
    assert not found["aiperf", "ttft_p50"].agrees


def test_medians_are_compared_not_single_rounds() -> None:
    calm = {name: figures() for name in NAMES}
    storm = {**calm, "aiperf": figures(ttft_p50=3.0)}
    found = verdicts(calm, storm, calm)
    assert found["aiperf", "ttft_p50"].agrees
    assert found["aiperf", "ttft_p50"].spread.high == 3.0


def test_the_table_names_who_disagrees() -> None:
    far = figures(itl_p50=0.03)
    found = verdicts({"built-in": figures(), "locust": far, "aiperf": figures()})
    table = agreement_table(list(found.values()), 0.1)
    assert [row[-1] for row in table.rows] == ["yes", "yes", "**not locust**", "yes"]
    assert table.rows[2][2] == "30.0 (30.0 to 30.0), +50.0%"


SCRIPT = "[[rules]]\nfirst_token_seconds = 0.05\ntoken_seconds = 0.002\n"
# Both take their figures from a file of the test's and write them as the real ones do.
LOCUST = """\
#!{python}
import json, sys
found = json.load(open({figures!r}))
prefix = sys.argv[sys.argv.index("--csv") + 1]
assert sys.argv[sys.argv.index("--conversations") + 1] == "4"
with open(prefix + "_stats.csv", "w") as table:
    print("Type,Name,Request Count,Failure Count,50%,90%", file=table)
    for name, times in (("TTFT", found["ttft"]), ("ITL", found["itl"]), ("end to end", [1, 1])):
        print(f"stream,{{name}},4,0,{{times[0]}},{{times[1]}}", file=table)
print(f"tokens: 256 in 1.000 s, {{found['rate']}} a second")
"""
AIPERF = """\
#!{python}
import json, os, sys
found = json.load(open({figures!r}))
directory = sys.argv[sys.argv.index("--artifact-dir") + 1]
assert len(open(sys.argv[sys.argv.index("--input-file") + 1]).readlines()) == 4
assert os.path.exists(sys.argv[sys.argv.index("--tokenizer") + 1] + "/tokenizer.json")
os.makedirs(directory)
times = lambda pair: {{"p50": pair[0], "p90": pair[1]}}
json.dump({{
    "time_to_first_token": times(found["ttft"]), "inter_chunk_latency": times(found["itl"]),
    "output_token_throughput": {{"avg": found["rate"]}}, "request_count": {{"avg": 4}},
    "total_output_tokens": {{"avg": 256}},
}}, open(directory + "/profile_export_aiperf.json", "w"))
"""


def test_a_server_and_three_clients(tmp_path: Path) -> None:
    """The scripted engine is the server; the stand-ins may say whatever they like."""
    figures_file = tmp_path / "figures.json"
    figures_file.write_text(json.dumps({"ttft": [50, 50], "itl": [2, 3], "rate": 900}))
    (tmp_path / "script.toml").write_text(SCRIPT)
    arguments = ["agree", "--model", str(write_vocabulary(tmp_path / "v.gguf"))]
    for name, text in (("locust", LOCUST), ("aiperf", AIPERF)):
        program = tmp_path / name
        program.write_text(text.format(python=sys.executable, figures=str(figures_file)))
        program.chmod(0o755)
        arguments += [f"--{name}", str(program)]
    arguments += ["--flags", f"--engine scripted --script {tmp_path / 'script.toml'}"]
    arguments += ["--conversations", "4", "--rounds", "1", "--tolerance", "1000"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "They agree." in (tmp_path / "out" / "agree.md").read_text()
    saved = json.loads((tmp_path / "out" / "agree.json").read_text())
    [found] = saved["rounds"]
    assert set(found) == set(NAMES)
    assert (found["built-in"]["requests"], found["built-in"]["tokens"]) == (4, 256)
    assert found["built-in"]["ttft_p50"] >= 0.05 - 0.002  # timers may fire a tick early


def test_disagreement_is_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*_: object) -> list[dict[str, Figures]]:
        return [{"built-in": figures(), "locust": figures(itl_p50=0.03)}]

    monkeypatch.setattr(agree, "_with_server", measured)
    arguments = ["agree", "--tools", "locust", "--locust", sys.executable]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 1
    report = (tmp_path / "agree.md").read_text()
    assert "1 figures are further off." in report
    assert "**not locust**" in report


def test_a_tool_whose_requests_fail_is_not_believed(tmp_path: Path) -> None:
    class Failing(BuiltIn):
        async def run(self, client: Client, load: Load, scratch: Path) -> Figures:
            return figures()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + piece("a") + FINISH + DONE)

    async def measure() -> None:
        load = Load(workload=WORKLOADS["short"], number=5, concurrency=2, seed=1, round=0)
        async with serving(answer) as base_url:
            client = Client(Target(base_url=base_url))
            await agree.measure_tools(
                client, (Failing(),), load, rounds=1, scratch=tmp_path, tell=lambda _: None
            )

    with pytest.raises(PeerError, match="4 of 5 ended well"):
        asyncio.run(measure())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "nosuch"], "unknown workload 'nosuch'"),
        (["--tools", "nosuch"], "unknown tool 'nosuch'"),
        (["--tools", "locust", "--locust", "/no/such"], "install locust==2.47.0"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["agree", *arguments]) == 1
    assert message in capsys.readouterr().err
