from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from motet.base import jsonl, signs
from motet.base.recipe import Chat, Sampling
from motet.base.records import Completion, Group, Problem, decode_group
from motet.data.chat import ChatFormat
from motet.engine.protocol import Request, SamplingParams
from motet.engine.scripted import ScriptedEngine
from motet.rl.rollouts import Sampler
from motet.verify.pool import Pool

REPLIES = ["<think>1</think>\\boxed{3}", "<think>1</think>\\boxed{4}", "3", "<think>x</think>"]


class Counting:
    """An engine that counts what it is asked for, and that may break down after some completions."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.inner = engine
        self.asked: list[Request] = []
        self.breaks_after: int | None = None

    @property
    def version(self) -> int:
        return self.inner.version

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        for number, (index, completion) in enumerate(self.inner.generate(requests, sampling)):
            if number == self.breaks_after:
                raise ConnectionError("the engine is gone")
            self.asked.append(requests[index])
            yield index, completion

    def load(self, weights: Any, version: int) -> None:
        self.inner.load(weights, version)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, 30.0) as pool:
        yield pool


@pytest.fixture
def sampler(tokenizer: Any, pool: Pool) -> Sampler:
    chat = ChatFormat(tokenizer, Chat())
    replies = {f"1 + {n} = ?": REPLIES for n in (2, 3)}
    return Sampler(Counting(ScriptedEngine(replies, chat.encode, chat.end_token)), chat, pool)


def problem(n: int) -> Problem:
    return Problem(f"p{n}", ({"role": "user", "content": f"1 + {n} = ?"},), "math", str(1 + n), "math")


def groups(sampler: Sampler, file: Path, problems: Sequence[Problem], n: int = 6) -> list[Group]:
    return sampler.groups(problems, n, Sampling(max_tokens=24), (1, "rl", 0), file, "test")


def engine_of(sampler: Sampler) -> Counting:
    assert isinstance(sampler.engine, Counting)
    return sampler.engine


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_problem_gets_its_judged_group_in_order_and_the_file_holds_them(sampler: Sampler, tmp_path: Path) -> None:
    file = tmp_path / "step.jsonl"
    found = groups(sampler, file, [problem(3), problem(2)])
    assert [(g.problem.id, len(g.rollouts)) for g in found] == [("p3", 6), ("p2", 6)]
    assert [decode_group(row) for _, row in jsonl.read(file)] == found and names(tmp_path) == ["step.jsonl"]
    right = {"p3": "\\boxed{4}", "p2": "\\boxed{3}"}
    for group in found:
        for rollout in group.rollouts:
            text = rollout.completion.text
            expected = (
                "malformed" if "\\" not in text else "correct" if right[group.problem.id] in text else "incorrect"
            )
            assert rollout.verdict.kind == expected
            assert rollout.prompt_tokens == sampler.chat.prompt(group.problem.messages)
    assert len({r.completion.text for g in found for r in g.rollouts}) > 1


def test_a_completion_cut_at_the_limit_is_truncated_and_not_judged(sampler: Sampler, tmp_path: Path) -> None:
    (group,) = sampler.groups([problem(2)], 4, Sampling(max_tokens=1), (1,), tmp_path / "f.jsonl", "test")
    assert {(r.verdict.kind, r.verdict.score) for r in group.rollouts} == {("truncated", None)}


def test_the_same_stream_gives_the_same_rollouts_and_another_one_others(sampler: Sampler, tmp_path: Path) -> None:
    first = groups(sampler, tmp_path / "a.jsonl", [problem(2), problem(3)])
    again = groups(sampler, tmp_path / "b.jsonl", [problem(3), problem(2)])
    assert again == first[::-1]
    other = sampler.groups([problem(2)], 6, Sampling(max_tokens=24), (2,), tmp_path / "c.jsonl", "test")
    assert other[0] != first[0]


def test_a_problem_that_occurs_twice_gets_different_rollouts(sampler: Sampler, tmp_path: Path) -> None:
    once, twice = groups(sampler, tmp_path / "a.jsonl", [problem(2), problem(2)])
    assert len({request.seed for request in engine_of(sampler).asked}) == 12
    assert once.problem == twice.problem and once.rollouts != twice.rollouts


def test_a_killed_call_goes_on_from_what_was_judged_and_ends_with_the_same_groups(
    sampler: Sampler, tmp_path: Path
) -> None:
    problems = [problem(2), problem(3), problem(2)]
    expected = groups(sampler, tmp_path / "whole.jsonl", problems)
    engine = engine_of(sampler)
    engine.breaks_after = 9
    with pytest.raises(ConnectionError):
        groups(sampler, tmp_path / "step.jsonl", problems)
    part = tmp_path / "step.part.jsonl"
    judged = len(part.read_text().splitlines())
    assert 0 < judged <= 9 and not (tmp_path / "step.jsonl").exists()
    part.write_text(part.read_text()[:-20])  # the kill tore the last line
    engine.breaks_after, engine.asked = None, []
    assert groups(sampler, tmp_path / "step.jsonl", problems) == expected
    assert len(engine.asked) == 18 - (judged - 1)
    assert names(tmp_path) == ["step.jsonl", "whole.jsonl"]


def test_what_other_weights_sampled_is_not_taken_over(sampler: Sampler, tmp_path: Path) -> None:
    engine = engine_of(sampler)
    engine.breaks_after = 5
    with pytest.raises(ConnectionError):
        groups(sampler, tmp_path / "step.jsonl", [problem(2)])
    engine.breaks_after, engine.asked = None, []
    engine.load([], 1)
    (group,) = groups(sampler, tmp_path / "step.jsonl", [problem(2)])
    assert len(engine.asked) == 6 and {r.completion.version for r in group.rollouts} == {1}


def test_a_finished_file_is_read_back_unless_other_weights_sampled_it(sampler: Sampler, tmp_path: Path) -> None:
    file, engine = tmp_path / "step.jsonl", engine_of(sampler)
    expected = groups(sampler, file, [problem(2)])
    (tmp_path / "step.part.jsonl").write_text(json.dumps({"left": "by a kill after the file was done"}) + "\n")
    engine.asked = []
    assert groups(sampler, file, [problem(2)]) == expected
    assert engine.asked == [] and names(tmp_path) == ["step.jsonl"]
    engine.load([], 1)
    groups(sampler, file, [problem(2)])
    assert len(engine.asked) == 6


def test_each_completion_and_each_judged_rollout_is_a_sign_of_life(sampler: Sampler, tmp_path: Path) -> None:
    before = signs.given()
    groups(sampler, tmp_path / "step.jsonl", [problem(3)], n=6)
    assert signs.given() - before >= 6 + 6
