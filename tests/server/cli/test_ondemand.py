"""Which models `headrace serve` may load on demand, and with which settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import ModelLoadError
from inference.llamacpp.client import LlamaCppEngine
from inference.llamacpp.messages import WorkerConfig
from inference.slots import Phase
from models.adding import add
from server.cli import ondemand
from server.cli.engines import models_of
from server.cli.errors import CommandError
from server.cli.ondemand import Room, others_of, room_of
from server.environment import load_settings
from server.settings import Settings
from tests.models.gguf_files import gguf_bytes

ROOM = Room(gpu=False, bytes=1 << 40)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the user's catalogue, as `mine`."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf_bytes())
    add(path, progress=False)
    return path


def ids(settings: Settings, *, default: str = "default-model") -> list[str]:
    return [model.id for model, _ in others_of(settings, ROOM, default=default)]


def test_models_are_named_by_id_and_path(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "Other One.gguf"
    other.write_bytes(gguf_bytes())
    found = list(others_of(Settings(models=("mine", str(other))), ROOM, default="x"))
    assert [model.id for model, _ in found] == ["mine", "other-one"]
    assert [model.names for model, _ in found] == [("mine",), ("other-one",)]
    assert found[0][0].sampling == {"temperature": 0.7, "top_k": 20}


def test_the_default_model_is_not_loaded_twice(mine: Path) -> None:
    assert ids(Settings(models=("mine",)), default="mine") == []


def test_the_whole_catalogue_is_what_is_here(mine: Path) -> None:
    assert ids(Settings(models=("catalog",))) == ["mine"]
    assert ids(Settings(models=("mine", "catalog"))) == ["mine"]


def test_a_name_that_nobody_knows_keeps_the_server_from_running(mine: Path) -> None:
    with pytest.raises(CommandError, match="--models nobody"):
        ids(Settings(models=("nobody",)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"GGUF, but not much of it", "not what the catalogue says"), (None, "not on this machine")],
)
def test_a_broken_file_keeps_nobody_from_being_served(
    mine: Path, content: bytes | None, sentence: str
) -> None:
    if content is None:
        mine.unlink()
    else:
        mine.write_bytes(content)
    [(model, loadable)] = others_of(Settings(models=("mine",)), ROOM, default="x")
    assert model.id == "mine"
    for work in (loadable.weigh, loadable.open):
        with pytest.raises(ModelLoadError, match=sentence) as caught:
            work()
        assert str(mine) not in str(caught.value)


def test_they_have_fewer_lanes_and_nothing_that_was_set_for_the_default_one(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[WorkerConfig, int | None]] = []

    def engine_of(
        _: Settings, config: WorkerConfig, *, starts: int | None = None
    ) -> LlamaCppEngine:
        asked.append((config, starts))
        return LlamaCppEngine(config)

    monkeypatch.setattr(ondemand, "engine_of", engine_of)
    settings = Settings(models=("mine",), lanes=16, context=65_536, cache_tokens=70_000)
    [(_, loadable)] = others_of(settings, ROOM, default="x")
    loadable.open()
    [(config, starts)] = asked
    assert (config.lanes, config.context, config.cache_tokens) == (4, 2048, 0)
    assert config.host_memory_bytes == 128 << 20
    assert starts == 2


def test_the_budget_is_what_is_set_or_what_the_machine_has() -> None:
    assert room_of(Settings(memory_budget=512)).bytes == 512 << 20
    assert room_of(Settings()).bytes > 0


def test_the_scripted_engine_stands_in_for_any() -> None:
    models, words = models_of(Settings(engine="scripted", models=("a", "b", "catalog")))
    assert words is None
    assert models.names == ("scripted", "default", "a", "b")
    conditions = models.fleet.conditions()
    assert [each.phase for each in conditions] == [Phase.LOADING, Phase.UNLOADED, Phase.UNLOADED]
    with pytest.raises(CommandError, match="two models are called default"):
        models_of(Settings(engine="scripted", models=("default",)))


def test_models_are_separated_by_commas_outside_the_file(tmp_path: Path) -> None:
    settings = load_settings(flags={"models": "a, b"}, environ={})
    assert settings.models == ("a", "b")
    file = tmp_path / "headrace.toml"
    file.write_text('models = ["a", "b"]\n')
    assert load_settings(flags={}, environ={}, file=file).models == ("a", "b")
