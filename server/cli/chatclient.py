"""A small client of the server's own API: which model, and one streamed answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import httpx2
import msgspec
from msgspec import Struct

from inference.events import Queued
from server.cli.errors import CommandError
from server.cli.streamlines import LineTooLong, Remark, lines
from server.keyfile import KeyFileError, read_keys
from server.wire.comments import queued_of

CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0
"""The longest silence before or within an answer: a long prompt may be read for minutes."""

ERROR_BODY_MAX_BYTES = 65_536
EVENT_STREAM = "text/event-stream"


class Message(Struct, frozen=True):
    """One message of the dialogue."""

    role: str
    content: str


class Reasoning(Struct, frozen=True):
    """A piece of what the model thinks before it answers."""

    text: str


class _Error(Struct):
    message: str = ""
    code: str | None = None


class _Refusal(Struct):
    error: _Error


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: tuple[_Choice, ...] = ()
    error: _Error | None = None


class _Model(Struct):
    id: str


class _Models(Struct):
    data: tuple[_Model, ...]


class ChatFailed(CommandError):
    """The server is not there, refuses, or ended an answer too early."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


class ChatClient:
    """A connection to one server; close it, or use it in a `with` block.

    `finish_reason` is that of the last answer, None while there is none.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.finish_reason: str | None = None
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise CommandError(f"--url {url}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise CommandError(f"--url {url}: expected http://HOST:PORT")
        self._client = httpx2.Client(
            headers={} if key is None else {b"authorization": b"Bearer " + key.encode()},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            # A proxy from the environment cannot reach this machine's loopback.
            trust_env=not _is_loopback(parsed.host),
        )

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def first_model(self) -> str:
        """The id of the model that is served. Raises `ChatFailed`."""
        try:
            with self._client.stream("GET", f"{self.url}/v1/models") as response:
                self._check(response)
                models = msgspec.json.decode(response.read(), type=_Models)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        except msgspec.DecodeError:
            raise ChatFailed(f"{self.url} does not answer like a Headrace server") from None
        return models.data[0].id if models.data else "default"

    def answer(
        self, messages: Sequence[Message], *, model: str, temperature: float | None
    ) -> Generator[str | Reasoning | Queued, None, None]:
        """Yield the pieces of one answer as they come, first its reasoning, if there is any.

        Places in the queue come before the first piece, and between pieces where it has to
        wait again.
        Closing the iterator stops the answer.
        Raises `ChatFailed`, also when the stream ends without a terminal event.
        """
        body = {"model": model, "messages": messages, "stream": True}
        if temperature is not None:
            body["temperature"] = temperature
        self.finish_reason = None
        try:
            with self._client.stream(
                "POST",
                f"{self.url}/v1/chat/completions",
                content=msgspec.json.encode(body),
                headers={"content-type": "application/json"},
            ) as response:
                self._check(response)
                yield from self._pieces(response)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        except (msgspec.DecodeError, LineTooLong):
            raise ChatFailed(f"{self.url} sent an event that cannot be read") from None

    def _pieces(self, response: httpx2.Response) -> Iterator[str | Reasoning | Queued]:
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if kind != EVENT_STREAM:
            raise ChatFailed(f"{self.url} answers with {kind or 'nothing'}, not {EVENT_STREAM}")
        for line in lines(response.iter_bytes()):
            if isinstance(line, Remark):
                if (queued := queued_of(line.text)) is not None:
                    yield queued
                continue
            if line.text == b"[DONE]":
                return
            chunk = msgspec.json.decode(line.text, type=_Chunk)
            if chunk.error is not None:
                raise ChatFailed(f"the answer broke off: {chunk.error.message}")
            for choice in chunk.choices:
                if choice.delta.reasoning_content:
                    yield Reasoning(choice.delta.reasoning_content)
                if choice.delta.content:
                    yield choice.delta.content
                self.finish_reason = choice.finish_reason or self.finish_reason
        raise ChatFailed("the answer broke off: the connection ended before the answer did")

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code == 200:
            return
        body = b""
        for part in response.iter_bytes():
            body += part
            if len(body) > ERROR_BODY_MAX_BYTES:
                break
        try:
            said = msgspec.json.decode(body, type=_Refusal).error.message
        except msgspec.DecodeError:
            raise ChatFailed(
                f"{self.url} answers with status {response.status_code}, not like a Headrace server"
            ) from None
        hint = " Name a key with --api-key-file FILE." if response.status_code == 401 else ""
        raise ChatFailed(f"the server refused ({response.status_code}): {said}{hint}")

    def _unreachable(self, error: httpx2.HTTPError) -> ChatFailed:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return ChatFailed(f"no server answers at {self.url}; `headrace serve` starts one")
        if isinstance(error, httpx2.ReadTimeout):
            return ChatFailed(f"the server said nothing for {READ_SECONDS:g} seconds")
        return ChatFailed(f"the connection to {self.url} broke: {error}")


def read_key(path: Path) -> str:
    """The first key of a key file, one a line. Raises `CommandError`."""
    try:
        return read_keys(path)[0]
    except KeyFileError as error:
        raise CommandError(f"--api-key-file {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
