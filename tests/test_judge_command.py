"""`motet judge`: a line out for each line in, whatever the line holds, and nothing lost or doubled by a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import motet
from motet.base.errors import UserError
from motet.verify import tool
from motet.verify.pool import Pool
from motet.verify.rows import Rules, judge_rows

GOOD: dict[str, Any] = {"id": "a", "verifier": "math", "reference": "12", "completion": r"\boxed{12}"}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, 30.0) as pool:
        yield pool


def judged(pool: Pool, *rows: Any, rules: Rules | None = None) -> list[dict[str, Any]]:
    """`rows`: objects, or bytes of a line."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return list(judge_rows(lines, pool, rules or Rules()))


def test_a_row_of_each_verifier_is_judged_in_order(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from motet.base.records import Verdict\n"
        "def judge(problem, answer): return Verdict('correct', 1.0, answer + problem.messages[0]['content'])\n"
    )
    entry = {"question": "?", "answer": "nus", "metadata": {"word": "sun"}}
    tests = [{"input": "3 4\n", "output": "7\n"}]
    rows = [
        {"verifier": "code", "reference": {"mode": "stdin", "tests": tests},
         "completion": "```python\nprint(sum(map(int, input().split())))\n```"},
        {"verifier": "code", "completion": "```python\ndef f(x): return x + 1\n```",
         "reference": {"mode": "function", "entry_point": "f", "tests": [{"args": [1], "expected": 2}]}},
        {"verifier": "code", "completion": "```python\ndef f(x): return x + 1\n```",
         "reference": {"mode": "assert", "tests": ["assert f(1) == 2"]}},
        {"verifier": "math", "reference": "1/2", "completion": r"<think>hm</think> \boxed{\frac{2}{4}}"},
        {"verifier": "instruction", "reference": [{"id": "punctuation:no_comma", "kwargs": {}}],
         "completion": "The river runs below the old bridge, slowly."},
        {"verifier": "procedural", "reference": {"dataset": "spell_backward", "entry": entry},
         "completion": "<answer>nus</answer>"},
        {"verifier": f"{tmp_path}/own.py:judge", "reference": 1, "completion": "yes", "prompt": "?"},
    ]  # fmt: skip
    found = judged(pool, *({"id": n, **row} for n, row in enumerate(rows)))
    assert [row["id"] for row in found] == list(range(7))
    kinds = [row["kind"] for row in found]
    assert kinds == ["correct", "correct", "correct", "correct", "incorrect", "correct", "correct"], found
    assert found[6]["answer"] == "yes?"
    assert all(set(row) == {"id", "kind", "score", "answer", "detail", "seconds"} for row in found)
    assert all(row["seconds"] > 0 for row in found)


@pytest.mark.parametrize(
    ("bad", "own", "why"),
    [
        (b"", None, "empty line"),
        (b"{", None, "not JSON"),
        (b"\xff{}", None, "not"),
        (b"[" * 100_000, None, "not readable"),
        (b"[1]", None, "a JSON object was expected, got list"),
        ({}, None, "'id' is missing"),
        ({**GOOD, "id": [1]}, None, "id must be a text or an integer"),
        ({**GOOD, "id": True}, None, "id must be a text or an integer"),
        ({"id": 7, "verifier": "math", "completion": "x"}, 7, "'reference' is missing"),
        ({**GOOD, "completion": None}, "a", "'completion' is missing"),
        ({**GOOD, "completion": 3}, "a", "completion must be a text, got 3"),
        ({**GOOD, "verifier": "maths"}, "a", "did you mean 'math'"),
        ({**GOOD, "verifier": "no/such.py:judge"}, "a", "there is no file"),
        ({**GOOD, "verifier": {}}, "a", "verifier must be a text"),
        ({**GOOD, "stop": "whenever"}, "a", 'stop must be "end" or "length"'),
        ({**GOOD, "limits": 3}, "a", "limits must be an object"),
        ({**GOOD, "limits": {"time": 1}}, "a", "limits has no 'time'"),
        ({**GOOD, "limits": {"time_s": 0}}, "a", "limits.time_s must be a positive number"),
        ({**GOOD, "limits": {"memory_mb": True}}, "a", "limits.memory_mb must be a positive number"),
        ({**GOOD, "prompt": 3}, "a", "prompt must be a text or a list"),
        ({**GOOD, "reference": {"x": 1}}, "a", "reference"),
        ({**GOOD, "verifier": "code", "reference": {"mode": "stdin", "tests": []}}, "a", "tests"),
        ({**GOOD, "verifier": "instruction", "reference": [{"id": "no:such", "kwargs": {}}]}, "a", "no:such"),
    ],
)
def test_a_bad_row_is_an_invalid_problem_and_the_others_are_judged(pool: Pool, bad: Any, own: Any, why: str) -> None:
    first, found, last = judged(pool, GOOD, bad, GOOD)
    assert (first["kind"], last["kind"]) == ("correct", "correct")
    assert (found["id"], found["kind"], found["score"], found["answer"]) == (own, "invalid_problem", None, None)
    assert why in found["detail"]


