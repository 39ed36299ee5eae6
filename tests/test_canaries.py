"""Known items among the others: a verifier that misjudges one stops everything, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.records import Problem
from motet.verify import VERIFIERS, canaries, resolve
from motet.verify.canaries import CANARIES, EVERY_ITEMS, CanaryError, Watch, of_module
from motet.verify.judge import apply
from motet.verify.pool import Item, Pool

OWN = """
from motet.base.records import Verdict

CANARIES = [
    {"name": "yes", "reference": "yes", "answer": "yes, sure", "kind": "correct"},
    {"reference": "yes", "answer": "no", "kind": "incorrect", "function": "judge"},
    {"reference": "x", "answer": "x", "kind": "correct", "function": "another"},
]
JUDGED = []

def judge(problem, answer):
    JUDGED.append(answer)
    good = answer.startswith(problem.reference) or BROKEN_FROM <= len(JUDGED)
    return Verdict("correct" if good else "incorrect", float(good), answer)
"""


def own(folder: Path, broken_from: int = 10**9, text: str = OWN) -> str:
    path = folder / "own.py"
    path.write_text(text + f"\nBROKEN_FROM = {broken_from}\n")
    return f"{path}:judge"


def item(verifier: str, answer: str = "no", reference: Any = "yes") -> Item:
    return Item(Problem("p", ({"role": "user", "content": "?"},), verifier, reference, "d"), answer, "end", "off")


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1, 30.0) as pool:
        yield pool


def test_every_verifier_has_canaries_of_which_the_first_two_are_a_right_and_a_wrong_answer() -> None:
    assert set(CANARIES) == set(VERIFIERS)
    for known in CANARIES.values():
        assert [canary.kind for canary in known[:2]] == ["correct", "incorrect"]


@pytest.mark.parametrize("verifier", ["math", "instruction", "procedural", "code"])
def test_the_verifiers_judge_their_own_canaries_rightly(verifier: str) -> None:
    for canary in CANARIES[verifier]:
        verdict = apply(resolve(verifier), canary.problem(verifier), canary.answer)
        assert verdict.kind == canary.kind, (canary.name, verdict)


def test_two_canaries_come_first_and_then_one_for_so_many_items_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(canaries.time, "monotonic", lambda: now[0])
    watch = Watch()
    assert list(watch.due()) == [0, 1]
    assert [n for _ in range(2 * EVERY_ITEMS) for n in watch.due()] == [2, 3]
    now[0] += canaries.EVERY_SECONDS
    assert list(watch.due()) == [4] and list(watch.due()) == []


def test_a_users_file_is_watched_by_the_canaries_that_it_declares(tmp_path: Path, pool: Pool) -> None:
    verifier = own(tmp_path)
    assert {v.kind for _, v in pool.judge([item(verifier)] * 450)} == {"incorrect"}
    assert pool.canaries[verifier] == 4  # two first, one for each further 200


def test_a_verifier_that_dies_half_way_stops_the_run_with_the_evidence(tmp_path: Path, pool: Pool) -> None:
    verifier = own(tmp_path, broken_from=300)
    with pytest.raises(CanaryError) as raised:
        list(pool.judge([item(verifier)] * 5000))
    text = str(raised.value)
    assert verifier in text and "'CANARIES[1]'" in text and "incorrect was expected, got correct" in text
    with pytest.raises(CanaryError):  # for good
        pool.submit(item("math", r"\boxed{1}", "1"))


def test_a_verifier_that_is_dead_from_the_start_is_seen_before_the_stream_ends(tmp_path: Path, pool: Pool) -> None:
    with pytest.raises(CanaryError, match="got correct"):
        list(pool.judge([item(own(tmp_path, broken_from=0))]))


def test_a_verifier_without_canaries_is_used_without(tmp_path: Path, pool: Pool) -> None:
    verifier = own(tmp_path, text=OWN.replace("CANARIES =", "OTHERS ="))
    assert {v.kind for _, v in pool.judge([item(verifier)] * 500)} == {"incorrect"}
    assert pool.canaries[verifier] == 0


def test_workers_begin_before_there_is_anything_to_judge(tmp_path: Path) -> None:
    """Two workers, each with a canary of each of two verifiers; then an item's own two of its verifier."""
    verifier = own(tmp_path)
    with Pool(2, 30.0) as pool:
        for _ in range(2):  # once
            pool.begin([verifier, "math", "math"])
            pool.verdicts_stand()
        assert pool.canaries == {verifier: 2, "math": 2} and 1 <= pool._crew.started <= 2
        assert [v.kind for _, v in pool.judge([item(verifier)])] == ["incorrect"]
        pool.begin(["instruction"])
        pool.verdicts_stand()
        assert pool.canaries == {verifier: 4, "math": 2}


