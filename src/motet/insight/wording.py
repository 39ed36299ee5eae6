"""How the report writes numbers: percentages, differences in points, durations, sizes. None reads as a dash.

ASCII, for terminals and report.json; `typeset` makes it fit for the page.
"""

from __future__ import annotations

import math
import re
from typing import Any

DASH = "-"


def number(value: Any) -> float | None:
    """A finite float, or None: run folders hold NaN and infinity as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def table(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one where a killed writer left something else."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def percent(share: Any, digits: int = 1) -> str:
    value = number(share)
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def interval(row: Any) -> str:
    """ "71.2 % [65.0, 77.1]" """
    parts = [number(table(row).get(key)) for key in ("mean", "low", "high")]
    if None in parts:
        return percent(parts[0])
    mean, low, high = (100 * p for p in parts if p is not None)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def points(difference: Any) -> str:
    """A difference of shares: "+3.4", "-0.2"."""
    value = number(difference)
    if value is None:
        return DASH
    text = f"{abs(100 * value):.1f}"
    return "0.0" if text == "0.0" else ("+" if value > 0 else "-") + text


def point_interval(row: Any) -> str:
    """ "+3.4 points, 95 % interval -1.0 to +7.7" """
    row = table(row)
    return f"{points(row.get('mean'))} points, 95 % interval {points(row.get('low'))} to {points(row.get('high'))}"


def typeset(text: str) -> str:
    """A true minus sign, an en dash for "nothing", and percent signs that do not part from their number."""
    if text == DASH:
        return "\u2013"
    text = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text)
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


def count(value: Any) -> str:
    given = number(value)
    return DASH if given is None else f"{given:,.0f}"


def duration(seconds: Any) -> str:
    value = number(seconds)
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(number_bytes: Any) -> str:
    value = number(number_bytes)
    if value is None:
        return DASH
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def short(value: Any) -> str:
    """Four significant digits, for axes and curves: "0.02", "1.5e-06", "12,400"."""
    given = number(value)
    if given is None:
        return DASH
    if given == 0:
        return "0"
    if abs(given) >= 10_000:
        return f"{given:,.0f}"
    return f"{given:.3g}" if abs(given) < 1000 else f"{given:.4g}"


def weight(given: Any) -> str:
    """A weight of a mixture, or how it changes over the steps: "3", "3 at step 0, 1 at step 100"."""
    points = [p for p in listing(given) if isinstance(p, list) and len(p) == 2]
    return ", ".join(f"{short(value)} at step {count(step)}" for step, value in points) or short(given)


def plural(amount: Any, noun: str) -> str:
    """ "1 problem", "1,200 problems" """
    return f"{count(amount)} {noun}" + ("" if number(amount) == 1 else "s")


def capped(text: str, limit: int) -> str:
    """Head and tail of a long text with a note of what was left out between them."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[... {len(text) - head - tail:,} characters left out ...]\n{text[-tail:]}"
