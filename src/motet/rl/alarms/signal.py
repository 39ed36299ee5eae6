"""no_signal: nothing is learnt, because groups are all right, all wrong, not judged, or weigh nothing.

Groups may have a signal and yet move no weight: their gradient is all but zero, or no step is taken on them at all.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median

from motet.base.recipe import FilterStage
from motet.rl.alarms.guessing import one_answer
from motet.rl.alarms.policy import rate_too_high
from motet.rl.alarms.record import Alarm, Cause, History, percent, ranked

WAS_ALIVE = 0.1
"""Problems with this pass rate before are not too hard."""
LATE = 0.05
"""Share of rollouts that fail to be judged, or to be in time, that is worth a word."""
EXPECTED = 6.0
"""So many passes at the pass rate of before: none at all is then no chance (e^-6 = 0.25 %)."""


def no_signal(h: History) -> Alarm | None:
    bounds = h.config.alarms
    live, norms, taken = (h.recent(key) for key in ("groups/live_share", "optim/grad_norm", "inner_steps"))
    if live and median(live) <= bounds.live_share:
        seen = f"in {h.steps} {percent(median(live))} of the groups had a signal (median)"
    elif norms and median(norms) <= bounds.grad_norm:
        seen = f"in {h.steps} the gradient norm was {median(norms):.2g} (median), with {percent(fmean(live or [0.0]))} "
        seen += "of the groups live"
    elif taken and median(taken) == 0:
        seen = (
            f"in {h.steps} no gradient step was taken (median), with {percent(fmean(live or [0.0]))} of the groups live"
        )
    else:
        return None
    earned = h.mean("pass/mean")
    seen += "." if earned is None else f"; {percent(earned)} of the rollouts passed."
    found = [_easy(h), _hard(h), _dead(h), _destroyed(h), _form(h), _cut(h), _weightless(h), _capped(h), one_answer(h)]
    causes = ranked(found)
    matters = "A group whose rewards are all equal has no gradient: the rollouts are paid for and nothing is learnt."
    return Alarm("no_signal", h.stage, h.step, seen, matters, causes)


def _easy(h: History) -> Cause:
    share = h.mean("groups/all_correct_share") or 0.0
    change = _other_bands(h, "beta", 0.6)
    change += [h.line("retire_at", 0.9)] if h.config.retire_at is None else []
    change += [h.line("refill", 1.0)] if not h.config.refill else []
    doubt = _always_right(h)
    return Cause(
        "the problems are too easy for the present weights", f"{percent(share)} of the groups are all correct",
        share * (1.0 - doubt), tuple(change),
    )  # fmt: skip


def _hard(h: History) -> Cause:
    share = h.mean("groups/all_wrong_share") or 0.0
    change = _other_bands(h, "alpha", 0.3)
    change += [h.line("group_size", 2 * h.config.group_size)]
    change += [h.line("refill", 1.0)] if not h.config.refill else []
    answered = 1.0 - _unanswered(h)
    return Cause(
        "the problems are too hard for the present weights", f"{percent(share)} of the groups are all wrong",
        share * answered * (1.0 - _dead_weight(h)), tuple(change),
    )  # fmt: skip


def _other_bands(h: History, end: str, value: float) -> list[str]:
    """Of the domain alone, where it is its own figures that are looked at."""
    bands = f"bands.{h.domain}" if h.domain else "band"
    return [f"stage.{name}.{bands}.{end} = {value}   # and filter again: motet run RECIPE --from {name}"
            for name in h.filters()]  # fmt: skip


def _dead(h: History) -> Cause:
    """A verifier that always says the same, or nothing, whatever the text is."""
    found = [text for text in (_unjudged_text(h), _suspicious(h), _fell_to_nothing(h)) if text]
    if _always_right(h):
        share = h.mean("rollout/right_without_reference_share")
        found.append(f"{percent(share)} of the rollouts judged correct do not contain the reference")
    change = ["motet check RECIPE   # every gold answer through its verifier, and nonsense"]
    if _late_share(h) > LATE:
        change.append(h.whole("verification.deadline_seconds", 2 * h.recipe.verification.deadline_seconds))
    weight = max(_dead_weight(h), _always_right(h))
    text = "the verifier is dead or wrong: it says the same of every text"
    return Cause(text, "; ".join(found), weight, tuple(change))


def _destroyed(h: History) -> Cause:
    """Steps that were taken moved the policy far, or the pass rate went down over several of them, to nothing."""
    cause, (before, since) = rate_too_high(h), _before(h)
    passed = h.values("pass/mean")
    first = fmean(passed[: len(passed) - since][: h.config.alarms.window] or [0.0])
    if since < _most(h) or first < WAS_ALIVE:
        return replace(cause, weight=0.0)
    faded = before < 0.5 * first
    torn = _is_no_chance(h) and not _fell_to_nothing(h) and not _unchanged(h)
    way = f"{percent(first)} to {percent(before)} to 0" if faded else f"{percent(before)} to 0"
    evidence = f"the pass rate went from {way}; {cause.evidence}"
    text = "the last steps destroyed the policy: the learning rate is too high"
    return replace(cause, text=text, evidence=evidence, weight=max(1.2 * cause.weight, 1.1 * faded, 1.0 * torn))


def _form(h: History) -> Cause:
    share = _unanswered(h)
    change = (
        h.whole("chat.think", "off" if h.recipe.chat.think == "required" else "required"),
        h.whole("chat.open_think", not h.recipe.chat.open_think),
    )
    return Cause(
        "completions do not have the form that is judged: the chat template or the think block does not fit the model",
        f"{percent(share)} of the rollouts are malformed or have no answer", share, change,
    )  # fmt: skip


def _cut(h: History) -> Cause:
    share = h.mean("rollout/truncated_share") or 0.0
    tokens = h.config.sampling.max_tokens
    return Cause(
        "completions are cut before they end, and a cut one has no reward",
        f"{percent(share)} of the rollouts are truncated at {tokens} tokens", share,
        (h.line("sampling.max_tokens", 2 * tokens),),
    )  # fmt: skip


def _weightless(h: History) -> Cause:
    """Groups have a signal, and their tokens weigh nothing."""
    share = h.mean("correction/masked_share") or 0.0
    live = h.mean("groups/live_share") or 0.0
    bound = h.config.algorithm.correction.sequence_bound
    return Cause(
        "engine and learner are so far apart that sequences are left out of the loss",
        f"{percent(share)} of the sequences are out", share * (live > h.config.alarms.live_share),
        (h.line("algorithm.correction.sequence_bound", 1.0 + 2 * (bound - 1.0)),),
    )  # fmt: skip


def _capped(h: History) -> Cause:
    """Groups have a signal, and their tokens weigh next to nothing, though they stay in the loss."""
    share, cap = h.mean("correction/truncated_share") or 0.0, h.config.algorithm.correction.token_cap
    on = h.config.algorithm.correction.on and (h.mean("groups/live_share") or 0.0) > h.config.alarms.live_share
    return Cause(
        "the weights between engine and learner are truncated to next to nothing",
        f"{percent(share)} of the tokens are truncated to token_cap, {cap:g}", on * share * max(0.0, 1.0 - cap),
        (h.line("algorithm.correction.token_cap", 2.0),),
    )  # fmt: skip


# ---- what speaks for a dead verifier


def _unanswered(h: History) -> float:
    return (h.mean("rollout/malformed_share") or 0.0) + (h.mean("rollout/no_answer_share") or 0.0)


def _failed_share(h: History) -> float:
    unjudged, rollouts = h.mean("rollout/unjudged"), h.mean("rollout/count")
    return unjudged / rollouts if unjudged and rollouts else 0.0


def _late_share(h: History) -> float:
    return (h.mean("rollout/timeout_share") or 0.0) + (h.mean("rollout/too_complex_share") or 0.0)


def _unjudged_share(h: History) -> float:
    return _failed_share(h) + _late_share(h)


def _unjudged_text(h: History) -> str:
    failed, late = _failed_share(h), _late_share(h)
    parts = [f"{percent(failed)} of the rollouts were not judged: log.txt says why" if failed > LATE else "",
             f"{percent(late)} of the rollouts were not judged in time" if late > LATE else ""]  # fmt: skip
    return "; ".join(filter(None, parts))


def _suspicious(h: History) -> str:
    share = h.mean("rollout/wrong_with_reference_share") or 0.0
    return f"{percent(share)} of the rollouts judged wrong hold the reference in their answer" if share > 0.2 else ""


def _before(h: History) -> tuple[float, int]:
    """(pass rate before nothing passed any more, steps since then): of the window before; where there is none, of the
    start on held-out problems, or what a filter kept at least."""
    passed = h.values("pass/mean")
    since = next((i for i, value in enumerate(reversed(passed)) if value > 0.0), len(passed))
    earlier = passed[: len(passed) - since][-h.config.alarms.window :]
    if earlier:
        return fmean(earlier), since
    kept = [stage.band.alpha for name in h.filters() if isinstance(stage := h.recipe.stage[name], FilterStage)]
    return max([*kept, h.last("heldout/before/pass") or 0.0]), since


def _fell_to_nothing(h: History) -> str:
    """From one step to the next not one rollout passes, and the completions are as they were."""
    before, since = _before(h)
    if not _is_no_chance(h) or h.largest("policy/kl_to_anchor") > 0.02 or not _unchanged(h):
        return ""
    return (
        f"{percent(before)} passed before, and none in the last {since} steps, though the completions are as they were"
    )


def _is_no_chance(h: History) -> bool:
    """Nothing has passed for most of a window, where several passes were to be expected by the rate of before."""
    before, since = _before(h)
    return since >= _most(h) and before * since * (h.mean("rollout/count") or 0.0) >= EXPECTED


def _most(h: History) -> int:
    """Steps of a window that its median follows."""
    return h.config.alarms.window // 2 + 1


def _unchanged(h: History) -> bool:
    """Since nothing passes, completions have the form and about the length that they had in the first step."""
    _, since = _before(h)

    def now(*keys: str) -> float:
        return sum(fmean(values) for key in keys if (values := h.values(key)[-max(1, since) :]))

    broken = now("rollout/malformed_share", "rollout/no_answer_share", "rollout/truncated_share") > 0.4
    first = h.values("rollout/tokens_mean")[:1]
    return not broken and bool(first) and 0.5 * first[0] <= now("rollout/tokens_mean") <= 2.0 * first[0]


def _dead_weight(h: History) -> float:
    share = h.mean("rollout/wrong_with_reference_share") or 0.0
    return min(1.0, max(_unjudged_share(h), 1.5 * share if share > 0.2 else 0.0, 0.9 * bool(_fell_to_nothing(h))))


def _always_right(h: History) -> float:
    """Share of what is judged correct that does not hold its reference, where everything is judged correct."""
    if (h.mean("groups/all_correct_share") or 0.0) < 0.9:
        return 0.0
    share = h.mean("rollout/right_without_reference_share") or 0.0
    return share if share > 0.3 else 0.0
