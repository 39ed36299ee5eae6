"""What came out of the arms of a sweep over S: curves with intervals, differences, and where stability ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.recipe import TRAINING, Guard, Recipe, RlStage
from motet.base.records import Group, decode_group
from motet.base.statistics import (
    ALL,
    Tally,
    bootstrap_mean,
    compare_tallies,
    enough_to_tell,
    tally,
)
from motet.insight.wording import points
from motet.rl.experience import rewards_of

RESAMPLES = 1000


def measure(folder: Path, recipe: Recipe, stage: str) -> dict[str, Any]:
    """Of one finished arm.

    points: [{step, rollouts, gradient_steps, seconds, reward {mean, low, high}, heldout {mean, low, high}}], one for
    each look at the held-out problems; reward is that of the groups sampled since the one before (bootstrap over
    groups), heldout the macro average over domains (bootstrap over problems). seconds: sampling, judging, training and
    loading, without the looks. final: pass@1 of the whole evaluation. start_difference: final against the model that
    RL began with, paired by problem.
    """
    config = recipe.stage[stage]
    assert isinstance(config, RlStage)
    rows = [row for _, row in jsonl.read(folder / "metrics.jsonl") if row["stage"] == stage]
    tallies = evaluation(folder / stage)
    start = start_of(recipe, stage)
    inner = [row.get("inner_steps", 0) for row in rows]
    last = rows[-max(1, len(rows) // 4) :]
    final = jsonl.read_json(folder / stage / "evaluation.json") if tallies else {"domains": {}}
    return {
        "points": _points(folder / stage, rows, config, recipe),
        "final": final["domains"].get(ALL, {}).get("pass_at_1"),
        "tallies": tallies,
        "start_difference": _difference(evaluation(folder / start), tallies, recipe.seed) if start else None,
        "inner_steps_mean": sum(inner) / len(inner),
        "gradient_steps": int(sum(inner)),
        "rollouts": _rollouts(rows, config)[-1],
        "seconds": sum(row["time/step"] for row in rows),
        "skipped": int(sum(row.get("optim/skipped", 0.0) * row.get("inner_steps", 0) for row in rows)),
        # of the worst inner step, over the last quarter of the batches
        "ess": _worst(last, "policy/ess/", min),
        "m2": _worst(last, "policy/m2_to_behaviour/", max) or _worst(last, "policy/m2_to_anchor/", max),
        "clip_share": _mean([row["policy/clip_low_share"] + row["policy/clip_high_share"] for row in last
                             if "policy/clip_low_share" in row]),
        "entropy": _mean([row["policy/entropy"] for row in last if "policy/entropy" in row]),
    }  # fmt: skip


def judge(results: Sequence[Mapping[str, Any]], guard: Guard) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The arms with their difference to S = 1 and what speaks against them, and the stability frontier.

    An arm is stable when no step of it had to be skipped, its held-out pass@1 is not below that of S = 1 nor of the
    model that RL began with by more than chance (95 %), and in the last quarter of its batches the worst inner step
    keeps the guard's bounds on the effective sample size and on the second moment of the log-ratio. The frontier of a
    way of reuse is the largest S that is stable with every smaller one; 0 where not even S = 1 is.
    """
    once = next(result for result in results if result["s"] == 1)
    arms = []
    for result in results:
        own = {key: value for key, value in result.items() if key != "tallies"}
        own["difference"] = None if result is once else _difference(once["tallies"], result["tallies"], 1)
        own["against"] = _against(own, guard)
        arms.append(own)
    frontier: dict[str, Any] = {}
    for way in ("passes", "minibatches"):
        line = sorted((arm for arm in arms if arm["way"] in (way, "once")), key=lambda arm: arm["s"])
        broken = next((i for i, arm in enumerate(line) if arm["against"]), len(line))
        frontier[way] = {
            "s": line[broken - 1]["s"] if broken else 0,
            "tried": [arm["s"] for arm in line],
            "why": line[broken]["against"] if broken < len(line) else [],
        }
    return arms, frontier


