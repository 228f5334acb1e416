"""What several packages' tests need: the event loop's name, the default model."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from models import resolve

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs deaf to Ctrl-C, and so would be all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file; `make test` pulls it beforehand."""
    return resolve("default", progress=False).path
