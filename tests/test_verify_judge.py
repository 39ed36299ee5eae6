"""From a text to a verdict: stop reason, think block, the verifier by name or from a user's file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import motet
from motet.base.errors import UserError
from motet.base.records import Problem, Verdict
from motet.verify import VERIFIERS, resolve
from motet.verify.judge import check_problem, judge
from motet.verify.sandbox import Settings
from motet.verify.structure import Parts, split


def problem(verifier: str = "math", reference: Any = "12", **metadata: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": "7 + 5 = ?"},), verifier, reference, "math", "", metadata)


def test_a_text_is_split_at_its_think_block() -> None:
    assert split(" \n<think>7 + 5</think> 12", "required") == Parts("7 + 5", " 12")
    assert split("7 + 5</think>12", "required", open_think=True) == Parts("7 + 5", "12")
    assert split("<think>a</think>b", "off") == Parts("", "<think>a</think>b")
    assert split("<think></think>12", "required") == Parts("", "12")


@pytest.mark.parametrize(
    ("text", "open_think"),
    [
        ("12", False),
        ("<think>7 + 5", False),
        ("7 + 5</think>12", False),
        ("</think>7 + 5<think>12", False),
        ("<think>a</think>12<think>b</think>13", False),
        ("<think><think>a</think>12", False),
        ("so: <think>a</think>12", False),
        ("<think>a</think>", False),
        ("<think>a</think> \n\t", False),
        ("", False),
        ("<think>a</think>12", True),
        ("a</think>b</think>12", True),
        ("never closed", True),
    ],
)
def test_a_broken_think_block_is_malformed_and_scores_zero(text: str, open_think: bool) -> None:
    verdict = split(text, "required", open_think)
    assert isinstance(verdict, Verdict)
    assert (verdict.kind, verdict.score) == ("malformed", 0.0)


def test_only_the_answer_part_is_judged() -> None:
    assert judge(problem(), r"<think>\boxed{13}</think>\boxed{12}", "end").kind == "correct"
    assert judge(problem(), r"<think>\boxed{12}</think>\boxed{13}", "end").kind == "incorrect"
    assert judge(problem(), r"<think>\boxed{12}</think>Done.", "end").kind == "no_answer"
    assert judge(problem(), r"\boxed{12}", "end").kind == "malformed"
    assert judge(problem(), r"\boxed{12}", "end", think="off").kind == "correct"


def test_a_completion_cut_at_the_token_limit_is_truncated_whatever_it_says() -> None:
    verdict = judge(problem(), r"<think>7 + 5</think>\boxed{12}", "length")
    assert (verdict.kind, verdict.score) == ("truncated", None)


USER_FILE = """
from dataclasses import dataclass
from motet.base.records import Verdict

@dataclass
class Rule:
    word: str

def starts(problem, answer):
    good = answer.startswith(Rule(problem.reference).word)
    return Verdict("correct" if good else "incorrect", float(good), answer)

def broken(problem, answer):
    raise ZeroDivisionError("oops")

def wrong_type(problem, answer):
    return True

def asks(problem, answer, settings):
    return Verdict("correct", 1.0, settings.sandbox)

def gold(problem):
    return None if isinstance(problem.reference, str) else "the reference must be a word"
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


def test_a_users_own_file_judges(user_file: Path) -> None:
    own = problem(f"{user_file}:starts", "yes")
    assert judge(own, "yes, sure", "end", "off") == Verdict("correct", 1.0, "yes, sure")
    assert judge(own, "no", "end", "off") == Verdict("incorrect", 0.0, "no")


def test_a_users_verifier_that_asks_for_the_settings_gets_them(user_file: Path) -> None:
    verdict = judge(problem(f"{user_file}:asks"), "x", "end", "off", settings=Settings(sandbox="unsafe-rlimits"))
    assert verdict.answer == "unsafe-rlimits"


