from __future__ import annotations

import json
import logging
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.records import (
    Completion,
    Group,
    Problem,
    Rollout,
    Verdict,
    content_id,
    decode_group,
    encode,
    prompt_text,
    seed_of,
)
from motet.base.run import Run, Timers, log, peak_memory_bytes, progress


def rows(path: Path) -> list[dict[str, object]]:
    return [row for _, row in jsonl.read(path)]


def test_rows_come_back_as_they_were_written_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    given = [{"text": "é\u2028\nx", "list": [1, 2.5, None]}, {"half a surrogate pair": "\ud83d"}]
    assert jsonl.write(path, given) == 2
    path.write_text(path.read_text() + "\n \n")
    assert list(jsonl.read(path)) == [(1, given[0]), (2, given[1])]
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_numbers_that_json_does_not_have_are_written_as_strings(tmp_path: Path) -> None:
    jsonl.write(tmp_path / "a", [{"loss": float("nan"), "deep": [{"x": float("inf")}]}])
    assert rows(tmp_path / "a") == [{"loss": "nan", "deep": [{"x": "inf"}]}]
    jsonl.write_json(tmp_path / "b", {"x": float("-inf"), 3: (1,)})
    assert jsonl.read_json(tmp_path / "b") == {"x": "-inf", "3": [1]}


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    jsonl.write(path, [{"a": 1}])
    with pytest.raises(ZeroDivisionError):
        jsonl.write(path, ({"a": 1 // n} for n in (1, 0)))
    assert rows(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        (b'{"a": 1', r"line 2: not JSON \(Expecting ',' delimiter at column 8\): '\{\"a\": 1'"),
        (b"[1]", "line 2: a JSON object was expected, got '\\[1\\]'"),
        (b'{"a": "\xff"}', "line 2: not UTF-8 text"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(tmp_path: Path, line: bytes, trouble: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, {trouble}"):
        rows(path)


def test_a_file_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        rows(tmp_path / "no.jsonl")


def test_a_journal_drops_a_torn_last_line_and_goes_on_after_the_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with jsonl.Journal(path) as journal:
        journal.append({"n": 1})
        journal.append({"n": 2})
    for torn in ('{"n": 3', '{"n": 3}', "{"):  # the second is whole but for its newline
        whole = path.read_text()
        path.write_text(whole + torn)
        with jsonl.Journal(path) as journal:
            assert journal.rows == [{"n": 1}, {"n": 2}]
        assert path.read_text() == whole
    with jsonl.Journal(path) as journal:
        journal.append({"n": 3})
    assert rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_what_a_journal_took_survives_sigkill(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from motet.base.jsonl import Journal\n"
        f"journal = Journal(Path({str(tmp_path / 'j')!r})); journal.append({{'n': 1}}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    with jsonl.Journal(tmp_path / "j") as journal:
        assert journal.rows == [{"n": 1}]


PROBLEM = Problem("p", ({"role": "user", "content": "12 + 7 = ?"},), "math", "19", "math", "s", {"solution": {"a": 1}})


def test_a_group_is_the_same_after_a_round_through_json() -> None:
    completion = Completion("19", (5, 2), (-0.5, -0.25), "end", 3)
    group = Group(PROBLEM, (Rollout((1, 2), completion, Verdict("correct", 1.0, "19")),) * 2)
    assert decode_group(json.loads(jsonl.dumps(encode(group)))) == group


def test_the_prompt_text_is_the_last_user_turn() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert prompt_text(Problem("p", (*turns, {"role": "user", "content": "again"}), "", "", "")) == "again"
    assert prompt_text(Problem("p", (), "", "", "")) == ""


def test_ids_and_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert content_id("a") == "ca978112ca1bbdca"  # of every machine: the SHA-256 of "a"
    assert len({content_id("ab", "c"), content_id("a", "bc"), content_id("abc")}) == 3
    assert seed_of(1, "rl", 3) == seed_of(1, "rl", 3) != seed_of(1, "rl", 4)
    assert all(0 <= seed_of(i) < 2**63 for i in range(50))


def test_a_step_is_a_row_with_all_metrics_and_a_line_with_the_chosen_ones(tmp_path: Path) -> None:
    with Run(tmp_path / "run", console=False) as run:
        run.report("sft", 1, 2, {"loss/nll": 0.5, "other": 1.0}, ("loss/nll", "absent"))
        run.report("rl", 1, 2, {"tokens/second": 9.0, "time/step": 2.0}, ("tokens/second", "time/step"))
    row, _ = rows(tmp_path / "run" / "metrics.jsonl")
    assert row | {"time": 0} == {"time": 0, "stage": "sft", "step": 1, "loss/nll": 0.5, "other": 1.0}
    lines = [line[9:] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert lines == ["sft 1/2  nll 0.5", "rl 1/2  tokens/s 9  seconds 2"]


def test_a_resumed_run_drops_the_steps_that_it_will_write_again_and_a_torn_line(tmp_path: Path) -> None:
    with Run(tmp_path, console=False) as run:
        for stage, step in (("sft", 1), ("rl", 1), ("rl", 2), ("rl", 3)):
            run.report(stage, step, 3, {}, ())
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "rl", "st')
    with Run(tmp_path, console=False) as run:
        run.drop_metrics("rl", 2)
        run.report("rl", 2, 3, {}, ())
    assert [(row["stage"], row["step"]) for row in rows(path)] == [("sft", 1), ("rl", 1), ("rl", 2)]


def test_the_console_gets_each_line_once_and_a_closed_run_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        with Run(tmp_path) as run:
            run.report("sft", number, 2, {}, ())
    log.log(logging.INFO, "nobody hears this")
    assert [line[9:].strip() for line in capsys.readouterr().err.splitlines()] == ["sft 1/2", "sft 2/2"]
    assert "nobody" not in (tmp_path / "log.txt").read_text()


def test_a_place_where_no_folder_can_be_made_is_the_users_to_see(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no run can be written there"):
        Run(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="no run can be written there"):
        Run(Path("/proc/none/run"))


def test_a_run_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with Run(tmp_path, console=False) as run:
        with pytest.raises(UserError, match="another process is writing this run"):
            Run(tmp_path, console=False)
        run.report("sft", 1, 1, {}, ())
    with Run(tmp_path, console=False):
        assert len(rows(tmp_path / "metrics.jsonl")) == 1


def test_timers_add_up_by_name() -> None:
    timers = Timers()
    for _ in range(2):
        with timers("train"):
            pass
    timers.seconds["train"] += 1.0
    assert list(timers.metrics()) == ["time/train"] and timers.metrics()["time/train"] >= 1.0


def test_the_peak_memory_is_in_bytes() -> None:
    assert 1e6 < peak_memory_bytes() < 1e13


def test_without_a_terminal_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), 3, "x")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_an_inner_loop_gets_a_row_of_its_own_and_lines_of_the_log_stay_whole(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from motet.base.run import Run, progress\n"
        f"with Run(Path({str(tmp_path)!r})) as run:\n"
        "    for step in progress(range(2), 2, 'outer'):\n"
        "        assert list(progress(range(3), 3, 'inner')) == [0, 1, 2]\n"
        "        run.report('rl', step + 1, 2, {}, ())\n"
    )
    main, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=child, env=environment)
    os.close(child)
    shown = b""
    try:
        while part := os.read(main, 4096):
            shown += part
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(main)
    assert process.wait() == 0
    text = shown.decode()
    assert "outer" in text and "inner" in text
    for step in (1, 2):
        (line,) = [line for line in text.splitlines() if f"rl {step}/2" in line]
        assert "outer" not in line.rpartition(f"rl {step}/2")[2]
