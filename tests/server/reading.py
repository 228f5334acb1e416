"""Reading streams as their clients do, line by line over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

CHAT, TEXT, STREAMS = "/v1/chat/completions", "/v1/completions", "/v1/streams"
RESUMABLE = {"X-Headrace-Stream": "resumable"}
ID_HEADER = "x-headrace-stream-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a stream: its `id:`, its `event:`, its data decoded."""

    data: Any
    id: int | None = None
    name: str | None = None


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """The events of an event stream, comments and `retry:` left out."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            data = fields["data"]
            yield Event(
                data=data if data == "[DONE]" else json.loads(data),
                id=int(fields["id"]) if "id" in fields else None,
                name=fields.get("event"),
            )
            fields = {}
        else:
            fields = {}


@asynccontextmanager
async def follow(
    client: httpx2.AsyncClient,
    response_id: str,
    *,
    headers: dict[str, str] | None = None,
    **query: Any,
) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of a response from the native route."""
    path = f"{STREAMS}/{response_id}/events"
    async with client.stream("GET", path, params=query, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield events_of(response.aiter_lines())


async def followed(client: httpx2.AsyncClient, response_id: str, **query: Any) -> list[Event]:
    """All events of a response from the native route."""
    async with follow(client, response_id, **query) as events:
        return [event async for event in events]


def chat(content: str, **fields: Any) -> dict[str, Any]:
    """A request for a streamed chat completion."""
    asked = {"model": "default", "stream": True}
    return {**asked, "messages": [{"role": "user", "content": content}], **fields}


def text_of(events: Iterable[Event]) -> str:
    """What the first choice of a chat completion says."""
    return "".join(
        event.data["choices"][0]["delta"].get("content", "")
        for event in events
        if event.data != "[DONE]" and event.data.get("choices")
    )


def native_text(events: Iterable[Event], sequence: int = 0) -> str:
    """What a sequence says, natively."""
    return "".join(
        event.data["text"]
        for event in events
        if event.data["type"] == "delta" and event.data["sequence"] == sequence
    )
