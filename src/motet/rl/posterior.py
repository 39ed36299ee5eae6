"""How hard each problem is for the model as it is now: a Beta posterior by problem, and which problems rest.

Example: a problem of which the filter saw 3 of 5 solved has Beta(1 + 3, 1 + 2), mean 4/7. Eight more, all solved, with
half of the old evidence forgotten: Beta(1 + 1.5 + 8, 1 + 1), mean 0.84.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from motet.base.records import Group

KEPT = 0.5
"""Share of the older evidence that is kept when a problem is seen again: the model has moved on since (ours)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    domain: str
    correct: float = 0.0
    wrong: float = 0.0
    seen: int = 0
    """Step in which it was last sampled, from 1; 0: not yet."""
    retired: int = 0
    """Step in which it was retired last, from 1; 0: never."""

    @property
    def rate(self) -> float:
        """Mean of Beta(1 + correct, 1 + wrong): the expected pass rate."""
        return (1.0 + self.correct) / (2.0 + self.correct + self.wrong)


class Posterior:
    """Of all problems that were sampled. What it knows after a step is a function of the groups up to it."""

    def __init__(self, prior: Iterable[Group], retire_at: float | None, return_after: int) -> None:
        """`prior`: the filter's own groups. `retire_at`: expected pass rate from which a problem rests for
        `return_after` steps; None: none does."""
        self._retire_at, self._return_after = retire_at, return_after
        self._prior = {group.problem.id: Evidence(group.problem.domain, *_counted(group)) for group in prior}
        self.table: dict[str, Evidence] = dict(self._prior)

    def observe(self, step: int, groups: Sequence[Group]) -> None:
        """The groups of step `step` (from 1). Truncated and unscored rollouts are no evidence."""
        for group in groups:
            correct, wrong = _counted(group)
            old = self.table.get(group.problem.id, Evidence(group.problem.domain))
            found = replace(old, correct=KEPT * old.correct + correct, wrong=KEPT * old.wrong + wrong, seen=step)
            solved = self._retire_at is not None and found.rate >= self._retire_at
            self.table[group.problem.id] = replace(found, retired=step if solved else 0)

    def rests(self, problem: str, step: int) -> bool:
        """Whether a problem is left out of step `step`. Back by age, it is retired again only by what it then shows."""
        known = self.table.get(problem)
        return known is not None and known.retired > 0 and step - known.retired <= self._return_after

    def resting(self, step: int) -> int:
        """How many problems are left out of step `step`."""
        return sum(self.rests(problem, step) for problem in self.table)

    def rate_mean(self) -> float:
        """Expected pass rate, over the problems that RL has sampled, in whatever order."""
        seen = [known.rate for known in self.table.values() if known.seen]
        return math.fsum(seen) / len(seen) if seen else 0.0

    def rows(self, step: int) -> list[dict[str, Any]]:
        """problems-state.jsonl: {id, domain, correct, wrong, rate, seen, retired, step}; `step` steps are in it."""
        return [
            {
                "id": name, "domain": known.domain, "correct": known.correct, "wrong": known.wrong, "rate": known.rate,
                "seen": known.seen, "retired": known.retired, "step": step,
            }
            for name, known in sorted(self.table.items())
        ]  # fmt: skip

    def load(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """What `rows` gave."""
        self.table = {
            row["id"]: Evidence(row["domain"], row["correct"], row["wrong"], row["seen"], row["retired"])
            for row in rows
        }

    def restart(self) -> None:
        self.table = dict(self._prior)


def _counted(group: Group) -> tuple[float, float]:
    judged = [r.verdict.kind for r in group.rollouts if r.verdict.score is not None]
    return float(judged.count("correct")), float(len(judged) - judged.count("correct"))
