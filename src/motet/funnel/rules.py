"""Every rule of the funnel: its id, what it says, its threshold, whether it is on, and how a row fails it.

A rule of one row has `find`, which says why the row fails, or None. The others look at all rows together and are
decided by `sift`. A row is dropped by the first rule that it fails, in the order of `build`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from motet.base.recipe import RuleId, TraceRules
from motet.base.records import VERDICT_KINDS
from motet.funnel import consistency, leaks, structure
from motet.funnel.arithmetic import wrong_arithmetic
from motet.funnel.candidate import Example, View
from motet.funnel.contamination import Index

Find = Callable[[View], str | None]
EXAMPLES = 3
LONGEST_EXAMPLE = 4000


@dataclass(frozen=True, slots=True)
class Rule:
    id: RuleId
    about: str
    threshold: str
    on: bool
    find: Find | None = None
    """None: the rule looks at all rows together."""


@dataclass(slots=True)
class Count:
    """What a rule found: of a rule that is off, what it would have dropped."""

    rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """By kind of verdict."""
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> bool:
        """Whether the example is one of those that are shown."""
        self.rows += 1
        head = example.detail.partition(": ")[0]
        if head in VERDICT_KINDS:
            self.reasons[head] = self.reasons.get(head, 0) + 1
        if len(self.examples) == EXAMPLES:
            return False
        self.examples.append(example)
        return True


def build(rules: TraceRules, index: Index, think: str = "required") -> list[Rule]:
    """All rules in the order in which they are asked; `index` is of the evaluation questions."""
    r = rules
    sets = f"of {len(index)} evaluation questions"

    def rule(id: RuleId, about: str, threshold: str, find: Find | None = None, applies: bool = True) -> Rule:
        return Rule(id, about, threshold, r.is_on(id) and applies, find)

    return [
        rule("answer", "the answer passes the problem's verifier", "correct",
             partial(consistency.answer, programs=False)),
        rule("code_tests", "the program passes its tests", "all tests", partial(consistency.answer, programs=True)),
        rule("think_balanced", "each turn is one think block and an answer", f"think = {think}",
             structure.think_balanced),
        rule("finished", "the trace was not cut", "stop = end", structure.finished),
        rule("one_answer", "there is one final answer, and no hedge", "1", structure.one_answer),
        rule("think_answer", "reasoning and answer conclude the same", "equal", consistency.think_answer),
        rule("reasoning_length", "there is reasoning", f">= {r.min_reasoning_tokens} tokens",
             partial(structure.reasoning_length, least=r.min_reasoning_tokens), think == "required"),
        rule("max_tokens", "the conversation is not too long", f"<= {r.max_tokens} tokens",
             partial(structure.max_tokens, most=r.max_tokens), True) if r.max_tokens else
        Rule("max_tokens", "the conversation is not too long", "none", False),
        rule("repetition", "few word 4-grams are repeated", f"<= {r.max_repetition:g} of them",
             partial(structure.repeated, size=4, most=r.max_repetition)),
        rule("repeated_spans", "few word 20-grams are repeated", f"<= {r.max_repeated_spans:g} of them",
             partial(structure.repeated, size=20, most=r.max_repeated_spans)),
        rule("periodic_tail", "the end does not go round in a circle", f"<= {r.max_periodic_tail} words",
             partial(structure.tail, most=r.max_periodic_tail)),
        rule("compression", "the trace is not a loop", f"<= {r.max_compression:g} x by zlib",
             partial(structure.compression, most=r.max_compression)),
        rule("language", "letters are of the prompt's scripts", f"<= {r.max_foreign_letters:g} others",
             partial(structure.foreign_letters, most=r.max_foreign_letters)),
        rule("leak_prompt", "instructions are not quoted", "none", leaks.prompt_leak),
        rule("leak_gold", "no given solution is mentioned", "none", leaks.gold_leak),
        rule("leak_template", "no token of a chat template is in the text", "none", leaks.template_leak),
        rule("leak_teacher", "the teacher does not name itself", "none",
             partial(leaks.teacher_leak, names=tuple(name.lower() for name in r.leaked_names))),
        rule("arithmetic", "statements a + b = c hold", f"<= {r.max_wrong_arithmetic:g} wrong",
             partial(wrong_arithmetic, most=r.max_wrong_arithmetic)),
        rule("contamination_13", f"no 13 words in a row {sets}", "0", index.long_hit, len(index) > 0),
        rule("exact_duplicate", "no row before it is equal", "equal"),
        rule("contamination_8", f"rare runs of 8 words do not cover one {sets}", f"< {r.contamination_share:g} of it",
             applies=len(index) > 0),
        rule("contamination_numbers", f"the same with all numbers made equal, {sets}",
             f"< {r.contamination_share:g} of it", applies=len(index) > 0),
        rule("majority", "without a gold answer: the most frequent one of the problem's traces",
             f">= {r.majority_share:g} of {r.majority_traces} or more"),
        rule("near_duplicate", "no row before it is nearly equal", f"< {r.near_duplicates:g} of the 3-grams"),
        rule("max_per_problem", "not too many traces of one problem", f"<= {r.max_per_problem}"),
        rule("judge", "the judge finds no false statement", "2 complaints"),
    ]  # fmt: skip


def tokens_needed(rules: TraceRules) -> bool:
    """Whether a rule asks for the student's tokens, which cost as much as all other rules together."""
    return rules.max_tokens is not None or rules.min_reasoning_tokens > 1


def example(view: View, detail: str) -> Example:
    return Example(view.prompt[-LONGEST_EXAMPLE:], view.trace[:LONGEST_EXAMPLE], detail)


def row(rule: Rule, count: Count, left: int) -> dict[str, Any]:
    """A rule's line in funnel.json; `left` rows had passed it and all before it."""
    return {
        "rule": rule.id,
        "about": rule.about,
        "threshold": rule.threshold,
        "on": rule.on,
        "dropped": count.rows if rule.on else 0,
        "left": left,
        **({} if rule.on or not rule.find else {"would_drop": count.rows}),
        **({"reasons": dict(sorted(count.reasons.items()))} if count.reasons else {}),
        "examples": [item._asdict() for item in count.examples],
    }