@pytest.mark.parametrize("text", ["import os\nos._exit(3)", "1 / 0", OWN.replace("CANARIES =", "OTHERS =")])
def test_a_file_that_does_not_load_or_has_no_canaries_stops_nothing_when_workers_begin(
    tmp_path: Path, pool: Pool, text: str
) -> None:
    pool.begin([own(tmp_path, text=text), "math"])
    pool.verdicts_stand()
    assert [v.kind for _, v in pool.judge([item("math", r"\boxed{1}", "1")])] == ["correct"]
    assert pool.canaries["math"] >= 2


def test_a_file_that_kills_its_worker_at_once_spoils_its_own_items_only(tmp_path: Path, pool: Pool) -> None:
    verifier = own(tmp_path, text="import os\nos._exit(3)")
    verdicts = dict(pool.judge([item(verifier), item("math", r"\boxed{1}", "1")]))
    assert [verdicts[0].kind, verdicts[1].kind] == ["infra_error", "correct"]


@pytest.mark.parametrize(
    ("declared", "trouble"),
    [
        ("yes", "must be a list, got a str"),
        ([{"reference": 1, "answer": "x"}], r"CANARIES\[0\] must hold reference, answer and kind"),
        ([{"reference": 1, "answer": "x", "kind": "right"}], "kind 'right' is none of correct, incorrect"),
        ([{"reference": 1, "answer": 2, "kind": "correct"}], "must be texts"),
    ],
)
def test_a_bad_declaration_is_the_users_error(declared: Any, trouble: str) -> None:
    with pytest.raises(UserError, match=trouble):
        of_module("own.py:judge", declared)


def test_a_bad_declaration_is_told_by_the_pool(tmp_path: Path, pool: Pool) -> None:
    verifier = own(tmp_path, text=OWN + "\nCANARIES = 3\n")
    with pytest.raises(UserError, match="must be a list, got a int"):
        list(pool.judge([item(verifier)]))


def test_verdicts_of_a_dead_verifier_are_not_gone_on_with(tmp_path: Path) -> None:
    """A run that stops on a canary keeps none of the rollouts that it was sampling."""
    from motet.base.recipe import Sampling
    from motet.base.records import Completion
    from motet.rl.rollouts import Sampler

    class Engine:
        version = 0

        def generate(self, requests: Any, params: Any) -> Iterator[tuple[int, Completion]]:
            return ((n, Completion("no", (1,), (-1.0,), "end", 0)) for n in range(len(requests)))

    class Chat:
        from motet.base.recipe import Chat as Config

        config = Config(think="off")

        def prompt(self, messages: Any) -> tuple[int, ...]:
            return (5,)

    with Pool(1, 30.0) as pool:
        sampler: Any = Sampler(Engine(), Chat(), pool)  # type: ignore[arg-type]
        problem = item(own(tmp_path, broken_from=300)).problem
        with pytest.raises(CanaryError):
            sampler.groups([problem], 2000, Sampling(), (1,), tmp_path / "groups.jsonl", "test")
    assert not (tmp_path / "groups.part.jsonl").exists() and not (tmp_path / "groups.jsonl").exists()