def test_a_failure_of_the_verifier_itself_is_never_a_wrong_answer(user_file: Path) -> None:
    verdict = judge(problem(f"{user_file}:broken"), "x", "end", "off")
    assert (verdict.kind, verdict.score, verdict.detail) == ("infra_error", None, "ZeroDivisionError: oops")
    verdict = judge(problem(f"{user_file}:wrong_type"), "x", "end", "off")
    assert (verdict.kind, verdict.score) == ("infra_error", None)
    assert "bool, not a Verdict" in verdict.detail


def test_a_verifier_that_does_not_exist_is_refused_with_the_nearest_name(user_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'math'"):
        resolve("maths")
    with pytest.raises(UserError, match="did you mean 'starts'"):
        resolve(f"{user_file}:start")
    with pytest.raises(UserError, match=r"there is no file .*did you mean .*mine\.py"):
        resolve(f"{tmp_path}/mime.py:starts")
    with pytest.raises(UserError, match=r"path/to/file\.py:function"):
        resolve("mine.py")


def test_a_users_file_that_fails_to_load_is_refused_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import no_such_package_anywhere\n")
    with pytest.raises(UserError, match="no_such_package_anywhere"):
        resolve(f"{path}:f")


def test_a_usable_problem_passes_its_check_and_an_unusable_one_says_why(user_file: Path) -> None:
    assert check_problem(problem()) is None
    assert check_problem(problem(f"{user_file}:starts", "yes")) is None
    for unusable, why in [
        (problem(reference=None), "no text or number"),
        (problem("instruction", [{"id": "no:such", "kwargs": {}}]), "unknown instruction"),
        (problem("code", {"tests": []}), "no tests"),
        (problem(f"{user_file}:starts", 3), "must be a word"),
    ]:
        verdict = check_problem(unusable)
        assert verdict is not None
        assert (verdict.kind, verdict.score) == ("invalid_problem", None)
        assert why in verdict.detail


def test_a_problem_whose_worked_solution_is_judged_wrong_is_unusable() -> None:
    assert check_problem(problem(solution={"reasoning": "7 + 5", "answer": r"\boxed{12}"})) is None
    verdict = check_problem(problem(solution={"reasoning": "7 + 5", "answer": r"\boxed{13}"}))
    assert verdict is not None
    assert (verdict.kind, verdict.score) == ("invalid_problem", None)
    assert verdict.detail == "its worked solution is judged incorrect: its answer is '13'"


def test_judging_imports_neither_torch_nor_computer_algebra_for_a_plain_number() -> None:
    source = Path(motet.__file__).parents[1]
    names = [path.stem for path in (source / "motet" / "verify").glob("*.py")]
    modules = ", ".join(f"motet.verify.{name}" for name in names if name != "__init__")
    program = (
        f"import sys, {modules}\n"
        "from motet.base.records import Problem\n"
        "from motet.verify.judge import judge\n"
        "def kind(verifier, reference, text):\n"
        "    problem = Problem('p', ({'role': 'user', 'content': 'q'},), verifier, reference, 'd')\n"
        "    return judge(problem, text, 'end', 'off').kind\n"
        "assert kind('math', '12', r'\\boxed{12}') == 'correct'\n"
        "assert kind('instruction', [{'id': 'punctuation:no_comma', 'kwargs': {}}], 'yes') == 'correct'\n"
        "light = {'torch', 'transformers', 'sympy', 'numpy', 'pydantic', 'reasoning_gym'} & set(sys.modules)\n"
        "assert not light, light\n"
        "assert kind('math', r'\\sin^2 x', r'\\boxed{1-\\cos^2 x}') == 'correct'\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(source)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_every_verifier_of_the_table_loads_and_has_a_check_of_its_problems() -> None:
    from motet.verify import resolve_gold

    assert set(VERIFIERS) == {"math", "instruction", "code", "procedural"}
    for name in VERIFIERS:
        assert callable(resolve(name))
        assert resolve_gold(name) is not None
