"""A verdict that says nothing of a text but divides a group: for runs whose time is measured, not their learning."""

from __future__ import annotations

from motet.base.records import Problem, Verdict


def parity(problem: Problem, text: str) -> Verdict:
    odd = sum(map(ord, text)) % 2
    return Verdict("incorrect" if odd else "correct", float(not odd), str(odd))
