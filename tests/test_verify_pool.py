"""The pool: order, deadlines, deaths, back-pressure, and nothing left behind."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import motet
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.records import Problem, Verdict
from motet.verify.pool import Item, Pool
from motet.verify.workspace import PREFIX, sweep

OWN = """
import os, sys, tempfile, time
from motet.base.records import Verdict

HOARD = []

def judge(problem, answer):
    if answer == "hang":
        while True:
            pass
    if answer == "die":
        os._exit(3)
    if answer == "die once":
        if not os.path.exists(problem.reference):
            open(problem.reference, "w").close()
            os._exit(3)
    if answer == "noise":
        print("noise")
        os.write(1, b'{"verdict": null}')
    if answer == "pid":
        return Verdict("correct", 1.0, str(os.getpid()))
    if answer == "slow":
        time.sleep(0.5)
    if answer == "leave a file":
        open(os.path.join(tempfile.gettempdir(), "left"), "w").close()
        return Verdict("correct", 1.0, tempfile.gettempdir())
    if answer == "memory":
        bytearray(1 << 40)
    if answer == "hoard":
        HOARD.append(bytearray(300 << 20))
        return Verdict("correct", 1.0, str(os.getpid()))
    if answer == "group":
        os.system("sleep 600 & echo $! > " + problem.reference)
        time.sleep(600)
    return Verdict("correct", 1.0, answer)
