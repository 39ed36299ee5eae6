"""Two runs side by side: what differs in the recipe, and each common evaluation, paired by problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motet.insight.facts import seconds
from motet.insight.folder import RunFolder, StageFolder, read_run
from motet.insight.outcomes import evaluation_outcomes
from motet.insight.terminal import COLUMNS, difference_table
from motet.insight.verdicts import compare
from motet.insight.wording import duration

MOST_SETTINGS = 12


def compare_runs(a: Path, b: Path) -> str:
    """Plain text of at most 100 columns: B against A. Raises UserError where a path is no run folder.

    Stages evaluated in both under one name are compared, then the last evaluated stage of each where the names differ.
    """
    first, second = read_run(a), read_run(b)
    lines = [f"A: {first.name} ({a})", f"B: {second.name} ({b})", "", *_settings(first, second)]
    ours = {stage.name: stage for stage in first.evaluated}
    pairs = [(ours[stage.name], stage) for stage in second.evaluated if stage.name in ours]
    if first.evaluated and second.evaluated:
        last = (first.evaluated[-1], second.evaluated[-1])
        if last not in pairs:
            pairs.append(last)
    if not pairs:
        lines.append("No stage was evaluated in both runs: nothing to compare.")
    for before, after in pairs:
        lines += _stage(before, after)
    return "\n".join(lines + _times(first, second))


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of all settings that differ; None where a key is absent."""
    left, right = _flat(a, ""), _flat(b, "")
    return [(key, left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)]


def _settings(first: RunFolder, second: RunFolder) -> list[str]:
    if not first.resolved or not second.resolved:
        return ["The recipes cannot be compared: resolved.json is missing.", ""]
    found = [row for row in differing(first.resolved, second.resolved) if row[0] != "name"]
    if not found:
        return ["The recipes are equal.", ""]
    lines = ["The recipes differ in:"]
    lines += [f"  {key}: {_brief(x)} in A, {_brief(y)} in B"[:COLUMNS] for key, x, y in found[:MOST_SETTINGS]]
    if len(found) > MOST_SETTINGS:
        lines.append(f"  and {len(found) - MOST_SETTINGS} more")
    return [*lines, ""]


def _brief(value: Any) -> str:
    """At most 30 characters; what is cut is the beginning, since paths and ids of one kind differ at their end."""
    text = "unset" if value is None else " ".join(str(value).split())
    return text if len(text) <= 30 else "... " + text[-26:]


def _stage(before: StageFolder, after: StageFolder) -> list[str]:
    missing: list[str] = []
    a, b = evaluation_outcomes(before, missing), evaluation_outcomes(after, missing)
    name = after.name if after.name == before.name else f"{before.name} in A, {after.name} in B"
    result = compare(before, after, a, b, "previous")
    lines = [name, *(f"  {text}" for text in missing)]
    return [*lines, *difference_table(result, "A", "B"), ""]


def _times(first: RunFolder, second: RunFolder) -> list[str]:
    a = {stage.name: value for stage in first.stages if (value := seconds(stage)) is not None}
    b = {stage.name: value for stage in second.stages if (value := seconds(stage)) is not None}
    if not a and not b:
        return []
    rows = [("time", "A", "B")]
    rows += [(name[:17], duration(a.get(name)), duration(b.get(name))) for name in dict.fromkeys([*a, *b])]
    rows.append(("total", duration(sum(a.values())), duration(sum(b.values()))))
    return [f"  {name:<18}{x:>14}{y:>14}" for name, x, y in rows]


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
