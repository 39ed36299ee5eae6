"""Programs against tests: stdin and stdout, function calls, asserts; honest, wrong, odd and hostile ones."""

from __future__ import annotations

from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.records import Problem, Verdict
from motet.verify import code, sandbox
from motet.verify.code import gold, last_program, same_value, verify
from motet.verify.sandbox import Settings, probe

try:
    probe("bubblewrap")
    BUBBLEWRAP = ""
except UserError as error:
    BUBBLEWRAP = str(error)
TIERS = [
    pytest.param("bubblewrap", marks=pytest.mark.skipif(bool(BUBBLEWRAP), reason=BUBBLEWRAP)),
    "rlimits",
]

SUM = {"tests": [{"stdin": "3 4\n", "stdout": "7\n"}, {"stdin": "-1 1\n", "stdout": "0\n"}]}
ADD = {"function": "add", "tests": [{"args": [3, 4], "expected": 7}, {"args": [-1, 1], "expected": 0}]}
CHECK = {
    "entry_point": "add",
    "prompt_code": "import math\n\ndef add(a, b):\n    '''Adds.'''\n",
    "test_code": "def check(candidate):\n    assert candidate(3, 4) == 7\n    assert candidate(-1, 1) == 0\n",
}


def problem(reference: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": "?"},), "code", reference, "code")


def block(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nDone."


def judged(reference: Any, program: str, tier: str = "rlimits", seconds: float = 20.0) -> Verdict:
    return verify(problem(reference), block(program), Settings(sandbox=tier, test_seconds=seconds))  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("reference", "program", "kind"),
    [
        (SUM, "print(sum(map(int, input().split())))", "correct"),
        (SUM, "import sys\nprint(sum(int(x) for x in sys.stdin.read().split()), end=' \\n\\n')", "correct"),
        (SUM, "print(7)", "incorrect"),
        (SUM, "print(sum(map(int, input().split())))\n1/0", "incorrect"),
        (ADD, "def add(a, b): return a + b", "correct"),
        (ADD, "class Solution:\n    def add(self, a, b):\n        return a + b", "correct"),
        (ADD, "def add(a, b): return float(a + b)", "incorrect"),
        (ADD, "def add(a, b): return 7", "incorrect"),
        (ADD, "class Same(int):\n    __eq__ = lambda *a: True\ndef add(a, b): return Same(0)", "incorrect"),
        (ADD, "import os\ndef add(a, b): os._exit(0)", "incorrect"),
        (ADD, "def plus(a, b): return a + b", "incorrect"),
        (CHECK, "def add(a, b):\n    return math.floor(a + b)", "correct"),
        (CHECK, "def add(a, b):\n    return 7", "incorrect"),
        (CHECK, "import sys\nsys.exit(0)", "incorrect"),
        (CHECK, "import os\nos._exit(0)", "incorrect"),
        (CHECK, "def sub(a, b):\n    return a - b", "incorrect"),
    ],
)
def test_a_program_is_judged_by_its_tests(reference: Any, program: str, kind: str, tier: str) -> None:
    verdict = judged(reference, program, tier)
    assert verdict.kind == kind, verdict
    assert verdict.score == (1.0 if kind == "correct" else 0.0)
    assert verdict.answer == program + "\n"


def test_the_first_failed_test_is_told() -> None:
    assert judged(SUM, "print(7)").detail == "test 2 of 2: expected '0\\n', printed '7\\n'"
    assert judged(ADD, "def add(a, b): return 7").detail == "test 2 of 2: expected 0, returned 7"
    assert judged(SUM, "raise ValueError('so')").detail == "test 1 of 2: exit status 1: ValueError: so"


def test_a_program_that_does_not_end_is_a_timeout() -> None:
    for reference in (SUM, CHECK):
        verdict = judged(reference, "while True: pass", seconds=1.0)
        assert (verdict.kind, verdict.score) == ("timeout", 0.0)
        assert "longer than 1 s" in verdict.detail


def test_a_program_that_prints_without_end_is_wrong() -> None:
    verdict = judged(SUM, "while True: print('x' * 100000)")
    assert (verdict.kind, verdict.score) == ("incorrect", 0.0)
    assert "wrote more than" in verdict.detail


def test_the_expected_values_are_nowhere_in_the_programs_process() -> None:
    secret = 918273645
    spy = (
        "import gc, sys\n"
        "def add(a, b):\n"
        "    frame, seen = sys._getframe(), []\n"
        "    while frame:\n"
        "        seen += [repr(v) for v in [*frame.f_locals.values(), *frame.f_globals.values()]]\n"
        "        frame = frame.f_back\n"
        "    seen += [repr(o) for o in gc.get_objects() if type(o) in (list, dict)]\n"
        "    return any('918273' + '645' in text for text in seen)\n"
    )
    reference = {"function": "add", "tests": [{"args": [1, 2], "expected": secret}]}
    assert judged(reference, spy).detail == f"test 1 of 1: expected {secret}, returned False"


def test_trouble_of_the_sandbox_is_never_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    probe("rlimits")
    monkeypatch.setattr(sandbox, "_interpreter", lambda *_: ["/bin/sh", "-c", "echo no sandbox >&2; exit 1"])
    for reference in (SUM, ADD, CHECK):
        verdict = judged(reference, "print(1)")
        assert (verdict.kind, verdict.score) == ("infra_error", None)
        assert "no sandbox" in verdict.detail


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\nthen\n```py\nb\n```", "b\n"),
        ("```python\na\n```\nIt prints\n```\n7\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("  ```Python3\r\n  a\r\n  ```", "  a\n"),
        ("```\n1\n```\n```\na\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```python\na\n", None),
        ("a", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_closed_python_block(answer: str, program: str | None) -> None:
    assert last_program(answer) == program


def test_an_answer_without_a_program_is_no_answer() -> None:
    for answer in ("print(7)", "```python\nprint(7)", "```python\n\n```", ""):
        verdict = verify(problem(SUM), answer)
        assert (verdict.kind, verdict.score) == ("no_answer", 0.0)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (None, "must be an object"),
        ({}, "no tests"),
        ({"tests": []}, "no tests"),
        ({"tests": [{"stdin": "1"}]}, "test 1 has no stdout"),
        ({"tests": [{"stdin": 1, "stdout": "1"}]}, "test 1 has no stdin"),
        ({"tests": ["1"]}, "test 1 is no object"),
        ({"function": "f", "tests": [{"args": [1], "expected": 1}, {"args": 1, "expected": 1}]}, "test 2 has no args"),
        ({"function": "f", "tests": [{"args": [1]}]}, "no expected value"),
        ({"function": "f(", "tests": [{"args": [1], "expected": 1}]}, "is no name"),
        ({**SUM, "tolerance": "small"}, "is no number"),
        ({**CHECK, "entry_point": ""}, "is no name"),
        ({**CHECK, "test_code": "def check(candidate): ..."}, "tests anything"),
        ({**CHECK, "test_code": "def test(candidate): assert candidate(1)"}, "tests anything"),
        ({**CHECK, "test_code": "def check(:"}, "is no Python"),
        ({**CHECK, "prompt_code": "def add(a, b"}, "prompt_code is no Python"),
    ],
)
def test_a_problem_without_usable_tests_is_invalid(reference: Any, why: str) -> None:
    trouble = gold(problem(reference))
    assert trouble is not None
    assert why in trouble
    verdict = verify(problem(reference), block("print(7)"))
    assert (verdict.kind, verdict.score) == ("invalid_problem", None)


def test_a_prompt_that_ends_in_a_signature_is_completed() -> None:
    reference = {**CHECK, "prompt_code": "import math\n\ndef add(a, b):\n"}
    assert gold(problem(reference)) is None
    assert judged(reference, "def add(a, b):\n    return math.floor(a + b)").kind == "correct"


@pytest.mark.parametrize(
    ("expected", "value", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (True, 1, False),
        (2, 2.0, False),
        (2.0, 2, True),
        (0.3, 0.1 + 0.2, False),
        ([1, [2]], [1, [2]], True),
        ([1, [2]], [1, [2.0]], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        (None, None, True),
        ("1", 1, False),
    ],
)
def test_values_are_compared_by_exact_type(expected: Any, value: Any, same: bool) -> None:
    assert same_value(expected, value) is same


def test_a_declared_tolerance_applies_to_floats_and_to_printed_numbers() -> None:
    assert same_value(0.3, 0.1 + 0.2, 1e-9)
    assert not same_value(0.3, 0.31, 1e-9)
    assert not same_value(3, 3.0, 1e-9)
    thirds = {"tests": [{"stdin": "", "stdout": "0.3333 x\n"}], "tolerance": 1e-3}
    assert judged(thirds, "print(1 / 3, 'x')").kind == "correct"
    assert judged(thirds, "print(1 / 3, 'y')").kind == "incorrect"
    assert judged({**thirds, "tolerance": 0}, "print(1 / 3, 'x')").kind == "incorrect"
    assert code.same_value(float("inf"), float("inf"))
