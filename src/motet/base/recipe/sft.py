"""`kind = "sft"`: conversations by source, length and step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from motet.base.recipe.parts import Part, Weight
from motet.base.recipe.training import TrainingStage


class SftSource(Part):
    """One share of a mixture of training conversations."""

    problems: str | None = None
    """A problem set whose worked solutions are the conversations (training side only)."""
    stage: str | None = None
    """A synthesize or clean stage whose rows are the conversations; or a filter stage (see `rows`)."""
    rows: Literal["traces", "solutions"] = "traces"
    """Of a filter stage: the correct rollouts of the problems that it kept ("traces": rejection sampling), or their
    worked solutions. One that is by = "surprisal" gives the conversations that it kept as "traces"."""
    path: str | None = None
    """A JSON Lines or Parquet file (or folder, or hub id) with `messages`, or `prompt` and `completion`."""
    split: str = "train"
    """Split of a hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps our fields (messages, conversations, prompt, completion, reasoning, system, id, domain) to the file's
    columns, with dots into nested objects."""
    weight: Weight = 1.0
    """Relative share of the drawn conversations. It may change over the stage's steps: [[0, 3.0], [100, 1.0]] falls in
    a straight line from 3 at the start to 1 at step 100; two points at one step are a jump."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A malformed row, or one whose rendering the checks of `motet inspect` refuse: stop, or drop it, count it and go
    on."""

    @model_validator(mode="after")
    def _one_source(self) -> SftSource:
        if [self.problems, self.stage, self.path].count(None) != 2:
            raise ValueError("give exactly one of problems, stage and path")
        if self.rows != "traces" and self.stage is None:
            raise ValueError(f'rows = "{self.rows}" is for a filter stage; give its name as stage')
        return self


class LengthBand(Part):
    """Conversations between the band before (or 0) and `up_to`, and how often they are drawn."""

    up_to: PositiveInt
    """Longest conversation of the band, in tokens; the shortest is one token more than the band before allows."""
    weight: Weight = 1.0
    """Share of each source's draws against the other bands that it has; it may change over the steps, as a source's."""


class SftStage(TrainingStage):
    kind: Literal["sft"]
    """Supervised fine-tuning on a mixture of conversations."""
    data: tuple[SftSource, ...] = Field(min_length=1)
    """The mixture of this stage."""
    context: PositiveInt = 16384
    """Longest conversation in tokens (the recipe: 16K, then 32K, then 64K). A longer one is dropped and counted. Unset,
    at most the model's positions; set beyond them, it needs `rope`."""
    min_tokens: PositiveInt = 1
    """Shortest conversation in tokens; a shorter one is dropped and counted."""
    lengths: tuple[LengthBand, ...] = ()
    """Bands of length in ascending order, each with its share of the draws: half of them longer than 32K is
    [{ up_to = 32768 }, { up_to = 65536 }]. What is longer than the last band is dropped and counted; of those held
    out, only what is longer than `context`."""
    steps: PositiveInt = 500
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Conversations in one optimizer step."""
    batch_tokens: PositiveInt | None = None
    """About so many tokens in one optimizer step, in place of `batch_size`: the number of conversations is this by
    their mean length, so that stages of different lengths train equally many tokens a step."""
    heldout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the conversations, chosen by their ids, that no stage with the same share trains on; their loss is
    measured at the end."""
    probe_every: PositiveInt | None = None
    """Measure the loss of the conversations held out every so many steps too."""

    @model_validator(mode="after")
    def _lengths_make_sense(self) -> SftStage:
        ends = [band.up_to for band in self.lengths]
        if ends != sorted(set(ends)):
            raise ValueError(f"lengths: up_to must rise from band to band, got {ends}")
        longest = min([self.context, *ends[-1:]])
        if self.min_tokens > longest:
            raise ValueError(f"min_tokens ({self.min_tokens}) is more than the longest conversation, {longest} tokens")
        if any(end >= self.context for end in ends[:-1]):
            raise ValueError(f"lengths: the bands after {self.context} tokens are empty: no conversation is longer "
                             "than context")  # fmt: skip
        if self.probe_every is not None and self.heldout == 0.0:
            raise ValueError("probe_every needs heldout, the share of the conversations that is measured: 0.02, say")
        return self
