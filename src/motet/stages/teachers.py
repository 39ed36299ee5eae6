"""Who writes the traces of a synthesize stage: the model itself, one teacher, or several by their shares.

STAGE/groups.jsonl gets the judged traces, and STAGE/teachers.json what each teacher gave and what that took. With
several teachers each group's problem says in its metadata who wrote it: {"teacher": "big"}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import jsonl
from motet.base.recipe import Engine, Sampling, SynthesizeStage
from motet.base.records import Group, Problem, count_kinds, decode_group, encode
from motet.engine.protocol import Recorded
from motet.stages.context import Context

PLAIN = "{prompt}"


class Asked(NamedTuple):
    """A teacher and what it is asked."""

    name: str
    engine: Engine | None
    sampling: Sampling
    ask: str
    positions: list[int]
    """Of its problems among the stage's."""


def ask(name: str, config: SynthesizeStage, context: Context, model: Path | str) -> list[Group]:
    """The judged traces of stage `name`, in the order of the problems and of the teachers. A killed call goes on, a
    finished one is read back."""
    folder, seed = context.folder(name), context.recipe.seed
    file = folder / "groups.jsonl"
    problems = context.mixture(config.problems, name).first(config.count)
    asked = plan(problems, config)
    alone = len(asked) == 1 and not config.teachers and config.ask == PLAIN
    if file.exists() and not alone:
        return [decode_group(row) for _, row in jsonl.read(file)]
    table: dict[str, Any] = {}
    placed: list[tuple[int, int, Group]] = []
    for order, teacher in enumerate(asked):
        chosen = [problems[p] for p in teacher.positions]
        put = [put_to(problem, teacher.ask) for problem in chosen]
        stream = (seed, name, teacher.name) if config.teachers else (seed, name)
        part = file if alone else folder / f"groups-{teacher.name}.jsonl"
        title = " ".join(map(str, stream[1:]))
        sampler = context.sampler(model, teacher.engine)
        try:
            groups = sampler.groups(put, config.samples, teacher.sampling, stream, part, title)
            bill = sampler.engine.bill() if isinstance(sampler.engine, Recorded) else {}
        finally:
            sampler.engine.close()
        table[teacher.name] = {**_yield(groups), **bill}
        label = teacher.name if config.teachers else None
        own = [Group(signed(problem, label), group.rollouts) for problem, group in zip(chosen, groups, strict=True)]
        placed += [(position, order, group) for position, group in zip(teacher.positions, own, strict=True)]
    jsonl.write_json(folder / "teachers.json", table)
    found = [group for _, _, group in sorted(placed, key=lambda item: item[:2])]
    if not alone:
        jsonl.write(file, (encode(group) for group in found))
        for teacher in asked:
            (folder / f"groups-{teacher.name}.jsonl").unlink(missing_ok=True)
    return found


def plan(problems: Sequence[Problem], config: SynthesizeStage) -> list[Asked]:
    """Which teacher gets which problems. By shares, each problem of a domain goes to the teacher that is furthest
    behind its share there, the first of these in the recipe's order: 2 to 1 is a, b, a, a, b, a, ..."""
    everything = list(range(len(problems)))
    if not config.teachers:
        name = "model" if config.teacher is None else "teacher"
        return [Asked(name, config.teacher, config.sampling, config.ask, everything)]
    whole = sum(teacher.share for teacher in config.teachers.values())
    given: Counter[tuple[str, str]] = Counter()
    seen: Counter[str] = Counter()
    positions: dict[str, list[int]] = {name: [] for name in config.teachers}
    for position in everything:
        domain = problems[position].domain
        seen[domain] += 1
        behind = {
            name: round(teacher.share / whole * seen[domain] - given[name, domain], 9)
            for name, teacher in config.teachers.items()
        }
        chosen = list(behind) if config.assign == "all" else [max(behind, key=behind.__getitem__)]
        for name in chosen:
            given[name, domain] += 1
            positions[name].append(position)
    return [
        Asked(name, teacher, teacher.sampling or config.sampling, teacher.ask or config.ask, positions[name])
        for name, teacher in config.teachers.items()
        if positions[name]
    ]


def put_to(problem: Problem, ask: str) -> Problem:
    """The problem as the teacher sees it: its last turn worded as `ask` says."""
    if ask == PLAIN:
        return problem
    *before, last = problem.messages
    return replace(problem, messages=(*before, {**last, "content": ask.replace(PLAIN, last["content"])}))


def signed(problem: Problem, teacher: str | None) -> Problem:
    if teacher is None:
        return problem
    return replace(problem, metadata={**problem.metadata, "teacher": teacher})


def _yield(groups: Sequence[Group]) -> dict[str, Any]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = count_kinds(rollout.verdict.kind for rollout in rollouts)
    tokens = sum(len(rollout.completion.tokens) for rollout in rollouts)
    return {"problems": len(groups), "traces": len(rollouts), "tokens": tokens, "correct": verdicts["correct"],
            "verdicts": verdicts}  # fmt: skip


def count_kept(folder: Path) -> None:
    """Adds to teachers.json how many rows of data.jsonl each teacher wrote: `kept`."""
    file = folder / "teachers.json"
    table = jsonl.read_json(file)
    alone = next(iter(table)) if len(table) == 1 else ""
    kept = Counter(str(row.get("teacher", alone)) for _, row in jsonl.read(folder / "data.jsonl"))
    jsonl.write_json(file, {name: {**row, "kept": kept[name]} for name, row in table.items()})
