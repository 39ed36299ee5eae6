"""What `motet check` prints on a terminal: a row for each source and verifier, then what was found."""

from __future__ import annotations

from motet.tasks.checking import Result

SHOWN = 50
WIDTH = 120
"""Columns where the output is no terminal."""


def show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = WIDTH
    figures = ("checked", "gold correct", "no gold", "wrong refused", "median", "p99", "worst")
    table = Table("problems", "verifier", *(Column(title, justify="right") for title in figures))
    for (source, verifier), tally in result.tallies.items():
        counts = (tally.problems, tally.proved, tally.without_gold, tally.refused)
        times = (tally.times.quantile(0.5), tally.times.quantile(0.99), tally.times.worst)
        table.add_row(source, verifier, *(f"{n:,}" for n in counts), *map(_seconds, times))
    console.print(table)
    if result.findings:
        found = Table("found", "where", "problem", "why")
        for finding in result.findings[:SHOWN]:
            found.add_row(finding.kind, Text(finding.place or finding.source), Text(finding.id), Text(finding.reason))
        console.print(found)
    console.print(Text(_summary(result)))


def _summary(result: Result) -> str:
    problems = sum(tally.problems for tally in result.tallies.values())
    canaries = sum(result.canaries.values())
    parts = [f"{problems:,} problems in {result.seconds:.1f} s, {canaries:,} canaries judged rightly"]
    repeated = sum(result.duplicates.values())
    if repeated:
        parts.append(f"{repeated:,} duplicate prompts left out")
    total = result.counts.total()
    if not result.tallies and not total:
        return "there is no problem in it: nothing was proved"
    if not total:
        return "; ".join([*parts, "nothing was found: every verifier accepts the gold answers and nothing else"])
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.counts.most_common())
    more = f" (the first {SHOWN} are shown; --json has {len(result.findings):,})" if total > SHOWN else ""
    return "; ".join([*parts, f"found: {kinds}{more}"])


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"
