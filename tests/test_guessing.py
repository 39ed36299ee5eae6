"""One answer to all problems: its figures by hand, where it says nothing, and what the alarm proposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from motet.base.load_recipe import load
from motet.base.recipe import Recipe
from motet.base.records import Completion, Group, Problem, Rollout, Verdict
from motet.insight.verdicts import guessed as told
from motet.rl.alarms.guessing import guessed, one_answer
from motet.rl.alarms.heldout import not_generalising
from motet.rl.alarms.record import Alarm, History
from motet.rl.telltales import one_answer as figures
from motet.verify.guessing import guess_figures, no_better, plain_reference, sameness

REFERENCES = ("1", "1", "2", "3")


def problem(reference: Any, verifier: str = "math", domain: str = "letters") -> Problem:
    return Problem(f"p{reference}", ({"role": "user", "content": "?"},), verifier, reference, domain)


def group(reference: Any, answers: Sequence[str | None], verifier: str = "math") -> Group:
    return Group(problem(reference, verifier), tuple(rollout(reference, answer) for answer in answers))


def rollout(reference: Any, answer: str | None) -> Rollout:
    verdict = Verdict("no_answer", 0.0) if answer is None else Verdict("incorrect", 0.0, answer)
    if answer == reference:
        verdict = Verdict("correct", 1.0, answer)
    return Rollout((1,), Completion(str(answer), (5, 2), (-0.1, -0.1), "end", 0), verdict)


# ---- figures


def test_one_answer_to_all_is_far_above_the_most_frequent_reference() -> None:
    groups = [group(reference, ["1", " 1 "]) for reference in REFERENCES]
    assert sameness(groups) == (1.0, 0.5)  # 8 of 8 rollouts; 2 of 4 problems
    assert figures(groups, "/letters") == {
        "rollout/same_answer_share/letters": 1.0,
        "rollout/same_reference_share/letters": 0.5,
    }


def test_where_all_is_solved_both_shares_are_the_same_however_few_the_problems() -> None:
    for references in (REFERENCES, ("1", "2"), ("1", "1", "1", "1", "2")):
        found = sameness([group(reference, [reference] * 3) for reference in references])
        assert found is not None and found.answer == found.reference


def test_a_rollout_without_an_answer_counts_and_one_that_was_not_judged_does_not() -> None:
    masked = Rollout((1,), Completion("", (2,), (), "end", 0), Verdict("infra_error", None, "9"))
    groups = [group("1", ["7", None]), group("2", ["7", "7"])]
    groups[0] = Group(groups[0].problem, (*groups[0].rollouts, masked))
    assert sameness(groups) == (0.75, 0.5)


def test_nothing_is_said_of_one_reference_or_without_answers_that_can_be_compared() -> None:
    assert sameness([group("1", ["1"]), group("1", ["1"])]) is None
    assert sameness([group("1", [None]), group("2", [None])]) is None
    tests = {"mode": "stdin", "tests": []}
    assert figures([group({**tests, "n": n}, ["print(1)"], "code") for n in (1, 2)], "") == {}
    assert sameness([]) is None


@pytest.mark.parametrize(
    ("given", "verifier", "expected"),
    [
        ("x + 1", "math", "x + 1"),
        (" 12\n", "math", "12"),
        (7, "tests/own.py:check", "7"),
        ({"dataset": "d", "entry": {"answer": "noom"}}, "procedural", "noom"),
        ({"dataset": "d", "entry": {"answer": None}}, "procedural", None),
        ({"dataset": "d"}, "procedural", None),
        ([{"id": "punctuation:no_comma"}], "instruction", None),
        (True, "math", None),
        ("a" * 201, "math", None),
        ("", "math", None),
    ],
)
def test_a_reference_that_is_short_is_compared_as_an_answer(given: Any, verifier: str, expected: str | None) -> None:
    assert plain_reference(problem(given, verifier)) == expected


# ---- evaluation and report


def test_the_guess_of_an_evaluation_is_the_most_frequent_reference_and_what_it_earns() -> None:
    groups = [group(reference, ["1", "4"]) for reference in REFERENCES]
    groups += [Group(problem(n, domain="sums"), (rollout(n, n),)) for n in ("3", "2")]
    assert guess_figures(groups) == {
        "letters": {"answer": "1", "share": 0.5, "given": 0.5},
        "sums": {"answer": "2", "share": 0.5, "given": 0.5},  # of two as frequent, the first in order
    }


def test_a_rate_is_no_better_than_a_guess_when_its_interval_reaches_down_to_it() -> None:
    assert no_better(0.3, 0.353) and no_better(0.353, 0.353)
    assert not no_better(0.36, 0.353)
    assert not no_better(0.0, 0.05)  # a guess that earns next to nothing explains nothing
    assert not no_better(None, 0.9)


def test_the_report_speaks_of_a_guess_only_where_it_matters() -> None:
    row = {"guess": {"answer": "1", "share": 0.353, "given": 1.0, "no_better": True}}
    assert told(row) == "no better than always answering 1: 35.3 %"
    assert told({"guess": {**row["guess"], "no_better": False}}) == "" and told({}) == "" and told(None) == ""


# ---- the alarm


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Path(__file__).parent.parent / "recipes" / "smollm2-vllm.toml", ["stage.rl.alarms.window=2"])


def history(recipe: Recipe, *rows: tuple[float, float, float]) -> History:
    """Steps of (same answer, most frequent reference, pass rate) of the domain letters, beside one that is solved
    although 95 % of its references are the same."""
    found = History(recipe, "rl")
    for step, (given, reference, passed) in enumerate(rows, 1):
        own = {"rollout/same_answer_share/letters": given, "rollout/same_reference_share/letters": reference}
        other = {"rollout/same_answer_share/sums": 0.95, "rollout/same_reference_share/sums": 0.95}
        rates = {"pass/mean": 0.6, "pass/letters": passed, "pass/sums": 1.0, "groups/live_share/letters": 0.1}
        found.add({"step": step, **own, **other, **rates, "rollout/count": 512.0})
    return found


def seen(recipe: Recipe, *rows: tuple[float, float, float]) -> Alarm:
    alarm = guessed(history(recipe, *rows))
    assert alarm is not None
    return alarm


def test_a_domain_that_was_not_learnt_before_rl_is_to_be_taught_or_taken_out(recipe: Recipe) -> None:
    """Letter counts of a real run: 33.5 % passed at first, and the one answer that all problems got in the end earned
    35.3 %."""
    names = [source.problems for source in recipe.stage["sft-1"].data]  # type: ignore[union-attr]
    recipe = _with_letters(recipe, str(names[2]))
    alarm = seen(recipe, (0.5, 0.42, 0.335), (0.5, 0.42, 0.335), (0.97, 0.44, 0.353), (0.99, 0.44, 0.353))
    assert "98 % of the rollouts of letters gave one and the same answer" in alarm.seen
    assert "at most 44 % of its problems" in alarm.seen and "35.3 % passed: guessed, not solved." in alarm.seen
    first = alarm.causes[0]
    assert first.text == "the model could not do these problems when RL began"
    assert first.evidence == "33.5 % passed in the first steps, and the guess alone earns 35.3 %"
    lines = [line.split("   #")[0] for line in first.change]
    assert lines[0] == "stage.sft-1.steps = 400"
    assert lines[1].startswith("stage.sft-1.data = [") and lines[1].endswith(f'"{names[2]}", weight = 2.0 }}]')
    assert lines[2] == 'stage.rl.problems = [{ stage = "filter", domain = "sums" }]'
    assert alarm.causes[1].evidence == "44 % of the problems have the most frequent reference"
    # 512 rollouts of 2 domains in groups of 16 are 16 problems of each: one of them is the most frequent at least
    assert alarm.causes[1].weight == pytest.approx(2 * (0.44 - 1 / 16))


def test_a_policy_that_collapsed_although_it_could_is_told_by_its_first_steps(recipe: Recipe) -> None:
    alarm = seen(recipe, (0.1, 0.07, 0.6), (0.1, 0.07, 0.6), (0.95, 0.07, 0.06), (0.95, 0.07, 0.06))
    assert "the learning rate is too high" in alarm.causes[0].text
    assert alarm.causes[0].evidence.startswith("10 % of the rollouts gave one answer at first")
    assert "stage.rl.optimizer.learning_rate = 6.67e-06   # now 2e-05" in alarm.causes[0].change


def test_a_domain_whose_answers_are_what_its_references_are_is_silent(recipe: Recipe) -> None:
    assert guessed(history(recipe, (0.92, 0.9, 0.9), (0.95, 0.9, 0.9))) is None
    assert guessed(history(recipe, (0.85, 0.3, 0.3), (0.85, 0.3, 0.3))) is None  # other answers are still given
    assert guessed(history(recipe, (1.0, 0.3, 0.3))) is None  # not for a window yet
    assert one_answer(history(recipe, (0.92, 0.9, 0.9), (0.95, 0.9, 0.9))).weight == 0.0


def test_what_is_guessed_is_named_where_training_does_not_generalise(recipe: Recipe) -> None:
    found = history(recipe, *[(0.99, 0.4, 0.5)] * 4)
    for step, reward in ((1, 0.3), (2, 0.3), (3, 0.6), (4, 0.6)):
        found.add({"step": step, "reward/mean": reward})
    found.add({"step": 4, "heldout/pass": 0.3, "heldout/before/pass": 0.29, "heldout/change": 0.01})
    alarm = not_generalising(found)
    assert alarm is not None and "one answer is given to nearly all problems of letters" in alarm.causes[0].text


def _with_letters(recipe: Recipe, name: str) -> Recipe:
    """The same recipe, the domain of the set `name` being letters."""
    part = recipe.problems[name].model_copy(update={"domain": "letters"})
    return recipe.model_copy(update={"problems": {**recipe.problems, name: part}})
