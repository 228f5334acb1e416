"""The whole procedure with a made-up llama.cpp: what it is asked, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from msgspec import structs

from inference.llamacpp.tuning.choice import CHOICES, EVEN, PREFERENCES, Quality, Speed, Timing
from inference.llamacpp.tuning.errors import JobFailed, TuningError
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.jobs import (
    AnyJob,
    Done,
    MeasureQuality,
    MeasureSpeed,
    R,
    RecordReference,
    Requantize,
)
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.plan import Options, Original
from inference.llamacpp.tuning.profile import Key, read_profile
from inference.llamacpp.tuning.search import Search

# Mean KL, and how many times as fast as the original.
FORMATS = {ORIGINAL: (0.0, 1.0), "BF16": (0.003, 1.3), "Q8_0": (0.006, 2.0), "Q4_0": (0.3, 3.0)}
SINGLE = {"F16": 0.3}
"""How much slower than all else one stream is."""

THREADS = {1: 0.5, 2: 1.0, 4: 1.2}
ALL = PREFERENCES[EVEN]


class FakeLlama:
    """A `Runner`. Speed halves little by little, as on a machine that gets hot."""

    def __init__(self) -> None:
        self.jobs: list[AnyJob] = []
        self.fails: Callable[[AnyJob], bool] = lambda _: False
        self.disturbs: Callable[[MeasureSpeed], bool] = lambda _: False
        self.heat = 1.0

    def __call__(self, job: AnyJob, answer: type[R]) -> R:
        """Answer without computing."""
        self.jobs.append(job)
        match job:
            case Requantize():
                Path(job.target).write_bytes(job.format.encode())
        if self.fails(job):
            raise JobFailed("llama.cpp ended the process (SIGABRT)")
        return cast(R, self._answer(job))

    def _answer(self, job: AnyJob) -> Timing | Quality | Done:
        match job:
            case Requantize():
                return Done()
            case RecordReference() | MeasureQuality():
                Path(job.logits).touch()
                kl, _ = FORMATS[format_of(job.path)]
                return Quality(divergence=kl, agreement=1 - kl, perplexity=30 + kl, tokens=1024)
            case MeasureSpeed():
                self.heat *= 0.99
                _, times = FORMATS[format_of(job.path)]
                rate = 100 * times * self.heat * THREADS[job.threads]
                prefill = rate * (1.5 if job.batch_tokens == 1024 else 1.0)
                disturbed = self.disturbs(job)
                if disturbed:
                    prefill, rate = prefill / 10, rate / 30
                single = rate * SINGLE.get(format_of(job.path), 1.0)
                speed = Speed(prefill=prefill, single=single, streams=rate)
                return Timing(speed=speed, quiet=not disturbed)


def format_of(path: str) -> str:
    """The format in a file name of ours; the original's has none."""
    return next((name for name in FORMATS if f"-{name}-" in path), ORIGINAL)


@pytest.fixture
def llama() -> FakeLlama:
    return FakeLlama()


@pytest.fixture
def search(tmp_path: Path, llama: FakeLlama) -> Search:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the original")
    places = TuningPlaces(
        weights=tmp_path / "tuned", profiles=tmp_path / "profiles", stamps=tmp_path / "stamps"
    )
    return Search(
        original=Original(id="tiny", path=path, quantization="Q4_1", size=12, vocabulary=9),
        key=Key(model_sha256=places.fingerprint(path), machine="fake", llama_cpp_python="0.0.1"),
        options=Options(formats=("BF16", "Q8_0", "Q4_0"), rounds=4, threads=(2,), batches=(512,)),
        places=places,
        run=llama,
        say=lambda _: None,
        memory_bytes=None,
    )


def test_each_class_gets_its_fastest(search: Search) -> None:
    profile = search.tune()
    formats = {name: profile.chosen(name).trial.format for name in CHOICES}
    expected = {"near-lossless": "Q8_0", "balanced": "Q8_0", "fast": "Q4_0"}
    assert formats == {name: expected[bound] for name, (bound, _) in CHOICES.items()}
    assert read_profile(search.places.profile(search.key), search.key) == profile


