"""`motet doctor`: which checks a model gets on this machine, in processes of their own.

A check that dies, hangs or raises is a finding like any other; the next one runs all the same.
"""

from __future__ import annotations

import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Model
from motet.doctor import worker
from motet.doctor.checks import ALONE, Patient, called, divisor
from motet.doctor.finding import Finding, decode, not_run
from motet.model.load import load_config
from motet.plan.sizing import parameters_in_words, sizes_of

LIMIT = 600.0
"""Seconds for one check."""
SMALL = 500_000_000
"""Parameters of a model that is examined on a CPU where there is no GPU for a check."""
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Examined:
    check: str
    findings: list[Finding]
    seconds: float


@dataclass(frozen=True)
class Case:
    """A model on this machine."""

    path: str
    device: str
    dtype: str
    gpus: int
    heads: int
    parameters: int

    @property
    def processes_on(self) -> str:
        """Where checks of several processes run; empty: nowhere."""
        if self.device == "cuda" and self.gpus > 1:
            return "cuda"
        return "cpu" if self.parameters <= SMALL else ""


def case_of(model: str, device: str, dtype: str | None, scratch: Path) -> Case:
    """`model`: a folder, a hub id, or "tiny". Raises UserError for one that cannot be trained."""
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise UserError("--device cuda, but torch sees no GPU here; use cpu")
    path = str(_tiny(scratch / "tiny")) if model == "tiny" else model
    config = load_config(path)
    place = "cuda" if cuda else "cpu"
    return Case(
        path, place, dtype or ("bfloat16" if cuda else "float32"), torch.cuda.device_count() if cuda else 0,
        int(config.num_attention_heads), sizes_of(Model(path=path)).parameters,
    )  # fmt: skip


def meshes_of(case: Case) -> Iterator[tuple[Axes, str]]:
    """The meshes to be examined where none is asked for, and why one is not."""
    most = case.gpus if case.processes_on == "cuda" else 4
    yield (1, 2, 1), ""
    yield (2, 1, 1), ""
    sp = divisor(case.heads, most)
    yield (1, 1, sp or 2), "" if sp else f"no number of processes up to {most} divides its {case.heads} heads"


def examine(
    case: Case, scratch: Path, only: Sequence[str] = (), meshes: Sequence[Axes] = (), limit: float = LIMIT
) -> Iterator[Examined]:
    """`only`: names of checks; `meshes` instead of meshes_of."""
    patient = Patient(case.path, case.device, case.dtype, (1, 1, 1), str(scratch))
    yield from _one_by_one([name for name in ALONE if not only or name in only], patient, scratch, limit)
    if not only or "resume" in only:
        yield _resumed(case, replace(patient, device="cpu", dtype="float32"), scratch, limit)
    if not only or "processes" in only:
        yield from _processes(case, scratch, [(mesh, "") for mesh in meshes] or list(meshes_of(case)), limit)


def _processes(case: Case, scratch: Path, meshes: list[tuple[Axes, str]], limit: float) -> Iterator[Examined]:
    place = case.processes_on
    alone = Patient(case.path, place or "cpu", case.dtype if place == "cuda" else "float32", (1, 1, 1), str(scratch))
    ready = ""
    for mesh, reason in meshes:
        what, size = f"processes: {called(mesh)} against one", mesh[0] * mesh[1] * mesh[2]
        began = time.monotonic()
        reason = reason or _refused(case, mesh, size)
        if not reason and not ready:
            ready, words = _run("spread", 0, alone, 1, scratch, limit)
            reason = words and f"failed in one process already: {words}"
        if reason:
            yield Examined("processes", [not_run(what, reason)], time.monotonic() - began)
            continue
        found, words = _run("spread", 1, replace(alone, mesh=mesh), size, scratch, limit)
        yield Examined("processes", _findings(found, words, what), time.monotonic() - began)


def _refused(case: Case, mesh: Axes, size: int) -> str:
    if not case.processes_on:
        return f"{case.gpus} GPU here, and {parameters_in_words(case.parameters)} are too many for CPU processes"
    if case.heads % mesh[2]:
        return f"sp = {mesh[2]} does not divide the model's {case.heads} attention heads"
    if case.processes_on == "cuda" and size > case.gpus:
        return f"{size} processes, and {case.gpus} GPUs here"
    return ""


