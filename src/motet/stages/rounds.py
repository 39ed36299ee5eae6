"""The rollouts of a filter stage: the same number of every problem, or in rounds of those that are still open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from motet.base import jsonl
from motet.base.recipe import FilterStage
from motet.base.records import Group, Problem, Rollout, decode_group, encode
from motet.base.run import log
from motet.rl.difficulty import SequentialTest, learn_rates, seen
from motet.rl.rollouts import Sampler


def sample(
    name: str, config: FilterStage, problems: Sequence[Problem], sampler: Sampler, seed: int, folder: Path
) -> list[Group]:
    """One group a problem, in their order, of `n` rollouts or of as many as it took; also in groups.jsonl. Killed, the
    same call goes on: every rollout is on disk as soon as it is judged."""
    file = folder / "groups.jsonl"
    if config.method == "fixed":
        stream = (seed, name, file.name)
        return sampler.groups(problems, config.n, config.sampling, stream, file, f"{name} {file.name}")
    if not file.exists():
        groups = _in_rounds(name, config, problems, sampler, seed, folder)
        jsonl.write(file, (encode(group) for group in groups))
    for part in folder.glob("round-*.jsonl"):
        part.unlink()
    return [decode_group(row) for _, row in jsonl.read(file)]


def _in_rounds(
    name: str, config: FilterStage, problems: Sequence[Problem], sampler: Sampler, seed: int, folder: Path
) -> list[Group]:
    """Which problems a round asks is a function of the rounds before it, so a resumed stage asks the same."""
    rules = config.sequential
    rollouts: list[list[Rollout]] = [[] for _ in problems]
    round_ = 0

    def ask(places: Sequence[int], n: int) -> None:
        nonlocal round_
        file = folder / f"round-{round_:03d}.jsonl"
        chosen = [problems[place] for place in places]
        title = f"{name} round {round_ + 1}"
        found = sampler.groups(chosen, n, config.sampling, (seed, name, "round", round_), file, title)
        for place, group in zip(places, found, strict=True):
            rollouts[place] += group.rollouts
        round_ += 1

    pilot = _pilot(problems, rules.pilot)
    ask(pilot, rules.pilot_rollouts)
    others = sorted(set(range(len(problems))) - set(pilot))
    if others:
        ask(others, rules.least)
    while True:
        tests = tests_of(_groups(problems, rollouts), config)
        left = [
            place
            for place, problem in enumerate(problems)
            if not tests[problem.domain].decided(seen(rollouts[place]), len(rollouts[place]))
        ]
        spent = sum(map(len, rollouts))
        log.info(
            "%s: %d of %d problems are decided by %d rollouts", name, len(problems) - len(left), len(problems), spent
        )
        if not left:
            return _groups(problems, rollouts)
        ask(left, rules.batch)


def tests_of(groups: Sequence[Group], config: FilterStage) -> dict[str, SequentialTest]:
    """By domain, with what is known of it so far."""
    bands = {domain: config.bands.get(domain, config.band) for domain in {group.problem.domain for group in groups}}
    rates = learn_rates(groups)
    return {domain: SequentialTest(rates[domain], band, config.sequential) for domain, band in bands.items()}


def _pilot(problems: Sequence[Problem], size: int) -> list[int]:
    """The first `size` problems of each domain."""
    places = defaultdict[str, list[int]](list)
    for place, problem in enumerate(problems):
        if len(places[problem.domain]) < size:
            places[problem.domain].append(place)
    return sorted(place for chosen in places.values() for place in chosen)


def _groups(problems: Sequence[Problem], rollouts: Sequence[Sequence[Rollout]]) -> list[Group]:
    return [Group(problem, tuple(found)) for problem, found in zip(problems, rollouts, strict=True)]
