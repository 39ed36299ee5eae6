"""Problem sets: `TASKS` names the built-in ones, `load_problem_set` reads any, and applies the rules that all share.

To add one: a function `(source, seed, **arguments) -> Iterator[Problem | UserError]` in a file here and a line in
`TASKS`. A malformed row is yielded as the error that it would raise, so that `on_bad_row = "drop"` can go on after it.
"""

from __future__ import annotations

import inspect
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from motet.base.errors import UserError, bad_row
from motet.base.places import check_data
from motet.base.recipe import ProblemSet, nearest
from motet.base.records import Problem, content_id, seed_of
from motet.tasks import addition, files, gsm_symbolic, humaneval, reasoning_gym, stories, wording
from motet.tasks.stored import Digests, Problems, Shelved, heldout, rank

Supply = Iterator[Problem | UserError]


@dataclass(frozen=True, slots=True)
class Task:
    load: Callable[..., Iterator[Problem] | Supply]
    """(source, seed, **arguments): `source` is the set's name in the recipe and the prefix of generated ids."""
    about: str
    """One line for `motet tasks`."""
    endless: bool = False
    """The supply has no end: the set needs a count."""
    evaluation_only: bool = False
    """Published for measuring: refused unless all of it is held out."""


TASKS: dict[str, Task] = {
    "addition": Task(addition.addition, "column addition, with worked solutions", endless=True),
    "wording": Task(wording.wording, "short texts under checkable constraints, with solutions", endless=True),
    "reasoning_gym": Task(reasoning_gym.procedural, "any generator of the package reasoning-gym", endless=True),
    "stories": Task(stories.stories, "word problems of one to three sums, with worked solutions", endless=True),
    "gsm_symbolic": Task(gsm_symbolic.gsm_symbolic, "school mathematics from 100 templates, with worked solutions"),
    "humaneval": Task(humaneval.humaneval, "164 functions to write; evaluation only", evaluation_only=True),
}

SEED = 1
"""Of every generator, unless `args.seed` says otherwise: the pool does not depend on the recipe's seed."""


class ProblemSplit(NamedTuple):
    train: Problems
    """In an order that follows the recipe's seed."""
    heldout: Problems
    """The same for every seed."""
    dropped: dict[str, int]
    """How many each rule took: "bad row", "duplicate prompt", "duplicate id", "gold rejected"."""


def load_problem_set(name: str, config: ProblemSet, seed: int, folder: Path | None = None) -> ProblemSplit:
    """Problems of [problems.`name`], split by template (by prompt, where there are none).

    The side of a problem depends on its split key alone, so that neither another seed nor another count moves it
    across. Raises UserError for a bad row or a rejected gold answer (or drops it, with `on_bad_row = "drop"`), and
    when nothing is left. The problems lie on disk, in a file without a name in `folder` (unset: the system's for
    temporary files); about 100 bytes of each are in memory.
    """
    refuse_unusable(name, config)
    dropped: dict[str, int] = {}
    shelved, ranks = Shelved(folder), array("d")
    for problem in islice(_accepted(name, config, dropped), config.count):
        shelved.add(problem)
        ranks.append(rank(split_key(problem)))
    if not ranks:
        took = ", ".join(f"{count} dropped: {rule}" for rule, count in dropped.items()) or "the source holds no row"
        raise UserError(f"problems.{name}: no problem is left ({took})")
    sides = heldout(ranks, config.heldout)
    train, held = (array("I", (place for place, side in enumerate(sides) if side == wanted)) for wanted in (0, 1))
    random.Random(seed_of(seed, "problems", name)).shuffle(train)
    return ProblemSplit(Problems(shelved, train), Problems(shelved, held), dropped)


def supply(name: str, config: ProblemSet) -> Iterator[tuple[str, Problem | UserError]]:
    """(place or "", problem or error) of all that [problems.`name`] holds, before any rule takes something away."""
    refuse_unusable(name, config)
    return islice(_supply(name, config), config.count)


