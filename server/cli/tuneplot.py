"""Speed against quality as one SVG: a point a candidate and preference, a line a class bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from inference.llamacpp.tuning.choice import BOUNDS, CHOICES, EVEN, PREFERENCES, Candidate
from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.profile import Profile

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 76, 56
LOW, HIGH = 0.001, 1.0  # mean KL at the ends of the axis; what lies beyond sits on its end
LABEL_WIDTH, LABEL_HEIGHT = 80, 13
COLOURS = {EVEN: "#1f6fb2", "latency": "#2a8a4a", "throughput": "#d2691e"}

STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".axis{stroke:#888}.bound{stroke:#888;stroke-dasharray:4 4}"
    ".point{stroke-width:2}.span{stroke:#ccc}"
)


def plot(profile: Profile) -> str:
    """The SVG document. What is chosen is filled; the original sits at the left end."""
    preferences = PREFERENCES.values()
    top = max(p.score(candidate) for candidate in profile.candidates for p in preferences) * 1.1
    title = escape(f"{profile.model}: speed against quality")
    body = [*_frame(top), *_legend(), *_bounds(), *_points(profile, top)]
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


def _legend() -> Iterator[str]:
    """The preferences in their colours, in a line below the title."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * LABEL_WIDTH
        yield _circle(x + 5, 36, colour, filled=True)
        yield _text(x + 14, 40, name, "start")


def _points(profile: Profile, top: float) -> Iterator[str]:
    """A candidate's points above each other, its name beside the usual preference's.

    A name that would lie on another moves down.
    """
    taken: list[tuple[float, float]] = []
    for candidate in profile.candidates:
        x = _x(candidate.quality.divergence)
        heights = {name: _y(each.score(candidate), top) for name, each in PREFERENCES.items()}
        low, high = max(heights.values()), min(heights.values())
        yield f'<path class="span" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        # The usual preference last, so that it lies on top.
        for name, y in reversed(heights.items()):
            yield _circle(x, y, COLOURS[name], filled=_chosen(profile, candidate, name))
        label = heights[EVEN] + 4
        while any(abs(x - a) < LABEL_WIDTH and abs(label - b) < LABEL_HEIGHT for a, b in taken):
            label += LABEL_HEIGHT
        taken.append((x, label))
        name = _name(profile, candidate)
        if x < WIDTH - LABEL_WIDTH:
            yield _text(x + 9, label, name, "start")
        else:  # near the right end there is room on the left only
            yield _text(x - 9, label, name, "end")


def _chosen(profile: Profile, candidate: Candidate, preference: str) -> bool:
    """Whether any class serves the candidate under this preference."""
    names = [name for name, (_, its) in CHOICES.items() if its == preference]
    return any(profile.chosen(name) == candidate for name in names)


def _circle(x: float, y: float, colour: str, *, filled: bool) -> str:
    fill = colour if filled else "#fff"
    return (
        f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{colour}" fill="{fill}"/>'
    )


def _name(profile: Profile, candidate: Candidate) -> str:
    format = candidate.trial.format
    return f"{profile.quantization} (original)" if format == ORIGINAL else format


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