def _one_by_one(names: Sequence[str], patient: Patient, scratch: Path, limit: float) -> Iterator[Examined]:
    """In one process as long as it lives: to start one takes longer than most checks."""
    left, log = list(names), scratch / "log-0"
    while left:
        outs = [_out(scratch, name) for name in left]
        (environment,) = _environments(1)
        process = worker.context(patient.device).Process(
            target=worker.one_by_one, args=(list(zip(left, outs, strict=True)), patient, log, environment)
        )
        process.start()
        try:
            for out in outs:
                began = time.monotonic()
                while not out.exists() and process.exitcode is None and time.monotonic() < began + limit:
                    wait([process.sentinel], timeout=0.2)
                words = "" if out.exists() else _said(process, log, limit)
                yield Examined(left[0], _findings(str(out), words, left[0]), time.monotonic() - began)
                del left[0]
                if words:
                    break
            else:
                wait([process.sentinel], timeout=limit)
        finally:
            process.kill()
            process.join()


def _resumed(case: Case, patient: Patient, scratch: Path, limit: float) -> Examined:
    """A process that kills itself, and one that goes on."""
    began = time.monotonic()
    if case.parameters > SMALL:
        what = "resume: killed and resumed against uninterrupted"
        reason = f"{parameters_in_words(case.parameters)} are too many for a CPU, where it holds bit for bit"
        return Examined("resume", [not_run(what, reason)], 0.0)
    found, words = _run("resume", 0, patient, 1, scratch, limit, dies=True)
    if not words:
        found, words = _run("resume", 1, patient, 1, scratch, limit)
    return Examined("resume", _findings(found, words, "resume"), time.monotonic() - began)


def _findings(found: str, words: str, what: str) -> list[Finding]:
    if words:
        return [not_run(what, f"failed: {words}")]
    return decode(jsonl.read_json(Path(found))["findings"])


def _run(
    name: str, place: int, patient: Patient, size: int, scratch: Path, limit: float, dies: bool = False
) -> tuple[str, str]:
    """Starts the processes and waits. Returns the file of their findings, and what went wrong, in words. One that is
    meant to kill itself has no findings."""
    out, started = _out(scratch, name, place), []
    for rank, environment in enumerate(_environments(size)):
        log = scratch / f"log-{rank}"
        work = (name, place, patient, out, log, environment)
        started.append(worker.context(patient.device).Process(target=worker.process, args=work))
    for process in started:
        process.start()
    words = _wait(started, limit, scratch)
    if dies:
        died = started[0].exitcode == -signal.SIGKILL
        return "", "" if died else words or "the process that was to be killed lived on"
    return str(out), words if words or out.exists() else "it left no findings"


def _out(scratch: Path, name: str, place: int = 0) -> Path:
    out = scratch / f"{name}-{place}.json"
    out.unlink(missing_ok=True)
    return out


def _wait(processes: Sequence[BaseProcess], limit: float, scratch: Path) -> str:
    """The first that fails ends the others. Returns what it said; empty where all ended well."""
    end = time.monotonic() + limit
    while any(process.exitcode is None for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            break
        wait([process.sentinel for process in processes if process.exitcode is None], timeout=1.0)
    failed = next((rank for rank, process in enumerate(processes) if process.exitcode), None)
    late = failed is None and any(process.exitcode is None for process in processes)
    for process in processes:
        if process.exitcode is None:
            process.kill()
        process.join()
    if late:
        return f"no answer after {limit:.0f} s"
    if failed is None:
        return ""
    return _said(processes[failed], scratch / f"log-{failed}", limit)


def _said(process: BaseProcess, log: Path, limit: float) -> str:
    """Why a process left no findings."""
    if process.exitcode is None:
        return f"no answer after {limit:.0f} s"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    said = next((line for line in reversed(lines) if line.strip()), "nothing")
    return f"a process ended with {process.exitcode}, and said last: {said}"


def _environments(size: int) -> Iterator[dict[str, str]]:
    """As torchrun sets them for each process of one node; nothing for a process of its own."""
    if size == 1:
        yield dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | {"WORLD_SIZE": "1"}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for rank in range(size):
        own: dict[str, Any] = shared | {"RANK": rank, "LOCAL_RANK": rank}
        yield {key: str(value) for key, value in own.items()}


def _tiny(folder: Path) -> Path:
    """12 query heads and 2 key heads: key heads are repeated where more processes share a row."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=12,
            num_key_value_heads=2, head_dim=4, max_position_embeddings=256, tie_word_embeddings=True,
            initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="motet-doctor-")
