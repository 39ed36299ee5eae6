"""The report for a terminal: plain text of at most 100 columns, from report.json alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from motet.base.statistics import ALL
from motet.insight.verdicts import order, shown, title
from motet.insight.wording import count, duration, interval, percent, plural, points, short, size, table

COLUMNS = 100
NAME, CELL = 16, 21


def terminal_summary(report: Mapping[str, Any]) -> str:
    parts = [_head(report), _wrapped(report["headline"]), *_evaluation(report), *_changes(report), *_stages(report)]
    if report["alerts"]:
        parts.append("\n".join(["Worth a look", *(_wrapped(text, "  - ") for text in report["alerts"])]))
    if report["missing"]:
        parts.append("\n".join(["Missing", *(_wrapped(text, "  - ") for text in report["missing"])]))
    return "\n\n".join(part for part in parts if part)


def _head(report: Mapping[str, Any]) -> str:
    done = sum(stage["status"] == "done" for stage in report["stages"])
    facts = [f"{done} of {plural(len(report['stages']), 'stage')} done"]
    facts += [duration(sum(report["seconds"].values()))] if report["seconds"] else []
    facts += [f"peak memory {size(report['peak_memory_bytes'])}"] if report["peak_memory_bytes"] else []
    return f"{report['name']} ({report['status']}): {', '.join(facts)}"[:COLUMNS]


def _evaluation(report: Mapping[str, Any]) -> list[str]:
    """pass@1 by stage and domain, four domains to a block so that a block fits the width."""
    stages = report["evaluation"]
    names = order({name: None for domains in stages.values() for name in domains})
    blocks = []
    for start in range(0, len(names), 4):
        chunk = names[start : start + 4]
        lines = ["pass@1 [95 %]".ljust(NAME) + "".join(f"{title(name)[: CELL - 2]:>{CELL}}" for name in chunk)]
        for stage, domains in stages.items():
            cells = [interval(table(domains.get(name)).get("pass_at_1")) for name in chunk]
            lines.append(f"{stage[: NAME - 1]:<{NAME}}" + "".join(f"{cell:>{CELL}}" for cell in cells))
        blocks.append("\n".join(lines))
    return blocks


def _changes(report: Mapping[str, Any]) -> list[str]:
    """Against the first evaluated stage and, where that is another one, against the stage before."""
    blocks = []
    for comparison in shown(report["comparisons"]):
        lines = [f"{comparison['to']} against {comparison['from']}"]
        blocks.append("\n".join(lines + difference_table(comparison, comparison["from"], comparison["to"])))
    return blocks


def difference_table(comparison: Mapping[str, Any], a: str, b: str) -> list[str]:
    """One line a domain: pass@1 of both on the paired problems, their difference in points, its interval, a verdict."""
    lines = [_wrapped(comparison["note"], "  ")] if comparison["note"] else []
    domains = comparison["domains"]
    if domains:
        head = f"{a[:8]:>9}{b[:8]:>9}{'points':>9}{'95 % interval':>17}{'problems':>10}"
        lines.append(f"  {'pass@1':<16}{head}  verdict")
    for domain in order(domains):
        row = domains[domain]
        change = row["difference"]
        span = f"{points(change['low'])} to {points(change['high'])}"
        cells = f"{percent(row['a']):>9}{percent(row['b']):>9}{points(change['mean']):>9}{span:>17}{row['n']:>10}"
        lines.append(f"  {title(domain)[:15]:<16}{cells}  {row['verdict']}")
    return lines


def _stages(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, funnel in report["funnel"].items():
        what = "row" if funnel.get("kind") == "clean" else "trace"
        lines.append(f"{name}: {count(funnel.get('kept'))} of {plural(funnel.get('asked'), what)} kept")
    for name, row in report["sft"].items():
        lines.append(f"{name}: loss {short(row['loss_first'])} to {short(row['loss_last'])}, {row['steps']} steps")
    for name, row in table(report["filter"].get("stages")).items():
        text = f"{name}: {count(row['kept'])} of {plural(row['of'], 'problem')} kept, live groups "
        lines.append(text + f"{percent(row['live_share_before'])} before, {percent(row['live_share_after'])} after")
        seen = next((r["forecast"]["first"] for r in table(report["rl"].get("stages")).values() if r["forecast"]), None)
        if seen and row.get("live_share_forecast") is not None:
            lines[-1] += f"; of RL's first {seen['groups']} groups {percent(seen['seen'])}"
            lines[-1] += f", forecast {percent(seen['live'])}"
    for name, row in table(report["rl"].get("stages")).items():
        text = f"{name}: {plural(row['steps'], 'sampled batch')}".replace("batchs", "batches")
        text += f" x {short(row['inner_steps'])} inner steps in {duration(row['seconds'])}, training reward "
        lines.append(text + f"{short(row['reward_first'])} to {short(row['reward_last'])}")
    if report["seconds"]:
        lines.append("time: " + ", ".join(f"{name} {duration(value)}" for name, value in report["seconds"].items()))
    everything = table(list(report["evaluation"].values())[-1].get(ALL)) if report["evaluation"] else {}
    if everything:
        kinds = ("truncated", "malformed", "no_answer")
        shares = [f"{percent(everything.get(kind))} {kind.replace('_', ' ')}" for kind in kinds]
        lines.append("last evaluation: " + ", ".join(shares))
    return ["\n".join(_wrapped(line, "") for line in lines)] if lines else []


def _wrapped(text: str, first: str = "") -> str:
    return textwrap.fill(text, COLUMNS, initial_indent=first, subsequent_indent=" " * len(first) or "  ")
