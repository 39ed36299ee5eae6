"""Which problems a step of RL samples: by quota, without those that rest, refilled where groups have no signal.

Everything drawn is a function of the seed, the step and the groups of the steps before: a resumed run draws the same.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.recipe import RlStage
from motet.base.records import Group, Problem, decode_group, seed_of
from motet.base.run import log
from motet.data.mix import Mixture
from motet.engine.protocol import Engine, Mended
from motet.rl.advantages import has_signal
from motet.rl.experience import rewards_of
from motet.rl.posterior import Posterior
from motet.rl.rollouts import Sampler
from motet.stages.calibration import Calibration
from motet.stages.context import Context


class Selection:
    def __init__(self, name: str, config: RlStage, context: Context, attempt: int = 0) -> None:
        """`attempt`: how often the stage was rolled back; each time it draws other problems and other completions."""
        self._name, self._config, self._context = name, config, context
        self._seed = seed_of(context.recipe.seed, name, "attempt", attempt) if attempt else context.recipe.seed
        self._folder = context.folder(name)
        self._mixture = context.mixture(config.problems, name)
        if attempt:
            self._mixture = Mixture(self._mixture.parts, seed_of(self._seed, name))
        self._extra = Mixture(self._mixture.parts, seed_of(self._seed, name, "refill"))
        self._ids = {part.name: [p.id for p in part.items] for part in self._mixture.parts}
        self._part_of = {id: part for part in self._mixture.parts for id in self._ids[part.name]}
        self.posterior = Posterior(self._filtered(), config.retire_at, config.return_after)
        self._before: tuple[int, list[dict[str, Any]]] = -1, []
        """(steps, the posterior's rows after them) when the batch that is known last was drawn."""
        self._calibration = Calibration(name, config, context, attempt)
        self._mended = 0

    def prepare(self, model: Path | str) -> None:
        """In the first process, of all problems that may be drawn: prompts that are too long are refused, and who will
        judge begins, beside the making of learner and engine, to import what that takes."""
        verifiers: set[str] = set()

        def problems() -> Iterator[Problem]:
            for part in self._mixture.parts:
                for problem in part.items:
                    verifiers.add(problem.verifier)
                    yield problem

        def first() -> None:
            tokens = self._config.sampling.max_tokens
            self._context.refuse_long_prompts(self._name, problems(), tokens, model)
            if verifiers:  # none were looked at where a model says of no window
                self._context.pool.begin(verifiers)

        self._context.world.first(first)

    def restore(self, step: int) -> None:
        """As it was after `step` steps: from the table, or from the groups where the table is of another step."""
        self._calibration.restore(step, self._file)
        file = self._folder / "problems-state.jsonl"
        rows = [row for _, row in jsonl.read(file)] if file.exists() else []
        if step and rows and all(row["step"] == step for row in rows):
            self.posterior.load(rows)
            return
        self.posterior.restart()
        for done in range(1, step + 1):
            refills = sorted((self._folder / "rollouts").glob(f"refill-{done:05d}-???.jsonl"))
            groups = [decode_group(row) for _, row in jsonl.read(self._file(done))]
            self.posterior.observe(done, self._calibration.fresh(done - 1, groups))
            for path in refills:
                self.posterior.observe(done, [decode_group(row) for _, row in jsonl.read(path)])

    def save(self, step: int) -> None:
        """As it is after `step` steps, though the next batch be sampled already."""
        steps, before = self._before
        rows = before if steps == step else self.posterior.rows(step)
        self._context.world.first(lambda: jsonl.write(self._folder / "problems-state.jsonl", rows))

    def sample(self, sampler: Sampler, step: int) -> tuple[list[Group], dict[str, float]]:
        """The groups of step `step` (from 0), and figures of what was chosen."""
        config = self._config
        if config.overlap:
            self._before = step, self.posterior.rows(step)
        sampler.judging = 0.0
        problems, replaced, exhausted = self._drawn(step)
        stream = (self._seed, self._name, step)
        title = f"{self._name} {step + 1}"
        groups = self._calibration.groups(sampler, problems, step, stream, self._file(step + 1), title)
        self.posterior.observe(step + 1, self._calibration.fresh(step, groups))
        metrics = self._calibration.metrics(step, groups)
        if config.refill:
            extra = self._refilled(sampler, step, groups, title)
            metrics |= {"groups/refilled": len(extra), "groups/refilled_live": sum(map(self._is_live, extra))}
            groups = [*groups, *extra]
            metrics["groups/refill_short"] = max(0, config.prompts_per_step - sum(map(self._is_live, groups)))
        if config.retire_at is not None:
            resting = self.posterior.resting(step + 2)
            metrics |= {"problems/retired": resting, "problems/replaced": replaced, "problems/exhausted": exhausted}
        known = {"problems/known": len(self._part_of), "problems/rate_mean": self.posterior.rate_mean()}
        return groups, metrics | known | self._failures(sampler.engine)

    def _failures(self, engine: Engine) -> dict[str, float]:
        """engine/failures: how often the engine failed and was brought back since the step before."""
        if not isinstance(engine, Mended):
            return {}
        before, self._mended = self._mended, engine.mended
        return {"engine/failures": float(self._mended - before)}

    def _drawn(self, step: int) -> tuple[list[Problem], int, int]:
        """(problems, how many stand for resting ones, how many rest and had no stand-in in their part)."""
        drawn = self._mixture.draw(step, self._config.prompts_per_step)
        resting = [self.posterior.rests(problem.id, step + 1) for problem in drawn]
        used = {problem.id for problem, rests in zip(drawn, resting, strict=True) if not rests}
        chosen, replaced = [], 0
        for place, (problem, rests) in enumerate(zip(drawn, resting, strict=True)):
            other = self._instead(problem, step, used, place) if rests else None
            if other is not None:
                problem = other
                used.add(problem.id)
                replaced += 1
            chosen.append(problem)
        exhausted = Counter(p.domain for p in chosen if self.posterior.rests(p.id, step + 1))
        for domain, count in exhausted.items():
            log.info("%s step %d: %d retired problems of %s were asked again: no others are left", self._name,
                     step + 1, count, domain)  # fmt: skip
        return chosen, replaced, sum(exhausted.values())

    def _instead(self, problem: Problem, step: int, used: set[str], *place: int) -> Problem | None:
        """Another one of its part of the mixture, neither used nor at rest; None where there is none."""
        part = self._part_of[problem.id]
        awake = [
            at
            for at, id in enumerate(self._ids[part.name])
            if id not in used and not self.posterior.rests(id, step + 1)
        ]
        if not awake:
            return None
        return part.items[random.Random(seed_of(self._seed, self._name, "instead", step, *place)).choice(awake)]

    def _refilled(self, sampler: Sampler, step: int, groups: Sequence[Group], title: str) -> list[Group]:
        """Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) with a budget: more problems for the groups that have
        no signal, at most refill x prompts_per_step of them; then the step goes on with what it has."""
        config = self._config
        wanted, left = config.prompts_per_step, int(config.refill * config.prompts_per_step)
        used = {group.problem.id for group in groups}
        live, found = sum(map(self._is_live, groups)), list[Group]()
        round_ = 0
        while live < wanted and left > 0:
            round_ += 1
            # at least a quarter of a batch: rounds that wait for one problem each would keep the engine empty
            count = min(left, max(wanted - live, -(-wanted // 4)))
            left -= count
            problems = []
            for place, drawn in enumerate(self._extra.at(step).draw(step * REFILLS + round_, count)):
                taken = drawn.id in used or self.posterior.rests(drawn.id, step + 1)
                problem = self._instead(drawn, step, used, round_, place) if taken else drawn
                if problem is not None:
                    used.add(problem.id)
                    problems.append(problem)
            if not problems:  # every problem of the parts that were drawn is used or rests
                continue
            stream = (self._seed, self._name, step, "refill", round_)
            file = self._refill(step + 1, round_)
            more = sampler.groups(
                problems, config.group_size, config.sampling, stream, file, f"{title} refill {round_}"
            )
            self.posterior.observe(step + 1, more)
            live += sum(map(self._is_live, more))
            found += more
        if live < wanted:
            log.info("%s step %d: %d of %d groups have a signal; the budget of refill is used up", self._name, step + 1,
                     live, wanted)  # fmt: skip
        return found

    def _is_live(self, group: Group) -> bool:
        return has_signal(rewards_of(group, self._config.rewards, self._config.domain_rewards))

    def _filtered(self) -> list[Group]:
        """What the filter stages of the mixture saw, as the first evidence."""
        stages = sorted({mix.stage for mix in self._config.problems if mix.stage is not None})
        files = [self._context.folder(stage) / "groups.jsonl" for stage in stages]
        groups = (decode_group(row) for file in files if file.exists() for _, row in jsonl.read(file))
        return [group for group in groups if group.problem.id in self._part_of]

    def _file(self, step: int) -> Path:
        return self._folder / "rollouts" / f"step-{step:05d}.jsonl"

    def _refill(self, step: int, round_: int) -> Path:
        return self._folder / "rollouts" / f"refill-{step:05d}-{round_:03d}.jsonl"


REFILLS = 1000
"""Above the number of rounds that a step can have: four for each batch's worth of budget, and one."""
