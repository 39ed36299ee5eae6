"""One process of one check. On a CPU all are forked from one that has imported what they need (`context`)."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import torch
from transformers.utils import logging

from motet.base import jsonl
from motet.doctor import checks
from motet.doctor.finding import Finding, encode
from motet.train.world import World

TIMEOUT = 120
"""Seconds for a collective operation."""


def context(device: str) -> ForkServerContext | SpawnContext:
    """On a GPU each imports for itself: whatever looks at the driver while it is imported, torch or a kernel's package,
    leaves a process whose children cannot use CUDA."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([__name__])
    return found


def process(
    name: str, place: int, patient: checks.Patient, out: Path, log: Path, environment: Mapping[str, str]
) -> None:
    """Runs function `place` of a check and writes its findings. `environment` is torchrun's where several processes
    run one check; they find the same, and the first one writes it."""
    _prepare(patient, log, environment)
    found = findings(name, place, patient)
    if os.environ.get("RANK", "0") == "0":
        jsonl.write_json(out, {"findings": encode(found)})


def one_by_one(
    names: Sequence[tuple[str, Path]], patient: checks.Patient, log: Path, environment: Mapping[str, str]
) -> None:
    """Runs checks of one process and writes the findings of each as it ends."""
    _prepare(patient, log, environment)
    for name, out in names:
        jsonl.write_json(out, {"findings": encode(checks.ALONE[name](patient))})
        torch._dynamo.reset()  # it compiles one function for a few models only
        gc.collect()
        torch.cuda.empty_cache()


def _prepare(patient: checks.Patient, log: Path, environment: Mapping[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if patient.device == "cpu":
        torch.set_num_threads(1)


def findings(name: str, place: int, patient: checks.Patient) -> list[Finding]:
    if name == "resume":
        return list((checks.resume_killed, checks.resume)[place](patient))
    if place == 0:
        return list(checks.spread_alone(patient))
    world = World.join(TIMEOUT, TIMEOUT, patient.device == "cuda")
    try:
        return list(checks.spread(patient, world))
    finally:
        world.leave()
