"""What gpus.py prints and draws of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from motet.insight.charts import Series, line_chart

GIB = 2**30
PUBLISHED = """To beat, at 64K, on H100s:
  SFT      4 GPUs, sp 4: 13,396 tok/s, 50.5 GB (published by Hugging Face, March 2026)
  SFT      8 GPUs, all weights trained: prime-rl's baseline of January 2026 ran out of memory
  RL step  8 GPUs: 28,966 tok/s, MFU 35.4 %, 36.1 GiB (prime-rl's committed baseline)"""
STYLE = """<style>svg{font:11.5px sans-serif} text{fill:#666} .line{fill:none;stroke:var(--c);stroke-width:1.9}
.line.point{fill:var(--c);stroke:none} .grid,.hair{stroke:#ddd} .hair{display:none} .end{text-anchor:end}
.middle{text-anchor:middle} .d0{--c:#1b6ca8} .d1{--c:#c4572b} .d2{--c:#4a8f3c} .k2{--c:#aaa}</style>"""


def line(what: str, case: Mapping[str, Any]) -> str:
    start = f"{case['case']:<44}"
    if "failed" in case:
        return f"{start} FAILED {case['failed']}"
    if "not_run" in case:
        return f"{start} not run: {case['not_run']}"
    if "findings" in case:
        worst = max(case["findings"], key=lambda f: f["difference"] / (f["tolerance"] or 1e-30))
        words = f"{worst['measure']} {worst['difference']:.1e} of {worst['tolerance']:.0e} ({worst['what']})"
        return f"{start} {'ok' if case['ok'] else 'DIFFERS'}   {words}"
    if "tokens_per_second" in case:
        return f"{start} {_speed(case)}"
    if "rows" in case:
        rows = "; ".join(f"{row['length']:,}: {row['tokens_per_second']:,.0f} tok/s" for row in case["rows"])
        return f"{start} {case['recompute']}: {rows}"
    rest = {name: value for name, value in case.items() if name not in ("case", "processes", "losses")}
    return f"{start} {', '.join(f'{name} {_short(value)}' for name, value in rest.items())}"


def table(report: Mapping[str, Any]) -> str:
    devices = report["machine"]["devices"]
    cap = report["machine"].get("cap_gigabytes")
    head = f"\n{len(devices)} x {devices[0]}" if devices else "\nno device"
    head += f", each process held to {cap:g} GB" if cap else ""
    lines = [head, *(line(report["what"], case) for case in report["cases"])]
    counts = {word: sum(word in case for case in report["cases"]) for word in ("failed", "not_run")}
    differ = sum(case.get("ok") is False for case in report["cases"])
    lines.append(
        f"{len(report['cases'])} cases: {counts['failed']} failed, {differ} differ, {counts['not_run']} not run"
    )
    if report["what"] == "speed":
        lines.append(PUBLISHED)
    return "\n".join(lines)


def plot(report: Mapping[str, Any]) -> str:
    """Two charts, one above the other: tokens per second, and GiB with the planner's own figures."""
    known = {case["case"]: case.get("partial", case) for case in report["cases"]}  # of one that failed, its first rows
    curves = {name: case for name, case in known.items() if case.get("rows")}
    speeds = [
        Series(name, f"d{place}", [(row["length"] / 1024, row["tokens_per_second"]) for row in case["rows"]])
        for place, (name, case) in enumerate(curves.items())
    ]
    memory = [
        Series(name, f"d{place}", [(row["length"] / 1024, row["allocated"] / GIB) for row in case["rows"]])
        for place, (name, case) in enumerate(curves.items())
    ]
    memory += [
        Series(f"{name}, planned", "k2", [(int(n) / 1024, told / GIB) for n, told in case["forecast_of"].items()])
        for name, case in curves.items()
    ]
    charts = [(speeds, "Tokens per second by context in K"), (memory, "GiB of the fullest GPU by context in K")]
    drawn = [(line_chart(series, "zero", label, unit="K"), label) for series, label in charts if series]
    height = 30 + 200 * len(drawn) + 16 * len(curves)
    parts = []
    for place, (svg, label) in enumerate(drawn):
        top = 200 * place
        parts.append(f'<text x="6" y="{top + 14}">{label}</text>')
        parts.append(svg.replace("<svg ", f'<svg x="0" y="{top + 20}" width="360" height="176" ', 1))
    for place, name in enumerate(curves):
        y = 200 * len(drawn) + 16 * place + 12
        parts.append(f'<rect class="d{place}" x="8" y="{y - 8}" width="14" height="3" fill="var(--c)"/>')
        parts.append(f'<text x="28" y="{y}">{name}; grey: planned</text>')
    body = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 {height}">{STYLE}{body}</svg>\n'


def _speed(case: Mapping[str, Any]) -> str:
    words = (
        f"{case['tokens_per_second']:>9,.0f} tok/s  {case['tokens_per_second_per_gpu']:>8,.0f} a GPU  "
        f"MFU {case['mfu']:5.1%}  peak {case['allocated'] / GIB:6.2f} GiB ({case['reserved'] / GIB:.1f} reserved), "
        f"predicted {case['forecast_error']:+.1%}"
    )
    if "motet_plan" in case:
        words += f", motet plan {case['motet_plan'] / GIB:.2f} ({case['motet_plan_error']:+.1%})"
    if case.get("trace"):
        trace = case["trace"]
        parts: list[tuple[str, str]] = [(kind, f"{kind} {trace[kind]:.1%}") for kind in _COMMUNICATION if trace[kind]]
        words += f"  [{', '.join(text for _, text in parts)}; {trace['hidden']:.0%} of it hidden]"
    return f"{words}  {', '.join(f'{count} x {name}' for name, count in case['policies'].items())}"


_COMMUNICATION = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


Tell = Callable[[Any, dict[str, Any]], None]
