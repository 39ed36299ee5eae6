"""What a program may do in each tier, and what ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import motet
from motet.base.errors import UserError
from motet.verify import sandbox
from motet.verify.sandbox import Outcome, Settings, probe, run

try:
    probe("bubblewrap")
    BUBBLEWRAP = ""
except UserError as error:
    BUBBLEWRAP = str(error)
bubblewrap = pytest.param("bubblewrap", marks=pytest.mark.skipif(bool(BUBBLEWRAP), reason=BUBBLEWRAP))
TIERS = [bubblewrap, "rlimits"]
filtered = pytest.mark.skipif(
    "no system call filter" in probe("rlimits").detail, reason="this machine has no system call filter"
)


def script(program: str, tier: str, stdin: str = "", **settings: float) -> Outcome:
    options = {"test_seconds": 20.0, **settings}
    return run({"mode": "script", "program": program}, stdin.encode(), Settings(sandbox=tier, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_reads_its_input_and_prints(tier: str) -> None:
    outcome = script("import sys\nprint(sys.stdin.read()[::-1], end='')", tier, "abc")
    assert (outcome.status, outcome.code, outcome.stdout) == ("ended", 0, b"cba")
    assert script("import os\nos.write(1, os.read(0, 9))", tier, "abc").stdout == b"abc"
    assert script("print(open(0).readline())\nexit()", tier, "abc\ndef").stdout == b"abc\n\n"
    assert script("print(__name__)", tier).stdout == b"__main__\n"


@pytest.mark.parametrize("tier", TIERS)
def test_a_failure_of_the_program_is_its_exit_status(tier: str) -> None:
    assert script("exit(3)", tier).code == 3
    outcome = script("1/0", tier)
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.stderr
    assert script("def f(:", tier).code == 1
    assert script("print('\udcff')", tier).code == 1


@pytest.mark.parametrize("tier", TIERS)
def test_an_endless_program_is_ended_at_its_time(tier: str) -> None:
    for program in (
        "import time\ntime.sleep(60)",
        "import os\nos.closerange(0, 9)\nwhile True: pass",
    ):
        assert script(program, tier, test_seconds=1.0).status == "timeout"


@pytest.mark.parametrize("tier", TIERS)
def test_endless_output_is_cut(tier: str) -> None:
    for stream in ("stdout", "stderr"):
        outcome = script(f"import sys\nwhile True: print('x' * 1000, file=sys.{stream})", tier, output_bytes=100_000)
        assert outcome.status == "overflow"
        assert len(outcome.stdout) < 300_000


@pytest.mark.parametrize("tier", TIERS)
def test_memory_and_files_are_limited(tier: str) -> None:
    assert "MemoryError" in script("x = bytearray(2 << 30)", tier).stderr
    assert "File too large" in script("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", tier).stderr


@filtered
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 9)",
        "import socket\nsocket.create_connection(('127.0.0.1', 80))",
        "import socket\nsocket.socket(socket.AF_UNIX)",
    ],
)
def test_processes_signals_and_sockets_are_refused(tier: str, program: str) -> None:
    outcome = script(program, tier)
    assert (outcome.status, outcome.code) == ("ended", 1)
    assert "PermissionError" in outcome.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_threads_are_allowed(tier: str) -> None:
    program = "import threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\nt.join()"
    assert script(program, tier).stdout == b"hi\n"


@pytest.mark.parametrize("tier", TIERS)
def test_the_environment_of_the_caller_does_not_reach_the_program(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_TEST_SECRET", "s3cret")
    assert b"s3cret" not in script("import os\nprint(dict(os.environ))", tier).stdout


@pytest.mark.parametrize("tier", [bubblewrap])
def test_other_processes_and_their_environment_are_out_of_sight(tier: str) -> None:
    assert b"[]" in script("import glob\nprint(glob.glob('/proc/*'))", tier).stdout


@pytest.mark.parametrize("tier", [bubblewrap])
def test_files_outside_cannot_be_read_or_written(tier: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for path in (str(secret), "/etc/passwd", str(Path(motet.__file__))):
        assert "FileNotFoundError" in script(f"open({path!r})", tier).stderr
    for path in ("/x", "/usr/x", "/dev/x", "/dev/shm/x", sys.base_prefix + "/x"):
        assert "OSError" in script(f"open({path!r}, 'w')", tier).stderr
    assert script("open('x', 'w').write('1')\nprint(open('x').read())", tier).stdout == b"1\n"
    many = "for i in range(9):\n    open(str(i), 'wb').write(bytes(4 << 20))"
    assert "No space left" in script(many, tier).stderr


@pytest.mark.parametrize("tier", TIERS)
def test_nothing_is_left_of_an_earlier_program(tier: str) -> None:
    assert script("import os\nopen('x', 'w')\nopen(os.environ['TMPDIR'] + '/y', 'w')", tier).code == 0
    assert script("import os\nprint(os.listdir('.'))", tier).stdout == b"[]\n"


@pytest.mark.parametrize("tier", TIERS)
def test_a_called_function_returns_plain_data_only(tier: str) -> None:
    def call(program: str) -> object:
        job = {"mode": "call", "program": program, "function": "f", "args": [[1, 2]]}
        return run(job, b"", Settings(sandbox=tier, test_seconds=20.0)).result  # type: ignore[arg-type]

    assert call("def f(x): return x[0], {'a': None, 1: 2.5}") == {"value": [1, {"a": None, "1": 2.5}]}
    assert call("class Solution:\n    def f(self, x): return len(x)") == {"value": 2}
    assert call("def f(x): print('noise'); return True") == {"value": True}
    for program, error in [
        (
            "class Same(int):\n    __eq__ = lambda *a: True\ndef f(x): return Same(1)",
            "TypeError: the result holds a Same",
        ),
        ("def f(x): return {1, 2}", "TypeError: the result holds a set"),
        ("def f(x):\n    y = []\n    y.append(y)\n    return y", "TypeError: the result is nested too deeply"),
        ("def f(x): return 10 ** 9999", "ValueError"),
        ("def f(x): raise KeyError(x[0])", "KeyError: 1"),
        ("def f(x): exit(0)", "SystemExit: 0"),
        ("def g(x): return 1", "NameError: the program defines no 'f'"),
        ("def f(x) return 1", "SyntaxError"),
    ]:
        result = call(program)
        assert isinstance(result, dict), program
        assert result["error"].startswith(error), result
    assert call("import os\ndef f(x): os._exit(0)") is None
    assert call("import os\ndef f(x): os.closerange(3, 64)") is None


@pytest.mark.parametrize("tier", TIERS)
def test_programs_run_the_same_way_every_time(tier: str) -> None:
    printed = {script("print(list({'a', 'b', 'c', 'd'}))", tier).stdout for _ in range(3)}
    assert len(printed) == 1


def test_without_bubblewrap_the_rlimits_tier_is_taken_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    probe.cache_clear()
    try:
        assert probe("auto").name == "rlimits"
        assert probe("auto").name == "rlimits"
        with pytest.raises(UserError, match="no program bwrap"):
            probe("bubblewrap")
    finally:
        probe.cache_clear()
    warnings = [record for record in caplog.records if "resource limits only" in record.message]
    assert len(warnings) == 1


def test_a_sandbox_that_does_not_start_is_broken_and_not_a_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    probe("rlimits")
    monkeypatch.setattr(sandbox, "_interpreter", lambda *_: ["/bin/sh", "-c", "echo no sandbox >&2; exit 1"])
    outcome = script("print(1)", "rlimits")
    assert (outcome.status, outcome.stderr) == ("broken", "no sandbox\n")


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_dies_with_the_process_that_judges_it(tier: str, tmp_path: Path) -> None:
    mark = f"mark_{os.getpid()}_{tier}"
    judge = (
        "from motet.verify.sandbox import Settings, run\n"
        f"program = 'print(1, flush=True)\\nwhile True: pass # {mark}'\n"
        f"run({{'mode': 'script', 'program': program}}, b'', Settings(sandbox={tier!r}, test_seconds=60.0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(motet.__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "-c", judge], env=environment)
    try:
        assert eventually(lambda: len(children(parent.pid)) > 0)
        time.sleep(0.5)
        family = descendants(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not any(alive(pid) for pid in family))


def eventually(holds: object, seconds: float = 20.0) -> bool:
    assert callable(holds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [lower for child in below for lower in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
