"""`kind = "rl"`: alarms, and the stage itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.engine import Sampling
from motet.base.recipe.objective import Algorithm
from motet.base.recipe.parts import Fraction, Part
from motet.base.recipe.problems import Mix, Rewards, ScoredKind
from motet.base.recipe.training import TrainingStage

RuleName = Literal[
    "no_signal", "memory", "below_start", "not_generalising", "forgetting", "guessed", "entropy_collapse",
    "entropy_blowup", "drift", "importance", "stale", "unparsable", "truncated", "length", "repetition", "slow_engine",
    "starved", "slow_verifiers",
]  # fmt: skip
AlarmAction = Literal["off", "note", "pause", "rollback"]


class Alarms(Part):
    """What is looked for in every step, and what is done about it (docs/alarms.md). An alarm says what was seen, why it
    matters, the likely causes and the lines to change. These settings are no part of what the stage is made from:
    changed ones go on from where the run is. Thresholds are ours."""

    action: AlarmAction = "note"
    """Of every alarm that `actions` does not name. "note": in the log, STAGE/alarms.jsonl and the report. "pause":
    the run saves a checkpoint and ends with exit code 3; the same command with `acknowledged` goes on. "rollback":
    back to the last checkpoint that was saved without an alarm, and on from there with fresh random numbers. "off":
    nothing."""
    actions: dict[RuleName, AlarmAction] = Field(default_factory=dict)
    """By rule, e.g. { entropy_collapse = "rollback", drift = "pause" }."""
    acknowledged: tuple[str, ...] = ()
    """Alarms that have been seen, RULE@STEP as the pause names them, e.g. ["drift@40"]: the run goes on, and that alarm
    does not end it again while it lasts."""
    rollbacks: PositiveInt = 1
    """How often a stage may roll back; the next time it pauses."""
    window: int = Field(default=5, ge=1)
    """Steps that a pattern has to last. What rises or falls is compared with the first so many steps."""
    live_share: Fraction = 0.1
    """no_signal: the window's median share of groups with a signal is at most this ..."""
    grad_norm: float = Field(default=1e-5, ge=0.0)
    """... or its median gradient norm is at most this."""
    entropy_low: Fraction = 0.2
    """entropy_collapse: the entropy of what is sampled is below this share of what it was at first, and the pass rate
    does not explain it."""
    entropy_high: float = Field(default=3.0, gt=1.0)
    """entropy_blowup: it is above so many times what it was at first, and by 0.5 nats at least."""
    drift: PositiveFloat = 0.02
    """drift: mean difference of the engine's and the learner's log-probabilities under the same weights, nats."""
    importance_low: PositiveFloat = 0.5
    """importance: the mean weight of tokens between engine and learner is below this ..."""
    importance_high: PositiveFloat = 2.0
    """... or above this ..."""
    importance_ess: Fraction = 0.3
    """... or their effective sample size, as a share of the tokens, is below this."""
    left_out: Fraction = 0.5
    """stale: more than this share of the window's gradient steps was left out because the batch was spent."""
    staleness: PositiveInt = 2
    """stale: rollouts are older than this, in sampled batches; with `overlap` they are one batch old."""
    rise: Fraction = 0.15
    """unparsable, truncated: the share of such rollouts has risen by this much."""
    length: float = Field(default=2.0, gt=1.0)
    """length: completions are so many times as long as at first, and the pass rate has not risen by 5 points."""
    repetition: Fraction = 0.3
    """repetition: share of runs of 8 tokens in a completion that occurred before in it, mean of the window."""
    fall: Fraction = 0.05
    """below_start, forgetting: the held-out pass rate has fallen by this much, and the 95 % interval is below zero.
    Where nothing is held out, forgetting looks at the training pass rate of each domain, for `rise`."""
    gain: Fraction = 0.1
    """not_generalising: the training reward rose by this much while the held-out pass rate rose by less than a quarter
    of it."""
    same_answer: Fraction = 0.9
    """guessed: so large a share of a domain's rollouts gives one and the same answer, and the share of its problems
    with the most frequent reference is smaller by 10 points at least."""
    slowdown: Fraction = 0.5
    """slow_engine: tokens sampled a second are below this share of what they were at first."""
    starving: Fraction = 0.9
    """starved: the share of a step's time that the learner waits for completions."""
    waiting: Fraction = 0.3
    """slow_verifiers: the share of a step's time spent waiting for verdicts alone."""

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("acknowledged"), str):
            return {**given, "acknowledged": [given["acknowledged"]]}
        return given

    @model_validator(mode="after")
    def _acknowledgements_name_alarms(self) -> Alarms:
        for text in self.acknowledged:
            if not re.fullmatch(r"[a-z_]+@\d+", text) or text.split("@")[0] not in get_args(RuleName):
                raise ValueError(f"acknowledged: {text!r} is not RULE@STEP, e.g. drift@40, as the pause names it")
        named = [*self.actions, *(text.split("@")[0] for text in self.acknowledged)]
        if "memory" in named:
            raise ValueError("memory: out of memory always ends the run, and the same command goes on from the last "
                             "checkpoint; it takes no action and no acknowledgement")  # fmt: skip
        if self.importance_low >= self.importance_high:
            raise ValueError(f"importance_low ({self.importance_low}) must be below importance_high "
                             f"({self.importance_high})")  # fmt: skip
        return self

    def of(self, rule: RuleName) -> AlarmAction:
        return self.actions.get(rule, self.action)


