"""Rollouts without their texts: what statistics and the rollout browser choose from, in bounded memory.

A file of 64K-token rollouts does not fit in memory as Python integers. Groups are read one at a time and reduced; the
few that are shown are read again from their place in the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from motet.base.records import Group, decode_group
from motet.base.statistics import Tally, tally
from motet.insight.folder import StageFolder, rows
from motet.insight.wording import plural

MOST_BYTES = 200_000_000
"""Of RL rollouts read for the browser; beyond it, steps are thinned evenly and the report says so."""


class Outcome(NamedTuple):
    """One group; `file` and `offset` are where its text lies."""

    file: Path
    offset: int
    stage: str
    step: int | None
    """RL step, or None for a group of an evaluation."""
    problem: str
    tally: Tally
    logprobs: tuple[float | None, ...]
    """Mean log-probability a token of each rollout; None where the engine gave none."""

    @property
    def rate(self) -> float:
        return self.tally.passed / max(1, self.tally.judged)


def evaluation_outcomes(stage: StageFolder, missing: list[str]) -> list[Outcome]:
    path = stage.path / "evaluation.jsonl"
    if not path.exists():
        missing.append(f"{stage.name}/evaluation.jsonl is missing: nothing is paired with this stage.")
        return []
    return _read(path, stage.name, None, missing)


def rl_outcomes(stage: StageFolder, missing: list[str]) -> list[Outcome]:
    """The groups of all steps, or of evenly spaced steps with the last one where the files exceed MOST_BYTES."""
    files = sorted((stage.path / "rollouts").glob("step-*.jsonl"))
    total = sum(file.stat().st_size for file in files)
    if total > MOST_BYTES:
        keep = max(2, len(files) * MOST_BYTES // total)
        last = len(files) - 1
        chosen = sorted({round(i * last / (keep - 1)) for i in range(keep)})
        missing.append(f"{stage.name}: the rollout browser looks at {len(chosen)} of {len(files)} steps (large files).")
        files = [files[i] for i in chosen]
    found: list[Outcome] = []
    for file in files:
        step = re.search(r"(\d+)$", file.stem)
        found += _read(file, stage.name, int(step[1]) if step else None, missing)
    return found


def group_of(outcome: Outcome) -> Group:
    """The whole group, texts included."""
    with outcome.file.open("rb") as file:
        file.seek(outcome.offset)
        return decode_group(json.loads(file.readline()))


def _read(path: Path, stage: str, step: int | None, missing: list[str]) -> list[Outcome]:
    found: list[Outcome] = []
    unread = 0
    for offset, row in rows(path):
        try:
            group = decode_group(row)
            counted = tally(group)
        except (KeyError, TypeError):  # torn by a kill, or a line of something else
            unread += 1
            continue
        means = tuple(_mean(rollout.completion.logprobs) for rollout in group.rollouts)
        found.append(Outcome(path, offset, stage, step, group.problem.id, counted, means))
    if unread:
        missing.append(f"{stage}/{path.name}: {plural(unread, 'line')} could not be read.")
    return found


def _mean(values: tuple[float, ...]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None
