"""Speed against quality as one SVG: a point a candidate, a line a class bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from inference.llamacpp.tuning.choice import BOUNDS, Candidate
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.profile import Profile

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 56
LOW, HIGH = 0.001, 1.0  # mean KL at the ends of the axis; what lies beyond sits on its end
LABEL_WIDTH, LABEL_HEIGHT = 80, 13

STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".axis{stroke:#888}.bound{stroke:#888;stroke-dasharray:4 4}"
    ".point{fill:#fff;stroke:#1f6fb2;stroke-width:2}.chosen{fill:#1f6fb2}"
)


def plot(profile: Profile) -> str:
    """The SVG document. Chosen candidates are filled; the original sits at the left end."""
    top = max(candidate.score for candidate in profile.candidates) * 1.1
    title = escape(f"{profile.model}: speed against quality")
    body = [*_frame(top), *_bounds(), *_points(profile, top)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text class="title" x="{LEFT}" y="20">{title}</text>{"".join(body)}</svg>\n'
    )


def _x(divergence: float) -> float:
    value = min(max(divergence, LOW), HIGH)
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / LOW) / math.log(HIGH / LOW)


def _y(score: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * score / top


def _frame(top: float) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    yield f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>'
    for value in (0.001, 0.01, 0.1, 1.0):
        yield _text(_x(value), floor + 18, f"{value:g}", "middle")
    step = 0.5 if top <= 4 else math.ceil(top / 8)
    for number in range(int(top / step) + 1):
        score = number * step
        yield _text(LEFT - 8, _y(score, top) + 4, f"{score:g}", "end")
    yield _text((LEFT + WIDTH) / 2, HEIGHT - 12, "mean KL divergence, nats a token", "middle")
    yield _text(8, TOP - 14, "times as fast as the original", "start")


def _bounds() -> Iterator[str]:
    for name, bound in BOUNDS.items():
        x = _x(bound)
        yield f'<path class="bound" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield _text(x - 4, TOP - 2, f"{name} ≤ {bound:g}", "end")


def _points(profile: Profile, top: float) -> Iterator[str]:
    """Points with their names; a name that would lie on another moves down."""
    taken: list[tuple[float, float]] = []
    chosen = {profile.choices[name] for name in profile.choices}
    for index, candidate in enumerate(profile.candidates):
        x, y = _x(candidate.quality.divergence), _y(candidate.score, top)
        style = "point chosen" if index in chosen else "point"
        yield f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        label = y + 4
        while any(abs(x - a) < LABEL_WIDTH and abs(label - b) < LABEL_HEIGHT for a, b in taken):
            label += LABEL_HEIGHT
        taken.append((x, label))
        name = _name(profile, candidate)
        if x < WIDTH - LABEL_WIDTH:
            yield _text(x + 9, label, name, "start")
        else:  # near the right end there is room on the left only
            yield _text(x - 9, label, name, "end")


def _name(profile: Profile, candidate: Candidate) -> str:
    format = candidate.trial.format
    return f"{profile.quantization} (original)" if format == ORIGINAL else format


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
