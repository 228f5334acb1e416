"""Fetching from a hub, against a local server which speaks its protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.entry import HubSource
from models.errors import FetchFailed, HashMismatch
from models.sources.hub import fetch
from tests.models.entries import CONTENT, HUB_SOURCE, make_entry
from tests.models.hub_server import Hub


def _fetch(hub: Hub, part: Path, source: HubSource = HUB_SOURCE) -> list[float]:
    pauses: list[float] = []
    fetch(
        make_entry(source),
        source,
        part,
        endpoint=hub.endpoint,
        progress=False,
        pause=pauses.append,
    )
    return pauses


def test_a_file_comes_in_one_request(hub: Hub, tmp_path: Path) -> None:
    pauses = _fetch(hub, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert pauses == []
    assert [(seen.method, seen.range) for seen in hub.blob_requests()] == [("GET", None)]


def test_a_line_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = [100_000, 50_000]
    pauses = _fetch(hub, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert [seen.range for seen in hub.blob_requests()] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    assert pauses == [1.0, 1.0]


def test_what_broke_off_for_good_goes_on_in_the_next_call(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = [70_000, 0, 0, 0, 0, 0]
    with pytest.raises(FetchFailed, match="broke off"):
        _fetch(hub, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == 70_000
    _fetch(hub, tmp_path / "part")
    assert hub.blob_requests()[-1].range == "bytes=70000-"
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_pauses_grow_while_nothing_comes(hub: Hub, tmp_path: Path) -> None:
    hub.head_statuses = [503]
    hub.statuses = [502, 429, 0]
    assert _fetch(hub, tmp_path / "part") == [2.0, 4.0, 8.0]
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    hub.break_after = [100_000]
    _fetch(hub, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_a_complete_part_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT)
    _fetch(hub, tmp_path / "part")
    assert hub.blob_requests() == []


def test_another_file_at_the_hub_is_refused_before_it_is_sent(hub: Hub, tmp_path: Path) -> None:
    hub.files["tiny.gguf"] = bytes(len(CONTENT))
    with pytest.raises(HashMismatch, match="tiny: the hub's file has the SHA-256"):
        _fetch(hub, tmp_path / "part")
    hub.files["tiny.gguf"] = b"short"
    with pytest.raises(HashMismatch, match="has 5 bytes"):
        _fetch(hub, tmp_path / "part")
    assert hub.blob_requests() == []
    assert not (tmp_path / "part").exists()


def test_another_commit_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.commit = "f" * 40
    with pytest.raises(FetchFailed, match="another commit"):
        _fetch(hub, tmp_path / "part")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", "other.gguf", "has no file other.gguf"),
        ("revision", "f" * 40, "no such revision"),
        ("repo", "acme/nothing", "no such repository"),
        ("repo", "acme/a--b", "source.repo"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: Hub, tmp_path: Path, field: str, value: str, message: str
) -> None:
    fields = {"repo": HUB_SOURCE.repo, "revision": HUB_SOURCE.revision, "path": HUB_SOURCE.path}
    with pytest.raises(FetchFailed, match=message):
        _fetch(hub, tmp_path / "part", HubSource(**(fields | {field: value})))


def test_a_gated_repository_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.error_code = "GatedRepo"
    with pytest.raises(FetchFailed, match="consent"):
        _fetch(hub, tmp_path / "part")


def test_a_refusal_is_not_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.statuses = [410]
    with pytest.raises(FetchFailed, match="answered 410"):
        _fetch(hub, tmp_path / "part")
    assert len(hub.blob_requests()) == 1


def test_an_unreachable_hub_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="could not be reached") as caught:
        fetch(
            make_entry(),
            HUB_SOURCE,
            tmp_path / "part",
            endpoint="http://127.0.0.1:9",
            progress=False,
            pause=lambda _: None,
        )
    assert "\n" not in str(caught.value)


def test_the_token_goes_to_the_hub_and_not_to_the_blobs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    _fetch(hub, tmp_path / "part")
    for seen in hub.seen:
        expected = None if seen.path.startswith("/blobs/") else "Bearer hf_secret"
        assert seen.authorization == expected


def test_a_file_longer_than_it_should_be_is_cut_one_byte_late(hub: Hub, tmp_path: Path) -> None:
    hub.announces_hash = False
    hub.announces_size = False
    hub.files["tiny.gguf"] = CONTENT * 2
    _fetch(hub, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == len(CONTENT) + 1
