"""One process of one check: `python -m motet.doctor.worker CHECK PLACE PATIENT.json FINDINGS.json`.

PLACE is which of the check's functions runs. Where the environment is torchrun's, several processes run one check.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers.utils import logging

from motet.base import jsonl
from motet.doctor import checks
from motet.doctor.finding import Finding, encode
from motet.train.world import World

TIMEOUT = 120
"""Seconds for a collective operation."""


def main(name: str, place: int, patient: checks.Patient) -> list[Finding]:
    torch.set_num_threads(1 if patient.device == "cpu" else torch.get_num_threads())
    if name != "spread":
        return list(checks.ALONE[name][place](patient))
    if place == 0:
        return list(checks.spread_alone(patient))
    world = World.join(TIMEOUT, patient.device == "cuda")
    try:
        return list(checks.spread(patient, world))
    finally:
        world.leave()


if __name__ == "__main__":
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    check, place, given, out = sys.argv[1:]
    read = jsonl.read_json(Path(given))
    found = main(check, int(place), checks.Patient(**{**read, "mesh": tuple(read["mesh"])}))
    jsonl.write_json(Path(out), {"findings": encode(found)})
