"""`motet check PROBLEMS`: proves on the user's own problems that the verifiers accept what is right and nothing else.

Every problem goes through the check of its reference, then its probes (`probes`) through the pool. It streams: what is
kept of a problem is its hashes, some 400 bytes, for duplicates.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from motet.base.errors import UserError
from motet.base.recipe import ProblemSet, Recipe, Verification
from motet.base.records import UNSCORED, Problem, Verdict, content_id
from motet.base.run import progress
from motet.tasks import prompt_key, suites, supply
from motet.tasks.files import REFERENCES
from motet.tasks.probes import GOLD, Probe, probes
from motet.verify.judge import Think
from motet.verify.pool import Item, Pool

MOST_FINDINGS = 1000
"""Kept with their words; the others are counted."""
RATIO = 1.05
"""Of neighbouring bounds in a histogram of times: a quantile is exact to 5 %."""
SHORTEST = 1e-6

Supply = Iterator[tuple[str, Problem | UserError]]


@dataclass(frozen=True)
class Source:
    name: str
    config: ProblemSet | None
    """None: an evaluation suite, `path` and `count` of which say what is read."""
    path: str | None = None
    count: int | None = None


class Finding(NamedTuple):
    kind: str
    """unreadable | bad row | invalid problem | duplicate | gold refused | wrong accepted | not judged"""
    source: str
    place: str
    """ "problems.jsonl:3:answer": file, line and field, as far as they are known."""
    id: str
    reason: str


@dataclass
class Times:
    """Seconds of verdicts, in a histogram of bounded size."""

    count: int = 0
    worst: float = 0.0
    worst_at: str = ""
    _buckets: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float, where: str) -> None:
        self.count += 1
        self._buckets[math.ceil(math.log(max(seconds, SHORTEST) / SHORTEST, RATIO))] += 1
        if seconds > self.worst:
            self.worst, self.worst_at = seconds, where

    def quantile(self, share: float) -> float:
        """The least time that so many verdicts do not exceed, at most 5 % too long; 0 without verdicts."""
        left = math.ceil(share * self.count)
        for bucket, number in sorted(self._buckets.items()):
            left -= number
            if left <= 0:
                return min(SHORTEST * float(RATIO**bucket), self.worst)
        return 0.0


@dataclass
class Tally:
    """Of one source and verifier."""

    problems: int = 0
    proved: int = 0
    """Gold answers judged correct."""
    without_gold: int = 0
    """Problems that have no answer to be proved: tests or constraints without a worked solution."""
    refused: int = 0
    """Wrong completions judged not correct."""
    times: Times = field(default_factory=Times)


@dataclass
class Result:
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    """The first MOST_FINDINGS."""
    counts: Counter[str] = field(default_factory=Counter)
    """All findings by kind."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """By source; in a generated one they are no finding."""
    canaries: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)

    def tally(self, source: str, verifier: str) -> Tally:
        return self.tallies.setdefault((source, verifier), Tally())


def sources_of(
    problems: str, overrides: Sequence[str] = (), verifier: str | None = None
) -> tuple[list[Source], Recipe | None]:
    """What is to be checked: the problem sets and suites of a recipe (.toml), or a file, folder or hub data set."""
    if not problems.endswith(".toml"):
        if overrides:
            raise UserError(f"{overrides[0]!r}: only a recipe can be overridden, and {problems} is none")
        return [Source(Path(problems).name or problems, ProblemSet(path=problems, verifier=verifier))], None
    if verifier is not None:
        raise UserError("--verifier is for a file of problems; in a recipe it stands at the problem set")
    from motet.base.load_recipe import load

    recipe = load(Path(problems), list(overrides))
    found = [Source(name, config) for name, config in recipe.problems.items()]
    for item in recipe.evaluation.sets:
        if item.suite is not None:
            found.append(Source(item.suite, None, item.path, item.count))
    return found, recipe


def pool_of(
    recipe: Recipe | None, workers: int | None, deadline: float | None, sandbox: str | None, memory_mb: int | None
) -> Pool:
    """As the recipe's verification says, or its defaults; an option that is given wins."""
    config = recipe.verification if recipe else Verification()
    return Pool(
        workers or config.workers,
        deadline or config.deadline_seconds,
        sandbox or config.sandbox,
        config.test_seconds,
        memory_bytes=(memory_mb or config.memory_mb) << 20,
    )


def run(sources: Sequence[Source], pool: Pool, recipe: Recipe | None = None) -> Result:
    """Checks everything; raises UserError where a file is missing, a verifier cannot be loaded or fails a canary."""
    result, began = Result(), time.perf_counter()
    think: Think = recipe.chat.think if recipe else "optional"
    open_think = bool(recipe and recipe.chat.open_think)
    for source in sources:
        try:
            _Check(source, pool, result, think, open_think).run()
        except _Unreadable as error:
            result.add(Finding("unreadable", source.name, "", "", str(error)))
    result.canaries = dict(pool.canaries)
    result.seconds = time.perf_counter() - began
    return result


