"""Evaluation numbers with intervals: pass@k, bootstrap over problems, paired differences. No torch; numpy inside.

The unit of resampling is the problem, since rollouts of one problem are not independent, and where problems are
instances of templates (`split_key`) the template with all of its problems. A domain named "all" in the results
is the macro average, the mean over domains of the domains' means, with problems resampled inside each domain
(a stratified bootstrap), so that a domain with many problems does not drown the others.

A percentile bootstrap knows only the problems it is given: with all of them solved its interval is [1, 1], and with
fewer than about ten it is too narrow. `enough_to_tell` says when a paired comparison has too few problems to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

from motet.base.records import UNSCORED, Group, VerdictKind, content_id, count_kinds, prompt_text, seed_of

if TYPE_CHECKING:
    import numpy

    Floats = numpy.typing.NDArray[numpy.float64]

ALL = "all"
MIN_PAIRS = 6
"""Fewest paired problems for a verdict: six moves in one direction are the first with p < 0.05 in a sign test, 2/64."""
DRAWN_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


class Tally(NamedTuple):
    """What became of one problem's rollouts, without their texts."""

    domain: str
    key: str
    """Equal for the same problem of two evaluations: id and prompt both count."""
    kinds: tuple[VerdictKind, ...]
    tokens: tuple[int, ...]
    """Completion tokens of each rollout."""
    template: str = ""
    """Of which the problem is an instance; empty: of none."""

    @property
    def passed(self) -> int:
        return self.kinds.count("correct")

    @property
    def judged(self) -> int:
        return sum(kind not in UNSCORED for kind in self.kinds)


