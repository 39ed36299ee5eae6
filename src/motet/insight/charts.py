"""Inline SVG: lines over steps, intervals by stage, a histogram with a band. Strings in, one <svg> string out.

Drawn 360 units wide, which is a phone's width: side by side on a desktop, one below the other on a phone, never scaled
down to illegible text. Colours are classes (`d0`..`d7` a domain, `ink`, `k0`..`k5` shades of ink) that the page's CSS
resolves for light, dark and print. Every label is escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, NamedTuple

from motet.base.statistics import Interval
from motet.insight.wording import short

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 8, 24
MOST_POINTS = 240
SMOOTHED_FROM = 40
"""Series of so many points are drawn thin, with a moving mean on top."""
MOST_RAW = 5
"""With more series than this, only the moving means are drawn."""

Scale = Literal["share", "zero", "free", "log"]
"""share: percentages from 0. zero: from 0. free: around the values. log: decades."""


class Series(NamedTuple):
    name: str
    style: str
    points: list[tuple[float, float | None]]
    """(step, value); None breaks the line."""


def line_chart(series: Sequence[Series], scale: Scale, label: str, height: int = 176, unit: str = "step") -> str:
    """`unit`: what is counted along the horizontal axis."""
    series = [s._replace(points=thinned(s.points)) for s in series]
    steps = sorted({x for s in series for x, _ in s.points})
    values = [y for s in series for _, y in s.points if y is not None]
    if scale == "log" and min(values) <= 0:
        scale = "zero"
    ticks = axis(values, scale)
    form = _format(scale)
    bottom = height - BOTTOM
    across = _linear(steps[0], steps[-1], LEFT + 6, WIDTH - RIGHT)
    up = _linear(_place(ticks[0], scale), _place(ticks[-1], scale), bottom, TOP)

    def xy(point: tuple[float, float]) -> tuple[float, float]:
        return across(point[0]), up(_place(point[1], scale))

    parts = [_grid(ticks, lambda v: up(_place(v, scale)), scale), _step_axis(steps, across, bottom, unit)]
    for s in series:
        smooth = len(s.points) >= SMOOTHED_FROM
        if not smooth or len(series) <= MOST_RAW:
            parts.append(_path(s.points, xy, f"line {s.style}" + (" thin" if smooth else "")))
        if smooth:
            parts.append(_path(moving_mean(s.points), xy, f"line {s.style}"))
    readout = {
        "x": steps,
        "px": [round(across(x), 1) for x in steps],
        "names": [s.name for s in series],
        "y": [_column(dict(s.points), steps, form) for s in series],
    }
    parts.append(f'<line class="hair" x1="0" x2="0" y1="{TOP}" y2="{bottom}"/>')
    return _svg(height, label, parts, f' data-readout="{escape(json.dumps(readout, separators=(",", ":")))}"')


def forest_chart(rows: Sequence[tuple[str, Interval]], style: str, upper: float, label: str) -> str:
    """One row a stage: the mean as a dot, its interval as a bar, both in numbers at the right; axis 0 to `upper`."""
    names = [_clipped(name, 15) for name, _ in rows]
    left = 14 + 6.6 * max(map(len, names))
    right, row_height, top = 108, 25, 4
    height = top + row_height * len(rows) + BOTTOM
    across = _linear(0.0, upper, left, WIDTH - right)
    bottom = height - BOTTOM
    parts = []
    for tick in axis([0.0, upper], "share")[:: 2 if upper > 0.3 else 1]:
        x = across(tick)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, f"{100 * tick:g} %", "tick middle"))
    dots = [(across(row.mean), top + row_height * (i + 0.5)) for i, (_, row) in enumerate(rows)]
    parts.append(f'<polyline class="path {style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in dots)}"/>')
    for (name, (_, row)), (x, y) in zip(zip(names, rows, strict=True), dots, strict=True):
        low, high = across(row.low), across(row.high)
        parts.append(f'<line class="whisker {style}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(left - 12, y + 4, name, "name end"))
        parts.append(_text(WIDTH - right + 46, y + 4, f"{100 * row.mean:.1f}", "value end"))
        parts.append(_text(WIDTH - right + 54, y + 4, f"{100 * row.low:.0f}\u2013{100 * row.high:.0f}", "tick"))
    return _svg(height, label, parts)


def histogram(
    counts: Sequence[int], band: tuple[int, int] | None, style: str, label: str, height: int = 172, title: str = ""
) -> str:
    """Problems by number of passes, 0 to n, or by what `title` says; bars of the band (both ends included) in full
    colour."""
    top, bottom = 26, height - 38
    most = max([*counts, 1])
    width = (WIDTH - 16) / len(counts)
    fits = 7 * len(f"{most:,}") <= width
    parts = []
    if band:
        low, high = 8 + width * band[0], 8 + width * (band[1] + 1)
        parts.append(f'<rect class="band" x="{low:.1f}" y="2" width="{high - low:.1f}" height="{bottom - 2:.1f}"/>')
        parts.append(_text((low + high) / 2, 14, "kept", "tick middle"))
    for i, amount in enumerate(counts):
        tall = (bottom - top - 14) * amount / most
        x = 8 + width * i + width * 0.14
        inside = band is not None and band[0] <= i <= band[1]
        shape = f'x="{x:.1f}" y="{bottom - tall:.1f}" width="{width * 0.72:.1f}" height="{tall:.1f}"'
        parts.append(f'<rect class="bar {style}{"" if inside else " out"}" {shape}/>')
        middle = x + width * 0.36
        if fits or amount == most:
            parts.append(_text(middle, bottom - tall - 4, f"{amount:,}", "value middle"))
        if width > 14:
            parts.append(_text(middle, bottom + 14, str(i), "tick middle"))
    parts.append(f'<line class="base" x1="8" x2="{WIDTH - 8}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(WIDTH / 2, height - 8, title or f"passes in {len(counts) - 1} rollouts", "tick middle"))
    return _svg(height, label, parts)


def axis(values: Sequence[float], scale: Scale) -> list[float]:
    """Round tick values that enclose all values; at least two."""
    low, high = min(values), max(values)
    if scale == "log":
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        stride = max(1, math.ceil((last - first) / 4))
        return [float(f"1e{e}") for e in range(first, last + stride, stride)]
    if scale != "free":
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * abs(high):
        margin = 0.1 * abs(high) or (0.01 if scale == "share" else 1.0)
        low, high = low - (margin if scale == "free" else 0.0), high + margin
    step = nice((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def nice(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `rough`."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most MOST_POINTS: each the mean of a run of neighbours, at the last one's step."""
    if len(points) <= MOST_POINTS:
        return points
    per = math.ceil(len(points) / MOST_POINTS)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), per):
        chunk = points[start : start + per]
        values = [y for _, y in chunk if y is not None]
        found.append((chunk[-1][0], sum(values) / len(values) if values else None))
    return found