def test_drift_cancels(search: Search) -> None:
    ratios = {c.trial.format: ALL.score(c) for c in search.tune().candidates}
    for format, (_, times) in FORMATS.items():
        assert ratios[format] == pytest.approx(times, rel=0.005)


@pytest.mark.parametrize("victim", [ORIGINAL, "Q8_0"])
def test_disturbed_rounds_do_not_count(search: Search, llama: FakeLlama, victim: str) -> None:
    turns = iter([True, False, True, True])
    llama.disturbs = lambda job: format_of(job.path) == victim and next(turns)
    ratios = {c.trial.format: ALL.score(c) for c in search.tune().candidates}
    for format, (_, times) in FORMATS.items():
        assert ratios[format] == pytest.approx(times, rel=0.05)  # one round: drift remains


def test_where_all_rounds_are_disturbed_it_says_so(search: Search, llama: FakeLlama) -> None:
    said: list[str] = []
    llama.disturbs = lambda job: format_of(job.path) == "Q8_0"
    replace(search, say=said.append).tune()
    assert [line for line in said if "disturbed" in line] == [
        "Q8_0: every round was disturbed by other work"
    ]


def test_only_chosen_weights_stay_and_they_are_verified(search: Search) -> None:
    profile = search.tune()
    names = {path.name for path in search.places.weights.glob("*.gguf*")}
    assert names == {weights.name for weights in profile.weights}
    assert {weights.format for weights in profile.weights} == {"Q8_0", "Q4_0"}
    for weights in profile.weights:
        assert search.places.verified(weights).read_bytes() == weights.format.encode()


@pytest.fixture
def two_kinds(monkeypatch: pytest.MonkeyPatch, search: Search) -> Search:
    """With a format that is fast for many users and slow for one."""
    monkeypatch.setitem(FORMATS, "F16", (0.004, 2.4))
    return replace(search, options=replace(search.options, formats=("F16", "Q8_0")))


def test_the_weights_of_every_preference_stay(two_kinds: Search) -> None:
    profile = two_kinds.tune()
    assert profile.chosen("near-lossless").trial.format == "Q8_0"
    many = profile.chosen("near-lossless/throughput")
    assert many.trial.format == "F16"
    assert {weights.format for weights in profile.weights} == {"F16", "Q8_0"}
    kept = profile.weights_of(many)
    assert kept is not None
    assert two_kinds.places.verified(kept).read_bytes() == b"F16"


