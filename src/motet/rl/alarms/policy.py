"""Rules about the policy: its entropy, its distance from the engine that samples, and how stale a batch is."""

from __future__ import annotations

from statistics import median

from motet.rl.alarms.record import Alarm, Cause, History, percent, ranked


def entropy_collapse(h: History) -> Alarm | None:
    ends, passed = h.ends("rollout/entropy"), h.ends("pass/mean")
    if ends is None or ends.first <= 0.0 or ends.last >= h.config.alarms.entropy_low * ends.first:
        return None
    # a policy that passes more is surer: entropy may fall as the share of failures does
    if passed is not None and passed.first < 1.0:
        failures = max(0.0, 1.0 - passed.last) / (1.0 - passed.first)
        if failures < 1.0 and ends.last >= 0.5 * failures * ends.first:
            return None
    seen = f"entropy fell from {ends.first:.3g} to {ends.last:.3g} nats a token (the first steps; {h.steps})."
    matters = (
        "A policy without entropy samples the same text again: groups lose their differences, and exploration ends."
    )
    algorithm = h.config.algorithm
    clipped = h.mean("policy/clip_high_share") or 0.0
    causes = [
        rate_too_high(h),
        Cause("the upper clip holds rare tokens down", f"{percent(clipped)} of the tokens are held at clip_high",
              min(1.0, 0.3 + 5.0 * clipped), (h.line("algorithm.clip_high", max(0.28, 1.4 * algorithm.clip_high)),)),
        _reused(h),
        Cause("nothing in the loss keeps entropy up",
              "" if algorithm.entropy_bonus else "algorithm.entropy_bonus is 0", 0.25 * (not algorithm.entropy_bonus),
              (h.line("algorithm.entropy_bonus", 1e-3),)),
        _cold(h),
    ]  # fmt: skip
    return Alarm("entropy_collapse", h.stage, h.step, seen, matters, ranked(causes))


def entropy_blowup(h: History) -> Alarm | None:
    ends = h.ends("rollout/entropy")
    if ends is None or ends.last <= h.config.alarms.entropy_high * ends.first or ends.last < ends.first + 0.5:
        return None
    seen = f"entropy rose from {ends.first:.3g} to {ends.last:.3g} nats a token (the first steps; {h.steps})."
    matters = "A policy close to uniform writes noise: what the stages before have taught is being lost."
    algorithm = h.config.algorithm
    bonus, drift = algorithm.entropy_bonus, h.mean("engine/logprob_diff_mean") or 0.0
    temperature = h.config.sampling.temperature
    causes = [
        rate_too_high(h),
        Cause("the entropy bonus outweighs the rewards", f"algorithm.entropy_bonus is {bonus:g}",
              1.0 * (bonus > 0), (h.line("algorithm.entropy_bonus", 0.0),)),
        Cause("the temperature draws tokens that the policy then learns", f"sampling.temperature is {temperature:g}",
              min(1.0, max(0.0, temperature - 1.0)), (h.line("sampling.temperature", 1.0),)),
        Cause("samples of another policy are learnt from", f"engine and learner differ by {drift:.2g} nats a token",
              min(1.0, drift / 0.1) * (drift > h.config.alarms.drift),
              (h.line("algorithm.correction.on", True),) if not algorithm.correction.on else ()),
        _reused(h),
    ]  # fmt: skip
    return Alarm("entropy_blowup", h.stage, h.step, seen, matters, ranked(causes))


def drift(h: History) -> Alarm | None:
    found = h.recent("engine/logprob_diff_mean")
    if not found or median(found) <= h.config.alarms.drift:
        return None
    first, now = h.values("engine/logprob_diff_mean")[0], median(found)
    from_the_start = first > 0.5 * now
    seen = f"engine and learner differ by {now:.2g} nats a token in {h.steps} (median; the first step: {first:.2g})."
    matters = (
        "The engine samples from another policy than the one that is trained: ratios start away from 1, and small "
    )
    matters += "biases add up until the run collapses."
    engine, model = h.recipe.engine, h.recipe.model
    other = engine.kind == "vllm"
    text = f"it was {first:.2g} at the first step already" if from_the_start else f"it grew from {first:.2g}"
    causes = [
        Cause("engine and learner compute in different types or with different kernels",
              text + f"; engine.kind is {engine.kind}, model.dtype is {model.dtype}",
              (0.8 if other else 0.4) * from_the_start,
              (h.whole("model.dtype", "float32"),) if model.dtype != "float32" else ()),
        Cause("the engine does not have the learner's weights: a load did not arrive", text, 0.9 * (not from_the_start),
              (h.whole("engine.transfer", "files"),) if other else ()),
        Cause("the engine samples another distribution than the recipe says (temperature, a generation config)", text,
              0.5 * from_the_start, (h.line("sampling.temperature", 1.0),)),
    ]  # fmt: skip
    if not h.config.algorithm.correction.on:
        line = h.line("algorithm.correction.on", True)
        causes.append(Cause("the difference is not corrected for", "algorithm.correction.on is false", 0.6, (line,)))
    return Alarm("drift", h.stage, h.step, seen, matters, ranked(causes))


