"""Which draft model `headrace serve` has the engine load."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from inference.llamacpp import client
from inference.llamacpp.messages import WorkerConfig
from models.adding import add, to_toml
from models.places import default_places
from server.cli import main
from server.cli.errors import CommandError
from tests.models.entries import changed
from tests.models.gguf_files import gguf_bytes


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[WorkerConfig]:
    """What an engine was asked to load; none is. The catalogue has a `large`, with a `small`."""
    asked: list[WorkerConfig] = []

    def stop(config: WorkerConfig, **_: object) -> NoReturn:
        asked.append(config)
        raise CommandError("far enough")

    monkeypatch.setattr(client, "LlamaCppEngine", stop)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    entries = []
    for id in ("small", "large"):
        (tmp_path / f"{id}.gguf").write_bytes(gguf_bytes())
        entries.append(add(tmp_path / f"{id}.gguf", progress=False))
    small, large = entries
    catalog = default_places().user_catalog
    catalog.write_text(to_toml(small) + "\n" + to_toml(changed(large, draft="small")))
    return asked


@pytest.mark.parametrize(
    ("variables", "draft"),
    [
        ({}, "small"),
        ({"DRAFT_MODEL": "off"}, ""),
        ({"SPECULATION": "off"}, ""),
        ({"SPECULATION": "off", "DRAFT_MODEL": "no-such-model"}, ""),
        ({"MODEL": "small"}, ""),
        ({"MODEL": "small", "DRAFT_MODEL": "large"}, "large"),
        ({"DRAFT_MODEL": "./small.gguf"}, "small"),
    ],
)
def test_the_draft_is_the_catalogues_or_the_one_that_is_set(
    configs: list[WorkerConfig],
    variables: dict[str, str],
    draft: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in ({"MODEL": "large"} | variables).items():
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    assert main(["serve", "--port", "0"]) == 2
    (config,) = configs
    assert config.draft_id == draft
    assert config.draft_path == (str(tmp_path / f"{draft}.gguf") if draft else "")


@pytest.mark.parametrize("engine", ["llamacpp", "scripted"])
def test_a_draft_model_that_cannot_be_had_is_named(
    configs: list[WorkerConfig],
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HEADRACE_MODEL", "large")
    monkeypatch.setenv("HEADRACE_DRAFT_MODEL", "no-such-model")
    assert main(["serve", "--port", "0", "--engine", engine]) == 2
    told = capsys.readouterr().err
    assert told.startswith("headrace: draft_model")
    assert ("no model is called" in told) == (engine == "llamacpp")
    assert not configs
