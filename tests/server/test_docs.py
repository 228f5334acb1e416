"""The tables and examples in docs/ say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from inference.scripted import Script, load_script
from server.settings import Settings
from tests.server.harness import run, serving

DOCS = Path(__file__).parents[2] / "docs"


def table_rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its own two first lines left out."""
    section = (DOCS / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_operations_names_every_setting_with_its_default() -> None:
    told = {
        name.strip("`"): default.strip("`")
        for name, default, _ in table_rows("operations.md", "Settings")
        if name.startswith("`")
    }
    defaults = {field.name: field.default for field in fields(Settings)}
    assert told == {name: shown(default) for name, default in defaults.items()}


def shown(default: object) -> str:
    match default:
        case None | ():
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def test_operations_names_every_metric() -> None:
    async def scenario() -> None:
        async with serving(Script()) as running, httpx2.AsyncClient() as client:
            text = (await client.get(f"{running.url}/metrics")).text
        names = {
            family.name.removeprefix("headrace_")
            for family in text_string_to_metric_families(text)
            if not family.name.endswith("_created")
        }
        cells = [cell for cell, *_ in table_rows("operations.md", "Metrics")]
        assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == names

    run(scenario())


@pytest.mark.parametrize(
    "folder",
    [
        "inference",
        "inference/llamacpp",
        "inference/llamacpp/constraints",
        "inference/llamacpp/embeddings",
        "inference/llamacpp/fitting",
        "inference/llamacpp/prompting",
        "inference/llamacpp/sampling",
        "inference/llamacpp/saved",
        "inference/llamacpp/scheduling",
        "server",
        "server/access",
        "server/streams",
    ],
)
def test_the_map_names_every_module(folder: str) -> None:
    room = (DOCS / "architecture.md").read_text().partition("```\n")[2].partition("```")[0]
    modules = {path.stem for path in (DOCS.parent / folder).glob("[!_]*.py")}
    assert modules <= set(re.findall(r"\w+", room))


def test_the_script_in_the_docs_can_be_played(tmp_path: Path) -> None:
    section = (DOCS / "api.md").read_text().partition("\n## Testing a client")[2]
    script = tmp_path / "script.toml"
    script.write_text(section.partition("```toml\n")[2].partition("```")[0])
    assert len(load_script(script).rules) == 3
