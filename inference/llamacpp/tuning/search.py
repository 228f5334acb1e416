"""The procedure: make the formats, compare them in quality and speed, choose, write.

Speed is measured in rounds. A round measures the original and every candidate once,
each in a fresh process, every second round in the opposite order: what drifts slowly
(temperature, a neighbour's load) touches all alike. A candidate's ratio is the median
over the rounds of its figure divided by the original's of the same round.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference.llamacpp.tuning.choice import (
    CHOICES,
    PREFERENCES,
    Candidate,
    Quality,
    Timing,
    Trial,
    choose,
    settle,
    typical,
)
from inference.llamacpp.tuning.errors import JobFailed
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.jobs import MeasureQuality, MeasureSpeed, RecordReference, Runner
from inference.llamacpp.tuning.maker import Maker
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.plan import Options, Original, formats_that_fit
from inference.llamacpp.tuning.profile import VERSION, Key, Profile

LOGIT_BYTES = 4
LOGITS_NAME = "original.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Everything a tuning works with. Immutable; `run` and `say` are how it acts."""

    original: Original
    key: Key
    options: Options
    places: TuningPlaces
    run: Runner
    say: Callable[[str], None]
    memory_bytes: int | None

    def tune(self) -> Profile:
        """Measure, choose, and write the profile; returns it.

        Raises `TuningError`. Whatever ends it early leaves no file with a final name
        that is not complete.
        """
        formats = formats_that_fit(
            self.original, self.options.formats, memory_bytes=self.memory_bytes, say=self.say
        )
        with self.places.exclusive(self.key) as work:
            try:
                profile = self._search(formats, work)
                self.places.save(profile)
            finally:
                self.places.drop_unused(self.key)
        return profile

    @property
    def maker(self) -> Maker:
        """What makes the files."""
        return Maker(
            original=self.original,
            key=self.key,
            places=self.places,
            run=self.run,
            say=self.say,
            threads=self.options.threads[0],
        )

    def _search(self, formats: Sequence[str], work: Path) -> Profile:
        logits = self.options.text_tokens * self.original.vocabulary * LOGIT_BYTES
        self.maker.require_space(formats, beside=logits)
        files = self._make(formats)
        qualities = self._compare(files, work)
        trials = [self._trial(format) for format in qualities]
        measured = self._measure(trials, files, qualities, "formats")
        return self._profile(self._vary(measured, files, qualities))

    def _make(self, formats: Sequence[str]) -> dict[str, Path]:
        """The file of each format that this model can have, the original's first."""
        files = {ORIGINAL: self.original.path}
        for format in formats:
            try:
                files[format] = self.maker.make(format)
            except JobFailed as error:
                self.say(f"{format} is left out: {error}")
        return files

    def _compare(self, files: dict[str, Path], work: Path) -> dict[str, Quality]:
        """What each format costs in quality, the original's own figures first."""
        logits = str(work / LOGITS_NAME)
        qualities: dict[str, Quality] = {}
        for format, path in files.items():
            kind = RecordReference if format == ORIGINAL else MeasureQuality
            job = kind(
                path=str(path),
                logits=logits,
                tokens=self.options.text_tokens,
                threads=self.options.threads[0],
                gpu_layers=self.options.gpu_layers,
            )
            try:
                found = self.run(job, Quality)
            except JobFailed as error:
                if format == ORIGINAL:
                    raise
                self.say(f"{format} is left out: {error}")
                continue
            qualities[format] = found
            self.say(
                f"quality of {self._name(format)}: mean KL {found.divergence:.4f}, same first "
                f"choice {found.agreement:.3f}, perplexity {found.perplexity:.2f}"
            )
        Path(logits).unlink()
        return qualities

    def _trial(self, format: str) -> Trial:
        """What formats are compared with."""
        return Trial(
            format=format,
            threads=self.options.threads[0],
            batch_tokens=self.options.batches[0],
        )

    def _measure(
        self,
        trials: Sequence[Trial],
        files: dict[str, Path],
        qualities: dict[str, Quality],
        what: str,
    ) -> list[Candidate]:
        """The trials' speeds; the first of them is the original's."""
        rounds: dict[Trial, list[Timing]] = {trial: [] for trial in trials}
        # One prompt for all, and long enough that no batch holds more than it.
        prompt = max(self.options.effort.prefill_tokens, *(t.batch_tokens for t in trials))
        for number in range(self.options.rounds):
            alive = list(rounds)
            for trial in alive if number % 2 == 0 else reversed(alive):
                self.say(
                    f"speed, {what}, round {number + 1} of {self.options.rounds}: "
                    f"{self._name(trial.format)}, {trial.threads} threads, "
                    f"batch {trial.batch_tokens}"
                )
                try:
                    rounds[trial].append(self._speed(trial, files[trial.format], prompt))
                except JobFailed as error:
                    if trial == trials[0]:
                        raise
                    self.say(f"{trial.format} is left out: {error}")
                    del rounds[trial]
        return [
            self._candidate(trial, timings, rounds[trials[0]], qualities[trial.format])
            for trial, timings in rounds.items()
        ]

    def _candidate(
        self, trial: Trial, timings: list[Timing], first: list[Timing], quality: Quality
    ) -> Candidate:
        pairs = zip(timings, first, strict=True)
        if not any(mine.quiet and its.quiet for mine, its in pairs):
            self.say(f"{self._name(trial.format)}: every round was disturbed by other work")
        speed, ratio = typical(timings, first)
        return Candidate(trial=trial, speed=speed, ratio=ratio, quality=quality)

    def _speed(self, trial: Trial, path: Path, prompt: int) -> Timing:
        found = self.run(
            MeasureSpeed(
                path=str(path),
                threads=trial.threads,
                batch_tokens=trial.batch_tokens,
                gpu_layers=self.options.gpu_layers,
                effort=msgspec.structs.replace(self.options.effort, prefill_tokens=prompt),
            ),
            Timing,
        )
        speed = found.speed
        if min(speed.prefill, speed.single, speed.streams) <= 0:
            raise JobFailed("it computed nothing")
        return found

    def _vary(
        self,
        measured: list[Candidate],
        files: dict[str, Path],
        qualities: dict[str, Quality],
    ) -> list[Candidate]:
        """The candidates again, each chosen format with the settings that suit it best.

        A format that is chosen for several preferences may get settings for each of them.
        """
        varied = []
        for candidate in measured:
            preferences = {
                preference
                for name, (_, preference) in CHOICES.items()
                if candidate.trial.format != ORIGINAL and choose(measured, name) == candidate
            }
            best = {name: candidate for name in PREFERENCES if name in preferences}
            for field, values in (
                ("threads", self.options.threads),
                ("batch_tokens", self.options.batches),
            ):
                self._vary_one(best, field, values, measured[0].trial, files, qualities)
            distinct = {kept.trial: kept for kept in best.values()}
            varied += [*distinct.values()] or [candidate]
        return varied

    def _vary_one(
        self,
        best: dict[str, Candidate],
        field: str,
        values: Sequence[int],
        original: Trial,
        files: dict[str, Path],
        qualities: dict[str, Quality],
    ) -> None:
        """Try other `values` of `field`, and leave in `best` what suits each preference."""
        for trial in dict.fromkeys(kept.trial for kept in best.values()):
            others = [
                msgspec.structs.replace(trial, **{field: value})
                for value in values
                if value != getattr(trial, field)
            ]
            if not others:
                continue
            what = f"{trial.format} {field}"
            found = self._measure([original, trial, *others], files, qualities, what)[1:]
            for name, kept in best.items():
                if found and kept.trial == trial:
                    best[name] = settle(found, PREFERENCES[name])

    def _profile(self, measured: list[Candidate]) -> Profile:
        profile = Profile(
            version=VERSION,
            model=self.original.id,
            quantization=self.original.quantization,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            rounds=self.options.rounds,
            key=self.key,
            candidates=measured,
        )
        weights = self.maker.weights(profile.chosen_formats())
        return msgspec.structs.replace(profile, weights=weights)

    def _name(self, format: str) -> str:
        return f"{self.original.quantization} (original)" if format == ORIGINAL else format
