"""Puts the parts together as the settings say, and takes them apart in order."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from server.environment import data_dir_of
from server.middleware import log_unexpected
from server.settings import Settings
from server.streams.events import Incomplete
from server.streams.instance import Instance, take_place
from server.streams.live import Storage, Terms
from server.streams.metrics import StreamMetrics
from server.streams.registry import Registry
from server.streams.store import StoreError, StreamStore
from server.streams.writer import StoreWriter

SWEEP_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""How long the engine may take to close sequences at the end; then the store for the rest
of the logs; then its connections."""

DATABASE = "streams.db"
OFF = "off"
SQLITE = "sqlite"
REDIS_SCHEMES = ("redis:", "rediss:", "unix:")


@asynccontextmanager
async def open_streams(
    settings: Settings, *, metrics: StreamMetrics, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Registry]:
    """The registry of this server, while the `async with` runs.

    It works at once: a store that cannot be opened is tried again in the background,
    and streams go on without it meanwhile. At the end running responses become
    `Incomplete(reason="server_stopped")`. Raises `DataDirError`.
    """
    terms = Terms(
        coalesce_seconds=settings.coalesce_ms / 1000,
        keep_seconds=settings.keep_seconds,
        retention_seconds=settings.retention_seconds,
        max_live=settings.max_live_responses,
    )
    if settings.stream_store == OFF:
        registry = Registry(server="", terms=terms, storage=None, metrics=metrics)
        async with _running(registry, metrics):
            yield registry
        return
    data_dir = data_dir_of(settings, environ)
    instance = take_place(data_dir)
    try:
        store = store_of(settings, data_dir)
        async with _writing(store, instance, metrics) as writer:
            storage = Storage(store=store, writer=writer)
            registry = Registry(server=instance.id, terms=terms, storage=storage, metrics=metrics)
            async with _running(registry, metrics):
                yield registry
    finally:
        instance.close()


def check_data_dir(settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `DataDirError` where `open_streams` would, before anything else is started."""
    if settings.stream_store != OFF:
        take_place(data_dir_of(settings, environ)).close()


def store_of(settings: Settings, data_dir: Path) -> StreamStore:
    """The store that `stream_store` names, not yet opened."""
    # Each brings a large library, of which a server needs one or none.
    if settings.stream_store.startswith(REDIS_SCHEMES):
        from server.streams.redis import RedisStore

        return RedisStore(settings.stream_store, retention_seconds=settings.retention_seconds)
    from server.streams.database import sqlite_url
    from server.streams.sql import SqlStore

    if settings.stream_store == SQLITE:
        return SqlStore(sqlite_url(data_dir / DATABASE))
    return SqlStore(settings.stream_store)


@asynccontextmanager
async def _writing(
    store: StreamStore, instance: Instance, metrics: StreamMetrics
) -> AsyncIterator[StoreWriter]:
    async def opening() -> None:
        await store.open(server=instance.id, dead=instance.dead, now=time.time())
        instance.buried()

    writer = StoreWriter(store, metrics, opening=opening)
    writer.start()
    try:
        yield writer
    finally:
        await writer.close(seconds=CLOSE_SECONDS)
        await _close(store)


async def _close(store: StreamStore) -> None:
    """Close the store, or leave it when it cannot or takes too long: the end must come."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except (TimeoutError, StoreError) as error:
        reason = error.reason if isinstance(error, StoreError) else "slow"
        structlog.get_logger("headrace.streams").warning("store_left_open", reason=reason)


@asynccontextmanager
async def _running(registry: Registry, metrics: StreamMetrics) -> AsyncIterator[None]:
    sweeping = asyncio.create_task(_sweep(registry, metrics))
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.wait({sweeping})
        await registry.close(Incomplete(reason="server_stopped"), seconds=CLOSE_SECONDS)


async def _sweep(registry: Registry, metrics: StreamMetrics) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await registry.sweep()
        except StoreError as error:
            metrics.count_failure(error.reason)
        except Exception as error:
            log_unexpected(error)
