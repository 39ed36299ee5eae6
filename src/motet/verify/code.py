"""Python programs against tests. The program is the last ```python block of the answer (or the last one with no label).

    {"tests": [{"stdin": "3 4\\n", "stdout": "7\\n"}]}                                   a program
    {"function": "add", "tests": [{"args": [3, 4], "expected": 7}]}                      a function, or Solution().add
    {"entry_point": "add", "test_code": "def check(candidate): ...", "prompt_code": ""}  the asserts of HumanEval

Expected values stay here: a test's process sees the program and the input, and what comes back is compared by exact
type. The third form runs the asserts beside the program, which is weaker: a program that looks for them can pass.
All tests must pass. A first failure ends the judging.
"""

from __future__ import annotations

import ast
import secrets
from collections.abc import Mapping
from typing import Any

from motet.base.records import Problem, Verdict
from motet.verify import sandbox
from motet.verify.sandbox import Outcome, Settings

SHOWN = 120
PYTHON = ("python", "python3", "py")


def verify(problem: Problem, answer: str, settings: Settings | None = None) -> Verdict:
    settings = settings or Settings()
    trouble = gold(problem)
    if trouble:
        return Verdict("invalid_problem", None, None, trouble)
    program = last_program(answer)
    if program is None or not program.strip():
        return Verdict("no_answer", 0.0, None, "no closed ```python block in the answer")
    reference = problem.reference
    if "test_code" in reference:
        return _check(reference, program, settings)
    tolerance = float(reference.get("tolerance", 0.0))
    for number, test in enumerate(reference["tests"], 1):
        if "function" in reference:
            failure = _call(reference["function"], test, program, tolerance, settings)
        else:
            failure = _script(test, program, tolerance, settings)
        if failure:
            where = f"test {number} of {len(reference['tests'])}: {failure.detail}"
            return Verdict(failure.kind, failure.score, program, where)
    return Verdict("correct", 1.0, program, f"{len(reference['tests'])} tests passed")


def gold(problem: Problem) -> str | None:
    """Why the tests are unusable, or None."""
    reference = problem.reference
    if not isinstance(reference, Mapping):
        return "the reference must be an object with tests, or with entry_point and test_code"
    if "test_code" in reference:
        return _check_trouble(reference)
    tests = reference.get("tests")
    if not isinstance(tests, list) or not tests:
        return "there are no tests"
    if not isinstance(reference.get("tolerance", 0.0), int | float):
        return f"tolerance = {reference['tolerance']!r} is no number"
    if "function" in reference and not str(reference["function"]).isidentifier():
        return f"function = {reference['function']!r} is no name"
    troubles = (_test_trouble(test, "function" in reference) for test in tests)
    return next((f"test {number} {trouble}" for number, trouble in enumerate(troubles, 1) if trouble), None)


def _test_trouble(test: Any, of_function: bool) -> str | None:
    if not isinstance(test, Mapping):
        return "is no object"
    if of_function:
        if not isinstance(test.get("args"), list):
            return "has no args (a list)"
        return None if "expected" in test else "has no expected value"
    return next((f"has no {key} (a text)" for key in ("stdin", "stdout") if not isinstance(test.get(key), str)), None)


def last_program(answer: str) -> str | None:
    """The last closed block labelled python, else the last closed one without a label."""
    labelled = plain = label = None
    lines: list[str] = []
    for line in answer.splitlines():
        stripped = line.strip()
        if label is None:
            if stripped.startswith("```"):
                label, lines = stripped.lstrip("`").strip().lower(), []
        elif stripped == "```":
            if label in PYTHON:
                labelled = "\n".join(lines) + "\n"
            elif not label:
                plain = "\n".join(lines) + "\n"
            label = None
        else:
            lines.append(line)
    return labelled if labelled is not None else plain


def _script(test: Mapping[str, Any], program: str, tolerance: float, settings: Settings) -> Verdict | None:
    """None when the test passes."""
    stdin = str(test["stdin"]).encode("utf-8", "surrogatepass")
    outcome = sandbox.run({"mode": "script", "program": program}, stdin, settings)
    failure = _failure(outcome, settings)
    if failure:
        return failure
    if outcome.code != 0:
        return _wrong(f"exit status {outcome.code}: {_last_line(outcome.stderr)}")
    printed = outcome.stdout.decode(errors="replace")
    if _same_output(str(test["stdout"]), printed, tolerance):
        return None
    return _wrong(f"expected {_short(test['stdout'])}, printed {_short(printed)}")


