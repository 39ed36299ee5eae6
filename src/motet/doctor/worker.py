"""One process of one check. On a CPU all are forked from one that has imported what they need (`context`)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
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
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if patient.device == "cpu":
        torch.set_num_threads(1)
    found = findings(name, place, patient)
    if os.environ.get("RANK", "0") == "0":
        jsonl.write_json(out, {"findings": encode(found)})


def findings(name: str, place: int, patient: checks.Patient) -> list[Finding]:
    if name != "spread":
        return list(checks.ALONE[name][place](patient))
    if place == 0:
        return list(checks.spread_alone(patient))
    world = World.join(TIMEOUT, TIMEOUT, patient.device == "cuda")
    try:
        return list(checks.spread(patient, world))
    finally:
        world.leave()
