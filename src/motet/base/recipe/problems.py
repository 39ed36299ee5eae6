"""`[problems.NAME]`, how answers are judged and rewarded, and mixtures of problems."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.parts import Part, Weight


class Verification(Part):
    workers: PositiveInt = 2
    """Worker processes that judge; each is killed and replaced when an item passes its deadline."""
    deadline_seconds: PositiveFloat = 10.0
    """Longest time for one verdict, the tests of a program included."""
    sandbox: Annotated[str, Field(pattern=r"^(auto|bubblewrap|landlock|unsafe-rlimits|https?://\S+)$")] = "auto"
    """How untrusted programs are kept in: "bubblewrap", "landlock", the better of these that works ("auto"), or the
    http(s) address of a server that runs them. "unsafe-rlimits" lets them read and write this user's files."""
    test_seconds: PositiveFloat = 4.0
    """Longest time for one test of a program."""
    memory_mb: PositiveInt = 4096
    """Address space of one worker; a verifier that wants more fails with an infra_error."""


ScoredKind = Literal["correct", "incorrect", "no_answer", "malformed", "truncated", "too_complex", "timeout"]
"""Verdicts that have a reward."""


class Rewards(Part):
    """What each verdict earns in RL. infra_error and invalid_problem earn nothing: masked, counted and alarmed."""

    correct: float = 1.0
    """Reward of a correct answer."""
    incorrect: float = 0.0
    """Reward of a wrong answer."""
    no_answer: float = 0.0
    """Reward of a text in which no answer was found."""
    malformed: float = 0.0
    """Reward of unparsable output: unbalanced think tags, several final answers, a hedge."""
    too_complex: float = 0.0
    """Reward of an answer that is too large to be checked."""
    timeout: float = 0.0
    """Reward of an answer whose check passed its deadline."""
    truncated: float | None = None
    """Reward of a completion cut at max_tokens; unset, it is out of the loss and of its group's statistics."""


class ProblemSet(Part):
    """Problems of one kind, split once into a training and a held-out side that share no problem."""

    task: str | None = None
    """A built-in set (`motet tasks` lists them), e.g. "addition", "reasoning_gym", "gsm_symbolic", "humaneval"."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the task."""
    path: str | None = None
    """A JSON Lines or Parquet file, a folder of them, or a Hugging Face hub id."""
    split: str = "train"
    """Split of a hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps our fields (prompt, messages, answer, tests, instructions, id, domain, split_key) to the file's columns."""
    domain: str | None = None
    """Domain of the problems; a task has one of its own."""
    verifier: str | None = None
    """"math" | "instruction" | "code" | "procedural", or path/to/file.py:function; a task has one of its own."""
    count: PositiveInt | None = None
    """How many problems to take; needed for generated sets, whose supply has no end."""
    heldout: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the templates (of the problems, where there are none) that is kept for evaluation."""
    scoring: Literal["all", "mean"] = "all"
    """Reward of problems with several instructions: only when all are followed, or ("mean") an incorrect answer earns
    the share that it follows. Verdicts, pass rates and evaluation are those of "all" either way."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A malformed row or a gold answer that its verifier rejects: stop, or drop the row, count it and go on."""

    @model_validator(mode="after")
    def _one_source(self) -> ProblemSet:
        if (self.task is None) == (self.path is None):
            raise ValueError("give exactly one of task (a built-in set) and path (your own problems)")
        return self


class Mix(Part):
    """One share of a mixture of problems."""

    problems: str | None = None
    """Name of a problem set; its training side is used."""
    stage: str | None = None
    """Name of a filter stage; the problems that it kept are used."""
    domain: str | None = None
    """Only the problems of this domain."""
    weight: Weight = 1.0
    """Relative share of the draws; with `stage` and no `domain`, the domains inside share it evenly. In an rl stage it
    may change over the steps: [[0, 3.0], [100, 1.0]] falls in a straight line from 3 at the start to 1 at step 100."""

    @model_validator(mode="after")
    def _one_source(self) -> Mix:
        if (self.problems is None) == (self.stage is None):
            raise ValueError("give exactly one of problems (a problem set) and stage (a filter stage)")
        return self
