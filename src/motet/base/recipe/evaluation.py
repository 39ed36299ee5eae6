"""What is measured after the stages, and where metrics go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from motet.base.recipe.engine import Sampling
from motet.base.recipe.parts import Part
from motet.base.recipe.training import StageBase


class EvaluateStage(StageBase):
    kind: Literal["evaluate"]
    """Nothing but the evaluation, of the weights made so far."""


class EvaluationSet(Part):
    problems: str | None = None
    """A problem set; its held-out side is used."""
    suite: str | None = None
    """A named suite (`motet suites` lists them), e.g. "aime24", "math500", "humaneval"."""
    path: str | None = None
    """Where the suite's data lies, when it is not to be fetched from the hub."""
    count: PositiveInt | None = None
    """At most this many problems; unset, all."""
    samples: PositiveInt | None = None
    """k; unset, the suite's own, or `evaluation.samples` for a problem set."""
    max_tokens: PositiveInt | None = None
    """Of a completion; unset, the suite's own, or `evaluation.sampling.max_tokens`. With fewer than a suite states,
    its score is no longer comparable with others' and the report says so by stating the settings."""

    @model_validator(mode="after")
    def _one_source(self) -> EvaluationSet:
        if (self.problems is None) == (self.suite is None):
            raise ValueError("give exactly one of problems (a problem set) and suite (a named suite)")
        return self


class Evaluation(Part):
    """What is measured after every stage that changes the weights."""

    sets: tuple[EvaluationSet, ...] = ()
    """Empty: the held-out side of every problem set."""
    samples: PositiveInt = 4
    """k: completions for each problem; avg@k and pass@1..k are reported."""
    sampling: Sampling = Field(default_factory=Sampling)
    """A suite's own settings win over these, and those of its entry in `sets` over both."""
    bootstrap: PositiveInt = 2000
    """Resamples (of problems) for the 95 % intervals."""

    @model_validator(mode="after")
    def _each_once(self) -> Evaluation:
        labels = [item.problems or item.suite for item in self.sets]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                raise ValueError(f"sets[{index}]: {label!r} is named twice")
        return self


class Tracking(Part):
    """Where metrics go besides the run folder. What fails there is said once in the log and never stops the run."""

    to: tuple[Literal["trackio", "wandb"], ...] = ()
    """Trackers, e.g. ["trackio"]; each needs its extra, `pip install motet[trackio]`."""
    project: str = "motet"
    """Project at the tracker; the run has the recipe's name."""
    mode: Literal["online", "offline"] = "online"
    """wandb: "offline" writes files that `wandb sync` sends later. trackio always writes files of its own first."""
