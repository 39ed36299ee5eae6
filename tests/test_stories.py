"""The task `stories`: word problems of a few sums."""

import re
from itertools import islice

import pytest

from motet.base.errors import UserError
from motet.base.recipe import ProblemSet
from motet.base.records import Problem
from motet.tasks import load_problem_set, split_key, stories
from motet.tasks.worked import TERSE
from motet.verify.judge import check_problem


def told(count: int, **arguments: int) -> list[Problem]:
    return list(islice(stories.stories("school", 1, **arguments), count))  # type: ignore[arg-type]


def sums(problem: Problem) -> list[str]:
    return str(problem.metadata["solution"]["reasoning"]).split("\n")


def test_every_sum_is_right_and_begins_with_the_result_of_the_one_before() -> None:
    for problem in told(500):
        last = re.match(r"\w+ has (\d+)", problem.messages[0]["content"])
        assert last is not None
        before = int(last[1])
        for line in sums(problem):
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
            assert int(left) == before
            before = int(result)
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}.get(
                sign, int(left) / int(right)
            ) == before
        assert problem.reference == str(before) and check_problem(problem) is None


def test_a_story_by_hand_has_the_value_and_the_sums_of_its_turns() -> None:
    # 12 and 5 more are 17; the other has 17 more than... the sum of both is asked for: 12 + 5 = 17, 17 + 12 = 29
    assert stories.COMPARISON.sums(12, 5) == [(12, "+", 5), (17, "+", 12)]
    assert stories.SHARE.sums(12, 4) == [(12, "/", 4)] and stories.LOSS.sums(12, 4) == [(12, "-", 4)]


def test_stories_have_as_many_sums_as_asked_and_no_larger_numbers() -> None:
    for problem in told(300, min_steps=2, max_steps=2, largest=20):
        assert len(sums(problem)) == 2
        text = problem.messages[0]["content"]
        assert max(map(int, re.findall(r"\d+", text))) <= 20
        assert max(map(int, re.findall(r"\d+", " ".join(sums(problem))))) <= 400


def test_a_division_has_no_remainder_and_nothing_becomes_negative() -> None:
    for problem in told(500):
        for line in sums(problem):
            left, sign, right, result = line.replace("=", "").split()
            assert int(result) > 0
            assert sign != "/" or int(left) % int(right) == 0


def test_all_phrases_are_told_and_no_name_or_number_is_part_of_a_template() -> None:
    texts = " ".join(p.messages[0]["content"] for p in told(4000))
    for phrase in (*stories.PLUS, *stories.MINUS, *stories.TIMES, *stories.SHARED, *stories.WORTH, *stories.COMPARED):
        words = [re.escape(part) for part in re.split(r"\{\w+\}", phrase)]
        assert re.search(r"[\w ]+?".join(words), texts), phrase
    keys = [split_key(p) for p in told(2000)]
    assert len(set(keys)) < len(keys) / 2


def test_a_template_is_on_one_side_of_the_split() -> None:
    split = load_problem_set("school", ProblemSet(task="stories", count=400, heldout=0.2), seed=1)
    sides = [{split_key(p) for p in side} for side in split[:2]]
    assert sides[0].isdisjoint(sides[1]) and len(split.heldout) > 30


def test_the_same_seed_tells_the_same_stories() -> None:
    assert [p.id for p in told(50)] == [p.id for p in told(50)]
    assert told(1)[0].id != next(stories.stories("school", 2)).id


def test_the_share_that_is_terse_shows_no_sums() -> None:
    problems = list(islice(stories.stories("school", 1, terse=0.5), 400))
    without = [p for p in problems if p.metadata["solution"]["reasoning"] == TERSE]
    assert 150 < len(without) < 250
    assert all(p.metadata["solution"]["answer"] == f"\\boxed{{{p.reference}}}" for p in without)


@pytest.mark.parametrize("arguments", [{"min_steps": 0}, {"min_steps": 3, "max_steps": 2}, {"largest": 9}])
def test_arguments_that_leave_nothing_to_tell_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="stories: "):
        told(1, **arguments)
