"""A model hub on a local socket: the part of the protocol that fetching a file needs.

`HEAD` and `GET /{repo}/resolve/{revision}/{path}` answer with a redirect to a blob on
another host name, and with the headers of the real hub. Blobs know ranges. The faults
are attributes which a test sets before it fetches.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

REPO = "acme/tiny-gguf"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Seen:
    """One request as the server got it."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The server's files, faults and memory. Shared with its threads; tests own it."""

    files: dict[str, bytes]
    break_after: list[int] = field(default_factory=list)
    """For each coming GET of a blob: how many bytes to send before the line breaks."""
    statuses: list[int] = field(default_factory=list)
    """For each coming GET of a blob: answer with this status instead (0: with the file)."""
    head_statuses: list[int] = field(default_factory=list)
    """The same for each coming question about a file."""
    knows_ranges: bool = True
    announces_hash: bool = True
    announces_size: bool = True
    commit: str = REVISION
    error_code: str = ""
    seen: list[Seen] = field(default_factory=list)
    blob_requested: threading.Event = field(default_factory=threading.Event)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def blob_base(self) -> str:
        # Another host name, so that another origin, as the blobs of the real hub have.
        return f"http://localhost:{self._server.server_port}"

    def blob_requests(self) -> list[Seen]:
        return [s for s in self.seen if s.method == "GET" and s.path.startswith("/blobs/")]

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what the tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen` instead."""

    def _answer(self) -> None:
        self.hub.seen.append(
            Seen(
                self.command,
                self.path,
                self.headers.get("Range"),
                self.headers.get("Authorization"),
            )
        )
        if self.path.startswith("/blobs/"):
            self._blob(self.path.removeprefix("/blobs/"))
        else:
            self._resolve()

    def _resolve(self) -> None:
        prefix = f"/{REPO}/resolve/{REVISION}/"
        name = self.path.removeprefix(prefix)
        if self.command == "HEAD" and self.hub.head_statuses:
            self._empty(self.hub.head_statuses.pop(0), {})
        elif self.hub.error_code:
            self._empty(401, {"X-Error-Code": self.hub.error_code})
        elif not self.path.startswith(f"/{REPO}/"):
            self._empty(404, {"X-Error-Code": "RepoNotFound"})
        elif not self.path.startswith(prefix):
            self._empty(404, {"X-Error-Code": "RevisionNotFound"})
        elif name not in self.hub.files:
            self._empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.hub.commit})
        else:
            data = self.hub.files[name]
            etag = hashlib.sha256(data).hexdigest() if self.hub.announces_hash else "an-etag"
            headers = {
                "X-Repo-Commit": self.hub.commit,
                "X-Linked-Etag": f'"{etag}"',
                "ETag": '"pointer"',
                "Location": f"{self.hub.blob_base}/blobs/{name}",
            }
            if self.hub.announces_size:
                headers["X-Linked-Size"] = str(len(data))
            self._empty(302, headers)

    def _blob(self, name: str) -> None:
        data = self.hub.files[name]
        if self.command == "GET":
            self.hub.blob_requested.set()
            self.hub.may_answer.wait()
            status = self.hub.statuses.pop(0) if self.hub.statuses else 0
            if status:
                self._empty(status, {})
                return
        asked = self.headers.get("Range")
        start = 0
        if asked and self.hub.knows_ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        rest = data[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.command == "GET":
            self._send(rest)

    def _send(self, rest: bytes) -> None:
        if self.hub.break_after:
            self.wfile.write(rest[: self.hub.break_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
