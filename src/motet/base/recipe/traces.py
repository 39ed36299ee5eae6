"""`kind = "synthesize"` and `kind = "clean"`: teachers, and the rules that traces have to pass."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from motet.base.recipe.engine import Engine, Sampling
from motet.base.recipe.parts import Fraction, Part
from motet.base.recipe.problems import Mix
from motet.base.recipe.sft import SftSource
from motet.base.recipe.training import StageBase

RuleId = Literal[
    "answer", "code_tests", "majority", "think_answer",
    "think_balanced", "finished", "one_answer", "reasoning_length", "max_tokens",
    "repetition", "repeated_spans", "periodic_tail", "compression",
    "language", "leak_prompt", "leak_gold", "leak_template", "leak_teacher", "arithmetic",
    "contamination_13", "contamination_8", "contamination_numbers",
    "exact_duplicate", "near_duplicate", "judge", "max_per_problem",
]  # fmt: skip
"""Rules of the data funnel, in the order of docs/data.md."""
LEAKED_NAMES = ("chatgpt", "gpt-4", "gpt-5", "gpt-oss", "deepseek", "qwen", "kimi", "minimax", "glm-4")


class TraceRules(Part):
    """Which traces become training data; each rule has an id, its own count and three examples in the report."""

    off: tuple[RuleId, ...] = ()
    """Rules that drop nothing, e.g. ["language", "arithmetic"]; what they would have dropped is counted all the same,
    where it costs nothing."""
    correct: bool = True
    """The final answer passes the problem's verifier (rules answer and code_tests), or is that of the majority where
    there is nothing to verify by; false switches the three off."""
    majority_traces: int = Field(default=4, ge=2)
    """Without a gold answer: a problem with at least so many answered traces keeps those of its most frequent
    answer."""
    majority_share: Fraction = 0.5
    """Smallest share that the most frequent answer must have; below it all of the problem's traces are dropped."""
    min_reasoning_tokens: int = Field(default=1, ge=0)
    """Shortest reasoning, in tokens of the student."""
    max_tokens: PositiveInt | None = None
    """Longest trace, prompt included; unset, the context of the SFT stage decides."""
    max_repetition: Fraction = 0.5
    """Largest share of repeated word 4-grams in the trace (ours)."""
    max_repeated_spans: Fraction = 0.2
    """Largest share of repeated word 20-grams: whole sentences said again (ours)."""
    max_periodic_tail: PositiveInt = 200
    """Most words at the end of the trace that go round in a circle of at most 40 words (ours)."""
    max_compression: PositiveFloat = 12.0
    """Most bytes of trace for each byte that zlib makes of it: prose has 2 to 4, a loop hundreds (ours)."""
    max_foreign_letters: Fraction = 0.05
    """Largest share of letters in scripts that the prompt does not use; Latin and Greek are every prompt's (ours)."""
    leaked_names: tuple[str, ...] = LEAKED_NAMES
    """Names that no trace may hold unless its prompt does (rule leak_teacher)."""
    max_wrong_arithmetic: Fraction = 0.1
    """Largest share of wrong among the statements "a + b = c" of a trace (ours)."""
    contamination_share: Fraction = 0.5
    """Rules contamination_8 and contamination_numbers: the share of an evaluation question's words that the rare
    8-grams of a row must cover (ours)."""
    common_share: Fraction = 0.001
    """An 8-gram in more than this share of the prompts (and in at least four of them) is a phrase, not a trace of an
    evaluation question (ours)."""
    deduplicate: bool = True
    """Keep one of several equal traces of a problem (compared without case and spacing)."""
    near_duplicates: Fraction = 0.6
    """Of two traces whose word 3-grams agree by this (Jaccard) the first is kept; 1 leaves the rule nothing (ours)."""
    near_words: PositiveInt = 40
    """Traces with fewer words are compared exactly only (ours)."""
    max_per_problem: PositiveInt = 4
    """Most traces kept for one problem (ours)."""
    judge: Engine | None = None
    """A model that is asked of each kept trace whether it holds a false statement; it is asked twice, with the two
    verdicts named in either order, and only two complaints drop a trace. Unset: none is asked."""
    judge_audit: PositiveInt = 50
    """Judged traces that are drawn at random into audit.jsonl, to be read by a person."""

    @model_validator(mode="after")
    def _judge_has_a_model(self) -> TraceRules:
        if self.judge is not None and self.judge.kind in ("transformers", "vllm") and self.judge.model is None:
            raise ValueError("judge: name its model; the model in training does not judge its own data")
        return self

    def is_on(self, rule: RuleId) -> bool:
        if rule in ("answer", "code_tests", "majority") and not self.correct:
            return False
        if (rule == "exact_duplicate" and not self.deduplicate) or (rule == "judge" and self.judge is None):
            return False
        return rule not in self.off