def test_a_format_gets_settings_for_each_preference(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads, less for one stream: only who serves many wants them."""
    said: list[str] = []
    options = replace(search.options, formats=("Q8_0",), threads=(2, 4), batches=(512, 1024))
    busy = replace(search, options=options, say=said.append)
    measure = FakeLlama.__call__

    def crowded(self: FakeLlama, job: AnyJob, answer: type[R]) -> R:
        found = measure(self, job, answer)
        if isinstance(job, MeasureSpeed) and isinstance(found, Timing) and job.threads == 4:
            speed = structs.replace(found.speed, single=found.speed.single / 2)
            return structs.replace(found, speed=speed)
        return found

    monkeypatch.setattr(FakeLlama, "__call__", crowded)
    profile = busy.tune()
    settings = {
        name: (profile.chosen(name).trial.threads, profile.chosen(name).trial.batch_tokens)
        for name in ("fast", "fast/latency", "fast/throughput")
    }
    assert settings == {
        "fast": (2, 1024),
        "fast/latency": (2, 1024),
        "fast/throughput": (4, 1024),
    }
    assert [c.trial.format for c in profile.candidates] == [ORIGINAL, "Q8_0", "Q8_0"]
    assert [weights.format for weights in profile.weights] == ["Q8_0"]
    assert len([line for line in said if "batch_tokens, round 1" in line]) == 2 * 3


def test_rounds_alternate_with_the_original_in_both_orders(
    search: Search, llama: FakeLlama
) -> None:
    search.tune()
    order = [format_of(job.path) for job in llama.jobs if isinstance(job, MeasureSpeed)]
    assert order[:8] == [*FORMATS, *reversed(FORMATS)]
    assert len(order) == 4 * len(FORMATS)


def test_threads_and_batches_are_varied_for_the_chosen(search: Search, llama: FakeLlama) -> None:
    options = replace(search.options, threads=(2, 1, 4), batches=(512, 1024))
    profile = replace(search, options=options).tune()
    for name in CHOICES:
        assert (profile.chosen(name).trial.threads, profile.chosen(name).trial.batch_tokens) == (
            4,
            1024,
        )
    jobs = [job for job in llama.jobs if isinstance(job, MeasureSpeed)]
    assert {job.threads for job in jobs if format_of(job.path) == "BF16"} == {2}
    assert {job.threads for job in jobs if format_of(job.path) == ORIGINAL} == {2}
    # In one comparison all prompts are equally long, and no batch is longer.
    assert {job.effort.prefill_tokens for job in jobs} == {512, 1024}
    assert all(job.effort.prefill_tokens >= job.batch_tokens for job in jobs)


@pytest.mark.parametrize("kind", [Requantize, MeasureQuality, MeasureSpeed])
def test_a_format_that_fails_is_left_out(
    search: Search, llama: FakeLlama, kind: type[AnyJob]
) -> None:
    def fails(job: AnyJob) -> bool:
        named = job.target if isinstance(job, Requantize) else job.path
        return isinstance(job, kind) and format_of(named) == "Q8_0"

    llama.fails = fails
    profile = search.tune()
    assert profile.chosen("near-lossless").trial.format == "BF16"
    assert "Q8_0" not in {c.trial.format for c in profile.candidates}


def test_without_the_original_there_is_nothing_to_compare(search: Search, llama: FakeLlama) -> None:
    llama.fails = lambda job: isinstance(job, RecordReference)
    with pytest.raises(TuningError, match="SIGABRT"):
        search.tune()
    assert not search.places.profiles.exists()
    assert list(search.places.weights.glob("*.gguf*")) == []


@pytest.mark.parametrize("at", range(1, 12))
def test_ctrl_c_at_any_job_leaves_nothing(search: Search, llama: FakeLlama, at: int) -> None:
    def interrupt(_: AnyJob) -> bool:
        if len(llama.jobs) == at:
            raise KeyboardInterrupt
        return False

    llama.fails = interrupt
    with pytest.raises(KeyboardInterrupt):
        search.tune()
    assert not search.places.profiles.exists()
    assert [path.name for path in search.places.weights.iterdir()] == ["locks"]


def test_an_interrupted_tuning_keeps_the_earlier_profile(search: Search, llama: FakeLlama) -> None:
    earlier = search.tune()

    def interrupt(job: AnyJob) -> bool:
        if isinstance(job, MeasureSpeed):
            raise KeyboardInterrupt
        return False

    llama.fails = interrupt
    with pytest.raises(KeyboardInterrupt):
        search.tune()
    assert read_profile(search.places.profile(search.key), search.key) == earlier
    for weights in earlier.weights:
        search.places.verified(weights)


def test_nothing_faster_means_the_original(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("BF16", "Q8_0", "Q4_0"):
        monkeypatch.setitem(FORMATS, format, (0.001, 0.9))
    profile = search.tune()
    assert {profile.chosen(name).trial.format for name in CHOICES} == {ORIGINAL}
    assert profile.weights == []
    assert list(profile.offers()) == []


def test_too_little_space_is_said_before_anything_is_made(search: Search, llama: FakeLlama) -> None:
    huge = replace(search, original=replace(search.original, size=1 << 60))
    with pytest.raises(TuningError, match="are free"):
        huge.tune()
    assert llama.jobs == []
