"""Runs untrusted Python programs: a fresh process and directory for each, without this process's environment or files.

The caller keeps what it compares with; only the program and its input go in, and plain data comes out. Tiers:
"bubblewrap" (own user, pid, network, ipc and mount namespaces, read-only system) and "rlimits" (limits and system
call filter alone: files are readable and writable as for this user). Both limit time, memory, file size and output.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from motet.base.errors import UserError
from motet.verify import seccomp

log = logging.getLogger("motet")

Choice = Literal["auto", "bubblewrap", "rlimits"]
RUNNER = Path(__file__).with_name("runner.py")
STDERR_BYTES = 4096
PROBE = {"mode": "call", "program": "def f(x):\n    return x + 1\n", "function": "f", "args": [1]}


@dataclass(frozen=True, slots=True)
class Settings:
    """How programs are kept in; a verifier with a `settings` argument is given them."""

    sandbox: Choice = "auto"
    test_seconds: float = 4.0
    """Wall clock of one program, its start included."""
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    """Largest file; with bubblewrap also the size of the working directory."""
    output_bytes: int = 4 << 20
    """A program that writes more than this is stopped."""


class Tier(NamedTuple):
    name: Literal["bubblewrap", "rlimits"]
    detail: str


class Outcome(NamedTuple):
    status: Literal["ended", "timeout", "overflow", "broken"]
    """"broken": the sandbox itself did not start, which says nothing about the program."""
    code: int
    """Exit status; negative for a signal."""
    stdout: bytes
    stderr: str
    """The last few thousand characters."""
    result: Any
    """What came over the result descriptor, parsed; None if nothing or no JSON."""
    filtered: bool
    """The system call filter was in force."""


@functools.cache
def probe(choice: Choice = "auto") -> Tier:
    """Finds the tier in force by running a program in it, once a process; "auto" warns when it is only rlimits.

    Raises UserError where "bubblewrap" is asked for and does not work, or no program can be run at all.
    """
    reason = ""
    if choice != "rlimits":
        usable, reason = _try("bubblewrap")
        if usable:
            return Tier("bubblewrap", f"own namespaces, read-only system, no network, {reason}")
        if choice == "bubblewrap":
            raise UserError(
                f'verification.sandbox = "bubblewrap", but bubblewrap does not work here: {reason}. Install it and '
                'allow user namespaces, or set "rlimits" to run programs with resource limits only.'
            )
    usable, detail = _try("rlimits")
    if not usable:
        raise UserError(f"programs cannot be run here, so code cannot be verified: {detail}")
    if choice == "auto":
        log.warning(
            "programs written by the model run with resource limits only, because bubblewrap does not work here (%s): "
            "they can read and write the files of this user. Install bubblewrap and allow user namespaces.",
            reason,
        )
    return Tier("rlimits", f"resource limits only, files of this user are open to programs, {detail}")


def _try(name: Literal["bubblewrap", "rlimits"]) -> tuple[bool, str]:
    """Whether a program runs in this tier, and what is to be said about it, or why it does not."""
    if name == "bubblewrap" and shutil.which("bwrap") is None:
        return False, "there is no program bwrap"
    outcome = _run(PROBE, b"", Settings(sandbox=name, test_seconds=30.0), name)
    if outcome.result == {"value": 2}:
        return True, "system call filter" if outcome.filtered else "no system call filter: programs can start others"
    return False, (outcome.stderr.strip().splitlines() or [f"{outcome.status}, exit status {outcome.code}"])[-1]


def run(job: Mapping[str, Any], stdin: bytes, settings: Settings) -> Outcome:
    """Runs one job (see `runner.py`) to its end, its deadline or its output limit; nothing of it is left running."""
    return _run(job, stdin, settings, probe(settings.sandbox).name)


def _run(job: Mapping[str, Any], stdin: bytes, settings: Settings, tier: str) -> Outcome:
    limits = {
        "cpu": math.ceil(settings.test_seconds) + 1,
        "memory": settings.memory_bytes,
        "file": settings.file_bytes,
    }
    content = {**job, "limits": limits, "filter": seccomp.program(platform.machine()).hex()}
    with _holding(json.dumps(content).encode()) as job_file, _holding(stdin) as input_file, _directory(tier) as folder:
        result_read, result_write = os.pipe()
        descriptors = (job_file.fileno(), result_write)
        try:
            process = subprocess.Popen(
                _interpreter(settings, tier, folder) + [str(number) for number in descriptors],
                stdin=input_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder},
            )
            os.close(result_write)
            try:
                return _collect(process, result_read, settings)
            finally:
                _kill(process)
        finally:
            os.close(result_read)


def _collect(process: subprocess.Popen[bytes], result: int, settings: Settings) -> Outcome:
    assert process.stdout and process.stderr
    deadline = time.monotonic() + settings.test_seconds
    output, errors = process.stdout.fileno(), process.stderr.fileno()
    received = {output: bytearray(), errors: bytearray(), result: bytearray()}
    total = 0
    status: Literal["ended", "timeout", "overflow", "broken"] = "ended"
    with selectors.DefaultSelector() as selector:
        for descriptor in received:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and status == "ended":
            wait = deadline - time.monotonic()
            for key, _ in selector.select(max(wait, 0.0)):
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                received[key.fd] += chunk
                total += len(chunk)
            if total > settings.output_bytes:
                status = "overflow"
            elif wait <= 0:
                status = "timeout"
    if status == "ended":
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            status = "timeout"
    _kill(process)
    ready, _, rest = bytes(received[result]).partition(b"\n")
    if not ready.startswith(b"ready "):
        status = "broken"
    stderr = received[errors][-STDERR_BYTES:].decode(errors="replace")
    filtered = ready == b"ready filtered"
    return Outcome(status, process.returncode, bytes(received[output]), stderr, _parsed(rest), filtered)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the session that the program was started in, and reaps it. Bubblewrap's pid namespace dies with it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream and not stream.closed:
            stream.close()


@contextmanager
def _holding(data: bytes) -> Iterator[IO[bytes]]:
    """A nameless file with this content, at its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file


@contextmanager
def _directory(tier: str) -> Iterator[str]:
    if tier == "bubblewrap":
        yield "/tmp"  # inside it is a file system of its own, which goes with the process
        return
    with tempfile.TemporaryDirectory(prefix="motet-", ignore_cleanup_errors=True) as folder:
        yield folder


def _interpreter(settings: Settings, tier: str, folder: str) -> list[str]:
    """The command up to the runner's arguments. No site packages: programs get the standard library."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    python = [executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", RUNNER.read_text(encoding="utf-8")]
    if tier == "rlimits":
        return python
    roots = {str(Path(executable).parent.parent), sys.base_prefix, sys.base_exec_prefix}
    command = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--die-with-parent", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for path in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind-try", path, path]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in sorted(root for root in roots if not root.startswith("/usr") and root != "/"):
        command += ["--ro-bind", path, path]
    # /proc is left out: a process of root could write its switches, and Python does not need it
    command += ["--dev", "/dev", "--remount-ro", "/dev", "--size", str(settings.file_bytes), "--tmpfs", folder]
    return [shutil.which("bwrap") or "bwrap", *command[1:], "--chdir", folder, "--remount-ro", "/", "--", *python]


def resolved(settings: Settings) -> Settings:
    """The same settings with the tier that `probe` found in place of "auto"."""
    return replace(settings, sandbox=probe(settings.sandbox).name)
