"""Checkpoints: STAGE/checkpoints/step-000050/, written whole or not at all, the newest two kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from motet.train.learner import Learner

KEPT = 2


def save(folder: Path, step: int, learner: Learner) -> None:
    """`step`: how many steps of the stage are done."""
    target = folder / f"step-{step:06d}"
    temporary = folder / f"step-{step:06d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with (temporary / "state.pt").open("wb") as file:
        try:
            torch.save({"step": step, **learner.state()}, file)
        except RuntimeError as error:  # what torch makes of a write that failed: the disk is full, say
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def restore(folder: Path, learner: Learner) -> int:
    """Loads the newest checkpoint into the learner. Returns the number of steps done; 0 where there is none."""
    found = _steps(folder)
    if not found:
        return 0
    state: dict[str, Any] = torch.load(found[-1] / "state.pt", map_location=learner.device, weights_only=True)
    learner.load_state(state)
    return int(state["step"])


def remove(folder: Path) -> None:
    """A finished stage keeps its exported model, not its checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and not p.name.endswith(".tmp"))
