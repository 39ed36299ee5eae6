"""Rules about who waits for whom: an engine that has become slow, verifiers that hold the step up."""

from __future__ import annotations

from statistics import median

from motet.rl.alarms.record import Alarm, Cause, History, percent, ranked

LEAST_WAIT = 0.5
"""Seconds a step that are not worth an alarm, whatever their share."""


def slow_engine(h: History) -> Alarm | None:
    window = h.config.alarms.window
    speeds, now = h.values("tokens/sampled_per_second"), h.recent("tokens/sampled_per_second")
    share = _share(h, "time/generate")
    if len(speeds) < 2 * window or not now or share < 0.5:
        return None
    first = median(speeds[:window])
    if median(now) >= h.config.alarms.slowdown * first:
        return None
    seen = f"{median(now):,.0f} tokens were sampled a second in {h.steps} (median), {first:,.0f} at first; sampling is "
    seen += f"{percent(share)} of a step."
    matters = "The learner waits for the engine: the run takes as much longer."
    engine, lengths = h.recipe.engine, h.ends("rollout/tokens_mean")
    longest, mean = h.mean("rollout/tokens_max") or 0.0, h.mean("rollout/tokens_mean") or 1.0
    asked = h.mean("rollout/count") or float(h.config.prompts_per_step * h.config.group_size)
    failures = sum(h.recent("engine/failures"))
    grew = lengths.last / lengths.first if lengths and lengths.first else 1.0
    causes = [
        Cause("a few long completions are waited for while the rest of the engine idles",
              f"the longest is {longest:,.0f} tokens long, the mean {mean:,.0f}",
              min(1.0, longest / mean / 10.0) * (longest > 3 * mean),
              (h.line("sampling.max_tokens", max(1, int(longest * 0.75))),)),
        Cause("the engine has less to do at once than it could", f"{asked:,.0f} completions a step, "
              f"engine.batch_size is {engine.batch_size}", 0.5 * (asked < engine.batch_size),
              (h.line("prompts_per_step", 2 * h.config.prompts_per_step),)),
        Cause("more is decoded side by side than the engine is good at",
              f"completions are {grew:.2g} times as long as at first, {engine.batch_size} side by side",
              min(0.8, max(0.0, (grew - 1.0) / 2.0)), (h.whole("engine.batch_size", max(1, engine.batch_size // 2)),)),
        Cause("the engine was restarted, swaps, or shares its machine with others",
              f"it failed and was brought back {failures:g} times in {h.steps}" if failures else "log.txt says when",
              0.9 if failures else 0.3,
              (h.whole("engine.timeout_seconds", 2 * engine.timeout_seconds),) if failures else ()),
    ]  # fmt: skip
    return Alarm("slow_engine", h.stage, h.step, seen, matters, ranked(causes))


def slow_verifiers(h: History) -> Alarm | None:
    share = _share(h, "time/judge")
    waits = h.recent("time/judge")
    # the workers start with the first step
    if h.step <= h.config.alarms.window or not waits or median(waits) < LEAST_WAIT or share <= h.config.alarms.waiting:
        return None
    verification = h.recipe.verification
    late = (h.mean("rollout/timeout_share") or 0.0) + (h.mean("rollout/too_complex_share") or 0.0)
    seen = f"in {h.steps} {percent(share)} of a step was spent waiting for verdicts after the last completion; "
    seen += f"{percent(late)} of the rollouts ran into a deadline."
    matters = "Engine and learner stand still until the last verdict is there."
    causes = [
        Cause("verdicts run into their deadline", f"{percent(late)} of the rollouts", min(1.0, 4.0 * late),
              (h.whole("verification.deadline_seconds", max(0.5, verification.deadline_seconds / 2.0)),)),
        Cause("there are too few workers for so many rollouts", f"{verification.workers} judge", 0.5,
              (h.whole("verification.workers", 2 * verification.workers),)),
    ]  # fmt: skip
    return Alarm("slow_verifiers", h.stage, h.step, seen, matters, ranked(causes))


def _share(h: History, key: str) -> float:
    """Median share of the step's time."""
    parts, steps = h.recent(key), h.recent("time/step")
    if not parts or len(parts) != len(steps):
        return 0.0
    return median(part / step if step else 0.0 for part, step in zip(parts, steps, strict=True))
