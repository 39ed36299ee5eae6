"""Rules about who waits for whom: an engine that has become slow or was slow from the start, verifiers that hold the
step up."""

from __future__ import annotations

from statistics import median

from motet.rl.alarms.record import Alarm, Cause, History, percent, ranked

LEAST_WAIT = 0.5
"""Seconds a step that are not worth an alarm, whatever their share."""
CRAWLING = 5.0
"""Tokens a second of one completion: below this no model that is worth training with is decoded well (ours)."""


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
    failures = sum(h.recent("engine/failures"))
    grew = lengths.last / lengths.first if lengths and lengths.first else 1.0
    causes = [
        _long_tail(h),
        _little_at_once(h),
        Cause("more is decoded side by side than the engine is good at",
              f"completions are {grew:.2g} times as long as at first, {engine.batch_size} side by side",
              min(0.8, max(0.0, (grew - 1.0) / 2.0)), (h.whole("engine.batch_size", max(1, engine.batch_size // 2)),)),
        Cause("the engine was restarted, swaps, or shares its machine with others",
              f"it failed and was brought back {failures:g} times in {h.steps}" if failures else "log.txt says when",
              0.9 if failures else 0.3,
              (h.whole("engine.timeout_seconds", 2 * engine.timeout_seconds),) if failures else ()),
    ]  # fmt: skip
    return Alarm("slow_engine", h.stage, h.step, seen, matters, ranked(causes))


def starved(h: History) -> Alarm | None:
    """Of a step's own time, so that an engine that was never any faster is seen too."""
    share, waits = _share(h, "time/generate"), h.recent("time/generate")
    # the first step starts and compiles; a step without a signal is all sampling, of which no_signal speaks
    if h.step <= h.config.alarms.window or not h.now("inner_steps"):
        return None
    if not waits or median(waits) < LEAST_WAIT or share <= h.config.alarms.starving:
        return None
    speed, engine = median(h.recent("tokens/sampled_per_second") or [0.0]), h.recipe.engine
    seen = f"in {h.steps} the learner waited for completions for {percent(share)} of a step (median); {speed:,.0f} "
    seen += f"tokens were sampled a second, {_asked(h):,.0f} completions a step."
    matters = "The learner stands still nearly all the time: the run takes as long as its sampling."
    refilled, failures = h.mean("groups/refilled") or 0.0, sum(h.recent("engine/failures"))
    uncached = "--no-enable-prefix-caching" in engine.arguments
    causes = [
        _long_tail(h),
        _little_at_once(h),
        _in_turns(h),
        _crawling(h),
        _little_to_learn(h),
        Cause("vLLM runs without CUDA graphs and compiled code", "engine.eager is true", 0.8 * engine.eager,
              (h.whole("engine.eager", False),)),
        Cause("each completion computes its prompt anew: the prefix cache is off",
              "engine.arguments has --no-enable-prefix-caching", 0.7 * uncached,
              (h.whole("engine.arguments", [word for word in engine.arguments if "prefix-caching" not in word]),)),
        Cause("groups without a signal are sampled again, round after round",
              f"{refilled:,.3g} groups a step beside {h.config.prompts_per_step}",
              min(0.8, refilled / h.config.prompts_per_step), (h.line("refill", h.config.refill / 2.0),)),
        Cause("the engine fails and is brought back", f"{failures:g} times in {h.steps}", 0.9 * (failures > 0),
              (h.whole("engine.timeout_seconds", 2 * engine.timeout_seconds),)),
        Cause("the embedded engine is made for small models", 'engine.kind is "transformers"',
              0.4 * (engine.kind == "transformers"), (h.whole("engine.kind", "vllm"),)),
        _one_after_the_other(h, share),
    ]  # fmt: skip
    return Alarm("starved", h.stage, h.step, seen, matters, ranked(causes))


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


# ---- causes


def _asked(h: History) -> float:
    return h.mean("rollout/count") or float(h.config.prompts_per_step * h.config.group_size)


def _at_once(h: History) -> int:
    """How many completions the engine decodes side by side: `batch_size` of each server."""
    engine = h.recipe.engine
    return engine.batch_size * max(1, len(engine.urls), len(engine.gpus) // engine.gpus_of_a_server)


def _long_tail(h: History) -> Cause:
    longest, mean = h.mean("rollout/tokens_max") or 0.0, h.mean("rollout/tokens_mean") or 1.0
    return Cause(
        "a few long completions are waited for while the rest of the engine idles",
        f"the longest is {longest:,.0f} tokens long, the mean {mean:,.0f}",
        min(1.0, longest / mean / 10.0) * (longest > 3 * mean),
        (h.line("sampling.max_tokens", max(1, int(longest * 0.75))),),
    )


def _little_at_once(h: History) -> Cause:
    asked, room = _asked(h), _at_once(h)
    return Cause(
        "the engine has less to do at once than it could",
        f"{asked:,.0f} completions a step, engine.batch_size is {h.recipe.engine.batch_size}", 0.5 * (asked < room),
        (h.line("prompts_per_step", 2 * h.config.prompts_per_step),),
    )  # fmt: skip


def _in_turns(h: History) -> Cause:
    asked, room, size = _asked(h), _at_once(h), h.recipe.engine.batch_size
    return Cause(
        "most completions wait for their turn", f"{asked:,.0f} completions a step, {room:,} side by side",
        min(0.7, 0.1 * asked / room) * (asked >= 2 * room), (h.whole("engine.batch_size", 2 * size),),
    )  # fmt: skip


def _crawling(h: History) -> Cause:
    """The longest completion was decoded from beginning to end within the sampling of its step."""
    longest, seconds = h.mean("rollout/tokens_max") or 0.0, h.mean("time/sample") or h.mean("time/generate") or 1.0
    speed, alone = longest / seconds, _asked(h) <= _at_once(h)
    return Cause(
        "the engine's machine is slow, or shared with others", f"the longest completion grew by {speed:.3g} tokens a "
        "second", 0.75 if alone and speed < CRAWLING else 0.1, (h.whole("model.device", "cuda"),)
        if h.recipe.model.device == "cpu" else (),
    )  # fmt: skip


def _little_to_learn(h: History) -> Cause:
    live, right, wrong = (h.mean(f"groups/{name}_share") or 0.0 for name in ("live", "all_correct", "all_wrong"))
    text = "most of what is sampled has no signal, so that the learner has little to do"
    change = h.line("retire_at", 0.9) if right > wrong else h.line("group_size", 2 * h.config.group_size)
    return Cause(text, f"{percent(live)} of the groups have one", 0.8 * (1.0 - live) * (live < 0.5), (change,))


def _one_after_the_other(h: History, share: float) -> Cause:
    """What overlap would save: the learner's part of a step."""
    engine, config = h.recipe.engine, h.config
    apart = engine.kind == "vllm" and bool(engine.python or engine.urls) and not engine.sleep
    return Cause(
        "engine and learner take turns",
        f"overlap is false; the rest of a step is {percent(1.0 - share)}",
        (1.0 - share) * (apart and not config.overlap and config.algorithm.correction.on),
        (h.line("overlap", True),),
    )


def _share(h: History, key: str) -> float:
    """Median share of the step's time."""
    parts, steps = h.recent(key), h.recent("time/step")
    if not parts or len(parts) != len(steps):
        return 0.0
    return median(part / step if step else 0.0 for part, step in zip(parts, steps, strict=True))
