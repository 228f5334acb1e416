from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from models.places import Places
from models.store import Store
from tests.models.entries import CONTENT
from tests.models.hub_server import Hub


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Empty places, also for code that looks for them in the environment."""
    environ = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Places.from_environ(environ)


@pytest.fixture
def store(places: Places) -> Store:
    return Store(places.store)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub({"tiny.gguf": CONTENT}) as server:
        yield server
    close_session()
