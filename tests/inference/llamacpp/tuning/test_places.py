import fcntl
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.profile import Weights, read_profile
from models.places import Places
from tests.inference.llamacpp.tuning.figures import FAST, KEY


@pytest.fixture
def places(tmp_path: Path) -> TuningPlaces:
    return TuningPlaces.beside(
        Places(store=tmp_path / "cache" / "models", user_catalog=tmp_path / "data" / "catalog.toml")
    )


def weights(places: TuningPlaces, content: bytes) -> Weights:
    path = places.weights_file(KEY, "Q8_0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Weights(format="Q8_0", name=path.name, size=len(content), sha256=digest)


def test_the_name_holds_source_format_and_release(places: TuningPlaces) -> None:
    name = places.weights_file(KEY, "Q8_0").name
    assert name == f"{KEY.model_sha256[:16]}-Q8_0-0.3.36.gguf"


def test_weights_are_verified_before_use(places: TuningPlaces) -> None:
    entry = weights(places, b"right")
    path = places.verified(entry)
    for content in (b"wrong", b"longer"):  # the stamp of the first check does not count
        path.write_bytes(content)
        with pytest.raises(WeightsMissing, match="SHA-256"):
            places.verified(entry)
    path.unlink()
    with pytest.raises(WeightsMissing, match="gone"):
        places.verified(entry)


def test_a_fingerprint_is_known_once_taken(places: TuningPlaces, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    assert places.known_fingerprint(path) is None
    found = places.fingerprint(path)
    assert found == hashlib.sha256(b"weights").hexdigest()
    assert places.known_fingerprint(path) == found
    path.write_bytes(b"others")
    assert places.known_fingerprint(path) is None
    assert places.known_fingerprint(tmp_path / "none") is None
    with pytest.raises(TuningError, match="cannot be read"):
        places.fingerprint(tmp_path / "none")


def test_profiles_are_saved_whole(places: TuningPlaces) -> None:
    path = places.save(FAST)
    assert read_profile(path, KEY) == FAST
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_unfinished_stays(places: TuningPlaces) -> None:
    part = places.weights_file(KEY, "Q8_0").with_suffix(".gguf.part")

    def leave() -> None:
        with places.exclusive(KEY) as work:
            assert not part.exists()  # of a process that was killed
            (work / "logits").write_bytes(b"x")
            part.write_bytes(b"x")
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            leave()
        assert [p.name for p in places.weights.iterdir()] == ["locks"]
        part.write_bytes(b"left behind")
    part.unlink()


def test_two_tunings_of_a_model_take_turns(places: TuningPlaces) -> None:
    with places.exclusive(KEY):
        (lock,) = (places.weights / "locks").iterdir()
        descriptor = os.open(lock, os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


def test_weights_that_no_profile_names_are_dropped(places: TuningPlaces) -> None:
    kept, lost = (places.weights_file(KEY, format) for format in ("Q8_0", "Q4_0"))
    entry = weights(places, b"kept")
    lost.write_bytes(b"lost")
    foreign = places.weights / ("cd" * 8 + "-Q8_0-0.3.36.gguf")
    foreign.write_bytes(b"another model's")
    places.save(msgspec.structs.replace(FAST, weights=[entry]))
    (places.profiles / "damaged.toml").write_text("version =")
    places.drop_unused(KEY)
    assert kept.exists()
    assert foreign.exists()
    assert not lost.exists()


def test_space_is_asked_for_beforehand(places: TuningPlaces) -> None:
    places.weights.mkdir(parents=True)
    places.require_space(1)
    with pytest.raises(TuningError, match=r"needs up to .* are free"):
        places.require_space(1 << 60)


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    places = TuningPlaces(weights=blocked / "w", profiles=tmp_path, stamps=tmp_path)
    with pytest.raises(TuningError, match="Not a directory"), places.exclusive(KEY):
        pass
