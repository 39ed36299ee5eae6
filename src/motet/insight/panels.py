"""Which charts the report draws, from a run folder: titles, legends and series; the drawing is in charts.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from motet.base.statistics import ALL, Interval
from motet.insight.charts import MOST_RAW, SMOOTHED_FROM, Scale, Series, axis, forest_chart, histogram, line_chart
from motet.insight.folder import RunFolder, StageFolder
from motet.insight.verdicts import guessed, order, title
from motet.insight.wording import listing, number, plural, table

Curves = list[tuple[str, str, str]]
"""(metric, name in the legend, colour class)."""


BY_LENGTH = {
    "length": "nats a trained token, by tokens of the conversation",
    "position": "nats a trained token, by its place in the conversation",
}


class Panel(NamedTuple):
    title: str
    note: str
    """What the picture shows, in a line."""
    legend: tuple[tuple[str, str], ...]
    """(class, name); empty with a single series."""
    svg: str
    style: str = ""
    """Class of the title's swatch; "" for none."""


def domain_styles(run: RunFolder) -> dict[str, str]:
    """One colour class a domain, the same in every chart; "all" is ink."""
    names = {name for stage in run.evaluated for name in stage.domains}
    for stage in run.stages:
        names |= set(table(stage.filter.get("histogram"))) | set(table(stage.funnel.get("domains")))
        names |= {key.removeprefix("reward/") for row in stage.metrics[:1] for key in row if key.startswith("reward/")}
    names -= {ALL, "mean"}
    return {ALL: "ink", **{name: f"d{i % 8}" for i, name in enumerate(sorted(names))}}


def pass_panels(run: RunFolder, styles: Mapping[str, str]) -> list[Panel]:
    """pass@1 with its interval, one panel a domain, one row a stage, one axis for all panels."""
    rows: dict[str, list[tuple[str, Interval]]] = {}
    for stage in run.evaluated:
        for domain in stage.domains:
            found = _interval(table(stage.domains[domain]).get("pass_at_1"))
            if found:
                rows.setdefault(domain, []).append((stage.name, found))
    if not rows:
        return []
    upper = min(1.0, axis([0.0, max(r.high for points in rows.values() for _, r in points) or 0.01], "share")[-1])
    panels = []
    for domain in order(rows):
        style = styles.get(domain, "ink")
        values = ", ".join(f"{name} {100 * row.mean:.1f} %" for name, row in rows[domain])
        label = f"pass@1 of {title(domain)} by stage: {values}"
        note = "macro average" if domain == ALL else _sizes(run, domain)
        told = guessed(run.evaluated[-1].domains.get(domain))
        note += f"; {told} ({run.evaluated[-1].name})" if told else ""
        panels.append(Panel(title(domain), note, (), forest_chart(rows[domain], style, upper, label), style))
    return panels


def difficulty_panels(stage: StageFolder, styles: Mapping[str, str]) -> list[Panel]:
    panels = []
    kept, of = table(stage.filter.get("kept")), table(stage.filter.get("of"))
    for domain, given in sorted(table(stage.filter.get("histogram")).items()):
        counts = [int(value) for item in listing(given) if (value := number(item)) is not None]
        if len(counts) < 2:
            continue
        band = table(table(stage.filter.get("bands")).get(domain))
        low, high = number(band.get("low")), number(band.get("high"))
        ends = (int(low), min(int(high), len(counts) - 1)) if low is not None and high is not None else None
        label = f"Problems of {domain} by number of passes: {counts}"
        note = f"{number(kept.get(domain)) or 0:,.0f} of {plural(of.get(domain), 'problem')} kept"
        if band.get("alpha") is not None:
            note += f"; band {band.get('alpha')} to {band.get('beta')}"
        style = styles.get(domain, "ink")
        axis_title = "expected pass rate, in tenths" if stage.filter.get("method") == "sequential" else ""
        panels.append(Panel(domain, note, (), histogram(counts, ends, style, label, title=axis_title), style))
    return panels


def sft_panels(run: RunFolder) -> list[Panel]:
    """Of each stage: the loss, the loss by length and by position, and the gradient norm."""
    found: list[Panel | None] = []
    for stage in run.of_kind("sft"):
        curve = [("loss/nll", "trained", "ink"), ("heldout/loss", "held out", "k3")]
        found.append(_panel(f"{stage.name}: loss", "nats a trained token", stage, curve, "free"))
        for by, note in BY_LENGTH.items():
            curves = _by_end(stage, f"loss/{by}/")
            if len(curves) > 1:
                found.append(_panel(f"{stage.name}: loss by {by}", note, stage, curves, "free"))
        norm = [("optim/grad_norm", "gradient norm", "ink")]
        found.append(_panel(f"{stage.name}: gradient norm", "before clipping", stage, norm, "zero"))
    return [panel for panel in found if panel]


def _by_end(stage: StageFolder, prefix: str) -> Curves:
    """One curve a bucket, the shortest palest; a bucket is named by its ends: "4,097 to 8,192"."""
    ends = sorted({int(end) for row in stage.metrics for key in row if (end := _end_of(key, prefix)).isdigit()})
    starts = [0, *ends]
    return [
        (f"{prefix}{end}", f"{starts[i] + 1:,} to {end:,}", f"k{max(0, min(5, len(ends) - 1 - i))}")
        for i, end in enumerate(ends)
    ]