def moving_mean(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Centred, over a twelfth of the series."""
    reach = max(1, len(points) // 24)
    found: list[tuple[float, float | None]] = []
    for i, (x, y) in enumerate(points):
        near = [v for _, v in points[max(0, i - reach) : i + reach + 1] if v is not None]
        found.append((x, sum(near) / len(near) if y is not None else None))
    return found


def _place(value: float, scale: Scale) -> float:
    return math.log10(value) if scale == "log" else value


def _linear(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = high - low
    return lambda value: start + (stop - start) * ((value - low) / span if span else 0.5)


def _format(scale: Scale) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:.3g} %") if scale == "share" else short


def _column(values: dict[float, float | None], steps: list[float], form: Callable[[float], str]) -> list[str]:
    return ["" if (y := values.get(x)) is None else form(y) for x in steps]


def _grid(ticks: list[float], up: Callable[[float], float], scale: Scale) -> str:
    lines = []
    for tick, label in zip(ticks, tick_labels(ticks, scale), strict=True):
        y = up(tick)
        lines.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 6, y + 4, label, "tick end"))
    return "".join(lines)


def tick_labels(ticks: Sequence[float], scale: Scale) -> list[str]:
    """With as many decimals as tell the ticks apart."""
    shown = [100 * tick for tick in ticks] if scale == "share" else list(ticks)
    step = shown[1] - shown[0]
    if scale == "log" or max(map(abs, shown)) >= 1e4 or step < 1e-3:
        return [f"{tick:.3g}".replace("e-0", "e-").replace("e+0", "e") for tick in shown]
    decimals = next(d for d in range(6) if all(abs(round(t, d) - t) < 1e-3 * step for t in shown) or d == 5)
    return [f"{tick:.{decimals}f}" + (" %" if scale == "share" else "") for tick in shown]


def _step_axis(steps: list[float], across: Callable[[float], float], bottom: float, unit: str) -> str:
    if steps[0] == steps[-1]:
        return _text(across(steps[0]), bottom + 16, f"{unit} {steps[0]:,.0f}".strip(), "tick middle")
    width = max(1.0, nice((steps[-1] - steps[0]) / 4))
    marks = [m * width for m in range(math.ceil(steps[0] / width), math.floor(steps[-1] / width) + 1)]
    clear = [m for m in marks if across(m) > across(steps[0]) + 48]
    texts = [_text(across(steps[0]) - 6, bottom + 16, f"{unit} {steps[0]:,.0f}".strip(), "tick")]
    texts += [_text(min(across(m), WIDTH - RIGHT - 8), bottom + 16, f"{m:,.0f}", "tick middle") for m in clear]
    return "".join(texts)


def _path(
    points: list[tuple[float, float | None]], xy: Callable[[tuple[float, float]], tuple[float, float]], style: str
) -> str:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(xy((x, y)))
    marks = []
    for run in runs:
        if len(run) == 1:
            marks.append(f'<circle class="{style} point" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2.5"/>')
        elif run:
            marks.append(f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in run)}"/>')
    return "".join(marks)


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def _svg(height: float, label: str, parts: Sequence[str], attributes: str = "") -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}"{attributes}>'
    return head + "".join(parts) + "</svg>"
