"""`motet watch`: one frame of any run folder, and a live view that q ends."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import synthetic_run
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.run import Run, log
from motet.cli import cli
from motet.insight.following import Following, Tail
from motet.insight.watch import CURVE, curve, frame, once
from motet.rl.alarms import Alarm, Cause

ALARM = Alarm("drift", "rl", 3, "they differ.", "It matters.", (Cause("old weights", "e", 0.9, ("engine.x = 1",)),))


def unfinished(folder: Path, steps: int = 4) -> Path:
    """An RL run under way."""
    resolved = {"name": "under-way", "stages": ["base", "rl"], "stage": {"base": {"kind": "evaluate"},
                "rl": {"kind": "rl", "steps": 8}}}  # fmt: skip
    jsonl.write_json(folder / "resolved.json", resolved)
    jsonl.write_json(folder / "base" / "manifest.json", {"kind": "evaluate", "status": "done", "seconds": 3.0})
    jsonl.write_json(folder / "rl" / "manifest.json", {"kind": "rl", "status": "running"})
    for step in range(1, steps + 1):
        report(folder, step)
    (folder / "log.txt").write_text("00:00:01 base: done in 3.0 s\n00:00:02 rl 1/8  mean 0.1\n")
    return folder


def report(folder: Path, step: int) -> None:
    row = {"time": float(step), "stage": "rl", "step": step, "reward/mean": 0.1 * step, "time/step": 2.0,
           "time/generate": 1.0, "time/train": 0.5, "tokens/second": 1234.0}  # fmt: skip
    jsonl.append(folder / "metrics.jsonl", row)


def event(folder: Path, name: str, at: float = 99.0) -> None:
    jsonl.append(folder / "rl" / "alarms.jsonl", {"time": at, "event": name, "attempt": 0, "alarm": ALARM.row()})


def test_a_run_under_way_shows_stages_progress_curves_phases_and_log(tmp_path: Path) -> None:
    text = once(unfinished(tmp_path))
    assert "under-way: running" in text
    assert "base            evaluate    done               3.0 s" in text
    assert "rl: step 4 of 8  " + "█" * 20 + "·" * 20 + " 50 %, 8.0 s left" in text
    assert "reward                ▁▃▅█" in text and "0.4  (first 0.1)" in text
    assert "a step takes 2.0 s: sample 50 %, steps 25 %; 1,234 tokens/s" in text
    assert "00:00:02 rl 1/8  mean 0.1" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_prints_one_frame_of_a_finished_run(tmp_path: Path) -> None:
    synthetic_run.write_run(tmp_path / "run")
    result = CliRunner().invoke(cli, ["watch", str(tmp_path / "run"), "--once"])
    assert result.exit_code == 0
    assert "synthetic: done" in result.output and "pass@1" in result.output and "rl: step 24 of 24" in result.output


def test_an_alarm_is_shown_with_its_likeliest_cause_and_the_line_to_change(tmp_path: Path) -> None:
    event(unfinished(tmp_path), "alarm")
    text = once(tmp_path)
    assert "ALARM rl step 3 drift: they differ." in text
    assert "likely: old weights" in text and "change: engine.x = 1" in text


def test_a_pause_is_shown_until_the_run_goes_on(tmp_path: Path) -> None:
    event(unfinished(tmp_path), "pause", at=4.5)
    assert "under-way: paused by an alarm" in once(tmp_path)
    report(tmp_path, 5)
    assert "paused" not in once(tmp_path)


def test_an_error_that_ended_the_run_is_shown_until_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UserError), Run(unfinished(tmp_path), console=False):
        raise UserError("no problem lies in its band\nWiden it")
    text = once(tmp_path)
    assert "under-way: stopped by an error" in text and "rl              rl          stopped" in text
    assert "stopped: no problem lies in its band Widen it" in text
    with Run(tmp_path, console=False):
        log.info("base: already done")
    assert "under-way: running" in once(tmp_path)


def test_a_rollback_is_shown_and_steps_that_were_taken_again_are_shown_once(tmp_path: Path) -> None:
    unfinished(tmp_path)
    following = Following(tmp_path)
    following.look()
    rows = [row for _, row in jsonl.read(tmp_path / "metrics.jsonl")][:2]
    jsonl.write(tmp_path / "metrics.jsonl", rows)
    report(tmp_path, 3)
    row = {"time": 9.0, "event": "rolled back", "attempt": 1, "to": 2, "alarm": ALARM.row()}
    jsonl.append(tmp_path / "rl" / "alarms.jsonl", row)
    following.look()
    assert [row["step"] for row in following.rows["rl"]] == [1, 2, 3]
    assert "rl was rolled back from step 3 to 2" in frame(following, 100).plain


def test_each_look_reads_what_was_added(tmp_path: Path) -> None:
    following = Following(unfinished(tmp_path))
    following.look()
    report(tmp_path, 5)
    with (tmp_path / "log.txt").open("a") as log:
        log.write("00:00:09 torn")
    following.look()
    assert following.rows["rl"][-1]["step"] == 5 and "torn" not in following.log[-1]
    with (tmp_path / "log.txt").open("a") as log:
        log.write(" no more\n")
    following.look()
    assert following.log[-1] == "00:00:09 torn no more"


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1\n2\n")
    tail = Tail(file)
    assert tail.more() == ([b"1", b"2"], True) and tail.more() == ([], False)
    other = tmp_path / "b"
    other.write_bytes(b"3\n4\n5\n")
    other.replace(file)
    assert tail.more() == ([b"3", b"4", b"5"], True)


@pytest.mark.parametrize("garbage", [b"\xff\xfe not json\n", b'{"stage": 3}\n[1]\n{"stage": "rl", "step": "x"}\n'])
def test_lines_that_are_no_figures_are_passed_over(garbage: bytes, tmp_path: Path) -> None:
    unfinished(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(garbage)
    (tmp_path / "rl" / "alarms.jsonl").write_bytes(garbage)
    assert "rl: step 4 of 8" in once(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        once(tmp_path)


def test_a_frame_fits_the_terminal(tmp_path: Path) -> None:
    following = Following(unfinished(tmp_path))
    following.look()
    lines = frame(following, 40, 9).plain.splitlines()
    assert len(lines) <= 9 and max(map(len, lines)) <= 40


@pytest.mark.parametrize(
    ("values", "shown"),
    [([1.0, 2.0, 3.0], "▁▄█"), ([5.0], "▄"), ([2.0, 2.0], "▄▄")],
)
def test_a_curve_goes_from_the_smallest_to_the_largest(values: list[float], shown: str) -> None:
    assert curve(values) == shown


def test_a_long_curve_is_of_means_and_fits() -> None:
    assert len(curve([float(i) for i in range(1000)])) == CURVE
    assert curve([0.0, 2.0, 9.0, 11.0], 2) == "▁█"


def test_q_ends_the_live_view_and_the_terminal_is_as_it_was(tmp_path: Path) -> None:
    unfinished(tmp_path)
    keyboard, screen = pty.openpty()
    command = [sys.executable, "-m", "motet.cli", "watch", str(tmp_path), "--every", "0.2"]
    process = subprocess.Popen(command, stdin=screen, stdout=screen, stderr=screen, env={**os.environ, "TERM": "xterm"})
    seen = _until(keyboard, b"under-way")
    os.write(keyboard, b"q")
    seen += _until(keyboard, b"\x1b[?1049l")
    assert process.wait(60) == 0 and b"Traceback" not in seen
    os.close(screen)
    os.close(keyboard)


def _until(file: int, text: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 120.0
    while text not in seen and time.monotonic() < end:
        if select.select([file], [], [], 1.0)[0]:
            seen += os.read(file, 65536)
    assert text in seen, seen[-500:]
    return seen


def test_the_view_imports_no_torch() -> None:
    code = "import sys, motet.insight.watch, motet.rl.alarms; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", "import json\n" + code], capture_output=True, text=True, check=True)
    found: Any = json.loads(done.stdout)
    assert found is False
