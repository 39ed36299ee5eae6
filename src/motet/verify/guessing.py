"""Whether different problems are given one answer, and what guessing it would earn.

    {"answer": "1", "share": 0.353, "given": 1.0, "no_better": True}

Only of problems whose reference is a short text or a number, and whose verifier says which answer it read: programs and
instructions have no answer that could be guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from motet.base.records import UNSCORED, Group, Problem

LONGEST = 200
"""Characters of a reference that is compared with answers as it stands: a number, a formula, a list of words."""
LEAST = 0.1
"""What guessing has to earn to be worth a word."""


class Sameness(NamedTuple):
    answer: float
    """Share of the judged rollouts that give the most frequent answer."""
    reference: float
    """Share of the problems that have the most frequent reference."""


def is_plain(reference: object, longest: int) -> bool:
    """Whether it is a number, or a text of at most so many characters."""
    if isinstance(reference, bool):
        return False
    return isinstance(reference, int | float) or (isinstance(reference, str) and 0 < len(reference.strip()) <= longest)


def plain_reference(problem: Problem) -> str | None:
    """The reference as an answer would give it; None where it is not that short."""
    reference = problem.reference
    if problem.verifier == "procedural" and isinstance(reference, Mapping):
        entry = reference.get("entry")
        reference = entry.get("answer") if isinstance(entry, Mapping) else None
    return _spaced(str(reference)) if is_plain(reference, LONGEST) else None


def sameness(groups: Sequence[Group]) -> Sameness | None:
    """None without two different references: then one answer may well be right everywhere. Where all is solved, both
    shares are the same, however few problems there are and however often they share an answer."""
    known = [(group, reference) for group in groups if (reference := plain_reference(group.problem)) is not None]
    references = Counter(reference for _, reference in known)
    answers = _answers(group for group, _ in known)
    if len(references) < 2 or set(answers) <= {None}:
        return None
    given = max(count for answer, count in answers.items() if answer is not None)
    return Sameness(given / answers.total(), max(references.values()) / references.total())


def guess_figures(groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
    """By domain: `answer`, the most frequent reference; `share` of the problems that have it, which is what always
    answering it earns; `given`, the share of the judged rollouts that do. Absent without two different references."""
    by_domain: dict[str, list[Group]] = {}
    for group in groups:
        if plain_reference(group.problem) is not None:
            by_domain.setdefault(group.problem.domain, []).append(group)
    return {name: _guess(own) for name, own in sorted(by_domain.items()) if sameness(own) is not None}


def no_better(low: float | None, share: float) -> bool:
    """Whether a pass rate, of which `low` is the lower bound, is not above what a guess earns that earns something."""
    return low is not None and low <= share and share >= LEAST


def _guess(groups: Sequence[Group]) -> dict[str, Any]:
    references = Counter(plain_reference(group.problem) for group in groups)
    answer, count = min(references.items(), key=lambda item: (-item[1], str(item[0])))
    answers = _answers(groups)
    return {"answer": answer, "share": count / references.total(), "given": answers[answer] / answers.total()}


def _answers(groups: Iterable[Group]) -> Counter[str | None]:
    """How many judged rollouts gave each answer; None: none that could be read."""
    verdicts = (rollout.verdict for group in groups for rollout in group.rollouts)
    return Counter(None if v.answer is None else _spaced(v.answer) for v in verdicts if v.kind not in UNSCORED)


def _spaced(text: str) -> str:
    return " ".join(text.split())