def _call(function: str, test: Mapping[str, Any], program: str, tolerance: float, settings: Settings) -> Verdict | None:
    job = {"mode": "call", "program": program, "function": function, "args": test["args"]}
    outcome = sandbox.run(job, b"", settings)
    failure = _failure(outcome, settings)
    if failure:
        return failure
    result = outcome.result
    if not isinstance(result, dict) or "value" not in result:
        return _wrong(_error(outcome))
    if same_value(test["expected"], result["value"], tolerance):
        return None
    return _wrong(f"expected {_short(test['expected'])}, returned {_short(result['value'])}")


def _check(reference: Mapping[str, Any], program: str, settings: Settings) -> Verdict:
    token = secrets.token_hex(16)  # told on success only, so that an early exit of the program does not pass
    job = {
        "mode": "check",
        "program": _completed(reference.get("prompt_code") or "") + "\n\n" + program,
        "function": reference["entry_point"],
        "test_code": reference["test_code"],
        "token": token,
    }
    outcome = sandbox.run(job, b"", settings)
    failure = _failure(outcome, settings)
    if failure:
        return Verdict(failure.kind, failure.score, program, failure.detail)
    if isinstance(outcome.result, dict) and outcome.result.get("token") == token:
        return Verdict("correct", 1.0, program, "asserts passed (weak isolation)")
    return Verdict("incorrect", 0.0, program, _error(outcome))


def _check_trouble(reference: Mapping[str, Any]) -> str | None:
    if not str(reference.get("entry_point", "")).isidentifier():
        return f"entry_point = {reference.get('entry_point')!r} is no name"
    for key in ("test_code", "prompt_code"):
        code = reference.get(key) or ""
        if not isinstance(code, str):
            return f"{key} is no text"
        try:
            tree = ast.parse(code if key == "test_code" else _completed(code))
        except (SyntaxError, ValueError, RecursionError) as error:
            return f"{key} is no Python: {error}"
        if key == "test_code":
            checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
            if not checks or not any(isinstance(node, ast.Assert | ast.Call) for node in ast.walk(checks[-1])):
                return "test_code has no function check(candidate) that tests anything"
    return None


def _completed(prompt: str) -> str:
    """A prompt may end in a signature; with a body it is a module of its own."""
    try:
        ast.parse(prompt)
    except SyntaxError:
        return prompt.rstrip() + "\n    pass\n"
    return prompt


def _failure(outcome: Outcome, settings: Settings) -> Verdict | None:
    """What ends a test before there is anything to compare."""
    if outcome.status == "broken":
        return Verdict("infra_error", None, None, f"the sandbox did not start: {_last_line(outcome.stderr)}")
    if outcome.status == "timeout":
        return Verdict("timeout", 0.0, None, f"ran longer than {settings.test_seconds:g} s")
    if outcome.status == "overflow":
        return _wrong(f"wrote more than {settings.output_bytes} bytes")
    return None


def _wrong(detail: str) -> Verdict:
    return Verdict("incorrect", 0.0, None, detail)


def _error(outcome: Outcome) -> str:
    if isinstance(outcome.result, dict) and isinstance(outcome.result.get("error"), str):
        return str(outcome.result["error"])[:SHOWN]
    return f"ended without a result, exit status {outcome.code}: {_last_line(outcome.stderr)}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:SHOWN]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _same_output(expected: str, printed: str, tolerance: float) -> bool:
    """Line by line, white space at the ends of lines and blank lines at the end apart."""
    left, right = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (expected, printed))
    if left == right:
        return True
    if not tolerance or [len(line.split()) for line in left] != [len(line.split()) for line in right]:
        return False
    words = zip(" ".join(left).split(), " ".join(right).split(), strict=True)
    return all(_same_word(a, b, tolerance) for a, b in words)


def _same_word(expected: str, printed: str, tolerance: float) -> bool:
    if expected == printed:
        return True
    try:
        return _near(float(expected), float(printed), tolerance)
    except ValueError:
        return False


def same_value(expected: Any, value: Any, tolerance: float = 0.0) -> bool:
    """Equal values of equal JSON types: True is not 1, 2.0 is not 2; only an expected float takes an int."""
    if type(expected) is float and type(value) in (int, float):
        return _near(expected, value, tolerance)
    if type(expected) is not type(value):
        return False
    if type(expected) is list:
        return len(expected) == len(value) and all(
            same_value(a, b, tolerance) for a, b in zip(expected, value, strict=True)
        )
    if type(expected) is dict:
        return expected.keys() == value.keys() and all(same_value(expected[k], value[k], tolerance) for k in expected)
    return bool(expected == value)


def _near(expected: float, value: float, tolerance: float) -> bool:
    return expected == value or abs(expected - value) <= tolerance * max(1.0, abs(expected))
