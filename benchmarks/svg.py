"""Line charts as inline SVG, enough for a report and nothing more.

Colours come from CSS classes (`series-0`, `series-1`), so that the page decides; series
also differ by dash, for readers who cannot tell the colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line: points (x, y) in order of x, and an optional (low, high) at each."""

    name: str
    points: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart to draw. With `log_x`, x is logarithmic and only positive values are shown."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    y_top: float | None = None


def distribution(name: str, values: Sequence[float], *, at_most: int = 400) -> Series:
    """The share of values (0 to 1) not above x; thinned out to `at_most` points."""
    ordered = sorted(values)
    count = len(ordered)
    step = max(1, count // at_most)
    kept = sorted({*range(0, count, step), count - 1}) if count else []
    return Series(name=name, points=tuple((ordered[i], (i + 1) / count) for i in kept))


def render(chart: Chart) -> str:
    """The chart as one `<svg>` element; a chart without points says so."""
    shown = [
        tuple(point for point in series.points if not chart.log_x or point[0] > 0)
        for series in chart.series
    ]
    points = [point for series in shown for point in series]
    if not points:
        return f'<p class="empty">{escape(chart.title)}: nothing to show</p>'
    highs = [high for series in chart.series for _, high in series.ranges]
    x_axis = _Axis.over([x for x, _ in points], LEFT, WIDTH - RIGHT, log=chart.log_x)
    top = chart.y_top or max([y for _, y in points] + highs) or 1.0
    y_axis = _Axis(low=0.0, high=top, start=HEIGHT - BOTTOM, stop=TOP, log=False)
    body = [*_frame(chart, x_axis, y_axis)]
    for number, (series, kept) in enumerate(zip(chart.series, shown, strict=True)):
        body += _line(number, series, kept, x_axis, y_axis)
    title = escape(chart.title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(body)}</svg>'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """A scale from values low..high to pixels start..stop."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, *, log: bool) -> _Axis:
        low, high = min(values), max(values)
        if not log:
            low = min(low, 0.0)
        if high <= low:
            high = low * 2 if low > 0 else low + 1
        return cls(low=low, high=high, start=start, stop=stop, log=log)

    def at(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        return self.start + (self._scaled(value) - low) / (high - low) * (self.stop - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [mark for mark in marks if self.low <= mark <= self.high]
        rough = (self.high - self.low) / TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
        count = math.floor(self.high / step + 1e-9)
        return [step * index for index in range(math.ceil(self.low / step), count + 1)]


def _frame(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    """Title, axes, grid, labels and the legend."""
    base = HEIGHT - BOTTOM
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(chart.title)}</text>']
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in x_axis.ticks():
        x = x_axis.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
        f'<text class="tick" x="12" y="{(TOP + base) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(TOP + base) / 2})">{escape(chart.y_label)}</text>'
    )
    for number, series in enumerate(chart.series):
        x = LEFT + number * 180
        parts.append(
            f'<line class="line series-{number}" x1="{x}" x2="{x + 24}" y1="28" y2="28"/>'
            f'<text class="tick" x="{x + 30}" y="32">{escape(series.name)}</text>'
        )
    return parts


def _line(
    number: int,
    series: Series,
    points: Sequence[tuple[float, float]],
    x_axis: _Axis,
    y_axis: _Axis,
) -> list[str]:
    path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
    parts = [f'<polyline class="line series-{number}" points="{path}"/>']
    for (x, y), (low, high) in zip(series.points, series.ranges, strict=False):
        at = x_axis.at(x)
        parts.append(
            f'<line class="range series-{number}" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{y_axis.at(low):.1f}" y2="{y_axis.at(high):.1f}"/>'
            f'<circle class="dot series-{number}" cx="{at:.1f}" cy="{y_axis.at(y):.1f}" r="3"/>'
        )
    return parts