def test_a_users_file_that_does_not_load_spoils_its_own_rows_only(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package_anywhere\n")
    bad, good = judged(pool, {**GOOD, "verifier": f"{tmp_path}/bad.py:judge"}, GOOD)
    assert bad["kind"] == "invalid_problem" and "no_such_package_anywhere" in bad["detail"]
    assert good["kind"] == "correct"


@pytest.mark.parametrize(
    ("think", "completion", "kind"),
    [
        ("optional", r"\boxed{12}", "correct"),
        ("optional", r"<think>\boxed{13}</think>\boxed{12}", "correct"),
        ("optional", r"<think>\boxed{12}", "malformed"),
        ("optional", r"\boxed{13}</think>\boxed{12}", "malformed"),
        ("open", r"\boxed{13}</think>\boxed{12}", "correct"),
        ("required", r"\boxed{12}", "malformed"),
        ("off", r"<think>\boxed{12}", "correct"),
    ],
)
def test_the_think_block_is_as_the_option_says(pool: Pool, think: str, completion: str, kind: str) -> None:
    (row,) = judged(pool, {**GOOD, "completion": completion}, rules=tool.rules_of(think, None))
    assert row["kind"] == kind


@pytest.mark.parametrize("stop", ["length", "max_tokens"])
def test_a_truncated_completion_has_no_score_unless_it_is_given_one(pool: Pool, stop: str) -> None:
    row = {**GOOD, "stop": stop}
    assert [(r["kind"], r["score"]) for r in judged(pool, row)] == [("truncated", None)]
    (scored,) = judged(pool, row, rules=Rules(truncated_reward=-0.5))
    assert (scored["kind"], scored["score"]) == ("truncated", -0.5)
    assert [r["kind"] for r in judged(pool, {**GOOD, "stop": "stop"})] == ["correct"]


def test_the_limits_of_a_row_are_its_own(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import time\nfrom motet.base.records import Verdict\n"
        "def judge(problem, answer, settings):\n"
        "    time.sleep(float(answer))\n"
        "    limits = f'{settings.test_seconds:g} {settings.memory_bytes} {settings.output_bytes}'\n"
        "    return Verdict('correct', 1.0, limits)\n"
    )
    row = {**GOOD, "verifier": f"{tmp_path}/own.py:judge", "completion": "0"}
    slow = {**row, "completion": "20", "limits": {"time_s": 0.5}}
    limited, late = judged(pool, {**row, "limits": {"time_s": 9, "memory_mb": 1.5, "output_kb": 2}}, slow)
    assert limited["answer"] == "9 1572864 2048"
    assert (late["kind"], late["detail"], late["seconds"]) == ("timeout", "no verdict within 0.5 s", 0.5)


def written(rows: list[Any], path: Path) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def ids(out: Path) -> list[Any]:
    return [json.loads(line)["id"] for line in out.read_bytes().splitlines()]


def test_an_output_that_was_cut_is_gone_on_with_and_a_torn_line_written_again(pool: Pool, tmp_path: Path) -> None:
    rows, out = written([{**GOOD, "id": n} for n in range(6)] + [b"{"], tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert "7 rows" in tool.run(str(rows), str(out), pool, Rules())
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:3]) + whole[3][:10])
    assert "4 rows" in tool.run(str(rows), str(out), pool, Rules())
    assert ids(out) == [0, 1, 2, 3, 4, 5, None]
    assert "0 rows" in tool.run(str(rows), str(out), pool, Rules())
    assert len(ids(out)) == 7