def tally(group: Group) -> Tally:
    problem = group.problem
    return Tally(
        problem.domain,
        content_id(problem.domain, problem.id, prompt_text(problem)),
        tuple(rollout.verdict.kind for rollout in group.rollouts),
        tuple(len(rollout.completion.tokens) for rollout in group.rollouts),
        str(problem.metadata.get("split_key", "")),
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k completions passes, unbiased, from n completions of which c passed.

    1 - C(n - c, k) / C(n, k), Chen et al. 2021, arXiv 2107.03374, equation 1. Raises ValueError unless c <= n, k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def bootstrap_mean(values: Sequence[float], resamples: int, seed: int, units: Sequence[str] = ()) -> Interval:
    """95 % percentile bootstrap of the mean; `values` holds one number a problem, at least one. Problems of one of
    `units` (templates; one name a problem) are drawn together."""
    return _interval(values, _resampled_means(values, resamples, seed, units))


def paired_difference(a: Sequence[float], b: Sequence[float], resamples: int, seed: int) -> Interval:
    """The mean of b - a, position by position (the same problems in the same order), with its 95 % interval."""
    return bootstrap_mean([y - x for x, y in zip(a, b, strict=True)], resamples, seed)


def evaluate_groups(groups: Iterable[Group], bootstrap: int, seed: int) -> dict[str, Any]:
    """The summary of an evaluation: {"domains": {DOMAIN or "all": {...}}}.

    pass_at_1 {mean, low, high}, pass_at_k {"1": .., "2": .., up to k}, avg_at_k, k (most rollouts of a problem),
    n (problems with a judged rollout), rollouts, shares of rollouts truncated, malformed and no_answer,
    unjudged (how many), verdicts {kind: how many}, tokens_mean. Means are None where nothing was judged.

    A truncated rollout counts as not passed. An unjudged one (infra_error, invalid_problem) is left out of the means,
    so a problem may count with fewer than k rollouts; where it has fewer than j, it is left out of pass@j.
    In "all", means are macro averages over domains (see above); counts, shares and tokens_mean are pooled.
    """
    by_domain: dict[str, list[Tally]] = {}
    for group in groups:
        by_domain.setdefault(group.problem.domain, []).append(tally(group))
    judged = {name: [t for t in tallies if t.judged] for name, tallies in by_domain.items()}
    rates = {name: [t.passed / t.judged for t in tallies] for name, tallies in judged.items()}
    units = {name: [unit_of(t) for t in tallies] for name, tallies in judged.items()}
    intervals = _stratified(rates, units, bootstrap, seed)
    domains = {
        name: _summary(tallies, _pass_curve(tallies), intervals.get(name))
        for name, tallies in sorted(by_domain.items())
    }
    pooled = [t for tallies in by_domain.values() for t in tallies]
    curves = [_pass_curve(tallies) for tallies in by_domain.values()]
    macro = {j: _mean([c[j] for c in curves if j in c]) for j in sorted({j for c in curves for j in c})}
    return {"domains": {**domains, ALL: _summary(pooled, macro, intervals.get(ALL))}}


def compare_groups(a: Iterable[Group], b: Iterable[Group], bootstrap: int = 2000, seed: int = 1) -> dict[str, Any]:
    """`compare_tallies` of two evaluations."""
    return compare_tallies([tally(g) for g in a], [tally(g) for g in b], bootstrap, seed)


def compare_tallies(a: Iterable[Tally], b: Iterable[Tally], bootstrap: int = 2000, seed: int = 1) -> dict[str, Any]:
    """b against a, paired by problem: {DOMAIN or "all": {"difference": {mean, low, high}, "a", "b", "n"}}.

    "a" and "b" are the pass rates on the n problems that both judged. Domains without such a problem are absent; with
    no common problem at all the result is empty.
    """
    before = {t.key: t for t in a if t.judged}
    pairs: dict[str, list[tuple[float, float]]] = {}
    units: dict[str, list[str]] = {}
    for t in b:
        if t.judged and t.key in before:
            other = before[t.key]
            pairs.setdefault(t.domain, []).append((other.passed / other.judged, t.passed / t.judged))
            units.setdefault(t.domain, []).append(unit_of(t))
    changes = {name: [y - x for x, y in rows] for name, rows in pairs.items()}
    intervals = _stratified(changes, units, bootstrap, seed)
    result = {
        name: _comparison(intervals[name], _mean([x for x, _ in rows]), _mean([y for _, y in rows]), len(rows))
        for name, rows in sorted(pairs.items())
    }
    if result:
        means = [(row["a"], row["b"]) for row in result.values()]
        count = sum(row["n"] for row in result.values())
        result[ALL] = _comparison(intervals[ALL], _mean([x for x, _ in means]), _mean([y for _, y in means]), count)
    return result


def unit_of(t: Tally) -> str:
    """What is resampled as one: the template, else the problem."""
    return t.template or t.key


def enough_to_tell(pairs: int) -> bool:
    return pairs >= MIN_PAIRS


def _comparison(interval: Interval, a: float, b: float, n: int) -> dict[str, Any]:
    return {"difference": interval._asdict(), "a": a, "b": b, "n": n}


def _summary(tallies: list[Tally], pass_curve: Mapping[int, float], interval: Interval | None) -> dict[str, Any]:
    kinds = [kind for t in tallies for kind in t.kinds]
    tokens = [count for t in tallies for count in t.tokens]

    def share(kind: VerdictKind) -> float:
        return kinds.count(kind) / len(kinds) if kinds else 0.0

    return {
        "pass_at_1": interval._asdict() if interval else {"mean": None, "low": None, "high": None},
        "pass_at_k": {str(j): value for j, value in pass_curve.items()},
        "avg_at_k": interval.mean if interval else None,
        "k": max((len(t.kinds) for t in tallies), default=0),
        "n": sum(t.judged > 0 for t in tallies),
        "rollouts": len(kinds),
        "truncated": share("truncated"),
        "malformed": share("malformed"),
        "no_answer": share("no_answer"),
        "unjudged": sum(kind in UNSCORED for kind in kinds),
        "verdicts": count_kinds(kinds),
        "tokens_mean": _mean(tokens) if tokens else None,
    }


def _pass_curve(tallies: list[Tally]) -> dict[int, float]:
    """{j: mean pass@j over the problems that have j judged rollouts}, j from 1."""
    most = max((t.judged for t in tallies), default=0)
    return {j: _mean([pass_at_k(t.judged, t.passed, j) for t in tallies if t.judged >= j]) for j in range(1, most + 1)}


def _stratified(
    values: Mapping[str, Sequence[float]], units: Mapping[str, Sequence[str]], resamples: int, seed: int
) -> dict[str, Interval]:
    """An interval for each domain that has values, and for "all", the mean of their means.

    Each domain has a random stream of its own: adding a domain does not move the interval of another.
    """
    filled = {name: rows for name, rows in sorted(values.items()) if rows}
    if not filled:
        return {}
    draws = {
        name: _resampled_means(rows, resamples, seed_of(seed, "bootstrap", name), units[name])
        for name, rows in filled.items()
    }
    result = {name: _interval(rows, draws[name]) for name, rows in filled.items()}
    macro = next(iter(draws.values())) * 0.0
    for means in draws.values():
        macro += means / len(draws)
    result[ALL] = _interval([row.mean for row in result.values()], macro)
    return result


def _resampled_means(values: Sequence[float], resamples: int, seed: int, units: Sequence[str] = ()) -> Floats:
    """A mean of each resample: of as many units, drawn with replacement, as there are, each with all of its values."""
    import numpy

    if not values or resamples < 1:
        raise ValueError(f"a bootstrap needs values and resamples, got {len(values)} values, {resamples} resamples")
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    owner = [places[unit] for unit in units] if units else range(len(values))
    count = len(places) or len(values)
    sums = numpy.bincount(owner, weights=numpy.asarray(values, dtype=numpy.float64), minlength=count)
    sizes = numpy.bincount(owner, minlength=count).astype(numpy.float64)
    random = numpy.random.default_rng(seed)
    means = numpy.empty(resamples)
    rows = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = random.integers(0, count, size=(stop - start, count))
        means[start:stop] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _interval(values: Sequence[float], means: Floats) -> Interval:
    import numpy

    low, high = numpy.percentile(means, (2.5, 97.5))
    return Interval(_mean(values), float(low), float(high))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
