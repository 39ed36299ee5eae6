"""reasoning-gym's own scorers, with hostile answers kept away from the ones that evaluate them."""

from __future__ import annotations

from typing import Any

import pytest

from motet.base.records import Problem
from motet.verify.procedural import EVALUATED, PARSED, extract, gold, harmless, verify

SPELL = {
    "dataset": "spell_backward",
    "entry": {"question": "Spell sun backward", "answer": "nus", "metadata": {"word": "sun", "word_len": 3}},
}
COUNTDOWN = {
    "dataset": "countdown",
    "entry": {"question": "?", "answer": "3*4+2", "metadata": {"numbers": [2, 3, 4], "target": 14}},
}


def problem(reference: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": "?"},), "procedural", reference, "procedural")


@pytest.mark.parametrize(
    ("reference", "answer", "kind"),
    [
        (SPELL, " nus\n", "correct"),
        (SPELL, "It is <answer>nus</answer>.", "correct"),
        (SPELL, r"It is \boxed{nus}.", "correct"),
        (SPELL, "sun", "incorrect"),
        (SPELL, "nus nus", "incorrect"),
        (SPELL, " \n", "no_answer"),
        (SPELL, "<answer> </answer>", "no_answer"),
        (COUNTDOWN, "2 + 4*3", "correct"),
        (COUNTDOWN, "2 + 4 + 3", "incorrect"),
        (COUNTDOWN, "__import__('os').abort()", "incorrect"),
        (COUNTDOWN, "exec(chr(49))", "incorrect"),
        ({"dataset": "no_such_set", "entry": SPELL["entry"]}, "nus", "invalid_problem"),
        ({"dataset": "composite", "entry": SPELL["entry"]}, "nus", "invalid_problem"),
        ({"dataset": "spell_backward"}, "nus", "invalid_problem"),
        ({"dataset": "spell_backward", "entry": {"answer": "nus"}}, "nus", "invalid_problem"),
        (None, "nus", "invalid_problem"),
    ],
)
def test_only_a_full_score_is_correct(reference: Any, answer: str, kind: str) -> None:
    verdict = verify(problem(reference), answer)
    assert verdict.kind == kind, verdict
    assert verdict.score == {"correct": 1.0, "invalid_problem": None}.get(kind, 0.0)


def test_a_partial_score_is_told() -> None:
    assert verify(problem(COUNTDOWN), "2 + 4").detail == "the data set's own score is 0.05"


def test_the_answer_of_an_entry_must_pass_its_own_scorer() -> None:
    assert gold(problem(SPELL)) is None
    assert gold(problem({**SPELL, "entry": {**SPELL["entry"], "answer": None}})) is None  # type: ignore[dict-item]
    wrong = {"dataset": "countdown", "entry": {**COUNTDOWN["entry"], "answer": "2+3+4"}}  # type: ignore[dict-item]
    assert gold(problem(wrong)) == "its own answer scores 0.05"


def test_entries_that_went_through_json_keep_their_gold_answer() -> None:
    board = {"input": [[1]], "output": [[2, 3]], "task_id": "t"}
    entry = {"question": "?", "answer": "2 3", "metadata": board}
    assert gold(problem({"dataset": "arc_agi", "entry": entry})) is None


def test_the_configuration_of_an_entry_reaches_its_scorer() -> None:
    entry = {"question": "?", "answer": "6*4*1*1", "metadata": {"numbers": [6, 4, 1, 1]}}
    assert gold(problem({"dataset": "puzzle24", "entry": entry})) is None
    assert gold(problem({"dataset": "puzzle24", "entry": entry, "config": {"max_value": 5}})) is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" a ", "a"),
        ("<answer>a</answer> <answer> b </answer>", "b"),
        (r"\boxed{a} or <answer>b</answer>", "b"),
        (r"\boxed{a}", "a"),
        ("a</answer>", "a</answer>"),
    ],
)
def test_the_answer_is_what_stands_in_tags_or_a_box_or_all(text: str, found: str) -> None:
    assert extract(text) == found


@pytest.mark.parametrize("dataset", sorted(EVALUATED))
def test_an_answer_that_would_be_evaluated_must_be_plain_data(dataset: str) -> None:
    for answer in ("[1, -2, 3]", "[['_', 'Q'],\n ['Q', '_']]", "1 2 3", "ABCD", "[]", "{'a': 1.5}"):
        assert harmless(dataset, answer), answer
    for answer in (
        "__import__('os')",
        "open ('x', 'w')",
        "[open][0]('x')",
        "().real",
        "(1).real",
        "1.5.real",
        "print\t(1)",
        "[print#\n(1)]",
        "print\\\n(1)",
        "\uff45val('1')",
        "lambda: 1",
        "[x for x in y]",
        "f'{x}'",
        "(x := 1)",
        "'a'.join",
    ):
        assert not harmless(dataset, answer), answer


@pytest.mark.parametrize("dataset", sorted(PARSED))
def test_an_answer_that_would_be_parsed_must_be_a_formula(dataset: str) -> None:
    for answer in ("3*(4 + 2)", "-x**2/2 + 3.5*x + C", "sin(2*x)/2 + exp(x)", "2^3"):
        assert harmless(dataset, answer), answer
    for answer in (
        "exec(chr(1))",
        "open(x)",
        "x.subs",
        "S('1')",
        "x[0]",
        "getattr(x, y)",
        "\uff45xec(x)",
        "x;y",
        "{x}",
    ):
        assert not harmless(dataset, answer), answer


def test_other_data_sets_take_any_text() -> None:
    assert harmless("spell_backward", "open(x)")