def refuse_unusable(name: str, config: ProblemSet) -> None:
    """Raises UserError for what shows before a row is read."""
    if config.verifier is not None:
        from motet.verify import unknown

        trouble = unknown(config.verifier)
        if trouble:
            raise UserError(f"problems.{name}.verifier: {trouble}")
    if config.path is not None:
        if config.args:
            raise UserError(f"problems.{name}.args: only a task takes arguments, and this set has a path")
        check_data(config.path)
        return
    assert config.task is not None
    task = TASKS.get(config.task)
    if task is None:
        raise UserError(
            f"problems.{name}.task: there is no {config.task!r}; {nearest(config.task, list(TASKS))}".rstrip("; ")
        )
    if config.columns:
        raise UserError(f"problems.{name}.columns: only a set with a path has columns")
    if task.evaluation_only and config.heldout < 1.0:
        raise UserError(
            f"problems.{name}: the task {config.task!r} is for evaluation only and is not trained on; set heldout = 1.0"
        )
    if config.count is None and task.endless and "size" not in config.args:
        raise UserError(f"problems.{name}: the supply of {config.task!r} has no end; set count")
    _check_arguments(f"problems.{name}.args", task.load, {"seed": SEED, **config.args})
    folder = config.args.get("folder")
    if isinstance(folder, str) and not Path(folder).is_dir():
        raise UserError(f"problems.{name}.args.folder: there is no folder {folder!r} in {Path.cwd()}")


def describe_tasks() -> str:
    """What `motet tasks` prints: each set, its first line, its arguments with their defaults."""
    lines = []
    for name, task in TASKS.items():
        lines.append(f"{name}: {task.about}")
        shown = []
        for parameter in inspect.signature(task.load).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                shown.append("the generator's own")
            elif parameter.default is inspect.Parameter.empty:
                shown += [] if parameter.name in ("source", "seed") else [f"{parameter.name} (required)"]
            else:
                shown.append(f"{parameter.name} = {parameter.default!r}")
        lines.append(f"    args: {', '.join(shown) or 'none'}")
    return "\n".join(lines)


def split_key(problem: Problem) -> str:
    key = problem.metadata.get("split_key")
    return prompt_key(problem) if key is None else str(key)


def prompt_key(problem: Problem) -> str:
    return content_id(*(f"{m['role']}\n{m['content']}" for m in problem.messages))


def _accepted(name: str, config: ProblemSet, dropped: dict[str, int]) -> Iterator[Problem]:
    """The supply without bad rows, duplicates and problems whose own gold answer fails; counts what it drops. Prompts
    and ids are known by 64 bits of a hash: among a million, two share one by chance once in 37 million sets."""
    from motet.verify.judge import check_problem

    prompts, ids = Digests(), Digests()
    idle = 0

    def bad(rule: str, error: UserError) -> None:
        if config.on_bad_row == "error":
            raise bad_row(UserError(f"problems.{name}: {error}"))
        dropped[rule] = dropped.get(rule, 0) + 1

    for place, item in _supply(name, config):
        if isinstance(item, UserError):
            bad("bad row", item)
            continue
        at = f"{place}: " if place else ""
        item = _scored(name, item, config)
        if not prompts.add(int(prompt_key(item), 16)):
            dropped["duplicate prompt"] = dropped.get("duplicate prompt", 0) + 1
            idle += 1
            if idle > 1000 + len(prompts):  # an endless generator over a small space has said all that it can
                return
            continue
        idle = 0
        id = int(content_id(item.id), 16)
        if id in ids:
            bad("duplicate id", UserError(f"{at}two problems have the id {item.id!r}"))
            continue
        verdict = check_problem(item)
        if verdict is not None and verdict.kind == "infra_error":
            raise UserError(f"problems.{name}: {at}problem {item.id!r} could not be checked: {verdict.detail}")
        if verdict is not None:
            bad("gold rejected", UserError(f"{at}problem {item.id!r}: {verdict.detail}"))
            continue
        ids.add(id)
        yield item


def _supply(name: str, config: ProblemSet) -> Iterator[tuple[str, Problem | UserError]]:
    if config.task is None:
        return files.placed_problems(name, config)
    found = TASKS[config.task].load(name, **{"seed": SEED, **config.args})
    return (("", _labelled(item, config)) for item in found)


def _labelled(item: Problem | UserError, config: ProblemSet) -> Problem | UserError:
    if isinstance(item, UserError) or (config.domain is None and config.verifier is None):
        return item
    return replace(item, domain=config.domain or item.domain, verifier=config.verifier or item.verifier)


def _scored(name: str, problem: Problem, config: ProblemSet) -> Problem:
    if config.scoring == "all":
        return problem
    if problem.verifier in ("math", "code", "procedural"):
        raise UserError(f'problems.{name}.scoring = "mean" is for instructions; {problem.verifier} is right or wrong')
    return replace(problem, metadata={**problem.metadata, "scoring": config.scoring})


def _check_arguments(place: str, load: Callable[..., object], given: dict[str, object]) -> None:
    parameters = inspect.signature(load).parameters
    known = [p for p in parameters if p != "source" and parameters[p].kind is not inspect.Parameter.VAR_KEYWORD]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for key in given:
            if key not in known:
                raise UserError(f"{place}: there is no {key!r}; {nearest(key, known)}".rstrip("; "))
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{place}: {key!r} is missing")
