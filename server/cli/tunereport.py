"""What `headrace tune` shows in the end: a table of figures and the choices."""

from __future__ import annotations

from inference.llamacpp.tuning.choice import BOUNDS, Candidate
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.profile import Profile

HEADER = (
    *("format", "threads", "batch", "prefill t/s", "1 stream", "16 streams"),
    *("score", "mean KL", "agreement", "perplexity", "class"),
)


def table(profile: Profile) -> str:
    """One row a candidate: speed with its ratio to the original, quality, classes."""
    rows = [HEADER] + [_row(profile, i) for i in range(len(profile.candidates))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def choices(profile: Profile) -> str:
    """One line a class: its bound, what it serves, how fast that is."""
    width = max(map(len, BOUNDS))
    return "\n".join(
        f"{name:<{width}}  mean KL at most {bound:g}: {_choice(profile, name)}"
        for name, bound in BOUNDS.items()
    )


def _choice(profile: Profile, name: str) -> str:
    candidate = profile.chosen(name)
    if candidate.trial.format == ORIGINAL:
        return "the original; nothing inside the bound is faster"
    return (
        f"{candidate.trial.format}, {candidate.trial.threads} threads, "
        f"batch {candidate.trial.batch_tokens}: {candidate.score:.2f} times as fast"
    )


def _row(profile: Profile, index: int) -> tuple[str, ...]:
    candidate = profile.candidates[index]
    speed, ratio, quality = candidate.speed, candidate.ratio, candidate.quality
    return (
        _name(profile, candidate),
        str(candidate.trial.threads),
        str(candidate.trial.batch_tokens),
        f"{speed.prefill:.0f} ({ratio.prefill:.2f})",
        f"{speed.single:.1f} ({ratio.single:.2f})",
        f"{speed.streams:.0f} ({ratio.streams:.2f})",
        f"{candidate.score:.2f}",
        f"{quality.divergence:.4f}",
        f"{quality.agreement:.3f}",
        f"{quality.perplexity:.2f}",
        ", ".join(name for name, chosen in profile.choices.items() if chosen == index),
    )


def _name(profile: Profile, candidate: Candidate) -> str:
    if candidate.trial.format == ORIGINAL:
        return f"{profile.quantization} (original)"
    return candidate.trial.format
