"""What the arms of filter-cost took, and what equal held-out accuracy cost each of them, with intervals."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.base import jsonl
from motet.base.recipe import Recipe, RlStage
from motet.base.records import decode_group
from motet.base.statistics import Tally, tally

if TYPE_CHECKING:
    import numpy

    Floats = numpy.typing.NDArray[numpy.float64]

COSTS = ("rollouts", "tokens", "seconds")
LEVELS = (0.5, 0.9)
"""Of the gain that every arm reached: where the costs are compared."""
RESAMPLES = 2000


def measure(folder: Path, recipe: Recipe, stage: str, filtering: str, start: Path) -> dict[str, Any]:
    """Of one finished arm and seed.

    points: [{step, rollouts, tokens, seconds}], the first before RL, the filter included; one for each look at the
    held-out problems. rates: for each point {(domain, problem): pass rate}, of the problems that all looks judged.
    live_share, groups and live: of the groups that RL sampled, refills included. filter: {rollouts, tokens, seconds,
    kept, of} or None.
    """
    config = recipe.stage[stage]
    assert isinstance(config, RlStage)
    spent, filtered = [0.0, 0.0, 0.0], None
    if filtering in recipe.stages:
        table = jsonl.read_json(folder / filtering / "filter.json")
        seconds = float(jsonl.read_json(folder / filtering / "manifest.json")["seconds"])
        rollouts, tokens = (float(table[key] + table[f"probe_{key}"]) for key in ("rollouts", "tokens"))
        spent = [rollouts, tokens, seconds]
        filtered = {**dict(zip(COSTS, spent, strict=True)), "kept": table["kept"]["all"], "of": table["of"]["all"]}
    rows = [row for _, row in jsonl.read(folder / "metrics.jsonl") if row["stage"] == stage]
    points, looks = [{"step": 0, **dict(zip(COSTS, spent, strict=True))}], [_tallies([start / "evaluation.jsonl"])]
    groups, live = 0, 0.0
    for row in rows:
        sampled = config.prompts_per_step + int(row.get("groups/refilled", 0))
        groups, live = groups + sampled, live + sampled * row["groups/live_share"]
        asked = sampled * config.group_size - int(row.get("rollout/reused", 0))
        spent = [spent[0] + asked, spent[1] + asked * row["rollout/tokens_mean"], spent[2] + row["time/step"]]
        probes = sorted((folder / stage / "probes").glob(f"step-{row['step']:05d}-*.jsonl"))
        if probes:
            points.append({"step": row["step"], **dict(zip(COSTS, spent, strict=True))})
            looks.append(_tallies(probes))
    keys = sorted(set.intersection(*(set(look) for look in looks)))
    rates = [{key: look[key].passed / look[key].judged for key in keys} for look in looks]
    return {"points": points, "rates": rates, "live_share": live / groups, "groups": groups, "live": live,
            "filter": filtered}  # fmt: skip


def judge(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """{"arms": {ARM: ...}, "start", "reached", "gain", "levels": [...], "break_even"} of the arms, each a list over
    seeds. gain: of the least arm's last look over the start.

    An arm's curve is the mean over seeds of its held-out accuracy (the mean over domains) at each look, against the
    mean cost. The arms are compared at shares (LEVELS) of the gain over the start that the best look of every arm
    reached; the cost of a level is where the curve first crosses it, by straight lines between looks. ratio: that cost
    by the filter arm's. Intervals are 95 %: problems resampled inside domains and seeds among themselves, the same ones
    in all arms, with the level held; an end is None where more than that share of the resampled curves never get there.
    A ratio is 0 where the filter arm alone never does, and left out where neither does. No levels where not every arm
    gained: there is nothing to compare then.
    """
    curves = {arm: _curve(seeds) for arm, seeds in results.items()}
    start = min(curve[0] for curve in curves.values())
    reached = min(float(max(curve[1:])) for curve in curves.values())
    costs = {arm: {key: _mean_costs(seeds, key) for key in COSTS} for arm, seeds in results.items()}
    draws = list(_resampled(results))
    levels = []
    for share in LEVELS if reached > start else ():
        accuracy = start + share * (reached - start)
        level: dict[str, Any] = {"share": share, "accuracy": accuracy, "arms": {}}
        for arm, curve in curves.items():
            level["arms"][arm] = {}
            for key in COSTS:
                own = [crossing(draw[arm], costs[arm][key], accuracy) for draw in draws]
                base = [crossing(draw["filter"], costs["filter"][key], accuracy) for draw in draws]
                point = crossing(curve, costs[arm][key], accuracy)
                against = crossing(curves["filter"], costs["filter"][key], accuracy)
                level["arms"][arm][key] = {
                    **_interval(point, own),
                    "ratio": _interval(_ratio(point, against), _ratios(own, base)),
                }
        levels.append(level)
    arms = {arm: _summary(seeds, curves[arm], [draw[arm][-1] for draw in draws]) for arm, seeds in results.items()}
    gains = [min(draw[arm][-1] for arm in draw) - draw["filter"][0] for draw in draws]
    gain = _interval(min(curve[-1] for curve in curves.values()) - start, gains)
    even = {arm: break_even(results["filter"], results[arm]) for arm in results if arm != "filter"}
    return {"arms": arms, "start": start, "reached": reached, "gain": gain, "levels": levels, "break_even": even}


def break_even(filtered: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """After how many groups the filter has paid for itself in rollouts per live group: {groups, passes}, each {mean,
    low, high}; passes over the problems that it kept. None where no filter was paid.

    F rollouts of the filter, groups of G, live shares f and o: (F + n G) / (n f) = G / o at n = F / (G (f / o - 1)). An
    end is None where the filter never pays. Intervals (95 %) are those of the live shares, as independent groups.
    """
    spent = [seed["filter"]["rollouts"] for seed in filtered if seed["filter"]]
    if not spent:
        return None
    size = (filtered[0]["points"][-1]["rollouts"] - spent[0]) / filtered[0]["groups"]
    counts = [(sum(s["live"] for s in seeds), sum(s["groups"] for s in seeds)) for seeds in (filtered, other)]
    kept = _mean([seed["filter"]["kept"] for seed in filtered])
    draw = random.Random(1)

    def groups(shares: Sequence[float]) -> float | None:
        return _mean(spent) / (size * (shares[0] / shares[1] - 1.0)) if shares[0] > shares[1] > 0 else None

    point = groups([live / whole for live, whole in counts])
    draws = [groups([draw.betavariate(n + 1, whole - n + 1) for n, whole in counts]) for _ in range(RESAMPLES)]
    passes = [None if n is None else n / kept for n in draws]
    return {"groups": _interval(point, draws), "passes": _interval(None if point is None else point / kept, passes)}


def crossing(curve: Sequence[float], costs: Sequence[float], accuracy: float) -> float | None:
    """The cost at which a curve first reaches `accuracy`; None where it never does.

    Example: accuracies 0.2, 0.4 at costs 100, 300 reach 0.3 at 200.
    """
    if curve[0] >= accuracy:
        return costs[0]
    for i in range(1, len(curve)):
        if curve[i] >= accuracy:
            part = (accuracy - curve[i - 1]) / (curve[i] - curve[i - 1])
            return costs[i - 1] + part * (costs[i] - costs[i - 1])
    return None


def _summary(seeds: Sequence[Mapping[str, Any]], curve: Sequence[float], last: Sequence[float]) -> dict[str, Any]:
    points = [
        {"step": point["step"], **{key: _mean([s["points"][i][key] for s in seeds]) for key in COSTS}, "heldout": value}
        for i, (point, value) in enumerate(zip(seeds[0]["points"], curve, strict=True))
    ]
    rollouts = sum(s["points"][-1]["rollouts"] for s in seeds)
    return {
        "points": points,
        "final": _interval(curve[-1], list(last)),
        "live_share": _mean([s["live_share"] for s in seeds]),
        "rollouts_per_live_group": rollouts / max(1.0, sum(s["live"] for s in seeds)),
        "filter": seeds[0]["filter"],
    }


def _curve(seeds: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean over seeds of the macro average, at each look."""
    return [_mean([_macro(seed["rates"][i]) for seed in seeds]) for i in range(len(seeds[0]["rates"]))]


