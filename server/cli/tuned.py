"""Profiles of `headrace tune`, as `headrace serve` uses them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.llamacpp.tuning.choice import CHOICES, PREFERENCES, Candidate
from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.profile import Key, Profile, read_profile
from models import LocalModel
from models.places import default_places
from server.cli import installed
from server.cli.errors import CommandError
from server.cli.machine import Machine, read_machine
from server.settings import Settings

WORTH_SAYING = 1.05
"""Start-up mentions a profile from this score on."""

FOR_WHOM: Mapping[str, str] = {"latency": " for one user", "throughput": " for many users"}
"""What a score under a preference holds for; that of the usual one holds for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenWeights:
    """The verified file to load and its settings (0 threads: the engine chooses).

    `words` are for the banner: which weights these are, or that there are faster ones.
    """

    path: Path
    threads: int
    batch_tokens: int
    words: str | None


def weights_for(settings: Settings, model: LocalModel) -> ChosenWeights:
    """What `settings.profile` says to serve. Raises `CommandError`.

    Threads and a batch size that somebody has set win over the profile's.
    """
    if settings.profile == "original":
        return ChosenWeights(
            path=model.path,
            threads=settings.threads,
            batch_tokens=settings.batch_tokens,
            words=offer(model, gpu_layers=settings.gpu_layers),
        )
    profile, path = use_profile(settings, model)
    candidate = profile.chosen(settings.profile)
    left_open = settings.batch_tokens == Settings().batch_tokens
    return ChosenWeights(
        path=path,
        threads=settings.threads or candidate.trial.threads,
        batch_tokens=candidate.trial.batch_tokens if left_open else settings.batch_tokens,
        words=f"{settings.profile}, {_weights_words(profile, settings.profile, candidate)}",
    )


def key_of(sha256: str, *, gpu_layers: int, machine: Machine | None = None) -> Key:
    """What a profile for this file, here and now, must have been made for."""
    # A program that asks the GPU's driver would delay each start; files say enough.
    machine = machine or read_machine(run=lambda _: None)
    return Key(
        model_sha256=sha256,
        machine=machine_words(machine, gpu_layers=gpu_layers, usable=len(os.sched_getaffinity(0))),
        llama_cpp_python=installed("llama-cpp-python") or "none",
    )


def machine_words(machine: Machine, *, gpu_layers: int, usable: int) -> str:
    """All that measured speed depends on: the processor, what we may use of it, GPUs."""
    processor = machine.processor
    words = [
        processor.name,
        f"{processor.cores} cores",
        f"{usable} of {processor.threads} threads",
        " ".join(processor.features),
    ]
    if machine.cpu_limit is not None:
        words.append(f"limited to {machine.cpu_limit:g}")
    if machine.gpus:
        words += [f"{gpu.vendor} {gpu.name}" for gpu in machine.gpus]
        words.append(f"gpu layers {gpu_layers}")
    return ", ".join(words)


def use_profile(settings: Settings, model: LocalModel) -> tuple[Profile, Path]:
    """The model's profile, and the file that is to be served. Raises `CommandError`."""
    name, gpu_layers = settings.profile, settings.gpu_layers
    command = f"headrace tune {shlex.quote(settings.model)}"
    places = TuningPlaces.beside(default_places())
    try:
        key = key_of(places.fingerprint(model.path, progress=True), gpu_layers=gpu_layers)
        profile = read_profile(places.profile(key), key)
        if profile is None:
            raise TuningError(f"{model.id} has no tuned profile for this machine yet")
        weights = profile.weights_of(profile.chosen(name))
        path = model.path if weights is None else places.verified(weights)
    except WeightsMissing as error:
        remedy = f"`{command} --weights-only` makes the missing file"
        raise CommandError(f"--profile {name}: {error}; {remedy}") from None
    except TuningError as error:
        raise CommandError(f"--profile {name}: {error}; `{command}` makes one") from None
    return profile, path


def offer(model: LocalModel, *, gpu_layers: int) -> str | None:
    """A line for the banner when a faster profile exists. Hashes nothing, raises nothing."""
    places = TuningPlaces.beside(default_places())
    sha256 = places.known_fingerprint(model.path)
    if sha256 is None:
        return None  # a file that was tuned was hashed
    key = key_of(sha256, gpu_layers=gpu_layers)
    try:
        profile = read_profile(places.profile(key), key)
    except TuningError:
        return None  # serving the original does not depend on it
    if profile is None:
        return None
    worth = [
        f"--profile {each.name} ({each.score:.1f} times{FOR_WHOM.get(each.preference, '')})"
        for each in profile.offers()
        if each.score >= WORTH_SAYING
    ]
    return f"original; faster here: {', '.join(worth)}" if worth else None


def _weights_words(profile: Profile, name: str, candidate: Candidate) -> str:
    if candidate.trial.format == ORIGINAL:
        return f"the original {profile.quantization}: no other format is faster inside its bound"
    _, preference = CHOICES[name]
    score = PREFERENCES[preference].score(candidate)
    return (
        f"{candidate.trial.format} made from {profile.quantization}, "
        f"mean KL {candidate.quality.divergence:.4f}, "
        f"{score:.1f} times as fast{FOR_WHOM.get(preference, '')}"
    )
