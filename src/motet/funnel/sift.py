"""Rows in, rows out: the funnel as a whole.

    sift(source, Settings(rules, index, "required", False), folder, out, processes=2)

First every row by itself (scan.py), then what depends on all rows, from fixed-size records: duplicates, contamination,
the majority, the quota. Last the rows that are left are copied to `out`. Memory: about 100 bytes a row, and the texts
of a few hundred rows. Killed at any moment, the same call goes on.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from motet.base import jsonl
from motet.base.recipe import RuleId
from motet.funnel import rules as table
from motet.funnel.candidate import Example, turn_text
from motet.funnel.contamination import Decision, Hits
from motet.funnel.duplicates import duplicates, pairs
from motet.funnel.judge import Judge, JudgeRule
from motet.funnel.rules import LONGEST_EXAMPLE, Count
from motet.funnel.scan import RECORD, Settings, Source, Totals, scan

Fate = NDArray[np.int8]
"""Of each row of rows.jsonl: -1 while it is kept, else the number of the rule that dropped it."""
SHOWN = 300
"""Characters of the other text that an example shows."""


def sift(
    source: Source,
    settings: Settings,
    folder: Path,
    out: Path,
    processes: int = 1,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Writes the rows that pass to `out`, and returns the funnel: rows asked by domain, each rule, rows kept.

    `folder` holds what is under way; it is removed by `clear` when the caller has kept the result. `judge` answers
    texts; without one the rule "judge" does not take part.
    """
    totals = scan(source, settings, folder, processes)
    sieve = _Sieve(settings, folder, totals)
    sieve.decide()
    found = None
    if judge is not None and settings.rules.is_on("judge"):
        rule = JudgeRule(judge, folder / "judge.jsonl", settings.rules.judge_audit)
        found = sieve.judge(rule, out.with_name("audit.jsonl"))
    kept = sieve.write(out)
    result = sieve.funnel(kept)
    return {**result, "judge": found} if found is not None else result


def clear(folder: Path) -> None:
    """Removes what `sift` had under way."""
    shutil.rmtree(folder, ignore_errors=True)


