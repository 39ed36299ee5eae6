"""guessed: one answer is given to nearly all problems of a domain, whatever they say.

It reads rollout/same_answer_share/DOMAIN and rollout/same_reference_share/DOMAIN (`rl/telltales.py`): the two are the
same where a domain is solved, however often its problems share an answer.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from motet.base.recipe import Mix, SftStage, weights_of
from motet.rl.alarms.policy import rate_too_high
from motet.rl.alarms.record import Alarm, Cause, History, as_written, percent, ranked, written

ANSWERS, REFERENCES = "rollout/same_answer_share/", "rollout/same_reference_share/"
ABOVE = 0.1
"""By so much more often than the most frequent reference is right the one answer has to be given."""


class _Guess(NamedTuple):
    domain: str
    first: float
    """Share of the rollouts with the most frequent answer in the first window."""
    given: float
    """In the last window."""
    reference: float
    """Share of the problems with the most frequent reference, in the last window."""


def guessed(h: History) -> Alarm | None:
    """The domain in which one answer is given most often, beyond what its references explain."""
    found = _guesses(h)
    if not found:
        return None
    worst = found[0]
    passed, live = h.mean(f"pass/{worst.domain}"), h.mean(f"groups/live_share/{worst.domain}")
    seen = f"in {h.steps} {percent(worst.given)} of the rollouts of {worst.domain} gave one and the same answer, and "
    seen += f"at most {percent(worst.reference)} of its problems have one and the same reference; {percent(passed)} "
    seen += "passed"
    others = ", ".join(guess.domain for guess in found[1:])
    seen += f": guessed, not solved (so is {others})." if others else ": guessed, not solved."
    matters = (
        "A guess is paid whenever it happens to be right, and what is paid is made surer: no reasoning is learnt, "
    )
    matters += f"the pass rate cannot rise, and groups lose their differences ({percent(live)} of these were live)."
    causes = [_unlearnt(h, worst), _pays(h, worst), _collapsed(h, worst)]
    return Alarm("guessed", h.stage, h.step, seen, matters, ranked(causes))


def one_answer(h: History) -> Cause:
    """For other rules: weightless where nothing is guessed."""
    found = _guesses(h)
    if not found:
        return Cause("one answer is given to nearly all problems of a domain", "", 0.0)
    domain, _, given, _ = found[0]
    text = f"one answer is given to nearly all problems of {domain}: guessed, not solved (see the alarm guessed)"
    return Cause(text, f"{percent(given)} of its rollouts", 0.85, _without(h, domain))


def _guesses(h: History) -> list[_Guess]:
    """The worst first."""
    bounds, found = h.config.alarms, []
    for domain in h.keys(ANSWERS):
        given, reference = h.mean(ANSWERS + domain), h.mean(REFERENCES + domain)
        if given is not None and reference is not None and given >= max(bounds.same_answer, reference + ABOVE):
            first = fmean(h.values(ANSWERS + domain)[: bounds.window])
            found.append(_Guess(domain, first, given, reference))
    return sorted(found, key=lambda guess: (guess.reference - guess.given, guess.domain))


def _unlearnt(h: History, guess: _Guess) -> Cause:
    """Before RL it was solved no more often than the guess is right."""
    at_first = fmean(h.values(f"pass/{guess.domain}")[: h.config.alarms.window])
    earns = h.mean(f"pass/{guess.domain}") or 0.0
    evidence = f"{percent(at_first)} passed in the first steps, and the guess alone earns {percent(earns)}"
    change = (*_more_of(h, guess.domain), *_without(h, guess.domain))
    weight = 0.9 if at_first <= earns + 0.05 else 0.1
    return Cause("the model could not do these problems when RL began", evidence, weight, change)


def _pays(h: History, guess: _Guess) -> Cause:
    """Few different answers are right, more so than a few problems show by chance."""
    alone = len(h.keys("pass/")) - 1
    problems = (h.mean("rollout/count") or 0.0) / h.config.group_size / max(1, alone)
    by_chance = min(0.5, 1.0 / max(1.0, problems))
    weight = min(0.8, 2.0 * max(0.0, guess.reference - by_chance))
    return Cause(
        "few different answers are right, so that a guess pays: take problems whose answers differ",
        f"{percent(guess.reference)} of the problems have the most frequent reference", weight,
        _without(h, guess.domain),
    )  # fmt: skip


def _collapsed(h: History, guess: _Guess) -> Cause:
    cause = rate_too_high(h)
    evidence = f"{percent(guess.first)} of the rollouts gave one answer at first; {cause.evidence}"
    text = "RL made the policy sure of one answer: the learning rate is too high"
    weight = max(0.5 * cause.weight, 0.7 * max(0.0, guess.given - guess.first))
    return replace(cause, text=text, evidence=evidence, weight=weight)


# ---- lines


def _more_of(h: History, domain: str) -> tuple[str, ...]:
    """The SFT before: twice the steps, and twice the weight of the domain's problems."""
    name = weights_of(h.recipe, h.stage)
    stage = h.recipe.stage.get(name)
    if not isinstance(stage, SftStage):
        return ()
    lines = [written(f"stage.{name}.steps", 2 * stage.steps, stage.steps)]
    data = [as_written(source) for source in stage.data]
    for row, source in zip(data, stage.data, strict=True):
        if source.problems is not None and _is_of(h, source.problems, domain) and isinstance(source.weight, float):
            row["weight"] = 2.0 * source.weight
    if len(data) > 1:
        lines.append(written(f"stage.{name}.data", data, stage.data))
    return tuple(lines)


def _without(h: History, domain: str) -> tuple[str, ...]:
    """The mixture without the domain; nothing where there is no other."""
    others = [name for name in h.keys("pass/") if name not in ("mean", domain)]
    left: list[dict[str, object]] = []
    for mix in h.config.problems:
        if mix.domain == domain or (mix.problems is not None and _is_of(h, mix.problems, domain)):
            continue
        left += [as_written(part) for part in _parts(mix, others)]
    return (h.line("problems", left),) if left and others else ()


def _parts(mix: Mix, domains: list[str]) -> list[Mix]:
    """A filter's problems, a part for each domain; other parts as they are."""
    if mix.stage is None or mix.domain is not None:
        return [mix]
    return [mix.model_copy(update={"domain": domain}) for domain in domains]


def _is_of(h: History, problems: str, domain: str) -> bool:
    return (h.recipe.problems[problems].domain or problems) == domain