def evaluation(folder: Path) -> list[Tally]:
    file = folder / "evaluation.jsonl"
    return [tally(group) for group in _groups(file)] if file.exists() else []


def _against(arm: Mapping[str, Any], guard: Guard) -> list[str]:
    found = []
    if arm["skipped"]:
        found.append(f"{arm['skipped']} steps were not finite")
    for key, other in (("difference", "S = 1"), ("start_difference", "the model that RL began with")):
        change = arm[key]
        if change is not None and enough_to_tell(change["n"]) and change["high"] < 0:
            found.append(f"held-out pass@1 is {points(change['mean'])} points against {other}")
    if arm["ess"] is not None and arm["ess"] < guard.ess:
        found.append(f"effective sample size {arm['ess']:.2f} < {guard.ess:g}")
    if arm["m2"] is not None and guard.m2 and arm["m2"] > guard.m2:
        found.append(f"second moment of the log-ratio {arm['m2']:.3g} > {guard.m2:g}")
    return found


def _points(folder: Path, rows: Sequence[Mapping[str, Any]], config: RlStage, recipe: Recipe) -> list[dict[str, Any]]:
    found, rollouts = [], _rollouts(rows, config)
    gradient_steps, seconds, rewards = 0, 0.0, list[float]()
    for row, count in zip(rows, rollouts, strict=True):
        gradient_steps += row.get("inner_steps", 0)
        seconds += row["time/step"]
        rewards += _group_rewards(folder, row["step"], config)
        if "heldout/pass" in row:
            held = {key: row[f"heldout/pass{end}"] for key, end in (("mean", ""), ("low", "_low"), ("high", "_high"))}
            reward = bootstrap_mean(rewards, RESAMPLES, recipe.seed)._asdict() if rewards else None
            found.append({"step": row["step"], "rollouts": count, "gradient_steps": gradient_steps,
                          "seconds": seconds, "reward": reward, "heldout": held})  # fmt: skip
            rewards = []
    return found


def _group_rewards(folder: Path, step: int, config: RlStage) -> list[float]:
    """Mean reward of each group of a step; groups without a scored rollout are left out."""
    means = []
    for group in _groups(folder / "rollouts" / f"step-{step:05d}.jsonl"):
        given = [r for r in rewards_of(group, config.rewards, config.domain_rewards) if r is not None]
        means += [sum(given) / len(given)] if given else []
    return means


def _rollouts(rows: Sequence[Mapping[str, Any]], config: RlStage) -> list[int]:
    """Sampled up to each step, refills included."""
    total, found = 0, []
    for row in rows:
        total += (config.prompts_per_step + int(row.get("groups/refilled", 0))) * config.group_size
        found.append(total)
    return found


def start_of(recipe: Recipe, stage: str) -> str | None:
    """The stage whose weights an RL stage begins with; None where no stage made them."""
    own = recipe.stage[stage]
    trained = [n for n in recipe.stages[: recipe.stages.index(stage)] if recipe.stage[n].kind in TRAINING]
    if own.init == "previous":
        return trained[-1] if trained else None
    return None if own.init == "base" else own.init


def _difference(a: Sequence[Tally], b: Sequence[Tally], seed: int) -> dict[str, Any] | None:
    """b - a of the macro average, paired by problem: {mean, low, high, n}; None without common problems."""
    compared = compare_tallies(a, b, RESAMPLES, seed).get(ALL)
    return {**compared["difference"], "n": compared["n"]} if compared else None


def _worst(rows: Sequence[Mapping[str, Any]], prefix: str, of: Any) -> float | None:
    found = [of(values) for row in rows if (values := [v for key, v in row.items() if key.startswith(prefix)])]
    return _mean(found)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _groups(file: Path) -> list[Group]:
    return [decode_group(row) for _, row in jsonl.read(file)]
