"""Rules about held-out problems: worse than the model that RL started from, gains in training alone, a domain that
falls.

They read what `rl/heldout.py` says of a look at the held-out problems, while RL goes on or after it: `heldout/pass`,
`heldout/malformed`, ..., and the change against the evaluation of the weights that RL started from, paired by problem.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from motet.base.recipe import FilterStage, SftStage, weights_of
from motet.rl.alarms.guessing import one_answer
from motet.rl.alarms.policy import rate_too_high
from motet.rl.alarms.record import Alarm, Cause, History, as_written, percent, ranked, written


def below_start(h: History) -> Alarm | None:
    change, high = h.last("heldout/change"), h.last("heldout/change_high")
    if change is None or high is None or -change < h.config.alarms.fall or high >= 0.0:
        return None
    shares, worst = _forms(h)
    seen = f"{shares}; held-out pass@1 {percent(h.last('heldout/before/pass'))} before RL and "
    seen += f"{percent(h.last('heldout/after/pass'))} now on the same problems "
    seen += f"({100 * change:+.1f} points, 95 % up to {100 * high:+.1f})."
    matters = "RL has made the model worse than the SFT model that it started from."
    rewards = h.config.rewards
    reward = h.ends("reward/mean")
    rose = reward is not None and reward.last > reward.first
    causes = [
        Cause(f"more completions are {worst.name} than before: the answers may be there and are not read",
              f"{percent(worst.before)} before, {percent(worst.now)} now", min(1.0, 3.0 * worst.rise),
              (h.line("sampling.max_tokens", 2 * h.config.sampling.max_tokens),
               h.whole("evaluation.sampling.max_tokens", 2 * h.recipe.evaluation.sampling.max_tokens))
              if worst.name == "truncated" else (h.line("rewards.malformed", (rewards.incorrect or 0.0) - 0.5),)),
        Cause("the training problems are learnt by heart, or the reward can be gamed",
              "the training reward rose meanwhile" if rose else "", 0.5 * rose,
              ("motet check RECIPE", h.line("retire_at", 0.9))),
        rate_too_high(h),
        Cause("nothing holds the policy to the weights that it starts from", "algorithm.kl is 0",
              0.15 * (not h.config.algorithm.kl), (h.line("algorithm.kl", 1e-3),)),
    ]  # fmt: skip
    return Alarm("below_start", h.stage, h.step, seen, matters, ranked(causes))


def not_generalising(h: History) -> Alarm | None:
    reward = h.ends("reward/mean")
    before, now = _first_look(h), h.last("heldout/pass")
    if reward is None or before is None or now is None or reward.last - reward.first < h.config.alarms.gain:
        return None
    gained = h.last("heldout/change")
    gained = now - before if gained is None else gained
    if gained >= 0.25 * (reward.last - reward.first) or reward.first >= now + 0.5:
        return None
    seen = f"the training reward rose from {reward.first:.3g} to {reward.last:.3g}, and held-out pass@1 moved by "
    seen += f"{100 * gained:+.1f} points, to {percent(now)}."
    matters = (
        "What is rewarded is not what is measured: problems learnt by heart, or a reward that can be had otherwise."
    )
    asked, known = h.step * h.config.prompts_per_step, _problems(h)
    again = asked / known if known else 0.0
    shares, worst = _forms(h)
    causes = [
        _gamed(h),
        one_answer(h),
        Cause("few problems are asked again and again", f"{asked:,} were drawn from {known:,}" if known else "",
              min(0.7, 0.1 + again / 10.0), (h.line("retire_at", 0.9), h.whole(*_more_problems(h)))),
        _sharper(h),
        Cause(f"held-out completions are {worst.name}", shares, min(1.0, 3.0 * worst.rise),
              (h.whole("evaluation.sampling.max_tokens", 2 * h.config.sampling.max_tokens),)),
        Cause("the held-out problems are of other kinds than those trained on",
              "", 0.1, (h.line("problems", [*(as_written(m) for m in h.config.problems)]),)),
    ]  # fmt: skip
    return Alarm("not_generalising", h.stage, h.step, seen, matters, ranked(causes))


def _gamed(h: History) -> Cause:
    suspicious = h.mean("rollout/right_without_reference_share")
    what, change = "the verifier can be gamed", ("motet check RECIPE",)
    if suspicious is None:
        return Cause(what, "", 0.2, change)
    told = f"{percent(suspicious)} of the rollouts judged correct do not hold the reference"
    return Cause(what, told, 0.2 + 0.8 * suspicious if suspicious > 0.3 else 0.05, change)


def _sharper(h: History) -> Cause:
    """Less entropy is worth something where it is sampled with, and nothing where evaluation samples colder anyway."""
    trained, measured = h.config.sampling.temperature, h.recipe.evaluation.sampling.temperature
    entropy = h.ends("policy/entropy")
    change = [h.whole("evaluation.sampling.temperature", trained)]
    before = weights_of(h.recipe, h.stage)
    start = h.recipe.stage.get(before)
    if isinstance(start, SftStage):
        change.append(written(f"stage.{before}.steps", max(1, start.steps // 2), start.steps))
    if entropy is None or measured >= trained or entropy.last >= entropy.first:
        return Cause("it became surer of what it said before", "", 0.02, tuple(change))
    told = f"entropy {entropy.first:.3g} to {entropy.last:.3g} nats a token, at temperature {trained:g}"
    weight = 0.8 * (1.0 - entropy.last / max(entropy.first, 1e-9))
    what = f"it became surer of what it said before, which evaluation at temperature {measured:g} does not see"
    return Cause(what, told, weight, tuple(change))


def forgetting(h: History) -> Alarm | None:
    """The domain that has fallen most, whether it is trained on or not; by the training pass rates where none is held
    out."""
    fallen, held = {}, "held-out pass@1"
    for domain in h.keys("heldout/change/"):
        change, high = h.last(f"heldout/change/{domain}"), h.last(f"heldout/change_high/{domain}")
        if change is not None and high is not None and -change >= h.config.alarms.fall and high < 0.0:
            fallen[domain] = change
    if not h.values("heldout/pass"):
        fallen, held = _fallen_in_training(h), "training pass rate"
    if not fallen:
        return None
    domain = min(fallen, key=fallen.__getitem__)
    trained = domain in h.keys("pass/")
    now = h.last(f"heldout/pass/{domain}")
    seen = f"{held} of {domain} fell by {-100 * fallen[domain]:.1f} points since RL began, to "
    seen += percent(h.mean(f"pass/{domain}") if now is None else now)
    seen += "" if trained else "; RL does not train on it"
    others = [name for name in fallen if name != domain]
    seen += f" ({', '.join(others)} fell too)." if others else "."
    matters = "What earlier stages taught is overwritten: a gain in one domain is paid for with another one."
    return Alarm("forgetting", h.stage, h.step, seen, matters, ranked(_forgotten(h, domain, trained)))


def _fallen_in_training(h: History) -> dict[str, float]:
    """Domains, of several, whose pass rate fell by `rise` and by more than three standard errors."""
    domains = h.domains
    even = h.config.alarms.window * (h.mean("rollout/count") or 1.0) / max(1, len(domains))
    fallen = {}
    for name in domains:
        rollouts = sum(h.recent(f"rollout/count/{name}")) or even
        ends = h.ends(f"pass/{name}") if len(domains) > 1 else None
        if ends is not None:
            mean = 0.5 * (ends.first + ends.last)
            chance = 3.0 * math.sqrt(2.0 * mean * (1.0 - mean) / rollouts)
            if ends.first - ends.last > max(h.config.alarms.rise, chance):
                fallen[name] = ends.last - ends.first
    return fallen


def _forgotten(h: History, domain: str, trained: bool) -> list[Cause]:
    config, algorithm = h.config, h.config.algorithm
    share = h.mean(f"loss/share/{domain}")
    mixed = [as_written(mix) for mix in config.problems]
    added = {"problems": h.source_of(domain), "domain": domain, "weight": 0.2}
    return [
        Cause(f"{domain} is not in the mixture: nothing keeps it", "no rollout of it was sampled", 0.9 * (not trained),
              (h.line("problems", [*mixed, added]).split("   #")[0],)),
        Cause(f"{domain} has a small share of the gradient",
              "" if share is None else f"{percent(share)} of the weighted tokens",
              0.0 if share is None or not trained else max(0.0, 0.8 - share),
              (h.line("algorithm.domain_weights", {domain: 2.0}),) if algorithm.aggregation == "domains" else
              (h.line("algorithm.aggregation", "domains"),)),
        rate_too_high(h),
        Cause("nothing holds the policy to the weights that it starts from", "algorithm.kl is 0",
              0.4 * (not algorithm.kl), (h.line("algorithm.kl", 1e-3),)),
    ]  # fmt: skip


# ---- what several rules look at


class _Form(NamedTuple):
    """A share of completions that fail by their form, before RL and now."""

    name: str
    before: float
    now: float

    @property
    def rise(self) -> float:
        return max(0.0, self.now - self.before)


def _forms(h: History) -> tuple[str, _Form]:
    """(both shares with what each earns, the one that rose more)."""
    rewards = h.config.rewards
    found = []
    for name, keys, reward in (
        ("unparsable", ("malformed", "no_answer"), rewards.malformed),
        ("truncated", ("truncated",), rewards.truncated),
    ):
        before = sum(h.last(f"heldout/before/{key}") or 0.0 for key in keys)
        after = sum(h.last(f"heldout/{key}") or 0.0 for key in keys)
        earned = "no reward" if reward is None else f"reward {reward:g}"
        found.append(
            (f"{name} {percent(before)} before and {percent(after)} now ({earned})", _Form(name, before, after))
        )
    rewarded = h.ends("reward/mean")
    text = ", ".join(told for told, _ in found)
    if rewarded is not None:
        text += f", mean training reward {rewarded.first:.3g} at first and {rewarded.last:.3g} now"
    return text, max((form for _, form in found), key=lambda form: form.rise)


def _first_look(h: History) -> float | None:
    before = h.last("heldout/before/pass")
    looks = h.values("heldout/pass")
    return before if before is not None else looks[0] if len(looks) > 1 else None


def _sets(h: History) -> list[str]:
    """The problem sets of the mixture, those that a filter reads included."""
    mixes = list(h.config.problems)
    for name in h.filters():
        stage = h.recipe.stage[name]
        assert isinstance(stage, FilterStage)
        mixes += stage.problems
    return list(dict.fromkeys(mix.problems for mix in mixes if mix.problems))


def _problems(h: History) -> int:
    """How many problems there are to draw from; before that is known, what the recipe says of each set; else 0."""
    known = h.last("problems/known")
    if known is not None:
        return int(known)
    counts = [h.recipe.problems[name].count for name in _sets(h)]
    return sum(count or 0 for count in counts) if all(counts) else 0


def _more_problems(h: History) -> tuple[str, int]:
    name = next(iter(_sets(h)), "NAME")
    return f"problems.{name}.count", 2 * h.config.steps * h.config.prompts_per_step
