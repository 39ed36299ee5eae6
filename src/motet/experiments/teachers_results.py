"""What is made of traces that were read and of probes that were evaluated: intervals, ranks and a sentence of advice.

Everything is paired by problem: a resample draws problems, and every teacher is looked at on the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motet.base.records import seed_of
from motet.base.statistics import ALL, Interval, Tally, compare_tallies, enough_to_tell
from motet.fit.traces import RATIOS, distance
from motet.insight.wording import point_interval, points, short

if TYPE_CHECKING:
    import numpy

    Floats = numpy.typing.NDArray[numpy.float64]
    Indices = numpy.typing.NDArray[numpy.int64]

RESAMPLES = 1000
MEANS = ("tokens", "surprisal", "surprisal_p95", "improbable", "rank", "top1", "top10", "first", "middle", "last",
         "answer", "steps", "markers")  # fmt: skip
Row = Mapping[str, Any]
"""Of one trace: `problem`, what `fit.traces.measures` says (but `own` rows: `tokens` alone), and its structure."""


def measured(teachers: Mapping[str, Sequence[Row]], own: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
    """{teacher: {measure: {mean, low, high} or None}}: 95 % bootstrap intervals over problems.

    Each teacher has the same problems; of several traces of a problem the mean counts. Ratios are of means over
    problems. length, step_count: by those of the student's own correct traces. step_distance: between the lengths of
    the steps of both (`fit.traces.distance`). The three are None where the student solved none of the problems.
    """
    problems = sorted({row["problem"] for rows in teachers.values() for row in rows})
    assert problems and all({row["problem"] for row in rows} == set(problems) for rows in teachers.values())
    draws = _draws(len(problems), seed)
    solved = sorted({row["problem"] for row in own} & set(problems))
    found = {}
    for name, rows in teachers.items():
        columns = {key: _column(rows, problems, key) for key in (*MEANS, "passed_over")}
        found[name] = {key: _mean(column, draws) for key, column in columns.items() if key != "passed_over"}
        for key, (above, below) in RATIOS.items():
            found[name][key] = _ratio(columns[above], columns[below], draws)
        found[name] |= _against_own(rows, own, solved, seed)
    return found


def fit_differences(teachers: Mapping[str, Sequence[Row]], seed: int, key: str = "fit") -> dict[str, dict[str, Any]]:
    """{teacher: {other: {mean, low, high}}}: how much larger the teacher's ratio is, on the same problems."""
    problems = sorted({row["problem"] for rows in teachers.values() for row in rows})
    draws = _draws(len(problems), seed)
    above, below = RATIOS[key]
    spread, values = {}, {}
    for name, rows in teachers.items():
        top, under = _column(rows, problems, above), _column(rows, problems, below)
        assert top is not None and under is not None
        values[name], spread[name] = _over(top.mean(), under.mean()), _over(top[draws].mean(1), under[draws].mean(1))
    return {
        a: {b: _interval(values[a] - values[b], spread[a] - spread[b]) for b in teachers if b != a} for a in teachers
    }


def answer_differences(teachers: Mapping[str, Sequence[Row]], seed: int) -> dict[str, dict[str, Any]]:
    """{teacher: {other: {mean, low, high}}}: nats of the answer after the teacher's reasoning, less those after the
    other's, on the same problems; nothing of a teacher some of whose traces have no reasoning."""
    problems = sorted({row["problem"] for rows in teachers.values() for row in rows})
    draws = _draws(len(problems), seed)
    columns = {name: _column(rows, problems, "answer") for name, rows in teachers.items()}
    found = {name: column for name, column in columns.items() if column is not None}
    return {a: {b: _mean(found[a] - found[b], draws) for b in found if a in found and b != a} for a in teachers}


def probed(student: Sequence[Tally], probes: Mapping[str, Sequence[Tally]], seed: int) -> dict[str, dict[str, Any]]:
    """{teacher: {"student": difference to the untouched student, "others": {other: difference to it}}}; a difference
    is {mean, low, high, n} of pass@1 (macro average over domains), paired by problem; None without common problems."""
    return {
        name: {
            "student": _difference(student, tallies, seed),
            "others": {o: _difference(t, tallies, seed) for o, t in probes.items() if o != name},
        }
        for name, tallies in probes.items()
    }


def ranked(teachers: Mapping[str, Mapping[str, Any]], by: str) -> list[str]:
    """Best first: by "probe" (highest gain over the student) or by a measure (lowest mean)."""

    def place(name: str) -> float:
        if by == "probe":
            return -float(teachers[name]["probe"]["student"]["mean"])
        return float(teachers[name]["measures"][by]["mean"])

    return sorted(teachers, key=place)


