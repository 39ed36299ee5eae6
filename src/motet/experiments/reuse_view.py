"""The sweep over S for a reader: a table for the terminal, a page with curves."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from motet.insight import report as reporting
from motet.insight.charts import Series, line_chart
from motet.insight.wording import duration, interval, percent, points, short, table

AXES = (("rollouts", "rollouts"), ("gradient_steps", "gradient steps"), ("seconds", "seconds"))
CURVES = (("reward", "Training reward"), ("heldout", "Held-out pass@1"))


def summary(report: Mapping[str, Any]) -> str:
    """At most 110 columns."""
    head = (
        f"{report['name']}: S gradient steps on each batch of {report['prompts_per_step']} x {report['group_size']} "
        f"rollouts, {report['steps']} batches; seed {report['seed']}, learning rate {report['learning_rate']:g} "
        f"({report['schedule']}), guard {'on' if report['guard'] else 'off'}"
    )
    lines = [head, ""]
    lines.append(
        f"{'arm':<15}{'S used':>7}{'steps':>7}{'time':>9}  {'reward, last':<22}{'held-out pass@1':<22}"
        f"{'against S = 1':<22}{'ESS':>5}{'M2':>9}"
    )
    for arm in report["arms"]:
        last = arm["points"][-1]["reward"] if arm["points"] else None
        change = arm["difference"]
        apart = f"{points(change['mean'])} [{points(change['low'])}, {points(change['high'])}]" if change else "-"
        lines.append(
            f"{arm['name']:<15}{short(arm['inner_steps_mean']):>7}{arm['gradient_steps']:>7}"
            f"{duration(arm['seconds']):>9}  {interval(last):<22}{interval(arm['final']):<22}{apart:<22}"
            f"{short(arm['ess']):>5}{short(arm['m2']):>9}"
        )
        lines += [f"    unstable: {reason}" for reason in arm["against"]]
    return "\n".join([*lines, "", *frontier_lines(report)])


def frontier_lines(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for way, row in report["frontier"].items():
        tried = ", ".join(map(str, row["tried"]))
        if row["s"] == row["tried"][-1]:
            lines.append(f"{way}: stable up to the largest S tried, {row['s']} (of {tried})")
        elif row["s"]:
            lines.append(f"{way}: stable up to S = {row['s']} (of {tried}); beyond it: {'; '.join(row['why'])}")
        else:
            lines.append(f"{way}: not even S = 1 is stable: {'; '.join(row['why'])}")
    return lines


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """One self-contained file: the curves against rollouts, gradient steps and seconds, and the table."""
    style = (Path(reporting.__file__).parent / "report.css").read_text(encoding="utf-8")
    figures = "".join(_row(report, key, title) for key, title in CURVES)
    frontier = "".join(f"<li>{escape(line)}</li>" for line in frontier_lines(report))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(report['name'])}: reuse of trajectories</title><style>{style}</style></head><body><main>"
        f'<header><p class="kicker">motet experiment reuse</p><h1>{escape(report["name"])}</h1></header>'
        f"<section><h2>Stability frontier</h2><ul>{frontier}</ul></section>"
        f"<section><h2>Curves</h2>{figures}</section>"
        f"<section><h2>Arms</h2><pre>{escape(summary(report))}</pre></section></main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _row(report: Mapping[str, Any], key: str, title: str) -> str:
    figures = []
    for axis, label in AXES:
        series = [
            Series(arm["name"], f"d{i % 8}", [(float(p[axis]), table(p[key]).get("mean")) for p in arm["points"]])
            for i, arm in enumerate(report["arms"])
        ]
        series = [s for s in series if any(y is not None for _, y in s.points)]
        if not series:
            continue
        legend = "".join(f'<span><i class="stroke {s.style}"></i>{escape(s.name)}</span>' for s in series)
        ends = "; ".join(f"{s.name} {percent(s.points[-1][1])}" for s in series)
        chart = line_chart(series, "free", f"{title} against {label}: {ends}", unit="")
        figures.append(
            f"<figure><figcaption><b>{title}</b> <span>against {label}</span></figcaption>"
            f'<p class="legend">{legend}</p>{chart}</figure>'
        )
    return f'<div class="panels">{"".join(figures)}</div>'
