"""What several packages' tests need: the event loop's name, the default model, a data directory."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from models import resolve

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs deaf to Ctrl-C, and so would be all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of what is tested.
hypothesis.settings.register_profile("headrace", deadline=None)
hypothesis.settings.load_profile("headrace")


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Servers and commands keep their state here, not with the user's own."""
    folder = tmp_path_factory.mktemp("data-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def logs_are_records() -> Iterator[None]:
    """What servers under test log becomes records, which pytest shows under a failure only.

    Left alone, structlog prints: every request of every server that a test starts.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.processors.format_exc_info,
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        )
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """A second model, Gemma 3 270M base; `make test` pulls it beforehand."""
    return resolve("gemma3-270m", progress=False).path


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file; `make test` pulls it beforehand."""
    return resolve("default", progress=False).path


@pytest.fixture(scope="session")
def embedding_model_path() -> Path:
    """The embedding model's file."""
    return resolve("all-minilm-l6-v2", progress=False).path