def _end_of(key: str, prefix: str) -> str:
    return key.removeprefix(prefix) if key.startswith(prefix) else ""


def rl_panels(stage: StageFolder, styles: Mapping[str, str]) -> list[Panel]:
    """Panels without a recorded value are left out."""
    rewards, passes = _by_domain(stage, "reward/", styles), _by_domain(stage, "pass/", styles)
    if len(rewards) != 1:
        rewards = [("reward/mean", "mean", "ink"), *rewards]
    if _equal(stage, "reward/", "pass/"):
        passes = []
    inner = sorted({key for row in stage.metrics for key in row if key.startswith("policy/ratio_std/")}, key=_inner)
    spread = [(key, f"step {_inner(key)}", f"k{min(i, 5)}") for i, key in enumerate(inner)]
    live = [("groups/live_share", "live", "k0"), ("groups/all_correct_share", "all correct", "k2")]
    live.append(("groups/all_wrong_share", "all wrong", "k4"))
    clip = [("policy/clip_high_share", "high side", "k0"), ("policy/clip_low_share", "low side", "k3")]
    lengths = [("rollout/tokens_mean", "mean", "k0"), ("rollout/tokens_max", "longest", "k3")]
    broken = [("rollout/truncated_share", "truncated", "k0"), ("rollout/malformed_share", "malformed", "k3")]
    engine = [("engine/logprob_diff_mean", "mean", "k0"), ("engine/logprob_diff_max", "largest", "k3")]
    lives = _by_domain(stage, "groups/live_share/", styles)
    forecast = [("forecast/seen", "seen", "k0"), ("forecast/live", "forecast", "k3")]
    plan: list[tuple[str, str, Curves, Scale]] = [
        ("Reward", "mean of the rollouts, training problems", rewards, "zero"),
        ("Pass rate", "of the rollouts, training problems", passes, "share"),
        ("Groups", "live: neither all right nor all wrong", live, "share"),
        ("Live groups by domain", "share of the sampled groups", lives if len(lives) > 1 else [], "share"),
        ("Live groups, forecast", "by the filter's rollouts, and what was then seen", forecast, "share"),
        ("Entropy", "nats a token", [("policy/entropy", "entropy", "ink")], "zero"),
        ("KL to the anchor", "nats a token", [("policy/kl_to_anchor", "KL", "ink")], "zero"),
        ("Clipped tokens", "share of tokens outside the clip", clip, "share"),
        ("Ratio spread", "standard deviation of the ratio, by inner step", spread, "zero"),
        ("Completion length", "tokens", lengths, "zero"),
        ("Truncated and malformed", "share of rollouts", broken, "share"),
        ("Engine against learner", "log-probability difference, nats, log scale", engine, "log"),
        ("Gradient norm", "before clipping", [("optim/grad_norm", "gradient norm", "ink")], "zero"),
    ]
    found = [_panel(name, note, stage, curves, scale) for name, note, curves, scale in plan]
    return [panel for panel in found if panel]


def _panel(name: str, note: str, stage: StageFolder, curves: Curves, scale: Scale) -> Panel | None:
    """`curves` are (metric, name, class); those without a value are left out, None when all are."""
    series = [Series(label, style, _points(stage, key)) for key, label, style in curves]
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return None
    legend = tuple((s.style, s.name) for s in series) if len(series) > 1 else ()
    if max(len(s.points) for s in series) >= SMOOTHED_FROM:
        note += "; thick: moving mean" if len(series) <= MOST_RAW else "; moving mean"
    return Panel(name, note, legend, line_chart(series, scale, f"{stage.name}: {name} by step, {note}"))


def _points(stage: StageFolder, key: str) -> list[tuple[float, float | None]]:
    """Rows without the metric are skipped; a value that is not finite breaks the line."""
    return [(float(row["step"]), number(row[key])) for row in stage.metrics if key in row]


def _by_domain(stage: StageFolder, prefix: str, styles: Mapping[str, str]) -> Curves:
    keys = sorted({key for row in stage.metrics for key in row if key.startswith(prefix)})
    names = [(key, key.removeprefix(prefix)) for key in keys]
    return [(key, name, styles.get(name, "ink")) for key, name in names if name != "mean"]


def _equal(stage: StageFolder, a: str, b: str) -> bool:
    """Whether two families of metrics hold the same numbers, so that one picture is enough."""

    def family(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
        return {name: value for name, value in found.items() if name != "mean"}

    return all(family(row, a) == family(row, b) for row in stage.metrics)


def _inner(key: str) -> int:
    text = key.rsplit("/", 1)[-1]
    return int(text) if text.isdigit() else 0


def _interval(row: Any) -> Interval | None:
    mean, low, high = (number(table(row).get(key)) for key in Interval._fields)
    if mean is None:
        return None
    return Interval(mean, mean if low is None else low, mean if high is None else high)


def _sizes(run: RunFolder, domain: str) -> str:
    """ "24 problems, 4 completions each", from the last stage that has the domain."""
    last = next(table(s.domains[domain]) for s in reversed(run.evaluated) if domain in s.domains)
    return f"{plural(last.get('n'), 'problem')}, {plural(last.get('k'), 'completion')} each"
