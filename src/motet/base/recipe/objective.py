"""The algorithm of an RL stage: advantages, objective, reuse, correction, guard."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.parts import Fraction, Part

READ_BY = {
    "dual_clip": ("objective", ("clip",)),
    "gspo_low": ("objective", ("gspo",)),
    "gspo_high": ("objective", ("gspo",)),
    "cispo_max": ("objective", ("cispo",)),
    "dppo_low": ("objective", ("dppo",)),
    "dppo_high": ("objective", ("dppo",)),
    "domain_weights": ("aggregation", ("domains",)),
    "advantage_std": ("advantage", ("group", "domain")),
}
"""Settings that are read with these values of another one alone. Not clip_low and clip_high: presets set those."""


class Correction(Part):
    """Between the engine's policy and the learner's at the start of a batch; its figures are reported in any case."""

    on: bool = True
    """Weight tokens by it and leave sequences out; false: report alone."""
    token_cap: PositiveFloat = 2.0
    """A token's weight, learner's probability / engine's, is truncated here."""
    sequence_bound: float = Field(default=1.1, gt=1.0)
    """A sequence is out of the loss when the geometric mean of its tokens' weights is above this or below 1 / this
    (ours)."""


class Guard(Part):
    """Ends the steps on a batch that is no longer good: looked at before each step but a batch's first."""

    on: bool = True
    """Stop at a bound; false: take all S steps."""
    m2: float = Field(default=0.04, ge=0.0)
    """Most mean square of the log-ratio to the engine's policy (to the anchor, where the engine tells no
    log-probabilities); 0: no bound (arXiv 2510.01161 bounds it at 0.04)."""
    ess: Fraction = 0.5
    """Least effective sample size of the ratios to the anchor, as a share of the tokens; 0: no bound (ours)."""
    clip_share: Fraction = 0.05
    """Most tokens held at a bound of the objective, as a share; 0: no bound (ours). Not looked at with "gspo", whose
    narrow bounds hold many sequences by design."""
    kl: float = Field(default=0.02, ge=0.0)
    """Most divergence of the current policy from the engine's (from the anchor, where it tells none), nats a token;
    0: no bound (ours)."""


class Algorithm(Part):
    """GRPO with mixed-policy trajectory reuse."""

    advantage: Literal["group", "centred", "leave_one_out", "domain"] = "group"
    """From the rewards of a group: minus its mean, over its deviation ("group": GRPO, the paper's); minus its mean
    ("centred": Dr. GRPO); minus the mean of the others ("leave_one_out": RLOO); minus its mean, over the deviation of
    the batch's rewards in its domain ("domain")."""
    advantage_std: Literal["population", "sample"] = "population"
    """Rewards 1, 0, 1, 0 give +1, -1, +1, -1 with "population" and +-0.866 with "sample" (n - 1, as TRL does)."""
    objective: Literal["clip", "gspo", "cispo", "dppo"] = "clip"
    """"clip": the clipped surrogate, a token at a time. "gspo": of whole sequences (arXiv 2507.18071). "cispo": bounded
    weights, no token left out (2506.13585). "dppo": tokens out whose probability moved too far (2602.04879). Settings
    of another objective than the chosen one are refused, but for clip_low and clip_high, which presets set."""
    clip_low: PositiveFloat = 0.2
    """The ratio to the anchor is clipped at 1 - clip_low when the advantage is negative."""
    clip_high: PositiveFloat = 0.28
    """The ratio to the anchor is clipped at 1 + clip_high when the advantage is positive (paper: 0.28 to 0.40)."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """With "clip": a token of negative advantage A costs at most -dual_clip x A (arXiv 1912.09729; 3 there)."""
    gspo_low: PositiveFloat = 3e-4
    """With "gspo": the sequence's ratio is clipped at 1 - gspo_low, as published."""
    gspo_high: PositiveFloat = 4e-4
    """With "gspo": and at 1 + gspo_high."""
    cispo_max: PositiveFloat = 5.0
    """With "cispo": most that a token's ratio weighs (5 as in arXiv 2510.13786)."""
    dppo_low: PositiveFloat = 0.2
    """With "dppo": how far a token's probability may fall below the engine's when the advantage is negative."""
    dppo_high: PositiveFloat = 0.2
    """... and rise above it when it is positive."""
    kl: float = Field(default=0.0, ge=0.0)
    """Coefficient of the divergence from the weights that the stage starts from; they stay in memory when it is set."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of the divergence, from one token: -d, d^2 / 2 or e^d - 1 - d, d = log p_reference - log p."""
    entropy_bonus: float = Field(default=0.0, ge=0.0)
    """Coefficient of the policy's entropy, which is added to what is maximised."""
    aggregation: Literal["domains", "tokens", "sequences", "constant"] = "domains"
    """Mean of the loss: over each domain's tokens, then over domains; over all tokens; over each sequence's tokens,
    then over sequences; or the sum over tokens divided by sequences x max_tokens (Dr. GRPO)."""
    domain_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """With "domains": weight of each domain's mean; 1 for those not named."""
    most_of_a_domain: Fraction = 1.0
    """Largest share of a step's weighted tokens that one of several domains may have; beyond it its tokens weigh less
    and the others' more. Below 1, minibatches are dealt out by domain, so that each has some of every one."""
    passes: PositiveInt = 1
    """How often each sampled batch is gone through."""
    minibatches: PositiveInt = 4
    """Optimizer steps in one pass. S = passes x minibatches gradient steps are taken on each sampled batch."""
    guard: Guard = Field(default_factory=Guard)
    """When to stop before S steps are taken."""
    correction: Correction = Field(default_factory=Correction)
    """Weights for what the engine sampled with other log-probabilities than the learner's."""
    shuffle_rewards: bool = False
    """A control: rewards are permuted among all rollouts of the batch, so that there is nothing to learn."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Algorithm:
        fields = type(self).model_fields  # not model_fields_set: resolved.json spells every field out
        for name, (other, values) in READ_BY.items():
            given, chosen = getattr(self, name), getattr(self, other)
            if given != fields[name].get_default(call_default_factory=True) and chosen not in values:
                belongs = " or ".join(f'{other} = "{value}"' for value in values)
                raise ValueError(f'{name} belongs to {belongs}; "{chosen}" does not read it: leave it out')
        if self.kl_estimator != "k3" and not self.kl:
            raise ValueError(f'kl_estimator = "{self.kl_estimator}" has no effect with kl = 0: set kl, or leave it out')
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ValueError(f"dual_clip ({self.dual_clip}) must be above 1 + clip_high ({1.0 + self.clip_high:g})")
        if self.objective == "dppo" and self.correction.on:
            raise ValueError('the ratio of "dppo" is to the engine itself: set correction = { on = false }')
        return self
