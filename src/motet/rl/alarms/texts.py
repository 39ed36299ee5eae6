"""Rules about what the completions look like: their form, their length, whether they repeat themselves."""

from __future__ import annotations

import math
from dataclasses import replace

from motet.rl.alarms.policy import rate_too_high
from motet.rl.alarms.record import Alarm, Cause, History, percent, ranked


def unparsable(h: History) -> Alarm | None:
    found = _risen(h, "rollout/malformed_share", "rollout/no_answer_share")
    if found is None:
        return None
    first, last = found
    malformed, answerless = h.mean("rollout/malformed_share") or 0.0, h.mean("rollout/no_answer_share") or 0.0
    seen = f"malformed or without an answer: {percent(first)} of the rollouts at first, {percent(last)} in {h.steps} "
    seen += f"(malformed {percent(malformed)}, no answer {percent(answerless)})."
    matters = (
        "Such a rollout earns what a wrong one does, whatever its reasoning was worth, and a model that has lost the "
    )
    matters += "form fails everywhere."
    rewards = h.config.rewards
    lowest = min(r for r in (rewards.incorrect, 0.0) if r is not None)
    causes = [
        _unlearnt(h),
        Cause("a completion without form costs no more than a wrong one",
              f"rewards.malformed is {rewards.malformed}, rewards.incorrect {rewards.incorrect}",
              0.6 * ((rewards.malformed or 0.0) >= (rewards.incorrect or 0.0)),
              (h.line("rewards.malformed", lowest - 0.5), h.line("rewards.no_answer", lowest - 0.25))),
        _hot(h),
        _nothing_holds(h),
    ]  # fmt: skip
    return Alarm("unparsable", h.stage, h.step, seen, matters, ranked(causes))


def truncated(h: History) -> Alarm | None:
    found = _risen(h, "rollout/truncated_share")
    if found is None:
        return None
    first, last = found
    tokens = h.config.sampling.max_tokens
    reward = h.config.rewards.truncated
    seen = f"cut at {tokens} tokens: {percent(first)} of the rollouts at first, {percent(last)} in {h.steps}."
    worth = "has no reward and leaves the loss" if reward is None else f"earns {reward:g}"
    matters = f"A cut completion {worth}: the longest reasoning is not learnt from, or learnt against."
    longer = h.ends("rollout/tokens_mean")
    grew = longer.last / longer.first - 1.0 if longer and longer.first else 0.0
    repeated = h.mean("rollout/repetition_share") or 0.0
    causes = [
        Cause("completions have grown to the limit", f"mean length {percent(grew)} above the first steps'",
              min(1.0, max(0.0, grew)) * (1.0 - repeated), (h.line("sampling.max_tokens", 2 * tokens),)),
        Cause("completions go round in circles", f"{percent(repeated)} of their runs of tokens are repeated",
              repeated, (h.line("rewards.truncated", -0.5),)),
        Cause("nothing teaches the policy to end", "rewards.truncated is unset", 0.4 * (reward is None),
              (h.line("rewards.truncated", 0.0),)),
        _unlearnt(h),
    ]  # fmt: skip
    return Alarm("truncated", h.stage, h.step, seen, matters, ranked(causes))


def length(h: History) -> Alarm | None:
    ends, passed = h.ends("rollout/tokens_mean"), h.ends("pass/mean")
    if ends is None or ends.last <= h.config.alarms.length * ends.first:
        return None
    gained = passed.last - passed.first if passed else 0.0
    if gained >= 0.05:
        return None
    seen = (
        f"completions are {ends.last:.3g} tokens long in {h.steps} and were {ends.first:.3g}; the pass rate moved by "
    )
    seen += f"{100 * gained:+.1f} points."
    matters = "Length that earns nothing costs sampling time and, at the limit, turns into truncated rollouts."
    aggregation = h.config.algorithm.aggregation
    repeated = h.mean("rollout/repetition_share") or 0.0
    causes = [
        Cause("completions repeat themselves", f"{percent(repeated)} of their runs of tokens are repeated", repeated,
              (h.line("rewards.truncated", -0.5),)),
        Cause("the mean over sequences makes a wrong answer's tokens cheaper the more of them there are",
              f"algorithm.aggregation is {aggregation}", 0.8 * (aggregation == "sequences"),
              (h.line("algorithm.aggregation", "domains"),)),
        Cause("a long completion is never the worse for it", "truncated rollouts have no reward",
              0.4 * (h.config.rewards.truncated is None), (h.line("rewards.truncated", 0.0),)),
        _unlearnt(h),
    ]  # fmt: skip
    return Alarm("length", h.stage, h.step, seen, matters, ranked(causes))


