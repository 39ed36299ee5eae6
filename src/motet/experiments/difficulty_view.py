"""Difficulty for a reader: a table for the terminal, and a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from motet.base.statistics import ALL
from motet.insight.page import write_page
from motet.insight.verdicts import title
from motet.insight.wording import count, interval, percent, plural, points, short

COLUMNS = 110


def summary(report: Mapping[str, Any]) -> str:
    """At most 110 columns."""
    lines = [
        f"{report['name']}: {plural(report['problems'], 'problem')}, {plural(report['rollouts'], 'rollout')} "
        f"({short(report['rollouts_mean'])} each, {report['method']}), {plural(report['tokens'], 'token')}; "
        f"{count(report['truncated'])} truncated",
        "",
        f"{'':<18}{'band':<13}{'rows kept':<15}{'of all rows':<24}{'really inside':<15}"
        f"{'live groups of ' + str(report['group_size']):<24}",
    ]
    for row in sorted(report["bands"], key=lambda row: (row["domain"] != ALL, row["domain"], row["beta"])):
        band = f"{row['alpha']:g} to {row['beta']:g}" + (" *" if row["own"] else "")
        kept = f"{count(row['kept'])} of {count(row['of'])}"
        lines.append(
            f"{title(row['domain'])[:17]:<18}{band:<13}{kept:<15}{interval(row['kept_share']):<24}"
            f"{percent(row['in_band'], 0):<15}{interval(row['live']):<24}".rstrip()
        )
    lines += [
        "",
        "* the recipe's own band. Intervals are 95 %; live groups are forecast from the posterior of each problem.",
    ]
    return "\n".join([*lines, *(textwrap.fill(line, COLUMNS) for line in verdict(report))])


def verdict(report: Mapping[str, Any]) -> list[str]:
    before = report["before"][ALL]
    lines = [f"Without a filter {interval(before)} of the groups would be live."]
    pilot = report["pilot"]
    if pilot is None:
        return [*lines, f"The pilot step found nothing for RL to learn from: {report['refused']}"]
    seen, forecast = pilot["seen"][ALL], pilot["forecast"][ALL]
    lines.append(
        f"Pilot step: of {plural(pilot['groups'], 'fresh group')} of {report['group_size']} rollouts "
        f"{interval(seen)} are live (forecast {percent(forecast['mean'])}, {points(seen['mean'] - forecast['mean'])} "
        "points): the rewards vary, RL has something to learn from."
    )
    dead = sorted(domain for domain, row in pilot["seen"].items() if domain != ALL and row["mean"] == 0.0)
    if dead:
        lines.append(f"No fresh group of {', '.join(dead)} is live: RL would learn nothing there.")
    return lines


def write(path: Path, report: Mapping[str, Any]) -> None:
    findings = "".join(f"<p>{escape(line)}</p>" for line in verdict(report))
    sections = [("Verdict", findings), ("Bands", f"<pre>{escape(summary(report))}</pre>")]
    write_page(path, "motet experiment difficulty", str(report["name"]), sections)