def as_json(result: Result) -> dict[str, Any]:
    """{fine, problems: [...] by source and verifier, findings, counts, duplicates, canaries, seconds}."""
    return {
        "fine": not result.counts and bool(result.tallies),
        "problems": [
            {
                "source": source,
                "verifier": verifier,
                **{k: v for k, v in asdict(tally).items() if k != "times"},
                "seconds": {
                    "median": tally.times.quantile(0.5),
                    "p99": tally.times.quantile(0.99),
                    "worst": tally.times.worst,
                    "worst_at": tally.times.worst_at,
                },
            }
            for (source, verifier), tally in result.tallies.items()
        ],
        "findings": [finding._asdict() for finding in result.findings],
        "counts": dict(result.counts),
        "duplicates": dict(result.duplicates),
        "canaries": result.canaries,
        "seconds": round(result.seconds, 3),
    }


class _Unreadable(Exception):
    """A suite cannot be read at all."""


class _Check:
    """One source on its way through the pool. Places of problems in flight wait in a queue, in their order."""

    def __init__(self, source: Source, pool: Pool, result: Result, think: Think, open_think: bool) -> None:
        self.source, self.pool, self.result = source, pool, result
        self.think, self.open_think = think, open_think
        self._seen: dict[str, str] = {}  # prompt to reference, both as hashes
        self._ids: set[str] = set()
        self._unchecked: deque[tuple[str, Problem]] = deque()
        self._probed: deque[tuple[str, Problem, Probe]] = deque()

    def run(self) -> None:
        for judged in self.pool.timed(self._items(), ordered=True):
            place, problem, probe = self._probed.popleft()
            tally = self.result.tally(self.source.name, problem.verifier)
            tally.times.add(judged.seconds, f"{place or problem.id} ({probe.name})")
            self._weigh(tally, place, problem, probe, judged.verdict)

    def _weigh(self, tally: Tally, place: str, problem: Problem, probe: Probe, verdict: Verdict) -> None:
        why = f"{verdict.kind}: {verdict.detail}" if verdict.detail else verdict.kind
        if verdict.kind in UNSCORED:
            self._find("not judged", place, problem, f"{probe.name}: {why}")
        elif probe.name == GOLD:
            if verdict.kind == "correct":
                tally.proved += 1
            else:
                self._find("gold refused", place, problem, f"its own answer is judged {why}")
        elif verdict.kind == "correct":
            self._find("wrong accepted", place, problem, f"{probe.name}: {probe.text[:80]!r} is judged correct")
        else:
            tally.refused += 1

    def _items(self) -> Iterator[Item]:
        checked = self.pool.check(self._problems(), ordered=True)
        for _, trouble in progress(checked, self._expected(), f"check {self.source.name}"):
            place, problem = self._unchecked.popleft()
            tally = self.result.tally(self.source.name, problem.verifier)
            tally.problems += 1
            if trouble is not None:
                kind = "invalid problem" if trouble.kind == "invalid_problem" else "not judged"
                self._find(kind, place, problem, trouble.detail)
                continue
            put = list(probes(problem, self.think, self.open_think))
            tally.without_gold += put[0].name != GOLD
            for probe in put:
                self._probed.append((place, problem, probe))
                yield Item(problem, probe.text, "end", self.think, self.open_think)

    def _problems(self) -> Iterator[Problem]:
        for place, item in self._supply():
            if isinstance(item, UserError):
                found, reason = _split(str(item))
                self.result.add(Finding("bad row", self.source.name, found or _short(place), "", reason))
            elif not self._is_duplicate(place, item):
                self._unchecked.append((place, item))
                yield item

    def _supply(self) -> Supply:
        config = self.source.config
        try:
            if config is None:
                yield from (("", p) for p in suites.supply(self.source.name, self.source.path, self.source.count))
            else:
                yield from supply(self.source.name, config)
        except UserError as error:
            if (
                config is None
            ):  # a suite may have to be fetched, and where there is no network the rest is still worth it
                raise _Unreadable(str(error)) from error
            raise

    def _is_duplicate(self, place: str, problem: Problem) -> bool:
        """A prompt that was there before; with another reference, which is worse, it is told too."""
        config = self.source.config
        key, reference = prompt_key(problem), content_id(repr(problem.reference))
        earlier = self._seen.setdefault(key, reference)
        again = earlier is not reference
        if again:
            self.result.duplicates[self.source.name] += 1
            if earlier != reference:
                self._find("duplicate", place, problem, "an earlier problem has the same prompt and another reference")
            elif config is None or config.task is None:
                self._find("duplicate", place, problem, "an earlier problem has the same prompt and reference")
        elif problem.id in self._ids:
            self._find("duplicate", place, problem, "an earlier problem has the same id and another prompt")
        self._ids.add(problem.id)
        return again

    def _find(self, kind: str, place: str, problem: Problem, reason: str) -> None:
        config = self.source.config
        name = REFERENCES.get(problem.verifier, "") if place and kind != "duplicate" else ""
        column = config.columns.get(name, name) if config else name
        short = _short(place) + (f":{column}" if column else "")
        self.result.add(Finding(kind, self.source.name, short, problem.id, reason))

    def _expected(self) -> int | None:
        return self.source.config.count if self.source.config else self.source.count


def _split(message: str) -> tuple[str, str]:
    """ "a.jsonl, line 3: field 'answer' is missing" is ("a.jsonl:3:answer", "is missing")."""
    match = re.match(r"(.+?), (?:line|row|item) (\d+): (?:field '([^']+)' )?(.*)", message, re.DOTALL)
    if not match:
        return "", message
    path, number, name, rest = match.groups()
    return f"{path}:{number}" + (f":{name}" if name else ""), rest


def _short(place: str) -> str:
    return re.sub(r", (?:line|row|item) (\d+)$", r":\1", place)