def repetition(h: History) -> Alarm | None:
    share = h.mean("rollout/repetition_share")
    if share is None or share <= h.config.alarms.repetition:
        return None
    first = h.values("rollout/repetition_share")[0]
    entropy, cut = h.ends("rollout/entropy"), h.mean("rollout/truncated_share") or 0.0
    fell = 1.0 - entropy.last / entropy.first if entropy and entropy.first else 0.0
    temperature = h.config.sampling.temperature
    seen = f"in {h.steps} {percent(share)} of the runs of 8 tokens were there before ({percent(first)} in the "
    seen += f"first step); {percent(cut)} of the completions were cut."
    matters = "A loop fills the window and answers nothing; where it happens to be rewarded, it is learnt."
    causes = [
        Cause("the policy has collapsed onto few tokens", f"entropy is {percent(fell)} below the first steps'",
              min(1.0, max(0.0, fell)), (h.line("algorithm.entropy_bonus", 1e-3),)),
        Cause("the temperature is too low to leave a loop", f"sampling.temperature is {temperature:g}",
              min(1.0, max(0.0, 1.0 - temperature)), (h.line("sampling.temperature", 1.0),)),
        Cause("the model came with it", f"{percent(first)} in the first step already",
              0.7 * (first > h.config.alarms.repetition), ("stage.SYNTHESIZE.rules.max_repetition = 0.3",)),
        Cause("loops cost nothing", "truncated rollouts have no reward",
              min(0.6, cut) * (h.config.rewards.truncated is None), (h.line("rewards.truncated", -0.5),)),
        _unlearnt(h),
    ]  # fmt: skip
    return Alarm("repetition", h.stage, h.step, seen, matters, ranked(causes))


# ---- what several rules look at


def _risen(h: History, *keys: str) -> tuple[float, float] | None:
    """(share at first, share now) of the sum of `keys`, where it rose by more than the bound and than chance explains:
    three standard errors of a difference of shares."""
    ends = [h.ends(key) for key in keys]
    if any(end is None for end in ends):
        return None
    first, last = (sum(end[i] for end in ends if end is not None) for i in (0, 1))
    rollouts = (h.mean("rollout/count") or 1.0) * h.config.alarms.window
    mean = min(1.0, 0.5 * (first + last))
    chance = 3.0 * math.sqrt(2.0 * mean * (1.0 - mean) / rollouts)
    return (first, last) if last - first > max(h.config.alarms.rise, chance) else None


def _unlearnt(h: History) -> Cause:
    """Large steps: the policy moves fast, and forgets what SFT taught."""
    cause = rate_too_high(h)
    return replace(cause, text="the steps are so large that what SFT taught is undone", weight=max(0.1, cause.weight))


def _hot(h: History) -> Cause:
    temperature = h.config.sampling.temperature
    return Cause(
        "the temperature draws tokens that break the form", f"sampling.temperature is {temperature:g}",
        min(1.0, max(0.0, temperature - 1.0)), (h.line("sampling.temperature", 1.0),),
    )  # fmt: skip


def _nothing_holds(h: History) -> Cause:
    return Cause(
        "nothing holds the policy to the weights that it starts from", "algorithm.kl is 0",
        0.25 * (not h.config.algorithm.kl), (h.line("algorithm.kl", 1e-3),),
    )  # fmt: skip
