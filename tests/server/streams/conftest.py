from collections.abc import Iterator

import pytest

from tests.server.streams.redisserver import RedisServer


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis that tests of one module share; each uses names of its own."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis to stop and to start again."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()
