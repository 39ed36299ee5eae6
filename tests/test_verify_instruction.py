"""Each instruction by one text that follows it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from motet.base.records import Problem
from motet.verify.instruction import RULES, gold, sentences, verify


def problem(reference: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": "?"},), "instruction", reference, "instruction")


def one(id: str, kwargs: dict[str, Any]) -> Problem:
    return problem([{"id": id, "kwargs": kwargs}])


AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Fox", "dog"]}, "The foxes saw a DOG.", "The fox slept."),
    ("keywords:existence", {"keywords": ["c++ (new)"]}, "I like C++ (new).", "I like c."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A catalogue.", "A Cat."),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, **AT_LEAST}, "ha Ha ha", "ha ha"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, **LESS}, "ha ha", "ha ha ha"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "Ee", "e"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, "Oh", "Oh!"),
    ("length_constraints:number_words", {"num_words": 3, **AT_LEAST}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, **LESS}, "one two", "one two three"),
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST}, "Dr. A. Poe ran. He fell!", "Mr. Poe."),
    ("length_constraints:number_sentences", {"num_sentences": 2, **LESS}, "It is 3.5 m e.g. here.", "Yes. No."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'First a.\n\n"Then" b.',
        "Then a.\n\nFirst b.",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "List:\n* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection two\nb",
    ),
    ("detectable_format:title", {}, "<<A day>>\ntext", "<< >>\ntext"),
    ("detectable_format:title", {}, "on <<A day>> end", "<<A\nday>>"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "No."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. wait", "P-S. Bye."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\np.p.s. wait", "Bye.\nP.S. wait"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] lives in [city]", "[name] lives"),
    ("startend:end_checker", {"end_phrase": "The End."}, 'So it was. the end."', "The End. Or not."),
    ("startend:quotation", {}, ' "all of it"\n', '"part" of it'),
    ("change_case:english_lowercase", {}, "all small, 3.", "All small"),
    ("change_case:english_capital", {}, "ALL BIG, 3.", "All big"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "UN and EU", "UN"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
]


@pytest.mark.parametrize(("id", "kwargs", "good", "bad"), CASES)
def test_an_instruction_holds_for_one_text_and_not_for_another(
    id: str, kwargs: dict[str, Any], good: str, bad: str
) -> None:
    assert verify(one(id, kwargs), good).kind == "correct"
    verdict = verify(one(id, kwargs), bad)
    assert (verdict.kind, verdict.score, verdict.detail) == ("incorrect", 0.0, f"failed: {id}")


def test_every_instruction_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(RULES)
    assert len(RULES) >= 14


def test_all_instructions_must_hold_and_the_failed_ones_are_named() -> None:
    both = problem([{"id": "punctuation:no_comma", "kwargs": {}}, {"id": "change_case:english_lowercase"}])
    assert verify(both, "fine").score == 1.0
    assert verify(both, "Fine").detail == "failed: change_case:english_lowercase"
    assert verify(both, "Fine, so").detail == "failed: punctuation:no_comma, change_case:english_lowercase"


def test_an_empty_answer_follows_no_instruction() -> None:
    verdict = verify(one("punctuation:no_comma", {}), " \n")
    assert (verdict.kind, verdict.score) == ("no_answer", 0.0)


def test_arguments_that_are_null_count_as_left_out() -> None:
    assert verify(one("punctuation:no_comma", {"keywords": None}), "yes").kind == "correct"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ([], "at least one"),
        ("punctuation:no_comma", "at least one"),
        ([{"kwargs": {}}], "no {id, kwargs}"),
        ([{"id": "punctuation:no_semicolon"}], "unknown instruction"),
        ([{"id": "keywords:existence", "kwargs": {"keywords": None}}], "needs the argument keywords"),
        ([{"id": "keywords:existence", "kwargs": {"keywords": "fox"}}], "is no texts"),
        ([{"id": "length_constraints:number_words", "kwargs": {"num_words": 3}}], "needs the argument relation"),
        ([{"id": "length_constraints:number_words", "kwargs": {"num_words": 3, "relation": "about"}}], "no relation"),
        ([{"id": "length_constraints:number_words", "kwargs": {"num_words": "3", **LESS}}], "is no count"),
        ([{"id": "keywords:letter_frequency", "kwargs": {"letter": "ab"}}], "is no letter"),
        ([{"id": "punctuation:no_comma", "kwargs": {"extra": 1}}], "has no argument extra"),
    ],
)
def test_an_instruction_that_cannot_be_checked_makes_the_problem_invalid(reference: Any, why: str) -> None:
    trouble = gold(problem(reference))
    assert trouble is not None
    assert why in trouble
    verdict = verify(problem(reference), "some text")
    assert (verdict.kind, verdict.score) == ("invalid_problem", None)


@pytest.mark.parametrize("letter", ["[", "!", "*", " ", "\n", "<", ".", "`", "A. "])
def test_a_hostile_text_is_judged_in_linear_time(letter: str) -> None:
    text = "x" + letter * 100_000 + "x"
    for id, kwargs, _, _ in CASES:  # a quadratic pattern would take minutes
        assert verify(one(id, kwargs), text).kind in ("correct", "incorrect")


def test_sentences_end_at_punctuation_and_blank_lines() -> None:
    assert sentences("One. Two! Three?") == 3
    assert sentences('He said "Stop." Then he left') == 2
    assert sentences("Title\n\nText e.g. this one.") == 2
    assert sentences("Pi is 3.14.") == 1
    assert sentences("... !") == 0
