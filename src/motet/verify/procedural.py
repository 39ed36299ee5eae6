"""Procedural problems of reasoning-gym, judged by the scorer of their own data set.

    reference {"dataset": "spell_backward", "entry": {"question": ..., "answer": "nus", "metadata": {...}}}

`config`, if given, is the configuration that made the entry; a few scorers read it. Only a full score is correct; a
partial one is told in the detail.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from motet.base.errors import UserError
from motet.base.records import Problem, Verdict
from motet.verify.latex import boxes
from motet.verify.loading import loading

FULL_SCORE = 1.0 - 1e-9
OPEN, CLOSE = "<answer>", "</answer>"

EVALUATED = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
"""Their scorers pass the answer to Python's eval."""
PARSED = frozenset(
    {"countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
)
"""Their scorers pass it to sympy's parse_expr, which ends in eval too."""
WITH_TUPLES = frozenset({"arc_agi", "rearc"})
"""Their scorers compare with tuples, which JSON turned into lists."""
TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"})
FUNCTIONS = TRIGONOMETRIC | {"asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "abs", "Abs"}

_RUNS = re.compile(r"[(.]\s*[A-Za-z_]|[\w)\]}\"']\s*[(\[]|__|\b(?:lambda|for|await|yield)\b|:=|[fF][\"']|[#\\`@]")
_NO_FORMULA = re.compile(r"[^\w\s+\-*/^().,=!]|\.\s*[A-Za-z_]")

Scorer = Callable[..., float]


def verify(problem: Problem, answer: str) -> Verdict:
    trouble = _malformed(problem.reference)
    if trouble:
        return Verdict("invalid_problem", None, None, trouble)
    found = extract(answer)
    if not found:
        return Verdict("no_answer", 0.0, None, "the answer is empty")
    expected = problem.reference["entry"]["answer"]
    if found != expected and not harmless(problem.reference["dataset"], found):
        return Verdict("incorrect", 0.0, found, "not plain data, and the data set's scorer would run it")
    score = _score(problem.reference, found)
    if score >= FULL_SCORE:
        return Verdict("correct", 1.0, found)
    return Verdict("incorrect", 0.0, found, f"the data set's own score is {score:.3g}")


def gold(problem: Problem) -> str | None:
    """Why the entry is unusable: its shape, its data set's name, or a gold answer without a full score."""
    trouble = _malformed(problem.reference)
    if trouble:
        return trouble
    own = problem.reference["entry"]["answer"]
    if own is None:
        return None  # some data sets accept any answer that fits, and have none to show
    score = _score(problem.reference, own)
    return None if score >= FULL_SCORE else f"its own answer scores {score:.3g}"


def extract(answer: str) -> str:
    """What stands in the last <answer></answer>, else in the last box, else all of it."""
    before, tag, _ = answer.rpartition(CLOSE)
    if tag and OPEN in before:
        return before.rpartition(OPEN)[2].strip()
    boxed = boxes(answer)
    return (boxed[-1].content if boxed else answer).strip()


def harmless(dataset: str, answer: str) -> bool:
    """False for an answer that the scorer of this data set would run as a program: a call, an attribute, a subscript,
    a string with expressions in it. Literals, lists of them and expressions of known functions pass."""
    if dataset not in EVALUATED | PARSED:
        return True
    if not answer.isascii():  # Python reads letters of other alphabets as the ASCII letters they resemble
        return False
    if dataset in EVALUATED:
        return not _RUNS.search(answer)
    names = set(re.findall(r"[A-Za-z_]\w*", answer))
    return all(len(name) == 1 or name in FUNCTIONS for name in names) and not _NO_FORMULA.search(answer)


def _malformed(reference: Any) -> str | None:
    if not isinstance(reference, Mapping) or not isinstance(reference.get("dataset"), str):
        return "the reference must be {dataset, entry}"
    entry = reference.get("entry")
    if not isinstance(entry, Mapping) or not {"answer", "metadata"} <= entry.keys():
        return "the entry must have question, answer and metadata"
    if reference["dataset"] == "composite":
        return "a composite data set has no scorer of its own: name the data set that made the entry"
    if reference["dataset"] not in _registry():
        return f"reasoning-gym has no data set {reference['dataset']!r}"
    return None


def _score(reference: Mapping[str, Any], answer: str) -> float:
    name, entry = reference["dataset"], reference["entry"]
    if name in WITH_TUPLES:
        entry = {**entry, "metadata": _tuples(entry["metadata"])}
    scorer = _scorer(name, json.dumps(reference.get("config") or {}, sort_keys=True))
    return float(scorer(answer=answer, entry=entry))


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@functools.cache
def _registry() -> Mapping[str, tuple[type[Any], type[Any]]]:
    """Data set name to (class, class of its configuration). Takes seconds at first use."""
    with loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import reasoning_gym
        except ImportError as error:
            raise UserError(f"procedural problems need the package reasoning-gym: {error}") from error
    registry: Mapping[str, tuple[type[Any], type[Any]]] = reasoning_gym.factory.DATASETS
    return registry


@functools.lru_cache(maxsize=256)
def _scorer(name: str, config: str) -> Scorer:
    dataset, configuration = _registry()[name]
    with loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer: Scorer = dataset(config=configuration(**json.loads(config))).score_answer
    return scorer
