"""Alarms: rules that see a pattern in a stage's figures and say what was seen, why it matters, what the likely causes
are, ranked by this run's evidence, and which lines of the recipe to change.

A rule is a function of a `History` and one line in `RULES`. `memory` has no figures to look at: it is what
`train/memory.py` says of an error. What is done about an alarm is `rl/alarms/monitor.py` and `stages/alarmed.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from motet.base.recipe import RuleName
from motet.rl.alarms import guessing, heldout, policy, signal, system, texts
from motet.rl.alarms.record import Alarm, Cause, History, alarm_of

__all__ = ["RULES", "Alarm", "Cause", "History", "alarm_of", "look"]

RULES: Mapping[RuleName, Callable[[History], Alarm | None]] = {
    "no_signal": signal.no_signal,
    "below_start": heldout.below_start,
    "not_generalising": heldout.not_generalising,
    "forgetting": heldout.forgetting,
    "guessed": guessing.guessed,
    "entropy_collapse": policy.entropy_collapse,
    "entropy_blowup": policy.entropy_blowup,
    "drift": policy.drift,
    "importance": policy.importance,
    "stale": policy.stale,
    "unparsable": texts.unparsable,
    "truncated": texts.truncated,
    "length": texts.length,
    "repetition": texts.repetition,
    "slow_engine": system.slow_engine,
    "starved": system.starved,
    "slow_verifiers": system.slow_verifiers,
}


BY_DOMAIN: tuple[RuleName, ...] = ("no_signal", "unparsable", "truncated", "length")
"""Rules that look at each of several domains too: what happens in one alone is thin in the whole."""
FEWEST = 30
"""Groups of a domain in a window; fewer say too little (ours)."""


def look(history: History) -> list[Alarm]:
    """What every rule that is not off sees after the present step."""
    bounds = history.config.alarms
    found = (_see(name, history) for name in RULES if bounds.of(name) != "off")
    return [alarm for alarm in found if alarm is not None]


def _see(name: RuleName, history: History) -> Alarm | None:
    """Of the whole; where the rule is silent there, of the first domain of several in which it is not."""
    alarm, domains = RULES[name](history), history.domains
    for domain in domains if alarm is None and name in BY_DOMAIN and len(domains) > 1 else ():
        own = history.within(domain)
        groups = sum(own.recent("rollout/count")) / history.config.group_size
        found = RULES[name](own) if groups >= FEWEST else None
        if found is not None:
            return replace(found, seen=f"of {domain} alone: {found.seen}")
    return alarm