def advice(teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences. By the probe where every teacher has one, else by the fit; "no significant difference" where a 95 %
    interval holds 0 or too few problems were paired."""
    if all(_probe(row) is not None for row in teachers.values()):
        return _by_probe(teachers)
    order = ranked(teachers, "fit")
    if len(order) == 1:
        return [f"{order[0]} alone was read, and not probed: run the probe to see whether its traces help."]
    best = order[0]
    ties = [o for o in order[1:] if not _below(teachers[o]["fit_differences"][best])]
    if ties:
        return [f"By fit no significant difference between {best} and {_listed(ties)}; no probe was run."]
    apart = teachers[order[1]]["fit_differences"][best]
    text = f"{short(apart['mean'])} below {order[1]}, 95 % interval {short(apart['low'])} to {short(apart['high'])}"
    lines = [f"By fit {best} is to be tried first ({text}); no probe was run, so whether it helps is not known."]
    expected = teachers[best]["answer_differences"]
    against = [name for name, difference in expected.items() if _below(difference)]
    if against:
        lines.append(f"But the student expects the answer more after the reasoning of {_listed(against)} than after "
                     f"{best}'s: the two signs disagree, so run the probe.")  # fmt: skip
    return lines


def _by_probe(teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    order = ranked(teachers, "probe")
    best = order[0]
    gain = teachers[best]["probe"]["student"]
    told = _told(gain)
    if told > 0:
        lines = [f"{best} helps: {point_interval(gain)} over the untouched student."]
    elif told < 0:
        lines = [f"None helps: against the untouched student even {best} has {point_interval(gain)}."]
    else:
        lines = [f"No significant difference between the untouched student and the best, {best}: {_shown(gain)}."]
    others = teachers[best]["probe"]["others"]
    ties = [name for name in order[1:] if not _told(others[name])]
    if ties:
        lines.append(f"No significant difference between {best} and {_listed(ties)}: "
                     + "; ".join(_shown(others[name]) for name in ties) + ".")  # fmt: skip
        lines += _tie(best, ties, teachers)
    elif len(order) > 1:
        lines.append(f"{best} is better than {order[1]}, the next, by {point_interval(others[order[1]])}.")
    harm = [name for name in order[1:] if _told(teachers[name]["probe"]["student"]) < 0]
    lines += [
        f"{name} hurts: {point_interval(teachers[name]['probe']['student'])} against the untouched student."
        for name in harm
    ]
    chosen = ranked(teachers, "fit")[0]
    if chosen != best and chosen not in ties:
        lines.append(f"The fit would have chosen {chosen}: here it was wrong, and the probe is to be trusted.")
    return lines


def _tie(best: str, ties: Sequence[str], teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which of those that the probe cannot tell apart costs least for a trace that is kept."""
    costs = {name: teachers[name]["yield"].get("tokens_per_kept") for name in (best, *ties)}
    known = {name: cost for name, cost in costs.items() if cost}
    if len(known) < len(costs):
        return []
    cheap = min(known, key=known.__getitem__)
    return [f"Of these {cheap} costs least: {known[cheap]:,.0f} tokens for a kept trace."]


def _probe(row: Mapping[str, Any]) -> Any:
    return (row.get("probe") or {}).get("student")


def _told(difference: Mapping[str, Any] | None) -> int:
    """1 or -1 where the difference is larger or smaller than chance; 0 where that cannot be said."""
    if difference is None or not enough_to_tell(difference["n"]):
        return 0
    return int(difference["low"] > 0) - int(difference["high"] < 0)


def _below(difference: Mapping[str, Any]) -> bool:
    """Of differences[a][b]: b has less than chance would have it."""
    return bool(difference["low"] > 0)


def _shown(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "no problem in common"
    few = "" if enough_to_tell(difference["n"]) else f", {difference['n']} problems are too few to tell"
    return f"{points(difference['mean'])} [{points(difference['low'])}, {points(difference['high'])}]{few}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _difference(a: Sequence[Tally], b: Sequence[Tally], seed: int) -> dict[str, Any] | None:
    compared = compare_tallies(a, b, RESAMPLES, seed).get(ALL)
    return {**compared["difference"], "n": compared["n"]} if compared else None


def _draws(problems: int, seed: int) -> Indices:
    """[RESAMPLES, problems]: equal for every teacher, which pairs them."""
    import numpy as np

    return np.random.default_rng(seed_of(seed, "teachers")).integers(0, problems, size=(RESAMPLES, problems))


def _column(rows: Sequence[Row], problems: Sequence[str], key: str) -> Floats | None:
    """One number a problem; None where a trace does not have it."""
    import numpy as np

    values: dict[str, list[float]] = {problem: [] for problem in problems}
    for row in rows:
        if row.get(key) is None:
            return None
        values[row["problem"]].append(row[key])
    return np.array([sum(found) / len(found) for found in values.values()])


def _mean(column: Floats | None, draws: Indices) -> dict[str, float] | None:
    return None if column is None else _interval(column.mean(), column[draws].mean(1))


def _ratio(above: Floats | None, below: Floats | None, draws: Indices) -> dict[str, float] | None:
    if above is None or below is None:
        return None
    return _interval(_over(above.mean(), below.mean()), _over(above[draws].mean(1), below[draws].mean(1)))


def _over(above: Any, below: Any) -> Any:
    """A surprisal of 0 in float32 is one too small to be told from it."""
    import numpy as np

    return above / np.maximum(below, 1e-6)


def _against_own(rows: Sequence[Row], own: Sequence[Row], solved: Sequence[str], seed: int) -> dict[str, Any]:
    if not solved:
        return {"length": None, "step_count": None, "step_distance": None}
    theirs = [row for row in rows if row["problem"] in set(solved)]
    mine = [row for row in own if row["problem"] in set(solved)]
    draws = _draws(len(solved), seed)
    found = {}
    for key, column in (("length", "tokens"), ("step_count", "steps")):
        found[key] = _ratio(_column(theirs, solved, column), _column(mine, solved, column), draws)
    lengths = [_by_problem(side, solved) for side in (theirs, mine)]
    whole = distance(*([v for values in side for v in values] for side in lengths))
    if whole is None:
        return {**found, "step_distance": None}
    resampled = [distance(*([v for i in draw for v in side[i]] for side in lengths)) or 0.0 for draw in draws[:200]]
    return {**found, "step_distance": _interval(whole, resampled)}


def _by_problem(rows: Sequence[Row], problems: Sequence[str]) -> list[list[float]]:
    places = {problem: [] for problem in problems}  # type: dict[str, list[float]]
    for row in rows:
        places[row["problem"]] += row["step_tokens"]
    return list(places.values())


def _interval(mean: Any, resampled: Any) -> dict[str, float]:
    import numpy as np

    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(float(mean), float(low), float(high))._asdict()