def importance(h: History) -> Alarm | None:
    bounds = h.config.alarms
    weight, ess = h.mean("correction/importance_mean"), h.mean("correction/ess")
    if weight is None or ess is None:
        return None
    if bounds.importance_low <= weight <= bounds.importance_high and ess >= bounds.importance_ess:
        return None
    out = h.mean("correction/masked_share") or 0.0
    seen = f"in {h.steps} the mean weight between engine and learner was {weight:.3g} and the effective sample size "
    seen += f"{percent(ess)} of the tokens (bounds: {bounds.importance_low:g} to {bounds.importance_high:g}, and "
    seen += f"{percent(bounds.importance_ess)}); {percent(out)} of the sequences were out."
    matters = (
        "A few tokens carry the gradient: its noise is that of a batch so much smaller, and its direction is biased."
    )
    difference, age = h.mean("engine/logprob_diff_mean") or 0.0, _age(h)
    on, cap = h.config.algorithm.correction.on, h.config.algorithm.correction.token_cap
    causes = [
        Cause("the engine is another policy: see the alarm drift", f"they differ by {difference:.2g} nats a token",
              min(1.0, difference / 0.05), (h.whole("model.dtype", "float32"),) if h.recipe.model.dtype != "float32"
              else (h.line("sampling.temperature", 1.0),)),
        Cause("rollouts are older than the weights", f"up to {age:.2g} batches",
              min(1.0, age / (2.0 * bounds.staleness)), _less_overlap(h)),
        Cause("weights are not truncated", "algorithm.correction.on is false", 0.5 * (not on),
              (h.line("algorithm.correction.on", True),)),
        Cause("weights are truncated late", f"token_cap is {cap:g}", 0.3 * (on and cap > 2.0),
              (h.line("algorithm.correction.token_cap", 2.0),)),
    ]  # fmt: skip
    return Alarm("importance", h.stage, h.step, seen, matters, ranked(causes))


def stale(h: History) -> Alarm | None:
    bounds, algorithm = h.config.alarms, h.config.algorithm
    planned = algorithm.passes * algorithm.minibatches
    used, age = h.mean("inner_steps"), _age(h)
    stopped = h.mean("guard/stopped") or 0.0
    left = 1.0 - used / planned if used is not None and stopped > 0.5 else 0.0
    if left <= bounds.left_out and age <= bounds.staleness:
        return None
    spent, old = left > bounds.left_out, age > bounds.staleness
    seen = [
        f"{used or 0.0:.3g} of {planned} gradient steps were taken on a batch (mean); the guard ended "
        f"{percent(stopped)} of them" if spent else "",
        f"rollouts were up to {age:.2g} batches old (mean)" if old else "",
    ]  # fmt: skip
    matters = [
        "The batch is spent before it is used up: steps on it would push the policy where the rollouts say nothing."
        if spent else "",
        "The older the weights that sampled a batch, the less it says of the present ones: its importance weights "
        "spread, and the gradient is noise." if old else "",
    ]  # fmt: skip
    reused, asked = h.mean("rollout/reused") or 0.0, h.mean("rollout/count") or 1.0
    aged = min(1.0, age / (2.0 * bounds.staleness)) * old
    causes = [
        rate_too_high(h),
        Cause("more steps are asked of a batch than it is good for", f"S is {planned}, {used or 0.0:.3g} were taken",
              left, (h.line("algorithm.minibatches", max(1, algorithm.minibatches // 2)),
                     *((h.line("algorithm.passes", 1),) if algorithm.passes > 1 else ()))),
        Cause("the filter's rollouts are used for too many steps: they are of the weights before the first",
              f"{percent(reused / asked)} of the rollouts of a step are the filter's", aged * (reused > 0),
              (h.line("reuse_filter", bounds.staleness),)),
        Cause("rollouts wait for the learner: sampling runs ahead", f"up to {age:.2g} batches old",
              aged * (reused == 0), _less_overlap(h)),
    ]  # fmt: skip
    told = " and ".join(filter(None, seen))
    why = " ".join(filter(None, matters))
    return Alarm("stale", h.stage, h.step, f"in {h.steps} {told}.", why, ranked(causes))


# ---- causes that several rules share


def rate_too_high(h: History) -> Cause:
    """By how far the policy moves within a batch, and by gradients that are cut down to the largest norm."""
    kl, norm = h.largest("policy/kl_to_anchor"), h.largest("optim/grad_norm")
    rate, most = h.config.optimizer.learning_rate, h.config.optimizer.max_grad_norm
    evidence = f"the gradient norm is {norm:.2g}, cut at {most:g}"
    if kl > 1e-6:  # with one step on each batch it is not measured
        evidence = f"the policy moves {kl:.2g} nats a token within a batch; {evidence}"
    weight = min(0.9, kl / 0.02 + 0.3 * (norm > most))
    return Cause("the learning rate is too high", evidence, weight, (h.line("optimizer.learning_rate", rate / 3.0),))


def _age(h: History) -> float:
    """Of the oldest rollouts, in sampled batches: versions of the weights by the steps that one batch is for."""
    algorithm = h.config.algorithm
    return (h.mean("rollout/staleness_max") or 0.0) / (algorithm.passes * algorithm.minibatches)


def _less_overlap(h: History) -> tuple[str, ...]:
    return (h.line("overlap", False),) if h.config.overlap else ()


def _reused(h: History) -> Cause:
    algorithm = h.config.algorithm
    planned = algorithm.passes * algorithm.minibatches
    guard = () if algorithm.guard.on else (h.line("algorithm.guard.on", True),)
    fewer = (h.line("algorithm.passes", 1),) if algorithm.passes > 1 else ()
    evidence = f"S is {planned}, {algorithm.passes} passes over each batch" + (
        "" if algorithm.guard.on else ", no guard"
    )
    weight = (0.5 * (algorithm.passes > 1) + 0.2 * (not algorithm.guard.on)) if planned > 1 else 0.0
    return Cause("each batch is used too often", evidence, weight, (*fewer, *guard))


def _cold(h: History) -> Cause:
    temperature = h.config.sampling.temperature
    return Cause(
        "the temperature samples little but the likeliest tokens", f"sampling.temperature is {temperature:g}",
        min(1.0, max(0.0, 1.0 - temperature)), (h.line("sampling.temperature", 1.0),),
    )  # fmt: skip
