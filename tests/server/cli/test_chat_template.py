"""Which chat template `headrace serve` has the engine use in place of the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from inference.llamacpp import client
from inference.llamacpp.messages import WorkerConfig
from server.cli import main
from server.cli.errors import CommandError
from tests.models.gguf_files import gguf_bytes


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[WorkerConfig]:
    """What an engine was asked to load; none is."""
    asked: list[WorkerConfig] = []

    def stop(config: WorkerConfig, **_: object) -> NoReturn:
        asked.append(config)
        raise CommandError("far enough")

    monkeypatch.setattr(client, "LlamaCppEngine", stop)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(gguf_bytes())
    monkeypatch.setenv("HEADRACE_MODEL", str(tmp_path / "model.gguf"))
    return asked


def test_the_file_is_read_and_handed_over(
    configs: list[WorkerConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", "--port", "0"]) == 2
    path = tmp_path / "chat.jinja"
    path.write_text("{{ 'é' }}", encoding="utf-8")
    monkeypatch.setenv("HEADRACE_CHAT_TEMPLATE", str(path))
    assert main(["serve", "--port", "0"]) == 2
    assert [config.chat_template for config in configs] == ["", "{{ 'é' }}"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"\xff", "not UTF-8"), (b" \n", "empty")],
)
def test_a_file_that_is_no_template_is_refused(
    configs: list[WorkerConfig],
    content: bytes | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("HEADRACE_CHAT_TEMPLATE", str(path))
    assert main(["serve", "--port", "0"]) == 2
    assert said in capsys.readouterr().err
    assert not configs