"""


def problem(verifier: str = "math", reference: Any = "12", id: str = "p") -> Problem:
    return Problem(id, ({"role": "user", "content": "?"},), verifier, reference, "math")


def item(text: str, verifier: str = "math", reference: Any = "12") -> Item:
    return Item(problem(verifier, reference), text, "end", "off")


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return f"{path}:judge"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(2, 30.0, sandbox="unsafe-rlimits", quarantine=tmp_path / "quarantine.jsonl") as pool:
        yield pool


def test_every_item_gets_its_own_verdict(pool: Pool) -> None:
    items = [item(rf"\boxed{{{n}}}", reference=str(n - n % 3)) for n in range(200)]
    verdicts = dict(pool.judge(items))
    assert sorted(verdicts) == list(range(200))
    for n, verdict in verdicts.items():
        assert verdict == Verdict("correct" if n % 3 == 0 else "incorrect", float(n % 3 == 0), str(n))


def test_all_kinds_of_problems_go_through_one_pool(pool: Pool) -> None:
    code = {"function": "f", "tests": [{"args": [1], "expected": 2}]}
    items = [
        item(r"\boxed{12}"),
        item(r"\boxed{2\sqrt{3}}", reference=r"\sqrt{12}"),
        item("no comma", "instruction", [{"id": "punctuation:no_comma", "kwargs": {}}]),
        item("```python\ndef f(x): return x + 1\n```", "code", code),
        Item(problem(), "<think>a</think>" + r"\boxed{12}", "end"),
        Item(problem(), r"b</think>\boxed{12}", "end", "required", open_think=True),
    ]
    assert [verdict.kind for _, verdict in sorted(pool.judge(items))] == ["correct"] * 6


def test_verdicts_come_in_order_where_that_is_asked_for(own: str, pool: Pool) -> None:
    items = [item("slow", own), *(item(str(n), own) for n in range(1, 30))]
    ordered = list(pool.judge(items, ordered=True))
    assert [index for index, _ in ordered] == list(range(30))
    assert [verdict.answer for _, verdict in ordered] == ["slow", *map(str, range(1, 30))]
    assert next(pool.judge(items))[0] != 0  # otherwise as each is known, and the first one is slow


def test_each_verdict_tells_how_long_it_took(own: str, pool: Pool) -> None:
    slow, cut = pool.timed([item("slow", own), Item(problem(), "", "length")], ordered=True)
    assert 0.5 <= slow.seconds < 30 and cut.seconds == 0.0


def test_an_item_may_have_a_deadline_of_its_own(own: str, pool: Pool) -> None:
    given = Item(problem(own), "hang", "end", "off", deadline_seconds=0.5)
    assert pool.submit(given).result() == Verdict("timeout", 0.0, None, "no verdict within 0.5 s")


def test_truncated_and_malformed_texts_need_no_worker(pool: Pool) -> None:
    assert pool.submit(Item(problem(), "<think>", "length")).result().kind == "truncated"
    assert pool.submit(Item(problem(), r"\boxed{12}", "end")).result().kind == "malformed"
    assert pool._crew.started == 0


def test_a_hung_item_is_a_timeout_and_the_others_are_judged(own: str) -> None:
    with Pool(1, 1.0) as pool:
        items = [item("hang", own), item("a", own), item("hang", own), item(r"\boxed{12}"), item("pid", own)]
        verdicts = [verdict for _, verdict in sorted(pool.judge(items))]
    assert [verdict.kind for verdict in verdicts] == ["timeout", "correct", "timeout", "correct", "correct"]
    assert verdicts[0] == Verdict("timeout", 0.0, None, "no verdict within 1 s")


def test_items_sent_along_with_a_hung_one_are_judged_by_the_next_worker(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motet.verify.crew.CHEAP", frozenset({own}))  # several go to a worker at once
    with Pool(1, 1.0) as pool:
        items = [item("a", own), item("hang", own), *[item("b", own)] * 40]
        kinds = [verdict.kind for _, verdict in sorted(pool.judge(items))]
    assert kinds == ["correct", "timeout", *["correct"] * 40]


def test_the_process_group_of_a_killed_worker_dies_too(own: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Pool(1, 2.0) as pool:
        assert pool.submit(item("group", own, str(note))).result().kind == "timeout"
    assert eventually(lambda: not alive(int(note.read_text())))


def test_a_worker_that_dies_is_replaced_and_its_item_tried_again(own: str, pool: Pool, tmp_path: Path) -> None:
    verdicts = dict(pool.judge([item("die once", own, str(tmp_path / "mark")), item("a", own)]))
    assert [verdicts[0].kind, verdicts[1].kind] == ["correct", "correct"]


def test_an_item_that_kills_two_workers_is_unjudged_and_put_in_quarantine(own: str, pool: Pool, tmp_path: Path) -> None:
    verdict = pool.submit(item("die", own)).result()
    assert (verdict.kind, verdict.score) == ("infra_error", None)
    rows = [row for _, row in jsonl.read(tmp_path / "quarantine.jsonl")]
    assert [row["answer"] for row in rows] == ["die"]
    assert rows[0]["problem"]["verifier"] == own


def test_an_item_in_quarantine_kills_no_further_worker(own: str, pool: Pool, tmp_path: Path) -> None:
    first = pool.submit(item("die", own)).result()
    before = pool._crew.started
    again = pool.submit(item("die", own)).result()
    assert (first.kind, again.kind) == ("infra_error", "infra_error") and "quarantine" in again.detail
    assert pool._crew.started == before and len(list(jsonl.read(tmp_path / "quarantine.jsonl"))) == 1


def test_what_cannot_be_judged_is_counted_and_said_once(own: str, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "motet")
    kinds = [v.kind for _, v in pool.judge([item("memory", own)] * 3 + [item(r"\boxed{1}", reference=None)])]
    assert sorted(kinds) == ["infra_error"] * 3 + ["invalid_problem"]
    assert pool.unscored == {(own, "infra_error"): 3, ("math", "invalid_problem"): 1}
    assert len([r for r in caplog.records if "could not be judged" in r.getMessage()]) == 2


def test_a_worker_that_hoards_memory_is_replaced(own: str) -> None:
    with Pool(1, 30.0, memory_bytes=800 << 20) as pool:
        pids = [pool.submit(item("hoard", own)).result().answer for _ in range(6)]
    # each process holds 300 MB after the first item, 600 MB, more than half of 800, after the second
    assert pids[0] == pids[1] != pids[2] and len(set(pids)) == 3


def test_what_is_left_in_the_temporary_directory_goes_with_the_pool(own: str) -> None:
    with Pool(1, 30.0) as pool:
        folder = Path(str(pool.submit(item("leave a file", own)).result().answer))
        assert (folder / "left").exists()
    assert not folder.parent.exists() and folder.parent.name.startswith(PREFIX)


def test_the_folder_of_a_killed_process_goes_with_the_next_start(tmp_path: Path) -> None:
    dead, alive_, new = (tmp_path / (PREFIX + name) for name in ("dead", "alive", "new"))
    for folder in (dead, alive_, new):
        (folder / "1").mkdir(parents=True)
    for folder in (dead, alive_):
        (folder / "lock").touch()
    with (alive_ / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(tmp_path)
    assert not dead.exists() and alive_.exists() and new.exists()


def test_what_a_verifier_prints_is_no_reply(own: str, pool: Pool) -> None:
    assert pool.submit(item("noise", own)).result() == Verdict("correct", 1.0, "noise")


def test_the_time_of_a_heavy_import_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text(
        "import time\nfrom motet.base.records import Verdict\ntime.sleep(2)\n"
        "def judge(problem, answer): return Verdict('correct', 1.0, answer)\n"
    )
    with Pool(1, 1.0) as pool:
        assert pool.submit(item("a", f"{path}:judge")).result().kind == "correct"


def test_a_verifier_that_cannot_be_loaded_is_the_users_error(pool: Pool) -> None:
    with pytest.raises(UserError, match="did you mean 'math'"):
        list(pool.judge([item("a", "maths")]))
    assert pool.submit(item(r"\boxed{12}")).result().kind == "correct"


def test_problems_are_checked_by_the_workers(pool: Pool) -> None:
    checked = dict(pool.check([problem(), problem(reference=""), problem("code", {"tests": []})]))
    assert checked[0] is None
    assert checked[1] is not None
    assert checked[1].kind == "invalid_problem"
    assert checked[2] is not None
    assert "no tests" in checked[2].detail


def test_items_are_taken_only_a_little_ahead(pool: Pool) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Item]:
        while True:
            taken.append(len(taken))
            yield item(r"\boxed{12}")

    verdicts = pool.judge(endless())
    for _ in range(10):
        next(verdicts)
    assert 10 <= len(taken) <= 10 + 2 * 64


def test_a_large_text_passes_through_the_pipes(pool: Pool) -> None:
    large = "x" * 3_000_000
    kinds = [verdict.kind for _, verdict in pool.judge([item(large + r"\boxed{12}")] * 8)]
    assert kinds == ["correct"] * 8


def test_several_threads_may_submit(pool: Pool) -> None:
    kinds: list[str] = []
    threads = [
        threading.Thread(target=lambda: kinds.extend(v.kind for _, v in pool.judge([item(r"\boxed{12}")] * 100)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == ["correct"] * 300


def test_closing_ends_workers_at_once_and_cancels_what_is_left(own: str) -> None:
    pool = Pool(1, 600.0)
    pid = int(str(pool.submit(item("pid", own)).result().answer))
    futures = [pool.submit(item("hang", own)), pool.submit(item("a", own))]
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 30
    assert all(future.done() for future in futures)
    assert all(future.cancelled() or future.exception() is not None for future in futures)
    assert not alive(pid)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(item("a", own))


@pytest.mark.parametrize("end", ["exit", "interrupt", "kill"])
def test_no_worker_outlives_its_parent(end: str, own: str) -> None:
    program = (
        "import sys\n"
        "from motet.base.records import Problem\n"
        "from motet.verify.pool import Item, Pool\n"
        "def item(text):\n"
        f"    return Item(Problem('p', (), {own!r}, 0, 'd'), text, 'end', 'off')\n"
        "pool = Pool(1, 600.0)\n"
        "print(pool.submit(item('pid')).result().answer, flush=True)\n"
        "future = pool.submit(item('hang'))\n"
        f"{'sys.exit()' if end == 'exit' else 'future.result()'}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(motet.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        if end != "exit":
            assert alive(worker)
            assert eventually(lambda: _ended(parent, signal.SIGINT if end == "interrupt" else signal.SIGKILL))
        parent.wait(60)
    assert eventually(lambda: not alive(worker))


@pytest.mark.parametrize("bad", [{"workers": 0}, {"deadline_seconds": 0.0}, {"test_seconds": -1.0}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="positive"):
        Pool(**{"workers": 1, "deadline_seconds": 1.0, **bad})


def _ended(process: subprocess.Popen[str], sign: signal.Signals) -> bool:
    """Sends it again and again, as a person does: a thread of Python's that is about to wait for a lock misses one."""
    process.send_signal(sign)
    time.sleep(0.2)
    return process.poll() is not None


def eventually(holds: Any, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