def _macro(rates: Mapping[tuple[str, str], float]) -> float:
    by_domain: dict[str, list[float]] = {}
    for (domain, _), rate in rates.items():
        by_domain.setdefault(domain, []).append(rate)
    return _mean([_mean(values) for values in by_domain.values()])


def _resampled(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, list[float]]]:
    """Curves of all arms under resampled seeds and problems."""
    import numpy

    draw = numpy.random.default_rng(1)
    number = len(next(iter(results.values())))
    keys = sorted(set.intersection(*(set(s["rates"][0]) for seeds in results.values() for s in seeds)))
    domains = sorted({domain for domain, _ in keys})
    tables: dict[str, Floats] = {
        arm: numpy.array([[[rates[key] for key in keys] for rates in s["rates"]] for s in seeds])
        for arm, seeds in results.items()
    }  # seeds x looks x problems
    places = [numpy.array([i for i, key in enumerate(keys) if key[0] == domain]) for domain in domains]
    draws = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(0, number, number)
        picked = [place[draw.integers(0, len(place), len(place))] for place in places]
        draws.append(
            {
                arm: numpy.mean([table[chosen][:, :, p].mean(axis=(0, 2)) for p in picked], axis=0).tolist()
                for arm, table in tables.items()
            }
        )
    return draws


def _interval(mean: float | None, values: Sequence[float | None]) -> dict[str, float | None]:
    """{mean, low, high}; None counts as beyond every number."""
    ordered = sorted(float("inf") if value is None else value for value in values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.025, 0.975))
    return {"mean": mean, "low": _finite(low), "high": _finite(high)}


def _ratios(own: Sequence[float | None], base: Sequence[float | None]) -> list[float | None]:
    found = [(a, b) for a, b in zip(own, base, strict=True) if a is not None or b is not None]
    return [_ratio(a, b) for a, b in found] or [None]


def _ratio(a: float | None, b: float | None) -> float | None:
    if a is not None and b is None:
        return 0.0
    return None if a is None or b is None else a / b


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def _mean_costs(seeds: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [_mean([seed["points"][i][key] for seed in seeds]) for i in range(len(seeds[0]["points"]))]


def _tallies(files: Sequence[Path]) -> dict[tuple[str, str], Tally]:
    found = (tally(decode_group(row)) for file in files for _, row in jsonl.read(file))
    return {(t.domain, t.key): t for t in found if t.judged}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