class _Sieve:
    def __init__(self, settings: Settings, folder: Path, totals: Totals) -> None:
        self.settings = settings
        self.folder = folder
        self.totals = totals
        self.rules = table.build(settings.rules, settings.questions, settings.think)
        self.numbers = {rule.id: number for number, rule in enumerate(self.rules)}
        self.on = {rule.id for rule in self.rules if rule.on}
        data = folder / "records"
        self.records = np.memmap(data, RECORD, "r", shape=(totals.passed,)) if totals.passed else np.zeros(0, RECORD)
        self.fate: Fate = np.full(totals.passed, -1, np.int8)
        self.counts: dict[RuleId, Count] = {}
        self.pseudo: dict[int, bool] = {}
        self._file: IO[bytes] = (folder / "rows.jsonl").open("rb")

    # ---- rules over all rows

    def decide(self) -> None:
        self._each("exact_duplicate", self._equal)
        self._each("contamination_8", lambda: self._contaminated(False))
        self._each("contamination_numbers", lambda: self._contaminated(True))
        self._each("majority", self._minority)
        self._each("near_duplicate", self._near)
        self._each("max_per_problem", self._over)

    def _each(self, rule: RuleId, find: Callable[[], Iterable[tuple[int, str]]]) -> None:
        if rule in self.on:
            for row, why in find():
                self._drop(rule, row, why)

    def _drop(self, rule: RuleId, row: int, why: str) -> None:
        if self.fate[row] >= 0:
            return
        self.fate[row] = self.numbers[rule]
        count = self.counts.setdefault(rule, Count())
        shown = len(count.examples) < table.EXAMPLES
        count.add(self._example(row, why) if shown else Example("", "", why))

    @property
    def _left(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.fate < 0)

    def _equal(self) -> Iterator[tuple[int, str]]:
        for later in _repeats(self.records["text"]):
            yield later, "equal to an earlier row"

    def _contaminated(self, numbers: bool) -> Iterator[tuple[int, str]]:
        name = "hits-numbers" if numbers else "hits-short"
        pairs_ = np.fromfile(self.folder / name, np.uint64)
        hits = Hits((pairs_ >> np.uint64(32)).astype(np.int64), (pairs_ & np.uint64(0xFFFFFFFF)).astype(np.int64))
        rules = self.settings.rules
        decision = Decision(self.settings.questions, numbers, hits, self.records["prompt"], rules.common_share)
        yield from decision.found(rules.contamination_share)

    def _minority(self) -> Iterator[tuple[int, str]]:
        """Of problems without a gold answer. Fewer answered traces than `majority_traces` say nothing."""
        rules = self.settings.rules
        left = self._left[~self.records["judged"][self._left]]
        problems, answers = self.records["problem"][left], self.records["answer"][left]
        order, starts = _groups(problems)
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts, sizes, strict=True):
            if size < rules.majority_traces:
                continue
            group = order[start : start + size]
            votes = Counter(int(answers[at]) for at in group if answers[at])
            if votes.total() < rules.majority_traces:
                continue
            winner, most = votes.most_common(1)[0]
            clear_win = most >= rules.majority_share * votes.total()
            for at in group:
                if not clear_win:
                    yield int(left[at]), f"no majority: the most frequent of {votes.total()} answers has {most}"
                elif int(answers[at]) != winner:
                    yield int(left[at]), f"another answer than {most} of {votes.total()} traces"
                else:
                    self.pseudo[int(left[at])] = True

    def _near(self) -> Iterator[tuple[int, str]]:
        rules = self.settings.rules
        eligible = (self.fate < 0) & (self.records["words"] >= rules.near_words)
        found = pairs(self.folder / "signatures", self.totals.passed, eligible, rules.near_duplicates)
        for row, kept, share in duplicates(found, lambda at: self._texts(at)[1], rules.near_duplicates):
            yield row, f"{share:.0%} of the 3-grams are those of an earlier row: {self._texts(kept)[1][:SHOWN]}"

    def _over(self) -> Iterator[tuple[int, str]]:
        most, left = self.settings.rules.max_per_problem, self._left
        order, starts = _groups(self.records["problem"][left])
        number = np.empty(len(left), np.int64)  # of each row among those of its problem
        number[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order))) + 1
        for at in np.flatnonzero(number > most):
            yield int(left[at]), f"trace {number[at]} of its problem"

    # ---- the judge

    def judge(self, rule: JudgeRule, audit: Path) -> dict[str, Any]:
        """Asks of every row that is left, drops those with two complaints, and writes the audit."""
        left = self._left
        for row, verdict in rule.ask((int(row), *self._texts(int(row))) for row in left):
            if verdict.complaint is not None:
                self._drop("judge", row, verdict.complaint)
        return rule.audit(audit, lambda row: self._texts(row))

    # ---- output

    def write(self, out: Path) -> dict[str, int]:
        """Copies the rows that are left; rows kept by domain."""
        kept: Counter[str] = Counter()
        temporary = out.with_name(out.name + ".tmp")
        with temporary.open("wb") as file:
            for row in self._left:
                line = self._line(int(row))
                if int(row) in self.pseudo:  # the reader shall know that nothing but other traces vouches for it
                    line = (jsonl.dumps({**json.loads(line), "pseudo_gold": True}) + "\n").encode(
                        "utf-8", "backslashreplace"
                    )
                file.write(line)
                kept[self.totals.domains[int(self.records["domain"][row])]] += 1
        temporary.replace(out)
        self._file.close()
        return dict(kept)

    def funnel(self, kept: Mapping[str, int]) -> dict[str, Any]:
        totals = self.totals
        left, rows = totals.read, []
        for rule in self.rules:
            count = self.counts.get(rule.id) or totals.counts.get(rule.id) or Count()
            left -= count.rows if rule.on else 0
            rows.append(table.row(rule, count, left))
        asked = totals.asked
        return {
            "asked": totals.read,
            "verdicts": totals.verdicts,
            "rules": rows,
            "kept": sum(kept.values()),
            "domains": {name: {"asked": asked[name], "kept": kept.get(name, 0)} for name in sorted(asked)},
        }

    # ---- rows on disk

    def _line(self, row: int) -> bytes:
        self._file.seek(int(self.records["offset"][row]))
        return self._file.read(int(self.records["length"][row]))

    def _texts(self, row: int) -> tuple[str, str]:
        """(prompt, trace)"""
        messages = json.loads(self._line(row))["messages"]
        prompt = "\n".join(m["content"] for m in messages if m["role"] != "assistant")
        return prompt, "\n".join(turn_text(m) for m in messages if m["role"] == "assistant")

    def _example(self, row: int, why: str) -> Example:
        prompt, text = self._texts(row)
        return Example(prompt[-LONGEST_EXAMPLE:], text[:LONGEST_EXAMPLE], why)


def _groups(values: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places by value, in order within one value; where each value's places begin)"""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    return order, np.flatnonzero(new)


def _repeats(values: NDArray[np.uint64]) -> list[int]:
    """Places of values that occurred before, in order."""
    order, starts = _groups(values)
    return sorted(np.delete(order, starts).tolist())
