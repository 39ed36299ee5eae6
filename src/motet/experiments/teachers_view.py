"""Which teacher fits, for a reader: three tables and the advice in the terminal, a page with the same and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from motet.base.statistics import Interval
from motet.insight import report as reporting
from motet.insight.charts import forest_chart
from motet.insight.wording import DASH, count, interval, number, percent, points, short, table

NAME = 15
LEGEND = (
    "fit: tokens that the student liked better, for each nat of surprisal; lower fits better. RSR: the same with",
    "ranks from 1, as published (2601.14249). nats: mean surprisal of a token, then its 95th percentile and the",
    "share of tokens with p < 1 %. rank: mean, clipped at 100. answer: nats of all of it, after the reasoning.",
)
SHADED = 6.0
"""Nats at which a token of an example has its full colour."""


def summary(report: Mapping[str, Any]) -> str:
    """At most 110 columns."""
    head = (
        f"{report['name']}: teachers for {_student(report)}, read on {count(report['problems'])} problems that all "
        f"have traces of; seed {report['seed']}"
    )
    blocks = [_wrapped(head), _reading(report), _shape(report)]
    if report["steps"]:
        blocks.append(_probe(report))
    blocks.append("\n".join(_wrapped(line) for line in report["advice"]))
    return "\n\n".join(blocks)


def _student(report: Mapping[str, Any]) -> str:
    stage = report["student"]["stage"]
    return "the model that the recipe starts from" if stage == "base" else f"the model of stage {stage}"


def _reading(report: Mapping[str, Any]) -> str:
    lines = [*LEGEND, f"{'teacher':<{NAME}}{'fit':<21}{'RSR':>7}  {'nats':<21}{'p95':>6}{'p<1%':>7}{'rank':>7}"
                      f"{'top1':>7}{'top10':>7}{'answer':>8}"]  # fmt: skip
    rows = {name: row["measures"] for name, row in report["teachers"].items()}
    own = report["student"]["own"]["measures"]
    if own is not None:
        rows = {**rows, "(its own)": own}
    for name, row in rows.items():
        mean = {key: table(value).get("mean") for key, value in row.items()}
        lines.append(
            f"{_clipped(name):<{NAME}}{_between(row['fit']):<21}{_digits(mean['rsr']):>7}  "
            f"{_between(row['surprisal']):<21}{_digits(mean['surprisal_p95']):>6}{_share(mean['improbable']):>7}{_digits(mean['rank']):>7}"
            f"{_share(mean['top1']):>7}{_share(mean['top10']):>7}{_digits(mean['answer']):>8}"
        )
    return "\n".join(lines)


def _shape(report: Mapping[str, Any]) -> str:
    own = report["student"]["own"]
    told = (
        f"length, steps: by those of its own correct traces ({own['traces']}, of {own['solved']} problems)"
        if own["traces"]
        else "length, steps: it has no correct trace of its own to compare with"
    )
    lines = [told + "; step lengths: 0 alike, 1 apart.",
             f"{'teacher':<{NAME}}{'tokens':>8}{'length':>8}{'steps':>8}{'step lengths':>14}{'turns back':>12}"
             f"{'kept':>14}{'tokens/kept':>13}{'cost/kept':>11}"]  # fmt: skip
    for name, row in report["teachers"].items():
        mean = {key: table(value).get("mean") for key, value in row["measures"].items()}
        given = row["yield"]
        kept = f"{given['kept']}/{given['asked']}{'' if given['verified'] else ' ?'}"
        lines.append(
            f"{_clipped(name):<{NAME}}{_digits(mean['tokens']):>8}{_times(mean['length']):>8}{_times(mean['step_count']):>8}"
            f"{_digits(mean['step_distance']):>14}{_digits(mean['markers']):>12}{kept:>14}"
            f"{count(given.get('tokens_per_kept')):>13}{short(given.get('cost_per_kept')):>11}"
        )
    dropped = [(name, row["yield"]["dropped"]) for name, row in report["teachers"].items()]
    reasons = [f"{name} {', '.join(f'{n} {what}' for what, n in counts.items())}" for name, counts in dropped if counts]
    lines += [_wrapped("not kept: " + "; ".join(reasons))] if reasons else []
    if any(not row["yield"]["verified"] for row in report["teachers"].values()):
        lines.append("?: none of its questions is a problem of the recipe, so nothing was verified")
    return "\n".join(lines)


def _probe(report: Mapping[str, Any]) -> str:
    same = "traces" if report["equal"] == "examples" else "tokens"
    lines = [_wrapped(f"probe: {report['steps']} steps of SFT on equally many {same}, learning rate "
                      f"{report['learning_rate']:g}; {report['heldout']} held-out problems, paired by problem"),
             f"{'teacher':<{NAME}}{'examples':>9}{'tokens':>9}  {'held-out pass@1':<24}{'against untouched':<24}"
             "against the next",
             f"{'(untouched)':<{NAME}}{'':>20}{interval(report['student']['pass_at_1'])}"]  # fmt: skip
    order = report["ranking"]["probe"]
    for place, name in enumerate(order):
        probe = report["teachers"][name]["probe"]
        after = order[place + 1] if place + 1 < len(order) else None
        apart = _change(probe["others"][after]) if after else DASH
        lines.append(
            f"{_clipped(name):<{NAME}}{count(probe['examples']):>9}{count(probe['trained_tokens']):>9}  "
            f"{interval(probe['pass_at_1']):<24}{_change(probe['student']):<24}{apart}"
        )
    return "\n".join(lines)


def _change(row: Any) -> str:
    row = table(row)
    return f"{points(row.get('mean'))} [{points(row.get('low'))}, {points(row.get('high'))}]" if row else DASH


def _between(row: Any) -> str:
    row = table(row)
    return f"{_digits(row['mean'])} [{_digits(row['low'])}, {_digits(row['high'])}]" if row else DASH


def _digits(value: Any) -> str:
    """Three significant digits: "0.0412", "5.31", "1,204"."""
    given = number(value)
    if given is None:
        return DASH
    return f"{given:,.0f}" if abs(given) >= 100 else f"{given:.3g}"


def _share(value: Any) -> str:
    return percent(value, 0 if (number(value) or 0) >= 0.0995 else 1).replace(" ", "")


def _times(value: Any) -> str:
    return DASH if number(value) is None else f"x {value:.2f}"


def _clipped(name: str) -> str:
    return name if len(name) < NAME else name[: NAME - 2] + "~"


def _wrapped(text: str, width: int = 110) -> str:
    import textwrap

    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)


# ---- the page


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """One self-contained file: advice, what the probes scored, the tables, one problem's traces token by token."""
    style = (Path(reporting.__file__).parent / "report.css").read_text(encoding="utf-8")
    advice = "".join(f"<li>{escape(line)}</li>" for line in report["advice"])
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(report['name'])}: which teacher</title><style>{style}</style></head><body><main>"
        f'<header><p class="kicker">motet experiment teachers</p><h1>{escape(report["name"])}</h1></header>'
        f"<section><h2>Advice</h2><ul>{advice}</ul></section>{_chart(report)}"
        f'<section><h2>Tables</h2><pre style="overflow-x:auto">{escape(summary(report))}</pre></section>'
        f"{_examples(report)}</main></body></html>\n",
        encoding="utf-8",
    )