class RlStage(TrainingStage):
    kind: Literal["rl"]
    """GRPO on verified rollouts."""
    problems: tuple[Mix, ...] = Field(min_length=1)
    """The mixture; usually [{stage = "filter"}]."""
    steps: PositiveInt = 200
    """Sampled batches."""
    prompts_per_step: PositiveInt = 32
    """Problems in one sampled batch."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts of each problem."""
    algorithm: Algorithm = Field(default_factory=Algorithm)
    """The objective and the reuse of trajectories."""
    rewards: Rewards = Field(default_factory=Rewards)
    """What each verdict earns."""
    domain_rewards: dict[str, dict[ScoredKind, float | None]] = Field(default_factory=dict)
    """What a domain's verdicts earn otherwise, e.g. { code = { timeout = -0.5 } }."""
    reuse_filter: int = Field(default=0, ge=0)
    """In so many first steps, groups begin with the rollouts that the filter stage sampled of their problems, and only
    what is missing of group_size is sampled. The filter must have had this stage's weights and sampling; from the
    second step on its rollouts are of older weights, for which `algorithm.correction` must be on."""
    refill: float = Field(default=0.0, ge=0.0, le=100.0)
    """Sample more problems in place of groups without a signal, at most refill x prompts_per_step of them a step
    (dynamic sampling, arXiv 2503.14476); then the step goes on with what it has. 0: none."""
    retire_at: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """A problem rests when its expected pass rate, by the rollouts of filter and RL, is at least this; another one of
    its part of the mixture stands for it. Unset: none rests."""
    return_after: PositiveInt = 50
    """Steps after which a problem that rests may be drawn again."""
    probe_every: PositiveInt | None = None
    """Sample held-out problems of the evaluation every so many steps, by the model in training; unset: not before the
    end."""
    probe: PositiveInt = 64
    """How many of each evaluation set."""
    overlap: bool = False
    """Sample the next batch while the learner steps on this one (one step off): each batch is of the weights before the
    last update, which `algorithm.correction` weighs. It pays where engine and learner do not share the same cores."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How rollouts are sampled."""
    alarms: Alarms = Field(default_factory=Alarms)
    """What is looked for while it trains, and what is done about it."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> RlStage:
        fields = type(self).model_fields
        for name, needed in (("return_after", "retire_at"), ("probe", "probe_every")):
            if getattr(self, name) != fields[name].default and getattr(self, needed) is None:
                raise ValueError(f"{name} = {getattr(self, name)} has no effect without {needed}: set it, or leave "
                                 f"{name} out")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _unbiased_sampling(self) -> RlStage:
        if self.sampling.top_p < 1.0:
            raise ValueError(
                f"sampling.top_p = {self.sampling.top_p} is refused in RL: the learner's log-probabilities are those "
                "of the whole distribution; leave it at 1.0"
            )
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature = 0 is refused in RL: all rollouts of a group would be equal")
        if self.sampling.max_tokens >= self.micro_batch_tokens:
            raise ValueError(
                f"sampling.max_tokens ({self.sampling.max_tokens}) must be less than micro_batch_tokens "
                f"({self.micro_batch_tokens}), the most that one pass may hold, prompt and completion together"
            )
        if self.prompts_per_step % self.algorithm.minibatches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of algorithm.minibatches "
                f"({self.algorithm.minibatches}), so that each minibatch holds whole groups"
            )
        return self
