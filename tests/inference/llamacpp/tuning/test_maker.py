"""Weights made again from a profile, with a made-up llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import pytest

from inference.llamacpp.tuning.errors import JobFailed, TuningError
from inference.llamacpp.tuning.jobs import AnyJob, Done, R, Requantize
from inference.llamacpp.tuning.maker import Maker
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.plan import Original
from inference.llamacpp.tuning.profile import Key, Profile, Weights, read_profile
from tests.inference.llamacpp.tuning.figures import SERVER


@dataclass(slots=True)
class FakeLlama:
    """A `Runner` that only requantizes. Mutable: what it made; `after` follows in each file."""

    made: list[str] = field(default_factory=list)
    after: bytes = b""
    fails: bool = False

    def __call__(self, job: AnyJob, answer: type[R]) -> R:
        """Write a file that says which format it is in."""
        assert isinstance(job, Requantize)
        Path(job.target).write_bytes(job.format.encode() + self.after)
        if self.fails:
            raise JobFailed("no space")
        self.made.append(job.format)
        return cast(R, Done())


@pytest.fixture
def llama() -> FakeLlama:
    return FakeLlama()


@pytest.fixture
def maker(tmp_path: Path, llama: FakeLlama) -> Maker:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the original")
    places = TuningPlaces(
        weights=tmp_path / "tuned", profiles=tmp_path / "profiles", stamps=tmp_path / "stamps"
    )
    return Maker(
        original=Original(id="tiny", path=path, quantization="Q4_1", size=12, vocabulary=9),
        key=Key(model_sha256=places.fingerprint(path), machine="fake", llama_cpp_python="0.0.1"),
        places=places,
        run=llama,
        say=lambda _: None,
        threads=1,
    )


def saved(maker: Maker, weights: list[Weights]) -> Profile:
    """A profile on disk that names these weights."""
    profile = msgspec.structs.replace(SERVER, key=maker.key, weights=weights)
    maker.places.save(profile)
    return profile


def names(maker: Maker) -> set[str]:
    """Files of weights, finished or not."""
    return {path.name for path in maker.places.weights.glob("*.gguf*")}


def test_what_is_missing_is_made_and_the_rest_stays(maker: Maker, llama: FakeLlama) -> None:
    maker.places.weights.mkdir()
    maker.make("Q8_0")
    saved(maker, maker.weights(["Q8_0"]))
    done = maker.complete()
    assert llama.made == ["Q8_0", "BF16"]
    assert [weights.format for weights in done.weights] == ["BF16", "Q8_0"]
    for weights in done.weights:
        assert maker.places.verified(weights).read_bytes() == weights.format.encode()
    assert read_profile(maker.places.profile(maker.key), maker.key) == done
    assert maker.complete() == done
    assert llama.made == ["Q8_0", "BF16"]


def test_a_changed_or_lost_file_is_made_again(maker: Maker, llama: FakeLlama) -> None:
    saved(maker, [])
    done = maker.complete()
    changed, lost = (maker.places.weights / weights.name for weights in done.weights)
    changed.write_bytes(b"XXXX")
    lost.unlink()
    assert maker.complete() == done
    assert llama.made == ["BF16", "Q8_0"] * 2


def test_a_file_that_was_never_measured_is_refused(maker: Maker, llama: FakeLlama) -> None:
    saved(maker, [])
    done = maker.complete()
    (maker.places.weights / done.weights[0].name).unlink()
    llama.after = b" of another build"
    with pytest.raises(TuningError, match="makes another BF16 now"):
        maker.complete()
    assert read_profile(maker.places.profile(maker.key), maker.key) == done


def test_what_cannot_be_made_leaves_the_profile_as_it_was(maker: Maker, llama: FakeLlama) -> None:
    profile = saved(maker, [])
    llama.fails = True
    with pytest.raises(TuningError, match="no space"):
        maker.complete()
    assert names(maker) == set()
    assert read_profile(maker.places.profile(maker.key), maker.key) == profile


def test_without_a_profile_there_is_nothing_to_make(maker: Maker, llama: FakeLlama) -> None:
    with pytest.raises(TuningError, match="tiny has no tuned profile"):
        maker.complete()
    assert llama.made == []