def test_an_output_of_other_rows_is_not_gone_on_with(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = written([{**GOOD, "id": n} for n in range(3)], tmp_path / "rows.jsonl")
    tool.run(str(rows), str(out), pool, Rules())
    before = out.read_bytes()
    for other, why in [
        ([{**GOOD, "id": "x"}] * 3, "the verdict of row 0, but the row there is 'x'"),
        ([{**GOOD, "id": 0}], "holds more verdicts than there are rows"),
    ]:
        written(other, rows)
        os.utime(rows, (1, 1))
        with pytest.raises(UserError, match=why):
            tool.run(str(rows), str(out), pool, Rules())
    written([{**GOOD, "id": n, "completion": r"\boxed{13}"} for n in range(3)], rows)
    os.utime(rows, (time.time() + 60,) * 2)
    with pytest.raises(UserError, match="older than"):
        tool.run(str(rows), str(out), pool, Rules())
    assert out.read_bytes() == before
    assert "0 rows" in tool.run(str(rows), str(out), pool, Rules(), resume=True)
    assert "incorrect 3" in tool.run(str(rows), str(out), pool, Rules(), overwrite=True)
    written([{"no": "verdict"}], out)
    with pytest.raises(UserError, match="line 1: this is no verdict"):
        tool.run(str(rows), str(out), pool, Rules(), resume=True)


def test_two_commands_do_not_write_one_file(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="no verdicts can be written there"), tool.appended(tmp_path, iter([])):
        pass
    with tool.appended(out, iter([])), pytest.raises(UserError, match="another process is writing"):
        tool.run(str(written([GOOD], tmp_path / "rows.jsonl")), str(out), pool, Rules())


def test_standard_input_and_output_are_a_dash(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = io.TextIOWrapper(io.BytesIO(json.dumps(GOOD).encode())), io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdin", streams[0])
    monkeypatch.setattr("sys.stdout", streams[1])
    assert "1 rows" in tool.run("-", "-", pool, Rules())
    assert json.loads(streams[1].buffer.getvalue())["kind"] == "correct"  # type: ignore[attr-defined]


def test_a_text_with_half_a_surrogate_pair_is_judged_and_written(pool: Pool, tmp_path: Path) -> None:
    rows, out = written([{**GOOD, "id": "\ud800"}], tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    tool.run(str(rows), str(out), pool, Rules())
    assert ids(out) == ["\ud800"]
    assert "0 rows" in tool.run(str(rows), str(out), pool, Rules())


def test_a_command_killed_half_way_loses_and_doubles_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import os\nfrom motet.base.records import Verdict\n"
        "def judge(problem, answer):\n"
        "    if answer == 'abort':\n        os.abort()\n"
        "    while answer == 'hang':\n        pass\n"
        "    if answer == 'memory':\n        bytearray(1 << 40)\n"
        "    return Verdict('correct', 1.0, answer)\n"
    )
    poison = {37: "hang", 90: "abort", 200: "memory", 250: "hang", 251: "abort"}
    rows: list[Any] = [{**GOOD, "id": n} for n in range(400)]
    for n, answer in poison.items():
        limits = {"time_s": 0.5}
        rows[n] = {**GOOD, "id": n, "verifier": f"{own}:judge", "completion": answer, "limits": limits}
    rows[300] = b'{"id": 300'
    source, out = written(rows, tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "motet.cli", "judge", str(source), "--out", str(out), "--workers", "1"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(motet.__file__).parents[1]), "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 100):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 100 <= out.read_bytes().count(b"\n") < 400
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "were judged before" in ended.stderr, ended.stderr
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [row["id"] for row in found] == [None if n == 300 else n for n in range(400)]
    expected = {"hang": "timeout", "abort": "infra_error", "memory": "infra_error"}
    assert {n: found[n]["kind"] for n in poison} == {n: expected[answer] for n, answer in poison.items()}
    assert sum(row["kind"] == "correct" for row in found) == 394 and found[300]["kind"] == "invalid_problem"
    assert not list(temporary.iterdir())
