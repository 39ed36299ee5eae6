"""Writes the tables of docs/speed.md and docs/scale.md anew from bench/results: what is between `<!-- NAME -->` and
`<!-- end -->`.

    python bench/page.py            # NAME: one of TABLES
    python bench/page.py --check    # ends with 1 where a page is not what the results say

A table without results is a line that names the command that makes them. Each card has a table of its own. Of several
files of one name and card (train_speed_h100.json, train_speed_h100_2.json) a case counts as the last one has it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import profiles
import train_speed

RESULTS = Path(__file__).parent / "results"
PAGES = [Path(__file__).parent.parent / "docs" / name for name in ("speed.md", "scale.md")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for page in PAGES:
        before = page.read_text()
        after = re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", written, before, flags=re.DOTALL)
        stale += before != after
        if not check:
            page.write_text(after)
    return int(check and stale > 0)


def written(found: re.Match[str]) -> str:
    name = found[1]
    reports = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{SOURCES.get(name, name)}_*.json"))]
    if not reports:
        return f"<!-- {name} -->\nNo results yet: `python bench/{SOURCES.get(name, name)}.py`.\n<!-- end -->"
    cards: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        cards.setdefault(card(report), []).append(report)
    tables = "\n\n".join(f"{hardware(own[-1])}\n\n{TABLES[name](own)}" for own in reversed(cards.values()))
    return f"<!-- {name} -->\n{tables}\n<!-- end -->"


def card(report: dict[str, Any]) -> str:
    machine = report.get("machine", report)
    device = machine.get("hardware") or machine.get("device")
    device = device or next((r["device"] for r in report.get("results", ()) if "device" in r), "unknown device")
    cap = machine.get("cap_gigabytes") or report.get("cap_gigabytes")
    return f"{device} held to {cap:.0f} GB" if cap else str(device)


def hardware(report: dict[str, Any]) -> str:
    machine = report.get("machine", report)
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v != "none")
    return f"{card(report)}, Python {machine['python']}, {versions}."


def train_speeds(reports: Sequence[dict[str, Any]]) -> str:
    cases = {result["case"]: result for report in reports for result in report["results"]}
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, result in cases.items():
        shape, row, system = name.split(":")
        found = rows.setdefault((shape, row), {})
        if system.endswith("+profile"):  # timed before it was profiled
            found.setdefault(system.removesuffix("+profile"), result)
        else:
            found[system] = result
    lines = []
    for (shape, row), systems in sorted(rows.items()):
        hidden, mlp, layers = train_speed.SHAPES[shape]
        lengths = train_speed.ROWS[row]
        least = train_speed.floor(train_speed.parameters(hidden, mlp, layers), layers, lengths)
        own = max((r["tokens_per_second"] for s, r in systems.items() if "motet" in s and "failed" not in r), default=0)
        for system, result in sorted(systems.items()):
            if "failed" in result:
                lines.append([shape, row, f"`{system}`", _short(result["failed"]), *[""] * 5])
                continue
            speed, seconds = result["tokens_per_second"], result["seconds"]
            ratio = "" if "motet" in system or not own else f"{own / speed:.2f} x"
            lines.append([
                shape, row, f"`{system}`", f"{speed / 1e3:.1f}K", f"{100 * result['mfu']:.0f} %",
                f"{result['peak_gib']:.1f}", f"{1e3 * seconds:,.0f}", f"{100 * (1 - least / seconds):.0f} %", ratio,
            ])  # fmt: skip
    heads = ["shape", "row", "system", "tokens/s", "MFU", "peak GiB", "step, ms", "above the floor", "motet's best is"]
    return markdown(heads, lines)


def attentions(reports: Sequence[dict[str, Any]]) -> str:
    report = reports[-1]
    rows, errors = report["tflops"], report["errors"]
    lines = []
    for name, values in errors.items():
        cells = [rows[label].get(name) for label in rows]
        lines.append([name, *("-" if c is None else f"{c:.0f}" for c in cells), f"{max(values):.1e}"])
    for own in ("motet", "motet without FA4"):
        pairs = [(rows[label].get(own), rows[label].get("varlen_attn")) for label in rows]
        lines.append([f"{own} / varlen_attn", *(f"{a / b:.2f}" if a and b else "-" for a, b in pairs), ""])
    return markdown(["TFLOP/s, forward and backward", *rows, "largest error"], lines)


def heads(reports: Sequence[dict[str, Any]]) -> str:
    lines = []
    for found in reports[-1]["cases"]:
        start = [str(found["width"]), found["way"]]
        if "failed" in found:
            lines.append([*start, _short(found["failed"]), *[""] * 3])
            continue
        others = [
            c["seconds"] for c in reports[-1]["cases"]
            if c["width"] == found["width"] and "seconds" in c and not c["way"].startswith("motet")
        ]  # fmt: skip
        ratio = f"{found['seconds'] / min(others):.2f} x" if others else ""
        size = f"{found['peak'] / 2**30:.2f}"
        lines.append([*start, f"{1e3 * found['seconds']:.1f}", size, f"{max(found['errors']):.1e}", ratio])
    return markdown(["width", "way", "ms", "GiB", "largest error", "of the fastest other"], lines)


def longests(reports: Sequence[dict[str, Any]]) -> str:
    cases = {found["case"]: found for report in reports for found in report["cases"]}
    lines = []
    for name, found in cases.items():
        longest = found.get("longest", 0)
        step = next((s for s in found["steps"] if s["tokens"] == longest and "failed" not in s), None)
        failed = min((s["tokens"] for s in found["steps"] if "failed" in s), default=0)
        peer = cases.get(f"{name.split(':')[0]}:trl", {}).get("longest", 0)
        ratio = f"{longest / peer:.2f} x" if peer and not name.endswith(":trl") else ""
        figures = ["", "", ""]
        if step is not None:
            figures = [f"{step['allocated'] / 2**30:.1f}", f"{step['host'] / 2**30:.0f}", f"{step['seconds']:.0f}"]
        lines.append([f"`{name}`", f"{longest:,}", *figures, f"{failed:,}" if failed else "", ratio])
    return markdown(["case", "tokens", "GiB", "of the host", "seconds", "shortest that failed", "of TRL's"], lines)


def profiled(reports: Sequence[dict[str, Any]]) -> str:
    cases = {r["case"]: r["profile"] for report in reports for r in report["results"] if "profile" in r}
    if not cases:
        return "No step has been profiled yet: `python bench/train_speed.py --profile 0.6B:64K:motet+attention`."
    blocks = [f"`{name}`, {1e3 * p['wall']:.0f} ms\n\n```\n{profiles.table(p)}\n```" for name, p in cases.items()]
    return "\n\n".join(blocks)


def plans(reports: Sequence[dict[str, Any]]) -> str:
    cases = {c["case"]: c for report in reports for c in report["cases"] if "failed" not in c}
    errors = sorted(abs(found["error"]) for found in cases.values())
    return (
        f"{len(cases)} configurations: the largest error of the predicted peak is {100 * errors[-1]:.1f} %, "
        f"the median {100 * statistics.median(errors):.2f} %. docs/scale.md has the table."
    )


def plan_cases(reports: Sequence[dict[str, Any]]) -> str:
    lines = []
    for found in {c["case"]: c for report in reports for c in report["cases"] if "failed" not in c}.values():
        kept = ", ".join(f"{count} {policy}" for policy, count in found["policies"].items())
        figures = (f"{found['predicted'] / 2**30:.2f}", f"{found['allocated'] / 2**30:.2f}")
        lines.append([found["case"], *figures, f"{100 * found['error']:+.2f} %", f"{found['seconds']:.2f}", kept])
    return markdown(["case", "predicted", "measured", "error", "step, s", "what blocks keep"], lines)


def markdown(names: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    names = list(names)
    rows = [names, ["---"] * len(names), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _short(words: str) -> str:
    return "out of memory" if "out of memory" in words else words[:60].replace("|", "/")


SOURCES = {"profile": "train_speed", "plan": "plan_probe", "plan_cases": "plan_probe"}
TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "train_speed": train_speeds, "attention": attentions, "head": heads, "longest": longests, "profile": profiled,
    "plan": plans, "plan_cases": plan_cases,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
