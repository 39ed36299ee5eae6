"""The cost of a filter for a reader: a table for the terminal, a page with curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from motet.insight.charts import Series, line_chart
from motet.insight.page import write_page
from motet.insight.wording import count, duration, interval, percent, point_interval, short, table

COLUMNS = 110


def compact(value: Any) -> str:
    """ "950", "12.3K", "4.6M" """
    for size, unit in ((1e6, "M"), (1e4, "K")):
        if value >= size:
            return f"{value / (1e3 if unit == 'K' else 1e6):.1f}{unit}"
    return count(value)


COSTS = {"rollouts": compact, "tokens": compact, "seconds": duration}


def summary(report: Mapping[str, Any]) -> str:
    """At most 110 columns."""
    lines = [
        f"{report['name']}: {report['steps']} steps of {report['prompts_per_step']} x {report['group_size']} rollouts, "
        f"seeds {', '.join(map(str, report['seeds']))}; filter {report['method']}, n = {report['n']}; refill up to "
        f"{short(report['refill'])} batches a step",
        "",
        f"{'arm':<10}{'rollouts':>10}{'tokens':>12}{'time':>12}{'live groups':>13}{'rollouts a live one':>21}   "
        "held-out pass@1",
    ]
    for name, arm in report["arms"].items():
        last = arm["points"][-1]
        lines.append(
            f"{name:<10}{compact(last['rollouts']):>10}{compact(last['tokens']):>12}{duration(last['seconds']):>12}"
            f"{percent(arm['live_share']):>13}{short(arm['rollouts_per_live_group']):>21}   {interval(arm['final'])}"
        )
    for level in report["levels"]:
        gain = f"{percent(level['share'], 0)} of the gain that every arm reached, from {percent(report['start'])}"
        lines += ["", f"To {percent(level['accuracy'])} held out ({gain}):"]
        for name, costs in level["arms"].items():
            cells = "".join(f"{_cost(costs[key], form):>34}" for key, form in COSTS.items())
            lines.append(f"{name:<8}{cells}".rstrip())
    lines += ["", *advice(report)]
    return "\n".join(textwrap.fill(line, COLUMNS) if len(line) > COLUMNS else line for line in lines)


def advice(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each cost, at the highest level: who is cheaper, or that it cannot be told."""
    found = _break_even(report)
    if not report["levels"]:
        text = "Not every arm gained on the start, so there is no accuracy at which their costs could be compared: "
        return [*found, text + "take more steps, or another learning rate."]
    if not report["gain"]["low"] > 0:
        text = (
            f"The least gain of an arm, {point_interval(report['gain'])}, is within chance: what equal accuracy costs "
        )
        return [*found, text + "cannot be told from these steps; take more."]
    level = report["levels"][-1]
    for key in COSTS:
        for name, costs in level["arms"].items():
            if name == "filter":
                continue
            ratio = costs[key]["ratio"]
            found.append(f"{key}: {name} needs {_verdict(ratio)}")
    return found


def write(path: Path, report: Mapping[str, Any]) -> None:
    verdicts = "".join(f"<p>{escape(line)}</p>" for line in advice(report))
    sections = [("Verdict", verdicts), ("Held-out accuracy", _figures(report)),
                ("Figures", f"<pre>{escape(summary(report))}</pre>")]  # fmt: skip
    write_page(path, "motet experiment filter-cost", str(report["name"]), sections)


def _break_even(report: Mapping[str, Any]) -> list[str]:
    """How many passes over the kept problems it takes until the filter has paid for itself."""
    found = []
    for name, row in report["break_even"].items():
        if row is None:
            continue
        if row["passes"]["mean"] is None:
            found.append(
                f"The filter does not pay for itself against {name}: it did not raise the share of live groups."
            )
            continue
        passes = row["passes"]
        found.append(
            f"In rollouts per live group the filter pays for itself against {name} after {passes['mean']:.2f} passes "
            f"over the problems that it kept, 95 % interval {_bound(passes['low'])} to {_bound(passes['high'])} "
            f"({count(row['groups']['mean'])} groups)."
        )
    return found


def _verdict(ratio: Mapping[str, Any]) -> str:
    if ratio["mean"] is None:
        return "more than it was given: it did not get there"
    ends = f"95 % interval {_bound(ratio['low'])} to {_bound(ratio['high'])}"
    text = f"{ratio['mean']:.2f} times what the filter arm needs, {ends}"
    if ratio["low"] is not None and ratio["low"] > 1:
        return f"{text}: the filter is cheaper"
    if ratio["high"] is not None and ratio["high"] < 1:
        return f"{text}: the filter is dearer"
    return f"{text}: no significant difference"


def _cost(row: Mapping[str, Any], form: Any) -> str:
    if row["mean"] is None:
        return "not reached"
    return f"{form(row['mean'])} [{form(row['low'])}, {form(row['high']) if row['high'] is not None else 'never'}]"


def _bound(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _figures(report: Mapping[str, Any]) -> str:
    figures = []
    for key in COSTS:
        series = [
            Series(name, f"d{i}", [(float(p[key]), p["heldout"]) for p in arm["points"]])
            for i, (name, arm) in enumerate(table(report["arms"]).items())
        ]
        legend = "".join(f'<span><i class="stroke {s.style}"></i>{escape(s.name)}</span>' for s in series)
        chart = line_chart(series, "free", f"held-out pass@1 against {key}", unit="")
        figures.append(
            f"<figure><figcaption><b>Held-out pass@1</b> <span>against {key}, the filter's included</span></figcaption>"
            f'<p class="legend">{legend}</p>{chart}</figure>'
        )
    return f'<div class="panels">{"".join(figures)}</div>'
