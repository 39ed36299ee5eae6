"""`kind = "filter"`: bands of difficulty, and how many rollouts tell it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from motet.base.recipe.engine import Sampling
from motet.base.recipe.parts import Fraction, Part
from motet.base.recipe.problems import Mix
from motet.base.recipe.sft import SftSource
from motet.base.recipe.training import StageBase


class Band(Part):
    alpha: Fraction = 0.2
    """Lowest pass rate that is kept. The paper gives no value; ours asks for one success in five."""
    beta: Fraction = 0.8
    """Highest pass rate that is kept (the paper: 0.8, and 0.4 for instruction following)."""

    @model_validator(mode="after")
    def _ordered(self) -> Band:
        if self.alpha > self.beta:
            raise ValueError(f"alpha ({self.alpha}) must not exceed beta ({self.beta})")
        return self


class Sequential(Part):
    """How `method = "sequential"` spends its rollouts (ours): few on problems that are soon clear, more on others."""

    least: PositiveInt = 2
    """Rollouts that every problem gets."""
    most: PositiveInt = 16
    """Rollouts after which a problem is decided in any case."""
    batch: PositiveInt = 2
    """Rollouts that an undecided problem gets at a time."""
    pilot: PositiveInt = 64
    """Problems of each domain that are asked first, with half of `most`: the prior of the others is learnt from them.
    Later rollouts refine it."""
    confidence: float = Field(default=0.94, gt=0.5, lt=1.0)
    """A problem is decided once the verdict that `most` rollouts would give stands with this probability; one that is
    given up, with more where fewer than a third of the problems lie in the band."""
    keep_at: float = Field(default=0.4, gt=0.0, lt=1.0)
    """A problem is kept when its pass rate lies in the band with at least this probability. Half of the F1 that can be
    reached, about 0.8, makes F1 largest (arXiv 1402.1892)."""

    @model_validator(mode="after")
    def _rounds(self) -> Sequential:
        if self.most < self.least or (self.most - self.least) % self.batch:
            raise ValueError(f"most ({self.most}) must be least ({self.least}) plus a multiple of batch ({self.batch})")
        return self

    @property
    def pilot_rollouts(self) -> int:
        """About half of `most`, and from where batches lead to `most`."""
        return self.least + self.batch * max(0, (self.most // 2 - self.least) // self.batch)


class OpenRows(Part):
    """Which rows `by = "surprisal"` keeps: those between two quantiles of their domain, both ends included (ours)."""

    length: tuple[Fraction, Fraction] = (0.0, 0.95)
    """Quantiles of the trace's length in tokens."""
    surprisal: tuple[Fraction, Fraction] = (0.1, 0.9)
    """Quantiles of the student's mean surprisal (nats a token of the trace): rows that it could have written itself
    teach nothing, and those that are all surprise do not fit it."""

    @model_validator(mode="after")
    def _ordered(self) -> OpenRows:
        for name, (low, high) in (("length", self.length), ("surprisal", self.surprisal)):
            if low >= high:
                raise ValueError(f"{name}: the first quantile ({low}) must be below the second ({high})")
        return self


class FilterStage(StageBase):
    kind: Literal["filter"]
    """The problems that are neither too easy nor too hard, by rollouts: for an rl stage, and for sft."""
    by: Literal["pass_rate", "surprisal"] = "pass_rate"
    """"pass_rate": rollouts of `problems`. "surprisal": training conversations (`data`) by their length and by how much
    they surprise the model, one forward pass a row; for an sft stage where rollouts cost too much."""
    problems: tuple[Mix, ...] = ()
    """Which problems are tried."""
    data: tuple[SftSource, ...] = ()
    """With "surprisal": which conversations are measured."""
    rows: OpenRows = Field(default_factory=OpenRows)
    """With "surprisal": which are kept."""
    count: PositiveInt = 500
    """How many problems (or conversations), all domains together."""
    method: Literal["fixed", "sequential"] = "fixed"
    """"fixed": `n` rollouts of each problem, and the count of correct ones decides (the paper's). "sequential": as many
    as it takes, by a posterior with a prior learnt from a pilot."""
    n: PositiveInt = 5
    """With "fixed": rollouts for each problem, by the model to be trained (the paper: 5)."""
    sequential: Sequential = Field(default_factory=Sequential)
    """With "sequential": how many rollouts, and when to stop."""
    group_size: Annotated[int, Field(ge=2)] | None = None
    """Group size that live groups are forecast for; unset, that of the rl stage that reads this filter (else 8)."""
    band: Band = Field(default_factory=Band)
    """Band of every domain that `bands` does not name."""
    bands: dict[str, Band] = Field(default_factory=dict)
    """Bands by domain."""
    sampling: Sampling = Field(default_factory=Sampling)
    """Should be the sampling of the RL stage that follows."""
    probe: PositiveInt = 128
    """Of so many kept problems one fresh group each, of RL's size, measures the share of live groups after the filter
    (the pilot step); with no live one among them the run stops before RL."""
    traces: PositiveInt = 4
    """Most correct rollouts of a kept problem that become rows for an sft stage that reads this filter (ours)."""

    @model_validator(mode="after")
    def _one_way(self) -> FilterStage:
        if self.by == "pass_rate" and (self.data or not self.problems):
            raise ValueError('by = "pass_rate" needs problems, and reads no data; that is for by = "surprisal"')
        if self.by == "surprisal" and (self.problems or not self.data):
            raise ValueError('by = "surprisal" needs data, the conversations to choose from, and reads no problems')
        unread = {
            "n": self.method == "sequential",
            "sequential": self.method == "fixed",
            "rows": self.by == "pass_rate",
        }
        for name, is_unread in unread.items():
            default = FilterStage.model_fields[name].get_default(call_default_factory=True)
            if is_unread and getattr(self, name) != default:
                raise ValueError(f'{name} has no effect with method = "{self.method}", by = "{self.by}"')
        return self
