"""What got better and what got worse: paired comparisons of evaluated stages, in plain sentences.

A difference counts when its 95 % interval leaves out zero and enough problems were paired. Intervals are not corrected
for the number of comparisons: of twenty that are truly equal, one is expected to look different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from motet.base.statistics import ALL, compare_tallies, enough_to_tell
from motet.insight.folder import StageFolder
from motet.insight.outcomes import Outcome
from motet.insight.wording import number, percent, plural, point_interval, table

Call = Literal["better", "worse", "no significant difference", "too few problems"]
CALLS: tuple[Call, ...] = ("better", "worse", "no significant difference", "too few problems")
BOOTSTRAP = 2000
SEED = 1


def call(difference: Mapping[str, Any], pairs: int) -> Call:
    if not enough_to_tell(pairs):
        return "too few problems"
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no significant difference"


def compare(
    before: StageFolder, after: StageFolder, a: Sequence[Outcome], b: Sequence[Outcome], against: str
) -> dict[str, Any]:
    """{"from", "to", "against", "note", "domains": {DOMAIN or "all": {difference, a, b, n, verdict}}}.

    `a` and `b` are the outcomes of the two evaluations; `against` is "first" or "previous". "domains" is empty where
    no problem coincides.
    """
    domains = compare_tallies([o.tally for o in a], [o.tally for o in b], BOOTSTRAP, SEED)
    for row in domains.values():
        row["verdict"] = call(row["difference"], row["n"])
    return {
        "from": before.name,
        "to": after.name,
        "against": against,
        "note": settings_note(before, after) if domains else "No evaluation problem coincides.",
        "domains": domains,
    }


def comparisons(evaluated: Sequence[StageFolder], outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """The last evaluated stage against the first, then each against the one before it, latest first."""
    if len(evaluated) < 2:
        return []

    def between(a: StageFolder, b: StageFolder, against: str) -> dict[str, Any]:
        return compare(a, b, outcomes[a.name], outcomes[b.name], against)

    steps = [between(a, b, "previous") for a, b in pairwise(evaluated)]
    return [between(evaluated[0], evaluated[-1], "first"), *reversed(steps)]


def settings_note(before: StageFolder, after: StageFolder) -> str:
    """Which evaluation settings differ: such numbers are not comparable, however narrow their intervals."""
    a, b = table(before.evaluation.get("settings")), table(after.evaluation.get("settings"))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if not keys:
        return ""
    return "Evaluation settings differ: " + ", ".join(f"{key} {a.get(key)} against {b.get(key)}" for key in keys) + "."


def order(domains: Mapping[str, Any]) -> list[str]:
    """ "all" first where it says more than the single domain below it."""
    names = sorted(name for name in domains if name != ALL)
    return [ALL, *names] if len(names) != 1 and ALL in domains else names


def title(domain: str) -> str:
    return "all domains" if domain == ALL else domain


def sentence(domain: str, row: Mapping[str, Any]) -> str:
    """ "math rose from 2.1 % to 70.3 %: +68.2 points, 95 % interval +62.0 to +74.1 (200 problems)." """
    a, b = percent(row["a"]), percent(row["b"])
    change = f"{point_interval(row['difference'])} ({plural(row['n'], 'problem')})"
    if row["verdict"] == "better":
        return f"{title(domain)} rose from {a} to {b}: {change}."
    if row["verdict"] == "worse":
        return f"{title(domain)} fell from {a} to {b}: {change}."
    if row["verdict"] == "too few problems":
        return f"{title(domain)}: {a}, then {b}; too few problems to tell ({row['n']})."
    return f"{title(domain)} went from {a} to {b}: {change}, which holds zero."


def guessed(row: Any) -> str:
    """Of a row of the evaluation: "no better than always answering 1: 35.3 %", where that says something."""
    guess = table(table(row).get("guess"))
    share = percent(guess.get("share"))
    return f"no better than always answering {guess.get('answer')}: {share}" if guess.get("no_better") is True else ""


def by_call(comparison: Mapping[str, Any]) -> list[tuple[Call, list[tuple[str, str]]]]:
    """[("better", [(domain, sentence), ...]), ...] without the empty ones."""
    domains = comparison["domains"]
    groups = [(c, [(d, sentence(d, domains[d])) for d in order(domains) if domains[d]["verdict"] == c]) for c in CALLS]
    return [group for group in groups if group[1]]


def headline(evaluated: Sequence[StageFolder], found: Sequence[dict[str, Any]]) -> str:
    """One sentence for the top of the page and of the terminal."""
    if not evaluated:
        return "No stage has been evaluated, so nothing can be said about what got better or worse."
    last = evaluated[-1]
    domains = last.domains
    name = order(domains)[0] if order(domains) else ALL
    mean = percent(table(table(domains.get(name)).get("pass_at_1")).get("mean"))
    if not found:
        return f"Only {last.name} has been evaluated: pass@1 is {mean} over {title(name)}."
    first = found[0]
    if not first["domains"]:
        return f"pass@1 after {last.name} is {mean} over {title(name)}; it cannot be paired with {first['from']}."
    key = order(first["domains"])[0]
    row = first["domains"][key]
    verb = {"better": "rose", "worse": "fell"}.get(row["verdict"], "shows no significant difference")
    if verb.startswith("shows") and row["verdict"] == "too few problems":
        verb = "rests on too few problems to tell"
    text = f"From {first['from']} to {first['to']}, pass@1 over {title(key)} {verb}: {percent(row['a'])} to "
    text += f"{percent(row['b'])} ({point_interval(row['difference'])})."
    return text + "".join(_losses(comparison) for comparison in shown(found))


def _losses(comparison: Mapping[str, Any]) -> str:
    """The domains that fell, which an average would hide."""
    lost = [
        f"{name} fell by {100 * abs(row['difference']['mean']):.1f} points"
        for name, row in comparison["domains"].items()
        if name != ALL and row["verdict"] == "worse"
    ]
    return f" Against {comparison['from']}, {' and '.join(lost)}." if lost else ""


def shown(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two that the verdict is about: last against first, last against the one before (once if they are equal)."""
    first = list(comparisons[:1])
    return first + [c for c in comparisons[1:2] if c["from"] != first[0]["from"]]


def mean_of(stage: StageFolder, domain: str, key: str) -> float | None:
    return number(table(stage.domains.get(domain)).get(key))
