"""Fetches a file from a model hub, and takes a broken-off download up again.

huggingface_hub builds the URLs, finds the token, asks for the file's metadata and
names the errors. The bytes are read here, because its own download starts from zero
in each process: a `.part` file of ours is continued with a Range request, also
tomorrow. The protocol: `HEAD` and `GET {endpoint}/{repo}/resolve/{revision}/{path}`,
which answers with `X-Repo-Commit`, `X-Linked-Size` and `X-Linked-Etag` (the SHA-256 of
a large file) and usually redirects to a store of blobs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, lazily exported
    build_hf_headers,
    hf_raise_for_status,
)

from models.entry import Entry, HubSource
from models.errors import FetchFailed, HashMismatch
from models.progress import byte_bar, megabytes, say

_READ_SECONDS = 30.0
_FRUITLESS_ATTEMPTS = 5
_PAUSE_SECONDS_MAX = 16.0
_TRANSIENT = (408, 429, 500, 502, 503, 504)


def fetch(
    entry: Entry,
    source: HubSource,
    part: Path,
    *,
    endpoint: str | None = None,
    progress: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fill `part` from the hub; what is there already is not fetched again.

    `endpoint` is the base URL of the hub; None is what huggingface_hub is set to, that
    is `HF_ENDPOINT` or the public hub. `pause` waits a number of seconds between two
    attempts. A download that breaks off leaves `part` to be continued.

    Raises FetchFailed; HashMismatch if the hub itself says that it holds another file.
    """
    try:
        url = hf_hub_url(source.repo, source.path, revision=source.revision, endpoint=endpoint)
        _download(entry, source, url, part, endpoint=endpoint, progress=progress, pause=pause)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise FetchFailed(f"{entry.id}: {_explain(error, source)}") from error


def _check_offer(entry: Entry, source: HubSource, url: str, *, endpoint: str | None) -> None:
    """Ask what the hub would send, before gigabytes of something else are on their way."""
    offer = get_hf_file_metadata(url, endpoint=endpoint, headers=_headers(), retry_on_errors=False)
    if offer.commit_hash not in (None, source.revision):
        raise FetchFailed(f"{entry.id}: the hub answered with another commit, {offer.commit_hash}")
    if offer.size not in (None, entry.size):
        raise HashMismatch(
            f"{entry.id}: the hub's file has {offer.size:,} bytes, "
            f"the catalogue says {entry.size:,}"
        )
    is_sha256 = offer.etag is not None and re.fullmatch(r"[0-9a-f]{64}", offer.etag)
    if is_sha256 and offer.etag != entry.sha256:
        raise HashMismatch(
            f"{entry.id}: the hub's file has the SHA-256 {offer.etag}, "
            f"the catalogue says {entry.sha256}"
        )


def _download(
    entry: Entry,
    source: HubSource,
    url: str,
    part: Path,
    *,
    endpoint: str | None,
    progress: bool,
    pause: Callable[[float], None],
) -> None:
    """Read until `part` has the entry's size; give up after attempts without a new byte."""
    offered = False
    fruitless = 0
    while True:
        done = _size(part)
        try:
            if not offered:
                _check_offer(entry, source, url, endpoint=endpoint)
                offered = True
            if done < entry.size:
                _read_into(entry, url, part, done=done, progress=progress)
            problem: httpx2.HTTPError = httpx2.ReadError("the hub sent less than it announced")
        except httpx2.TransportError as error:
            if not offered:
                raise  # no network, most likely: let people know at once
            problem = error
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRANSIENT:
                raise
            problem = error
        if offered and _size(part) >= entry.size:
            return
        fruitless = 0 if _size(part) > done else fruitless + 1
        if fruitless == _FRUITLESS_ATTEMPTS:
            raise problem
        pause(min(2.0**fruitless, _PAUSE_SECONDS_MAX))


def _read_into(entry: Entry, url: str, part: Path, *, done: int, progress: bool) -> None:
    """One GET, from byte `done` on. It writes at most one byte more than the entry's size."""
    start = f"going on after {megabytes(done)}" if done else f"fetching {megabytes(entry.size)}"
    say(f"{entry.id}: {start} from {url}", show=progress)
    headers = _headers() | ({"Range": f"bytes={done}-"} if done else {})
    with get_session().stream(
        "GET", url, headers=headers, timeout=_READ_SECONDS, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            done = 0  # the server knows no ranges and sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise FetchFailed(f"{entry.id}: the hub answered with another range than asked for")
        with (
            part.open("ab") as file,
            byte_bar(entry.file, total=entry.size, done=done, show=progress) as bar,
        ):
            file.truncate(done)
            for chunk in response.iter_raw():  # as they come: a broken-off chunk would be lost
                done += file.write(chunk[: entry.size + 1 - done])
                bar.update(len(chunk))
                if done > entry.size:
                    return


def _headers() -> dict[str, str]:
    """The user's token, if there is one, and no compression: bytes must be the file's."""
    headers: dict[str, str] = build_hf_headers(library_name="headrace")
    return headers | {"Accept-Encoding": "identity"}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _explain(error: Exception, source: HubSource) -> str:
    where = f"{source.repo} at {source.revision[:12]}"
    match error:
        case GatedRepoError():
            return f"{where} needs consent to its terms, and a token of an account that gave it"
        case EntryNotFoundError():
            return f"{where} has no file {source.path}"
        case RevisionNotFoundError():
            return f"the hub has no such revision: {where}"
        case RepositoryNotFoundError():
            return f"the hub has no such repository, or it is private: {source.repo}"
        case HFValidationError():
            return f"source.repo: {error}"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE forbids fetching"
        case HfHubHTTPError():
            return f"the hub answered {error.response.status_code} for {where}, {source.path}"
        case _:
            detail = str(error) or type(error).__name__
            return f"the hub could not be reached or broke off: {detail}"
