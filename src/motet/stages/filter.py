"""The difficulty filter (LLM-as-a-data-filter): rollouts by the model to be trained, and the problems kept whose pass
rate lies in the band of their domain.

STAGE/ groups.jsonl (every rollout), difficulty.jsonl (one row a problem: what is known of its pass rate),
problems.jsonl (those kept), data.jsonl (their correct rollouts, as conversations), probe.jsonl (the pilot step),
filter.json.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Band, FilterStage, Recipe, Rewards, RlStage
from motet.base.records import Group, Problem, count_kinds, encode
from motet.base.run import log
from motet.base.statistics import ALL, Interval, bootstrap_mean
from motet.rl.advantages import has_signal
from motet.rl.difficulty import Prior, learn_priors, seen, shares
from motet.rl.experience import OwnRewards, rewards_of
from motet.rl.rollouts import Sampler
from motet.stages import open_rows
from motet.stages.context import Context
from motet.stages.rounds import sample, tests_of
from motet.verify.structure import split

BINS = 10
"""Of the histogram of expected pass rates."""
GROUP_SIZE = 8
"""Of the forecast where no rl stage reads the filter."""


def run(name: str, config: FilterStage, context: Context, model: Path | str) -> None:
    folder = context.folder(name)
    if (folder / "filter.json").exists():
        return
    if config.by == "surprisal":
        open_rows.run(name, config, context, model)
        return
    context.refuse_unknown_domains(name, {"bands": config.bands}, config.problems)
    problems = context.mixture(config.problems, name).first(config.count)
    aim = aim_of(context.recipe, name)
    sampler = context.sampler(model)
    try:
        groups = sample(name, config, problems, sampler, context.recipe.seed, folder)
        priors = learn_priors(groups, aim.rewards, aim.own)
        rows = judge(groups, priors, config, aim.size)
        jsonl.write(folder / "difficulty.jsonl", rows)
        table = {**describe(groups, rows, config), **forecasts(rows), "group_size": aim.size}
        for domain, row in table["histogram"].items():
            log.info("%s %-12s %s: %s  kept %d", name, domain, _axis(config), row, table["kept"][domain])
        kept = [group for group, row in zip(groups, rows, strict=True) if row["kept"]]
        if not kept:
            raise UserError(
                f"stage.{name}: no problem of {len(groups)} lies in its band. Problems by {_axis(config)}: "
                f"{table['histogram']}. Widen the band (alpha, beta), or train more before this stage."
            )
        fresh = _pilot_step(name, config, [group.problem for group in kept], sampler, context, aim)
    finally:
        sampler.engine.close()
    table |= measured(fresh, aim, context.recipe.seed)
    jsonl.write(folder / "data.jsonl", traces(kept, config.traces, context))
    jsonl.write(folder / "problems.jsonl", (encode(group.problem) for group in kept))
    jsonl.write_json(folder / "filter.json", table)
    live = [table[f"live_share_{key}"][ALL] for key in ("before", "forecast", "after")]
    log.info("%s kept %d of %d problems; live groups of %d: %.2f before, forecast %.2f after, %.2f in the pilot step",
             name, len(kept), len(groups), aim.size, *live)  # fmt: skip


class Aim(NamedTuple):
    """Which groups the rl stage that reads a filter can learn from."""

    size: int
    rewards: Rewards
    own: OwnRewards

    def is_live(self, group: Group) -> bool:
        return has_signal(rewards_of(group, self.rewards, self.own))


def aim_of(recipe: Recipe, name: str) -> Aim:
    config = recipe.stage[name]
    assert isinstance(config, FilterStage)
    stages = [recipe.stage[other] for other in recipe.stages]
    readers = [s for s in stages if isinstance(s, RlStage) and any(mix.stage == name for mix in s.problems)]
    if not readers:
        return Aim(config.group_size or GROUP_SIZE, Rewards(), {})
    first = readers[0]
    return Aim(config.group_size or first.group_size, first.rewards, first.domain_rewards)


def judge(
    groups: Sequence[Group], priors: dict[str, Prior], config: FilterStage, group_size: int
) -> list[dict[str, Any]]:
    """difficulty.jsonl, one row a group: its counts; `rate`, `low`, `high`, the expected pass rate and its 90 %
    interval; `in_band`, the chance that it lies in the band; `live`, the chance that a fresh group of `group_size` is
    live; `kept`."""
    tests = tests_of(groups, config)
    rows = []
    for group in groups:
        domain, found = group.problem.domain, seen(group.rollouts)
        test, prior = tests[domain], priors[domain]
        sequential = config.method == "sequential" and found.judged > 0
        kept = test.keeps(found.correct, found.wrong) if sequential else in_band(group, config)
        rate = prior.interval(found)
        rows.append({
            "id": group.problem.id, "domain": domain, "rollouts": len(group.rollouts), "correct": found.correct,
            "wrong": found.wrong, "truncated": found.cut, "rate": rate.mean, "low": rate.low, "high": rate.high,
            "in_band": test.inside(found.correct, found.wrong), "live": prior.live(found, group_size), "kept": kept,
        })  # fmt: skip
    return rows


def counts(band: Band, n: int) -> tuple[int, int]:
    """The band as counts of correct rollouts, both ends kept: [0.2, 0.8] of 5 is 1..4, and 0.4 of 5 is 2, not 1.99."""
    return math.ceil(round(band.alpha * n, 9)), math.floor(round(band.beta * n, 9))


def in_band(group: Group, config: FilterStage) -> bool:
    """By the count alone. Truncated and unscored rollouts are no evidence: the band is that of the judged ones."""
    found = seen(group.rollouts)
    low, high = counts(config.bands.get(group.problem.domain, config.band), found.judged)
    return found.judged > 0 and low <= found.correct <= high


def describe(groups: Sequence[Group], rows: Sequence[dict[str, Any]], config: FilterStage) -> dict[str, Any]:
    """What filter.json says of the problems that were tried. The histogram of a domain counts problems by correct
    rollouts, 0..n, or with "sequential" by tenths of the expected pass rate; a band's `low` and `high` are the first
    and the last of its columns inside."""
    domains = sorted({group.problem.domain for group in groups})
    fixed = config.method == "fixed"
    histogram = {domain: [0] * (config.n + 1 if fixed else BINS) for domain in domains}
    for row in rows:
        column = row["correct"] if fixed else min(BINS - 1, int(row["rate"] * BINS))
        histogram[row["domain"]][column] += 1
    bands = {}
    for domain in domains:
        band = config.bands.get(domain, config.band)
        low, high = counts(band, config.n) if fixed else _bins(band)
        bands[domain] = {"alpha": band.alpha, "beta": band.beta, "low": low, "high": high}
    rollouts = [r for group in groups for r in group.rollouts]
    most = config.n if fixed else config.sequential.most
    return {
        "method": config.method,
        "n": most,
        "rollouts": len(rollouts),
        "rollouts_mean": len(rollouts) / len(groups),
        "tokens": sum(len(r.completion.tokens) for r in rollouts),
        "bands": bands,
        "histogram": histogram,
        "kept": _by_domain([row for row in rows if row["kept"]], domains),
        "of": _by_domain(rows, domains),
        "unscored": sum(r.verdict.score is None for r in rollouts),
        "truncated": sum(r.verdict.kind == "truncated" for r in rollouts),
        "verdicts": count_kinds(r.verdict.kind for r in rollouts),
    }


def forecasts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """live_share_before: of fresh groups of all problems tried; live_share_forecast: of those kept. With intervals."""
    found: dict[str, Any] = {}
    for label, chosen in (("before", rows), ("forecast", [row for row in rows if row["kept"]])):
        chances: defaultdict[str, list[float]] = defaultdict(list)
        for row in chosen:
            chances[row["domain"]].append(row["live"])
        found |= _shares(label, shares(chances))
    return found


def measured(fresh: Sequence[Group], aim: Aim, seed: int) -> dict[str, Any]:
    """live_share_after: of the fresh groups of the pilot step, by domain and over all, with 95 % intervals."""
    found = {}
    for domain in [ALL, *sorted({g.problem.domain for g in fresh})]:
        live = [float(aim.is_live(g)) for g in fresh if domain in (ALL, g.problem.domain)]
        found[domain] = bootstrap_mean(live, 1000, seed)
    rollouts = [r for group in fresh for r in group.rollouts]
    spent = {"probe_rollouts": len(rollouts), "probe_tokens": sum(len(r.completion.tokens) for r in rollouts)}
    return {**_shares("after", found), **spent}


def traces(kept: Sequence[Group], most: int, context: Context) -> list[dict[str, Any]]:
    """The correct rollouts of the kept problems as conversations, equal texts of a problem once, `most` of each."""
    chat, found = context.chat.config, []
    for group in kept:
        texts = dict.fromkeys(r.completion.text for r in group.rollouts if r.verdict.kind == "correct")
        for text in list(texts)[:most]:
            parts = split(text, chat.think, chat.open_think)
            assert isinstance(parts, tuple)  # a text whose structure is broken is malformed, not correct
            turn = {"role": "assistant", "content": parts[1]}
            if parts[0]:
                turn["reasoning_content"] = parts[0]
            messages = [*group.problem.messages, turn]
            found.append({"messages": messages, "problem_id": group.problem.id, "domain": group.problem.domain})
    return found


def _pilot_step(
    name: str, config: FilterStage, problems: Sequence[Problem], sampler: Sampler, context: Context, aim: Aim
) -> list[Group]:
    """Fresh groups of kept problems: those that chose the problems cannot say how alive they are."""
    file, seed = context.folder(name) / "probe.jsonl", context.recipe.seed
    chosen = problems[: config.probe]
    fresh = sampler.groups(chosen, aim.size, config.sampling, (seed, name, file.name), file, f"{name} {file.name}")
    if not any(map(aim.is_live, fresh)):
        raise UserError(
            f"stage.{name}: of {len(fresh)} fresh groups of {aim.size} rollouts of kept problems none has two "
            "different rewards: RL would have nothing to learn from. Look at difficulty.jsonl and probe.jsonl of the "
            "stage; ask for more rollouts (n, sequential.most), raise sampling.temperature, or train more before it."
        )
    return fresh


def _shares(label: str, found: dict[str, Interval]) -> dict[str, Any]:
    means = {domain: interval.mean for domain, interval in found.items()}
    intervals = {domain: interval._asdict() for domain, interval in found.items()}
    return {f"live_share_{label}": means, f"live_share_{label}_interval": intervals}


def _bins(band: Band) -> tuple[int, int]:
    """The first and the last tenth that lie in the band."""
    return math.ceil(round(band.alpha * BINS, 9)), max(0, math.floor(round(band.beta * BINS, 9)) - 1)


def _axis(config: FilterStage) -> str:
    if config.method == "fixed":
        return f"number of correct rollouts, 0..{config.n}"
    return "tenths of the expected pass rate"


def _by_domain(rows: Sequence[dict[str, Any]], domains: list[str]) -> dict[str, int]:
    count = Counter(row["domain"] for row in rows)
    return {**{domain: count[domain] for domain in domains}, ALL: len(rows)}
