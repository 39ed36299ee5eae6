"""What an rl stage has of the filter that chose its problems: rollouts to begin with, and a forecast to compare with.

A rollout of the filter is worth as much as one of the first step: the weights are the same. It is used once, in place
of one that would have been sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from motet.base import jsonl
from motet.base.recipe import RlStage
from motet.base.records import UNSCORED, Group, Problem, Rollout, decode_group, decode_problem, encode
from motet.base.run import log
from motet.rl.advantages import has_signal
from motet.rl.experience import rewards_of
from motet.rl.rollouts import Sampler
from motet.stages.context import Context


class Calibration:
    def __init__(self, name: str, config: RlStage, context: Context, attempt: int = 0) -> None:
        """A stage that was rolled back (`attempt` > 0) is to have other completions than before: it reuses none."""
        self._name, self._config, self._context = name, config, context
        self._steps = 0 if attempt else config.reuse_filter
        self._stages = sorted({mix.stage for mix in config.problems if mix.stage is not None})
        self._chances = self._read_chances()
        self._rollouts: dict[str, tuple[Rollout, ...]] = self._read_rollouts() if self._steps else {}
        self._spent: set[str] = set()
        self._given: dict[int, list[int]] = {}
        """By step (from 0): with how many of the filter's rollouts each of its groups begins."""

    def restore(self, step: int, file: Callable[[int], Path]) -> None:
        """As it was after `step` steps; `file` tells where the groups of a step (from 1) are."""
        self._spent, self._given = set(), {}
        for done in range(min(step, self._steps)):
            problems = [decode_problem(row["problem"]) for _, row in jsonl.read(file(done + 1))]
            self._given[done] = [len(self._take(problem)) for problem in problems]

    def groups(
        self,
        sampler: Sampler,
        problems: Sequence[Problem],
        step: int,
        stream: tuple[object, ...],
        file: Path,
        title: str,
    ) -> list[Group]:
        """The groups of step `step` (from 0), `group_size` rollouts of each problem; also in `file`."""
        config = self._config
        given = [self._take(problem) for problem in problems] if step < self._steps else []
        if not any(given):
            return sampler.groups(problems, config.group_size, config.sampling, stream, file, title)
        self._given[step] = [len(rollouts) for rollouts in given]
        lacking: defaultdict[int, list[int]] = defaultdict(list)
        for place, rollouts in enumerate(given):
            lacking[config.group_size - len(rollouts)].append(place)
        more: dict[int, tuple[Rollout, ...]] = {}
        for count, places in sorted(lacking.items()):
            if count:
                chosen = [problems[place] for place in places]
                part = file.with_name(f"{file.stem}-more-{count}.jsonl".replace("step", "first"))
                found = sampler.groups(chosen, count, config.sampling, (*stream, "more", count), part, title)
                more |= {place: group.rollouts for place, group in zip(places, found, strict=True)}
        groups = [Group(problem, (*given[place], *more.get(place, ()))) for place, problem in enumerate(problems)]
        self._context.world.first(lambda: jsonl.write(file, (encode(group) for group in groups)))
        log.info(
            "%s: %d of %d rollouts are the filter's", title, sum(self._given[step]), config.group_size * len(groups)
        )
        return groups

    def fresh(self, step: int, groups: Sequence[Group]) -> list[Group]:
        """The groups of step `step` (from 0) without the filter's rollouts, which the posterior of difficulty knows."""
        given = self._given.get(step)
        if given is None:
            return list(groups)
        return [Group(group.problem, group.rollouts[count:]) for group, count in zip(groups, given, strict=True)]

    def metrics(self, step: int, groups: Sequence[Group]) -> dict[str, float]:
        """rollout/reused: how many are the filter's. forecast/live: the share of the groups that it expected to be
        live, of those whose problems it knows; forecast/seen: the share that was; both also by domain."""
        found: dict[str, float] = {}
        if step < self._steps:
            found["rollout/reused"] = sum(self._given.get(step, ()))
        known = [group for group in groups if group.problem.id in self._chances]
        domains = sorted({group.problem.domain for group in known})
        for suffix, members in [
            ("", known),
            *((f"/{d}", [g for g in known if g.problem.domain == d]) for d in domains),
        ]:
            if members:
                found[f"forecast/live{suffix}"] = sum(self._chances[g.problem.id] for g in members) / len(members)
                found[f"forecast/seen{suffix}"] = sum(map(self._is_live, members)) / len(members)
        return found | ({"forecast/groups": len(known)} if known else {})

    def _take(self, problem: Problem) -> tuple[Rollout, ...]:
        if problem.id in self._spent:
            return ()
        self._spent.add(problem.id)
        return self._rollouts.get(problem.id, ())[: self._config.group_size]

    def _is_live(self, group: Group) -> bool:
        return has_signal(rewards_of(group, self._config.rewards, self._config.domain_rewards))

    def _read_chances(self) -> dict[str, float]:
        """Of each problem, where the filter's forecast is for groups of this stage's size."""
        chances: dict[str, float] = {}
        for stage in self._stages:
            folder = self._context.folder(stage)
            if not (folder / "difficulty.jsonl").exists():
                continue
            size = jsonl.read_json(folder / "filter.json").get("group_size")
            if size != self._config.group_size:
                log.info("%s: %s has a forecast for groups of %s, not of %d; it is not held against what is seen",
                         self._name, stage, size, self._config.group_size)  # fmt: skip
                continue
            chances |= {row["id"]: row["live"] for _, row in jsonl.read(folder / "difficulty.jsonl")}
        return chances

    def _read_rollouts(self) -> dict[str, tuple[Rollout, ...]]:
        """The pilot step's whole groups first: unlike the others, they did not choose their problems."""
        found: defaultdict[str, tuple[Rollout, ...]] = defaultdict(tuple)
        for stage in self._stages:
            folder = self._context.folder(stage)
            kept = {row["id"] for _, row in jsonl.read(folder / "problems.jsonl")}
            for file in ("probe.jsonl", "groups.jsonl"):
                for _, row in jsonl.read(folder / file):
                    if row["problem"]["id"] in kept:
                        group = decode_group(row)
                        found[group.problem.id] += tuple(r for r in group.rollouts if r.verdict.kind not in UNSCORED)
        return dict(found)
