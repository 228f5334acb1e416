import subprocess
import sys
from pathlib import Path

import pytest

from server.streams import instance
from server.streams.instance import DataDirError, take_place

HOLD = """
import pathlib, sys
from server.streams.instance import take_place
place = take_place(pathlib.Path(sys.argv[1]))
print(place.id, flush=True)
sys.stdin.read()
"""


def test_a_server_that_restarts_is_the_same(tmp_path: Path) -> None:
    first = take_place(tmp_path / "new" / "data")
    first.close()
    again = take_place(tmp_path / "new" / "data")
    assert (again.id, again.dead) == (first.id, ())
    again.close()
    assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_servers_that_live_have_places_of_their_own(tmp_path: Path) -> None:
    one, two = take_place(tmp_path), take_place(tmp_path)
    assert one.id != two.id
    assert two.dead == ()
    two.close()
    three = take_place(tmp_path)
    assert (three.id, three.dead) == (two.id, ())
    one.close()
    three.close()


def test_a_killed_server_is_found_dead_and_its_place_is_held_until_it_is_buried(
    tmp_path: Path,
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ids = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.kill()
        process.communicate()
    place = take_place(tmp_path)
    assert {place.id, *place.dead} == set(ids)
    other = take_place(tmp_path)
    assert other.id not in ids
    place.buried()
    third = take_place(tmp_path)
    assert third.id in ids
    for each in (place, other, third):
        each.close()


def test_a_file_with_nonsense_gets_a_new_id(tmp_path: Path) -> None:
    (tmp_path / "server-0.id").write_text("not an id\n")
    place = take_place(tmp_path)
    assert len(place.id) == 32
    assert (tmp_path / "server-0.id").read_text() == place.id
    place.close()


def test_places_are_bounded_and_unusable_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "PLACES_MAX", 1)
    place = take_place(tmp_path)
    with pytest.raises(DataDirError, match="data_dir is used by 1 servers already"):
        take_place(tmp_path)
    place.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="data_dir cannot be used: File exists"):
        take_place(tmp_path / "file")
