"""`motet check`: what is right with a problem file is proved, what is wrong is named with file, line and field."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from motet import cli
from motet.base.errors import UserError
from motet.base.records import Problem
from motet.tasks.check_view import show
from motet.tasks.checking import MOST_FINDINGS, Finding, Result, Times, run, sources_of
from motet.tasks.probes import probes
from motet.verify.judge import judge
from motet.verify.pool import Pool

LENIENT = """
from motet.base.records import Verdict
def judge(problem, answer):
    return Verdict("correct", 1.0, answer)
"""
GOOD: dict[str, Any] = {"prompt": "12 + 7 = ?", "answer": "19"}
COUNT = {"prompt": "Print the sum.", "tests": [{"stdin": "3 4\n", "stdout": "7\n"}],
         "solution": "```python\nprint(sum(map(int, input().split())))\n```"}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, 30.0) as pool:
        yield pool


@pytest.fixture
def checked(pool: Pool, tmp_path: Path) -> Callable[..., Result]:
    def check(*rows: Any, verifier: str | None = None) -> Result:
        path = tmp_path / "p.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return run(sources_of(str(path), (), verifier)[0], pool)

    return check


def found(result: Result) -> list[tuple[str, str]]:
    return [(finding.kind, finding.place.rpartition("/")[2]) for finding in result.findings]


def test_good_problems_are_proved_and_every_wrong_completion_refused(checked: Callable[..., Result]) -> None:
    result = checked(GOOD, {"prompt": "Half of one?", "answer": r"\frac{1}{2}"}, COUNT)
    assert found(result) == []
    math, code = result.tallies["p.jsonl", "math"], result.tallies["p.jsonl", "code"]
    # nonsense twice, empty twice, echo, repeated, many answers, malformed twice; code has one nonsense less
    assert (math.problems, math.proved, math.refused) == (2, 2, 18)
    assert (code.problems, code.proved, code.refused) == (1, 1, 8)
    assert math.times.count == 20 and 0 < math.times.quantile(0.5) <= math.times.quantile(0.99) <= math.times.worst


def test_bad_rows_and_invalid_problems_are_listed_with_file_line_and_field(checked: Callable[..., Result]) -> None:
    result = checked(
        GOOD,
        {"prompt": "no answer"},
        "not JSON",
        {"prompt": "bad gold", "answer": "{{"},
        {"prompt": "no tests", "tests": []},
        {**COUNT, "prompt": "wrong solution", "solution": "```python\nprint(8)\n```"},
        {"prompt": "odd", "instructions": [{"id": "no:such", "kwargs": {}}]},
    )
    assert sorted(found(result)) == [
        ("bad row", "p.jsonl:2:answer"),
        ("bad row", "p.jsonl:3"),
        ("invalid problem", "p.jsonl:4:answer"),
        ("invalid problem", "p.jsonl:5:tests"),
        ("invalid problem", "p.jsonl:6:tests"),
        ("invalid problem", "p.jsonl:7:instructions"),
    ]
    assert "worked solution is judged incorrect" in result.findings[-2].reason
    assert result.tallies["p.jsonl", "math"].proved == 1


def test_duplicates_are_found_and_those_that_contradict_each_other_named(checked: Callable[..., Result]) -> None:
    result = checked({**GOOD, "id": 1}, {**GOOD, "id": 2}, {**GOOD, "answer": "20"}, {**GOOD, "prompt": "?", "id": 1})
    assert sorted(f.reason.partition("same ")[2] for f in result.findings) == [
        "id and another prompt",
        "prompt and another reference",
        "prompt and reference",
    ]
    assert result.duplicates == {"p.jsonl": 2} and result.counts == {"duplicate": 3}


def test_a_verifier_that_accepts_everything_is_found_out(checked: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "lenient.py").write_text(LENIENT)
    result = checked({**GOOD, "solution": "19"}, verifier=f"{tmp_path}/lenient.py:judge")
    accepted = {f.reason.partition(":")[0] for f in result.findings if f.kind == "wrong accepted"}
    assert accepted == {"nonsense", "empty", "echo", "repeated"}


def test_a_verifier_that_fails_is_no_proof(checked: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def judge(problem, answer): raise ZeroDivisionError('oops')")
    result = checked(GOOD, verifier=f"{tmp_path}/broken.py:judge")
    assert {f.kind for f in result.findings} == {"not judged"} and "oops" in result.findings[0].reason


def test_a_prompt_that_holds_its_own_answer_is_found(checked: Callable[..., Result]) -> None:
    result = checked({"prompt": r"Say \boxed{19}.", "answer": "19"})
    assert [f.kind for f in result.findings] == ["wrong accepted"] and "echo" in result.findings[0].reason


@pytest.mark.parametrize(("think", "open_think"), [("required", False), ("required", True), ("off", False)])
def test_probes_are_whole_completions_in_the_chats_own_form(think: Any, open_think: bool) -> None:
    problem = Problem("p", ({"role": "user", "content": "?"},), "math", r"\frac{1}{2}", "math")
    kinds = {
        (p.name, judge(problem, p.text, "end", think, open_think).kind) for p in probes(problem, think, open_think)
    }
    assert ("gold", "correct") in kinds and ("many answers", "malformed") in kinds
    assert [name for name, kind in kinds if kind == "correct"] == ["gold"]


def test_quantiles_of_times_are_exact_to_a_twentieth() -> None:
    times = Times()
    for n in range(1, 1001):
        times.add(n / 1000, str(n))
    assert times.quantile(0.5) == pytest.approx(0.5, rel=0.05) and times.quantile(0.99) == pytest.approx(0.99, rel=0.05)
    assert (times.worst, times.worst_at, times.quantile(1.0)) == (1.0, "1000", 1.0)
    assert Times().quantile(0.5) == 0.0


def test_findings_beyond_the_bound_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result()
    for n in range(MOST_FINDINGS + 5):
        result.add(Finding("bad row", "p", f"p.jsonl:{n}", "", "[is] missing"))
    assert len(result.findings) == MOST_FINDINGS and result.counts["bad row"] == MOST_FINDINGS + 5
    show(result)
    out = capsys.readouterr().out
    assert "bad row 1,005" in out and "p.jsonl:49" in out and "p.jsonl:50" not in out and "[is] missing" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["good.jsonl"], 0, "nothing was found"),
        (["bad.jsonl"], 1, "bad row 1"),
        (["empty.jsonl"], 1, "there is no problem in it: nothing was proved"),
        (["none.jsonl"], 2, "no such file"),
        (["good.jsonl", "seed=2"], 2, "only a recipe can be overridden"),
        (["good.jsonl", "--verifier", "maths"], 2, "did you mean 'math'"),
    ],
)
def test_the_exit_status_says_fine_found_or_bad_use(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keyword = {"id": "keywords:existence", "kwargs": {"keywords": ["river"]}}
    good = {"prompt": "Where?", "instructions": [keyword], "solution": "At the old bridge, where the river is wide."}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n{}\n")
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["motet", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = capsys.readouterr()
    assert ended.value.code == code
    assert words in (output.out + output.err)


def test_a_recipe_is_checked_with_all_its_sources(pool: Pool, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "12 + 7 = ?", "a": "19"}\n{"q": "?", "a": "{"}\n')
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'stages = ["base"]\n[model]\ntiny = {}\n[stage.base]\nkind = "evaluate"\n'
        f'[problems.own]\npath = "{rows}"\ncolumns = {{ prompt = "q", answer = "a" }}\nheldout = 1.0\n'
        '[problems.sums]\ntask = "addition"\ncount = 20\n'
        '[evaluation]\nsets = [{ suite = "aime24", path = "no-such-folder" }]\n'
    )
    sources, loaded = sources_of(str(recipe))
    result = run(sources, pool, loaded)
    assert {name: tally.proved for (name, _), tally in result.tallies.items()} == {"own": 1, "sums": 20}
    assert [(f.kind, f.source, f.place.rpartition("/")[2]) for f in result.findings] == [
        ("invalid problem", "own", "rows.jsonl:2:a"),
        ("unreadable", "aime24", ""),
    ]
    with pytest.raises(UserError, match="--verifier is for a file"):
        sources_of(str(recipe), (), "math")
