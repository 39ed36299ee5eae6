"""The process of a vLLM server that motet starts: in an environment of its own, on this machine's loopback address."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from motet.base.errors import UserError
from motet.base.recipe import Engine as Settings
from motet.base.recipe import Model
from motet.engine import vllm_worker
from motet.engine.vllm import whole_prompts

START_SECONDS = 1800.0
"""Longest start: compiling and recording graphs of a large model takes minutes."""
LAST_LINES = 15
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
            "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
"""What torchrun tells the learner's processes, besides TORCHELASTIC_*: a server that hears it waits for a store that
torchrun would hold (TORCHELASTIC_USE_AGENT_STORE), and takes its own process for one of the learner's."""


class Process:
    """Its output goes to `log`, which each start continues. It ends when motet does, also by SIGKILL."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.command, self.log = list(command), log
        self._begin = log.stat().st_size if log.exists() else 0
        """Where this start's lines begin in the log."""
        own = {k: v for k, v in os.environ.items() if k not in TORCHRUN and not k.startswith("TORCHELASTIC_")}
        environment = {**own, vllm_worker.PARENT: "1", **(environment or {})}
        if self.command[0] != sys.executable:
            environment.pop("PYTHONPATH", None)  # this interpreter's packages are not the other's
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                env=environment, cwd=log.parent,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, seconds: float = 15.0) -> None:
        """vLLM's workers are in its session: what does not end by itself is killed with them."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def refuse(self, why: str) -> UserError:
        lines = self._lines()
        if any("No module named 'vllm'" in line for line in lines):
            return UserError(
                f"engine.python: {self.command[0]} has no vLLM. Make an environment with it (make vllm) and give its "
                "Python, e.g. .venv-vllm/bin/python."
            )
        told = "\n  ".join(lines[-LAST_LINES:]) or "(nothing)"
        return UserError(f"the vLLM server {why}. Its last lines, in {self.log}:\n  {told}")

    def last_error(self) -> str:
        """What its log gives as the last error that is a cause: those that only tell of the engine's end are none."""
        found = (re.search(r"(?:^|\bERROR\b.*\]\s*)([\w.]*(?:Error|Exception): .+)", line) for line in self._lines())
        causes = [match[1] for match in found if match is not None and "EngineCore encountered" not in match[1]]
        return causes[-1][:300] if causes else ""

    def _lines(self) -> list[str]:
        return self.log.read_bytes()[self._begin :].decode("utf-8", "replace").splitlines()


def command(path: str | Path, model: Model, settings: Settings, port: int, device: str, backend: str) -> list[str]:
    """`vllm serve` in the environment of `settings.python`, through `vllm_worker.main`."""
    assert settings.python is not None
    options: dict[str, object] = {
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": model.dtype,
        "--seed": 0,
        "--max-num-seqs": settings.batch_size,
    }
    if device == "cuda":
        options["--gpu-memory-utilization"] = settings.memory_share
    else:
        options |= {f"--{name.replace('_', '-')}": value for name, value in whole_prompts(path, settings).items()}
    if settings.context:
        options["--max-model-len"] = settings.context
    if backend in ("ipc", "nccl"):
        options["--weight-transfer-config"] = f'{{"backend": "{backend}"}}'
    switches = ["--enable-prefix-caching"]
    switches += ["--enforce-eager"] if settings.eager else []
    switches += ["--no-enable-chunked-prefill"] if device == "cpu" else []
    switches += ["--enable-sleep-mode"] if settings.sleep else []
    words = [word for name, value in options.items() for word in (name, str(value))]
    return [settings.python, vllm_worker.__file__, "serve", str(path), *words, *switches, *settings.arguments]


def environment(settings: Settings, device: str, backend: str, gpus: Sequence[int] = ()) -> dict[str, str]:
    """What the server is told besides; what the user has set stays. `gpus`: those it may see; none: all."""
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "INFO"}
    wanted["VLLM_HOST_IP"] = "127.0.0.1"  # its workers are on this machine; else it asks the network for its address
    if device == "cpu" and settings.eager:
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # its sampler compiles a piece all the same, half a minute of it
    if backend == "ipc":
        wanted["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # IPC handles are pickled; only the loopback can send them
    told = {name: value for name, value in wanted.items() if name not in os.environ}
    return told | ({"CUDA_VISIBLE_DEVICES": visible(gpus)} if gpus else {})


def visible(gpus: Sequence[int]) -> str:
    """Their names for CUDA_VISIBLE_DEVICES, which may already narrow and reorder what this process sees.

    Raises UserError for one that it does not see."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(place) for place in range(torch.cuda.device_count())]
    missing = [gpu for gpu in gpus if gpu >= len(names)]
    if missing:
        raise UserError(f"engine.gpus: there is no GPU {missing[0]} here; this process sees {len(names)}, from 0 on")
    return ",".join(names[gpu] for gpu in gpus)


def places(settings: Settings) -> list[tuple[int, ...]]:
    """The GPUs of each server; one server that is not told where it is to run, unless the recipe says so.

    Raises UserError for a GPU that another of the learner's processes has."""
    if not settings.gpus:
        return [()]
    learners = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if settings.apart and min(settings.gpus) < learners:
        raise UserError(
            f"engine.gpus: GPU {min(settings.gpus)} is a learner's: its {learners} processes have the GPUs from 0 to "
            f"{learners - 1}. Start fewer (torchrun --nproc-per-node), or give the engine GPUs from {learners} on."
        )
    each = settings.gpus_of_a_server
    return [settings.gpus[start : start + each] for start in range(0, len(settings.gpus), each)]


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """All different: each is held until all are known."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
