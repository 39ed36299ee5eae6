"""Which rollouts the report shows: best, worst, surprising, regressions; and their texts, capped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from motet.base.records import UNSCORED, Rollout, VerdictKind, prompt_text
from motet.insight.outcomes import Outcome, group_of
from motet.insight.wording import capped, percent, short

T = TypeVar("T")
EACH = 6
"""Most entries of one heading."""
PROMPT_CHARACTERS = 2_000
TEXT_CHARACTERS = 6_000
RARE = 0.25
"""A pass in a group of at most this rate is a surprise."""
GUIDE = {
    "best": "Problems whose pass rate rose most since the first evaluated stage, with a completion that passes now.",
    "worst": "Problems that the last evaluated stage never solves: one of each kind of failure in turn.",
    "surprising": "Passes in groups that almost always fail (lucky guess, or a verifier too kind?), and failures "
    "that the model was most sure of, by mean log-probability a token.",
    "regressions": "Problems that an earlier stage solved at least half of the time and the last stage never does.",
}


class Choice(NamedTuple):
    outcome: Outcome
    rollout: int
    """Which rollout of the group."""
    why: str
    earlier: tuple[Outcome, int] | None = None
    """A rollout of an earlier stage to put beside it."""


class Shown(NamedTuple):
    stage: str
    kind: str
    detail: str
    answer: str
    text: str
    tokens: int
    logprob: str


class Entry(NamedTuple):
    why: str
    where: str
    domain: str
    problem: str
    rate: str
    prompt: str
    reference: str
    rollouts: tuple[Shown, ...]


def choose(evaluations: Mapping[str, Sequence[Outcome]], training: Sequence[Outcome]) -> dict[str, list[Choice]]:
    """{"best" | "worst" | "surprising" | "regressions": choices}; `evaluations` by stage, in the order of the run."""
    stages = [list(outcomes) for outcomes in evaluations.values() if outcomes]
    last = stages[-1] if stages else []
    earlier = [{o.tally.key: o for o in outcomes} for outcomes in stages[:-1]]
    return {
        "best": _best(last, earlier[0] if earlier else {}) if last else _best(training, {}),
        "worst": _worst(last or training),
        "surprising": _lucky([*last, *training]) + _sure([*last, *training]),
        "regressions": _regressions(last, earlier),
    }


def entries(choices: Iterable[Choice]) -> list[Entry]:
    """Reads the texts of the chosen rollouts."""
    return [_entry(choice) for choice in choices]


def named(choices: Mapping[str, Iterable[Choice]]) -> dict[str, list[dict[str, Any]]]:
    """The same choices for report.json: where they are and why, without texts."""
    return {
        heading: [
            {
                "stage": c.outcome.stage,
                "step": c.outcome.step,
                "domain": c.outcome.tally.domain,
                "problem": c.outcome.problem,
                "rollout": c.rollout,
                "verdict": c.outcome.tally.kinds[c.rollout],
                "why": c.why,
            }
            for c in chosen
        ]
        for heading, chosen in choices.items()
    }


def _best(outcomes: Sequence[Outcome], first: Mapping[str, Outcome]) -> list[Choice]:
    def gain(o: Outcome) -> float:
        return o.rate - (first[o.tally.key].rate if o.tally.key in first else 0.0)

    ranked = sorted((o for o in outcomes if o.tally.passed and gain(o) > 0), key=gain, reverse=True)
    chosen: list[Choice] = []
    for o in _across(ranked, lambda o: o.tally.domain):
        index = min(_of_kind(o, "correct"), key=lambda i: o.tally.tokens[i])
        before = first.get(o.tally.key)
        why = f"Solved {percent(before.rate, 0)} of the time by {before.stage}, " if before else "Solved "
        why += f"{percent(o.rate, 0)} of the time by {_stage(o)}."
        failed = _failed(before) if before else []
        chosen.append(Choice(o, index, why, (before, failed[0]) if before and failed else None))
    return chosen


def _worst(outcomes: Sequence[Outcome]) -> list[Choice]:
    never = [o for o in outcomes if o.tally.judged and not o.tally.passed]
    ranked = sorted(never, key=lambda o: sum(o.tally.tokens), reverse=True)
    kinds = [(o, i) for o in ranked for i in _failed(o)]
    seen: set[str] = set()
    chosen: list[Choice] = []
    for o, i in _turns(kinds, lambda pair: pair[0].tally.kinds[pair[1]]):
        if o.tally.key not in seen and len(chosen) < EACH:
            seen.add(o.tally.key)
            chosen.append(Choice(o, i, f"None of {o.tally.judged} judged completions passes ({_stage(o)})."))
    return chosen


def _lucky(outcomes: Sequence[Outcome]) -> list[Choice]:
    rare = [o for o in outcomes if o.tally.judged >= 4 and 0 < o.rate <= RARE]
    ranked = sorted(rare, key=lambda o: (o.rate, -o.tally.judged))
    return [
        Choice(o, _of_kind(o, "correct")[0], f"Passes, where {o.tally.passed} of {o.tally.judged} do ({_stage(o)}).")
        for o in _across(ranked, lambda o: o.tally.domain)[: EACH // 2]
    ]


def _sure(outcomes: Sequence[Outcome]) -> list[Choice]:
    wrong = [(o, i, lp) for o in outcomes for i in _of_kind(o, "incorrect") if (lp := o.logprobs[i]) is not None]
    wrong.sort(key=lambda item: item[2], reverse=True)
    seen: set[str] = set()
    chosen: list[Choice] = []
    for o, i, logprob in wrong:
        if o.tally.key not in seen and len(chosen) < EACH - EACH // 2:
            seen.add(o.tally.key)
            chosen.append(Choice(o, i, f"Wrong, though sure: {short(logprob)} nats a token on average ({_stage(o)})."))
    return chosen


def _regressions(last: Sequence[Outcome], earlier: Sequence[Mapping[str, Outcome]]) -> list[Choice]:
    lost: list[tuple[float, Outcome, Outcome]] = []
    for o in last:
        solved = [found[o.tally.key] for found in earlier if o.tally.key in found and found[o.tally.key].rate >= 0.5]
        if solved and o.tally.judged and not o.tally.passed:
            best = max(solved, key=lambda e: e.rate)
            lost.append((best.rate, o, best))
    lost.sort(key=lambda item: item[0], reverse=True)
    chosen: list[Choice] = []
    for _, o, before in _across(lost, lambda item: item[1].tally.domain):
        why = f"{before.stage} solved it {percent(before.rate, 0)} of the time, {_stage(o)} never."
        chosen.append(Choice(o, _failed(o)[0], why, (before, _of_kind(before, "correct")[0])))
    return chosen


def _across(items: Sequence[T], key: Callable[[T], str]) -> list[T]:
    return _turns(items, key)[:EACH]


def _turns(items: Sequence[T], key: Callable[[T], str]) -> list[T]:
    """Items of each key in turn, so that a frequent one does not crowd out the others; order inside a key is kept."""
    queues: dict[str, list[T]] = {}
    for item in items:
        queues.setdefault(key(item), []).append(item)
    longest = max(map(len, queues.values()), default=0)
    return [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]


def _of_kind(o: Outcome, kind: VerdictKind) -> list[int]:
    return [i for i, found in enumerate(o.tally.kinds) if found == kind]


def _failed(o: Outcome) -> list[int]:
    """Rollouts that were judged and did not pass."""
    return [i for i, kind in enumerate(o.tally.kinds) if kind != "correct" and kind not in UNSCORED]


def _stage(o: Outcome) -> str:
    return o.stage if o.step is None else f"{o.stage}, step {o.step}"


def _entry(choice: Choice) -> Entry:
    group = group_of(choice.outcome)
    shown = [_shown(choice.outcome, choice.rollout, group.rollouts[choice.rollout])]
    if choice.earlier:
        before, index = choice.earlier
        shown.append(_shown(before, index, group_of(before).rollouts[index]))
    reference = group.problem.reference
    text = reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
    return Entry(
        why=choice.why,
        where=_stage(choice.outcome),
        domain=group.problem.domain,
        problem=group.problem.id,
        rate=f"{choice.outcome.tally.passed} of {choice.outcome.tally.judged} pass",
        prompt=capped(prompt_text(group.problem), PROMPT_CHARACTERS),
        reference=capped(text, PROMPT_CHARACTERS),
        rollouts=tuple(shown),
    )


def _shown(outcome: Outcome, index: int, rollout: Rollout) -> Shown:
    return Shown(
        stage=_stage(outcome),
        kind=rollout.verdict.kind,
        detail=capped(rollout.verdict.detail, PROMPT_CHARACTERS),
        answer=capped(rollout.verdict.answer or "", PROMPT_CHARACTERS),
        text=capped(rollout.completion.text, TEXT_CHARACTERS),
        tokens=len(rollout.completion.tokens),
        logprob=short(outcome.logprobs[index]),
    )
