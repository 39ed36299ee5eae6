"""The arms of a curriculum for a reader: tables for the terminal, a page with curves over tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from motet.insight.charts import Scale, Series, line_chart
from motet.insight.page import write_page
from motet.insight.wording import count, duration, interval, number, short

CURVES: tuple[tuple[str, str, Scale], ...] = (
    ("loss", "Training loss", "free"),
    ("heldout", "Held-out loss", "free"),
    ("grad_norm", "Gradient norm", "zero"),
)


def summary(report: Mapping[str, Any]) -> str:
    """At most 110 columns."""
    arms = report["arms"]
    lines = [
        f"{report['name']}, stage {report['stage']}: {len(arms[0]['lengths'])} phases of {report['phase_steps']} "
        f"steps, about {count(report['batch_tokens'])} tokens each;",
        f"the lengths given are divided by {report['scale']:g}; {_seeds(report)}, learning rate "
        f"{report['learning_rate']:g}",
        "",
        f"{'arm':<9}{'lengths':<19}{'tokens':>10}{'time':>12}  {'held-out loss':<24}{'against direct':<26}"
        f"{'pass@1':>8}",
    ]
    for arm in arms:
        change = arm["difference"]
        apart = "-"
        if change:
            apart = f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
        passed = interval(arm["final"]).split(" [")[0] if arm["final"] else "-"
        lines.append(
            f"{arm['name']:<9}{'-'.join(map(str, arm['lengths'])):<19}{count(arm['tokens']):>10}"
            f"{duration(arm['seconds']):>12}  {_nats(arm['heldout_mean']):<24}{apart:<26}{passed:>8}"
        )
    if len(report["seeds"]) > 1:
        lines += ["", f"{'by seed':<29}" + "".join(f"{seed:>12}" for seed in report["seeds"])]
        for arm in report["arms"]:
            found = arm["differences"] or arm["by_seed"]
            what = f"{arm['name']}, " + ("against direct" if arm["differences"] else "held-out loss")
            shown = [f"{value:+.4f}" if arm["differences"] else f"{value:.4f}" for value in found]
            lines.append(f"{what:<29}" + "".join(f"{value:>12}" for value in shown))
    said = [part for line in advice(report) for part in textwrap.wrap(line, 110, subsequent_indent="    ")]
    return "\n".join([*lines, "", *_positions(report), "", *_steps_up(report), "", *said])


def _seeds(report: Mapping[str, Any]) -> str:
    numbers = ", ".join(map(str, report["seeds"]))
    if len(report["seeds"]) == 1:
        return f"seed {numbers}"
    return f"means over the seeds {numbers}, intervals over seeds"


def advice(report: Mapping[str, Any]) -> list[str]:
    """A sentence an arm."""
    lines = []
    for arm in report["arms"]:
        if not arm["difference"]:
            continue
        mean, n = arm["difference"]["mean"], arm["difference"]["n"]
        lines.append(
            f"{arm['name']} against direct at equal tokens: {arm['verdict']} "
            f"({mean:+.4f} nats a token on {n} conversations held out, 95 % interval "
            + ("" if len(report["seeds"]) == 1 else "over seeds ")
            + f"{arm['difference']['low']:+.4f} to {arm['difference']['high']:+.4f})"
        )
    spikes = ", ".join(f"{arm['name']} {arm['spikes']}" for arm in report["arms"])
    return [*lines, f"steps whose gradient norm is three times the median before: {spikes}"]


def write(path: Path, report: Mapping[str, Any]) -> None:
    figures = "".join(_figure(report, key, title, scale) for key, title, scale in CURVES)
    said = "".join(f"<li>{escape(line)}</li>" for line in advice(report))
    write_page(
        path,
        "motet experiment curriculum",
        str(report["name"]),
        [
            ("In a sentence", f"<ul>{said}</ul>"),
            ("Curves over tokens", f'<div class="panels">{figures}</div>'),
            ("Arms", f"<pre>{escape(summary(report))}</pre>"),
        ],
    )


def _positions(report: Mapping[str, Any]) -> list[str]:
    """Held-out loss at the end by place in the conversation and by its length."""
    lines = []
    for key, what in (("by_position", "position"), ("by_length", "length")):
        ends = sorted({int(end) for arm in report["arms"] for end in arm[key]})
        lines.append(f"{'held-out loss by ' + what:<29}" + "".join(f"{'to ' + count(end):>12}" for end in ends))
        for arm in report["arms"]:
            values = [number(arm[key].get(str(end))) for end in ends]
            lines.append(f"{arm['name']:<29}" + "".join(f"{'-' if v is None else f'{v:.4f}':>12}" for v in values))
    return lines


def _steps_up(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{'at the start of a phase':<29}{'loss before':>12}{'after':>9}{'norm before':>14}{'largest after':>15}"]
    for arm in report["arms"]:
        for place, row in enumerate(arm["steps_up"]):
            step = f"{arm['name']}: {arm['lengths'][place]:,} to {arm['lengths'][place + 1]:,}"
            lines.append(
                f"{step:<29}{row['loss_before']:>12.4f}{row['loss_after']:>9.4f}{short(row['norm_before']):>14}"
                f"{short(row['norm_after']):>15}"
            )
    for arm in report["arms"]:
        norms = f"gradient norm: median {short(arm['norm_median'])}, largest {short(arm['norm_max'])}"
        lines.append(f"{arm['name'] + ', all phases':<29}{norms:>50}")
    return lines


def _nats(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def _figure(report: Mapping[str, Any], key: str, title: str, scale: Scale) -> str:
    series = [
        Series(arm["name"], f"d{i}", [(float(p["tokens"]), number(p[key])) for p in arm["points"]
                                      if key != "heldout" or p[key] is not None])
        for i, arm in enumerate(report["arms"])
    ]  # fmt: skip
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return ""
    legend = "".join(f'<span><i class="stroke {s.style}"></i>{escape(s.name)}</span>' for s in series)
    chart = line_chart(series, scale, f"{title} over trained tokens", unit="")
    caption = f"<figcaption><b>{title}</b> <span>against tokens</span></figcaption>"
    return f'<figure>{caption}<p class="legend">{legend}</p>{chart}</figure>'
