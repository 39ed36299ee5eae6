"""Boxed answers: what is the same, what is not, and what cannot be told."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest

from motet.base.records import Problem
from motet.verify.exact import Items, TooComplex, equal, read
from motet.verify.latex import boxes, clean
from motet.verify.math import gold, verify


def problem(reference: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": "?"},), "math", reference, "math")


CORRECT = [
    ("19", "so it is $\\boxed{19}$."),
    (19, r"\boxed{19}"),
    (0.5, r"\boxed{\frac12}"),
    ("1/2", r"\fbox{0.50}"),
    ("-3", "\\boxed{ \u22123 }"),
    ("12", r"first \boxed{10}. In the end \boxed{12}"),
    ("12", r"\boxed{12}, that is \boxed{12.0}"),
    ("12", r"\boxed{\boxed{12}}"),
    ("1,234", r"\boxed{1234}"),
    ("1234", r"\boxed{1\,234}"),
    ("1234", r"\boxed{1{,}234}"),
    ("3/4", r"\boxed{\dfrac{3}{4}}"),
    ("7/2", r"\boxed{3\frac{1}{2}}"),
    ("7/2", "\\boxed{3½}"),
    ("-1/2", r"\boxed{\frac{-1}{2}}"),
    ("6.02e23", r"\boxed{6.02 \times 10^{23}}"),
    ("5", r"\boxed{x = 5}"),
    ("5", r"\boxed{5 \text{ cm}}"),
    ("5", r"\boxed{\$5}"),
    ("50%", r"\boxed{0.5}"),
    ("90", r"\boxed{90^\circ}"),
    ("1010_2", r"\boxed{1010}"),
    ("(1, 2)", r"\boxed{\left(1,2\right)}"),
    ("(1, 2)", r"\boxed{1, 2}"),
    (r"\{1, 2\}", r"\boxed{2, 1}"),
    ("1, -1", r"\boxed{-1 \text{ and } 1}"),
    ("B", r"\boxed{\textbf{(B)}}"),
    ("B", r"\boxed{b}"),
    (r"\text{even}", r"\boxed{Even}"),
    ("no real solution", r"\boxed{\text{No real solution.}}"),
    (r"\boxed{19}", r"\boxed{19}"),
    # by computer algebra
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    (r"\frac{\pi}{2}", r"\boxed{pi/2}"),
    (r"\sqrt{2}", "\\boxed{√2}"),
    (r"\sqrt{2}", r"\boxed{1.4142136}"),
    ("x^2+2x+1", r"\boxed{(x+1)^2}"),
    ("2^{10}", r"\boxed{1024}"),
    (r"x = 3 \text{ or } x = 5", r"\boxed{x = 3 \text{ or } x = 5}"),
]
INCORRECT = [
    ("19", r"\boxed{20}"),
    ("12", r"first \boxed{12}. In the end \boxed{10}"),
    ("12", r"\boxed{10, 12}"),
    ("1/3", r"\boxed{0.333333333}"),
    ("0.0000004", r"\boxed{0}"),
    ("12345678901234567890", r"\boxed{12345678901234567891}"),
    ("50", r"\boxed{0.49}"),
    (r"5\text{ hours}", r"\boxed{5\text{ minutes}}"),
    ("1010_2", r"\boxed{1010_3}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    ("(1,2)", r"\boxed{[1,2]}"),
    ("(1,2)", r"\boxed{\{1,2\}}"),
    ("B", r"\boxed{C}"),
    ("listen", r"\boxed{silent}"),
    ("5", r"\boxed{five}"),
    # by computer algebra
    (r"\frac{1}{204!}", r"\boxed{\frac{1}{206!}}"),
    (r"1-\frac{1}{e}", r"\boxed{1+1/\mathrm{e}}"),
    (r"\sqrt{2}", r"\boxed{1.41}"),
    ("5", r"\boxed{x}"),
    ("x^2+1", r"\boxed{x^2}"),
    ("5", r"\boxed{__import__('os').system('true')}"),
    ("5", r"\boxed{\frac{1}}"),
    ("5", r"\boxed{1/0}"),
]
OTHER = [
    ("19", "the answer is 19", "no_answer"),
    ("19", "", "no_answer"),
    ("19", r"\boxed{}", "no_answer"),
    ("19", r"\boxed{19", "no_answer"),
    ("5", "\\boxed{" * 20000, "no_answer"),
    ("12", r"it is \boxed{10} or \boxed{12}.", "malformed"),
    ("12", r"it is \boxed{10}. Or \boxed{12}.", "malformed"),
    ("12", r"\boxed{12 \text{ or } 13}", "malformed"),
    ("5", r"\boxed{9^{9^{9^9}}}", "too_complex"),
    ("5", r"\boxed{9^9^9^9}", "too_complex"),
    ("5", r"\boxed{x^{99999999}}", "too_complex"),
    ("5", r"\boxed{999999999!}", "too_complex"),
    ("5", r"\boxed{3!!!!!}", "too_complex"),
    ("5", r"\boxed{\binom{1000000000}{500000000}}", "too_complex"),
    ("5", r"\boxed{\sum_{k=1}^{1000} k}", "too_complex"),
    ("5", r"\boxed{1e999999999}", "too_complex"),
    ("5", r"\boxed{%s}" % ("9" * 5000), "too_complex"),
    ("5", r"\boxed{%s}" % ("(" * 300), "too_complex"),
    ("5", r"\boxed{" + "(" * 30 + "1" + ")" * 30 + "}", "too_complex"),
    ("5", r"\boxed{%s}" % ("x+" * 300 + "x"), "too_complex"),
    ("5", r"\boxed{%s}" % ("sqrt(" * 50000), "too_complex"),
    (None, r"\boxed{5}", "invalid_problem"),
    (True, r"\boxed{1}", "invalid_problem"),
]


@pytest.mark.parametrize(("reference", "answer"), CORRECT)
def test_an_answer_that_means_the_same_is_correct(reference: Any, answer: str) -> None:
    verdict = verify(problem(reference), answer)
    assert (verdict.kind, verdict.score) == ("correct", 1.0), verdict


@pytest.mark.parametrize(("reference", "answer"), INCORRECT)
def test_an_answer_that_means_something_else_is_incorrect(reference: Any, answer: str) -> None:
    verdict = verify(problem(reference), answer)
    assert (verdict.kind, verdict.score) == ("incorrect", 0.0), verdict


@pytest.mark.parametrize(("reference", "answer", "kind"), OTHER)
def test_what_is_no_single_checkable_answer_has_a_kind_of_its_own(reference: Any, answer: str, kind: str) -> None:
    verdict = verify(problem(reference), answer)
    assert verdict.kind == kind, verdict
    assert verdict.score == (None if kind == "invalid_problem" else 0.0)
    assert verdict.detail


@pytest.mark.parametrize(
    "reference", ["19", 19, -0.5, "1,234", r"\frac{\pi}{2}", "x^2+1", "B", r"\text{even}", "(1,2)"]
)
def test_a_sound_gold_answer_passes(reference: Any) -> None:
    assert gold(problem(reference)) is None


@pytest.mark.parametrize("reference", [None, True, [], "", "  ", r"\frac{1}{", r"\frac{1}", "9^{9^{9^9}}", "1}{2"])
def test_a_gold_answer_that_its_verifier_rejects_is_told(reference: Any) -> None:
    assert gold(problem(reference))


def test_the_verdict_carries_what_was_extracted() -> None:
    assert verify(problem("19"), r"so \boxed{ 20 }.").answer == "20"


def test_boxes_are_balanced_and_outermost() -> None:
    text = r"\boxed{1} \boxed{a{b}\}} \fbox{\boxed{2}} \boxed{ \boxed{3}"
    assert [box.content for box in boxes(text)] == ["1", r"a{b}\}", r"\boxed{2}", "3"]


def test_cleaning_gives_one_spelling() -> None:
    assert clean("\\left(\u22121,\\,½\\right).") == r"(-1, \frac{1}{2})"
    assert clean("\uff11\uff12") == "12"
    assert clean(r"\dfrac{a}{b}") == r"\frac{a}{b}"


def test_exact_values_are_read_as_fractions() -> None:
    assert read("-12") == Fraction(-12)
    assert read("1.25e2") == Fraction(125)
    assert read(r"-\frac{3}{6}") == Fraction(-1, 2)
    assert read("1,234") == Fraction(1234)
    assert read("1,234", as_list=True) == Items("", "", (Fraction(1), Fraction(234)))
    assert read("[1, (2, 3))") == Items("[", ")", (Fraction(1), Items("(", ")", (Fraction(2), Fraction(3)))))
    assert read("(5)") == Fraction(5)
    for text in ("x", r"\sqrt{2}", "(1, x)", "1/0", "", "()", "1,", "(1, 2", "1)(2"):
        assert read(text) is None
    with pytest.raises(TooComplex):
        read("(" * 20 + "1" + ")" * 20)


def test_sets_ignore_order_and_repetition_and_bare_lists_only_order() -> None:
    def same(gold: str, answer: str) -> bool:
        left, right = read(gold, as_list=True), read(answer, as_list=True)
        assert left is not None
        assert right is not None
        return equal(left, right)

    assert same("{1, 2}", "{2, 1, 1}")
    assert same("1, 2, 2", "2, 1, 2")
    assert not same("1, 2, 2", "2, 1, 1")
    assert same("(1, 2, 3)", "[1, 2, 3]")
    assert not same("(1, 2]", "(1, 2)")
    assert not same("1, 2", "1, 2, 3")


def test_a_plain_integer_takes_microseconds() -> None:
    item = problem("19")
    start = time.perf_counter()
    for _ in range(1000):
        verify(item, r"Hence the answer is \boxed{18}.")
    assert time.perf_counter() - start < 1.0  # about 15 ms; computer algebra would take seconds