class Teacher(Engine):
    """An engine that writes traces for the model in training, one of several."""

    share: PositiveFloat = 1.0
    """Relative share of the problems of each domain that are put to it."""
    sampling: Sampling | None = None
    """How it samples; unset, as the stage says."""
    ask: str | None = None
    """How problems are put to it; unset, as the stage says."""


class SynthesizeStage(StageBase):
    kind: Literal["synthesize"]
    """Traces asked of a teacher, verified and sieved: training data for an sft stage."""
    problems: tuple[Mix, ...] = Field(min_length=1)
    """Which problems are put to the teacher."""
    count: PositiveInt = 512
    """How many problems."""
    samples: PositiveInt = 4
    """Traces asked for each problem."""
    teacher: Engine | None = None
    """Who writes the traces; unset, the model that this stage starts from (rejection sampling)."""
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    """Several teachers by name, asked one after the other: [stage.NAME.teachers.big]. One of kind "transformers"
    without a model is the model that this stage starts from."""
    ask: str = "{prompt}"
    """How a problem is put to a teacher, e.g. "{prompt} Put the final answer in \\boxed{}.". The trace is kept with the
    problem as it is."""
    assign: Literal["share", "all"] = "share"
    """With `teachers`: each problem is put to one of them, by their shares, or every problem to all of them."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How the teacher samples."""
    rules: TraceRules = Field(default_factory=TraceRules)
    """What a trace must pass."""

    @model_validator(mode="after")
    def _teachers_are_told_apart(self) -> SynthesizeStage:
        if self.teacher is not None and self.teachers:
            raise ValueError("give teacher (one) or teachers (several, by name), not both")
        if self.assign == "all" and not self.teachers:
            raise ValueError('assign = "all" has no effect without teachers')
        for place, text in (("ask", self.ask), *((f"teachers.{n}.ask", t.ask) for n, t in self.teachers.items())):
            if text is not None and text.count("{prompt}") != 1:
                raise ValueError(f"{place}: {text!r} must hold {{prompt}} once, where the problem goes")
        for name, teacher in self.teachers.items():
            if not re.fullmatch(r"\w[\w+-]*", name):
                raise ValueError(f"teachers: {name!r} cannot name a file; use letters, digits and _ - +")
            if self.assign == "all" and teacher.share != 1.0:
                raise ValueError(f'teachers.{name}.share has no effect with assign = "all": each gets every problem')
        return self


class CleanStage(StageBase):
    kind: Literal["clean"]
    """Conversations of any source through the data funnel: training data for an sft stage."""
    data: tuple[SftSource, ...] = Field(min_length=1)
    """What is read, one source after the other; all of each, so weights have no place here."""
    count: PositiveInt | None = None
    """Most rows of each source; unset, all."""
    gold: bool = True
    """Judge rows that hold a reference (answer, tests, instructions, ...) by its verifier."""
    rules: TraceRules = Field(default_factory=TraceRules)
    """What a row must pass."""

    @model_validator(mode="after")
    def _all_of_each(self) -> CleanStage:
        for place, source in enumerate(self.data):
            if source.weight != 1.0:
                raise ValueError(f"data[{place}].weight has no effect here: weigh {{ stage = ... }} in the sft stage")
        return self