def _chart(report: Mapping[str, Any]) -> str:
    if not report["steps"]:
        return ""
    rows = [("untouched", report["student"]["pass_at_1"])]
    rows += [(name, report["teachers"][name]["probe"]["pass_at_1"]) for name in report["ranking"]["probe"]]
    shown = [(name, Interval(row["mean"], row["low"], row["high"])) for name, row in rows if row["mean"] is not None]
    if not shown:
        return ""
    label = "Held-out pass@1: " + "; ".join(f"{name} {percent(row.mean)}" for name, row in shown)
    chart = forest_chart(shown, "d0", max(0.05, *(row.high for _, row in shown)), label)
    return f'<section><h2>Held-out pass@1 <span>after each probe</span></h2><div class="panels">{chart}</div></section>'


def _examples(report: Mapping[str, Any]) -> str:
    parts = []
    for name in report["teachers"]:
        example = report["examples"][name]
        parts.append(f"<h3>{escape(name)}</h3><p>{_tokens(example['tokens'])}</p>")
    prompt = next(iter(report["examples"].values()))["prompt"]
    return (
        "<section><h2>One problem <span>as the untouched student reads it: the darker a token, the less it expected it"
        f'</span></h2><pre style="white-space:pre-wrap">{escape(prompt)}</pre>{"".join(parts)}</section>'
    )


def _tokens(tokens: Sequence[Sequence[Any]]) -> str:
    shown = []
    for text, surprisal, rank in tokens:
        colour = round(100 * min(1.0, float(surprisal) / SHADED))
        style = f"background:color-mix(in srgb,var(--d1) {colour}%,transparent);white-space:pre-wrap"
        shown.append(f'<span style="{style}" title="{surprisal:.2f} nats, rank {rank}">{escape(text)}</span>')
    return "".join(shown)
