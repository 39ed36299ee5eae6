"""Cases run by groups of processes, one on each GPU (NCCL), or by processes on a CPU (gloo).

A group runs its cases one after the other. When one of them fails, runs too long or hangs, the group ends, with the
stack of every process in the report, and another group goes on with the case after it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("gpus_worker.py")
START_SECONDS = 150.0
"""Longest until the processes of a group have met."""
GRACE = 20.0
"""Seconds after the deadline at which a case that is not done yet is ended."""
LAST_LINES = 25
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What `size` processes do together; `run` names a function of gpus_worker.RUNS, `settings` are its arguments."""

    name: str
    run: str
    size: int
    settings: dict[str, Any] = field(default_factory=dict)
    limit: float = 120.0
    """Seconds."""


@dataclass(frozen=True)
class Options:
    cpu: bool
    scratch: Path
    cap: float
    """Bytes of a GPU that a process may take, in 10^9; 0: all."""
    timeout: int = 90
    """Seconds without a sign of life after which a process ends with its stacks."""


def run(cases: Sequence[Case], options: Options, deadline: float, tell: Callable[[Case, Result], None]) -> None:
    """`tell` is called with each case's result as soon as there is one; no case begins after `deadline`."""
    for _, members in groupby(cases, key=lambda case: case.size):
        left = list(members)
        while left:
            if time.monotonic() > deadline:
                for case in left:
                    tell(case, {"not_run": "the time was up"})
                break
            done = 0
            for case, result in _Group(left, options, deadline).results():
                tell(case, result)
                done += 1
            left = left[done:]


class _Group:
    def __init__(self, cases: Sequence[Case], options: Options, deadline: float) -> None:
        self.cases, self.size, self.end = list(cases), cases[0].size, deadline + GRACE
        self.folder = options.scratch / f"group-{time.monotonic_ns()}"
        self.folder.mkdir(parents=True)
        plan = {
            "cases": [{"run": case.run, "settings": case.settings, "limit": case.limit} for case in cases],
            "cpu": options.cpu, "cap": options.cap, "timeout": options.timeout, "scratch": str(options.scratch),
            "folder": str(self.folder), "deadline": time.time() + deadline - time.monotonic(),
        }  # fmt: skip
        (self.folder / "plan.json").write_text(json.dumps(plan))
        self.processes = [self._start(rank, port) for port in [_free_port()] for rank in range(self.size)]

    def _start(self, rank: int, port: int) -> subprocess.Popen[bytes]:
        told = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONUNBUFFERED": 1, "OMP_NUM_THREADS": 1,
            "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": 1, "TOKENIZERS_PARALLELISM": "false",
            # a program that uses NVLink's multicast and dies can put the host's GPUs out of service
            "NCCL_NVLS_ENABLE": 0, "TORCH_SYMM_MEM_DISABLE_MULTICAST": 1,
        }  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        with self._log(rank).open("wb") as log:
            command = [sys.executable, str(WORKER), str(self.folder / "plan.json")]
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def results(self) -> Iterator[tuple[Case, Result]]:
        """Of the cases up to the first that fails."""
        try:
            began, wait = time.monotonic(), START_SECONDS
            for place, case in enumerate(self.cases):
                file = self.folder / f"result-{place}.json"
                while not file.exists() and self._well(began, wait + case.limit):
                    time.sleep(0.1)
                if not file.exists():
                    late = time.monotonic() - began > wait + case.limit or time.monotonic() > self.end
                    known = self.folder / f"partial-{place}.json"
                    partial = {"partial": json.loads(known.read_text())} if known.exists() else {}
                    yield case, self._failure(late, min(case.limit, self.end - began)) | partial
                    return
                yield case, json.loads(file.read_text())
                began, wait = time.monotonic(), 0.0
        finally:
            self._end()

    def _well(self, began: float, limit: float) -> bool:
        ended = [process.poll() for process in self.processes]
        now = time.monotonic()
        return all(status in (None, 0) for status in ended) and now - began <= limit and now <= self.end

    def _failure(self, late: bool, limit: float) -> Result:
        """The first that failed says why; the others are asked for their stacks, which the signal prints."""
        time.sleep(1.0)  # whoever fails for the same reason has a moment to say so
        failed = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]
        self._signal(signal.SIGTERM)
        time.sleep(2.0)
        told = {f"process {rank}": self._last(rank) for rank in range(self.size)}
        words = f"ran longer than {limit:.0f} s" if late and not failed else ""
        for rank in failed:
            file = self.folder / f"failed-{rank}.txt"
            if file.exists():
                words = file.read_text()
                break
            words = words or f"process {rank} ended with {self.processes[rank].returncode}: {self._last(rank)[-1]}"
        return {"failed": words or "the processes ended without a result", "output": told}

    def _last(self, rank: int) -> list[str]:
        lines = self._log(rank).read_text(errors="replace").splitlines()
        return [line[:300] for line in lines if line.strip()][-LAST_LINES:] or ["(nothing)"]

    def _log(self, rank: int) -> Path:
        return self.folder / f"log-{rank}.txt"

    def _end(self) -> None:
        end = time.monotonic() + 10.0
        while any(process.poll() is None for process in self.processes) and time.monotonic() < end:
            if any(process.poll() for process in self.processes):
                break
            time.sleep(0.05)
        self._signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def machine(cpu: bool, command: str) -> dict[str, Any]:
    """Asked of programs: this process makes no context on a GPU."""
    names = ("torch", "transformers", "triton", "flash-attn-4", "vllm", "nvidia-nccl-cu13", "nvidia-nccl-cu12")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {"command": command, "python": platform.python_version(), "versions": versions}
    if cpu:
        return found | {"devices": ["cpu"]}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found["devices"] = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    links = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True).stdout
    found["links"] = [line for line in links.splitlines() if line.startswith("GPU")]
    return found
