"""What `headrace tune` shows in the end: a table of figures and one of the choices."""

from __future__ import annotations

from collections.abc import Sequence

from inference.llamacpp.tuning.choice import BOUNDS, PREFERENCES, Candidate, choice_name
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.profile import Profile

HEADER = (
    *("format", "threads", "batch", "prefill t/s", "1 stream", "16 streams"),
    *("mean KL", "agreement", "perplexity", *PREFERENCES),
)

TOO_SLOW = "-"
"""Stands for the score of what falls below a floor of the preference."""


def table(profile: Profile) -> str:
    """One row a candidate: speed with its ratio to the original, quality, scores."""
    return _aligned([HEADER, *(_row(profile, each) for each in profile.candidates)])


def choices(profile: Profile) -> str:
    """One row a class: its bound, and what it serves under each preference."""
    rows = [("class", "mean KL", *PREFERENCES)]
    for bound, limit in BOUNDS.items():
        chosen = (_choice(profile, bound, preference) for preference in PREFERENCES)
        rows.append((bound, f"<= {limit:g}", *chosen))
    return _aligned(rows)


def _choice(profile: Profile, bound: str, preference: str) -> str:
    candidate = profile.chosen(choice_name(bound, preference))
    if candidate.trial.format == ORIGINAL:
        return "the original"
    return f"{candidate.trial.format} ({PREFERENCES[preference].score(candidate):.2f})"


def _row(profile: Profile, candidate: Candidate) -> tuple[str, ...]:
    speed, ratio, quality = candidate.speed, candidate.ratio, candidate.quality
    return (
        _name(profile, candidate),
        str(candidate.trial.threads),
        str(candidate.trial.batch_tokens),
        f"{speed.prefill:.0f} ({ratio.prefill:.2f})",
        f"{speed.single:.1f} ({ratio.single:.2f})",
        f"{speed.streams:.0f} ({ratio.streams:.2f})",
        f"{quality.divergence:.4f}",
        f"{quality.agreement:.3f}",
        f"{quality.perplexity:.2f}",
        *(
            f"{preference.score(candidate):.2f}" if preference.allows(candidate) else TOO_SLOW
            for preference in PREFERENCES.values()
        ),
    )


def _name(profile: Profile, candidate: Candidate) -> str:
    if candidate.trial.format == ORIGINAL:
        return f"{profile.quantization} (original)"
    return candidate.trial.format


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
