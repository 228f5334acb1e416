"""What several packages' tests need: the event loop's name, the default model."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import resolve


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file; `make test` pulls it beforehand."""
    return resolve("default", progress=False).path
