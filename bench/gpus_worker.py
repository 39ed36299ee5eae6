"""One process of a group (gpus_group.py): joins the others, runs the cases of a plan, and says what came of each."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gpus_parity
import gpus_steps
import torch
import torch.distributed as dist
from gpus_place import Place
from torch.distributed.device_mesh import init_device_mesh

from motet.train import mesh as meshes
from motet.train.world import World

RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "alone": gpus_parity.alone,
    "parity": gpus_parity.parity,
    "save": gpus_parity.save,
    "load": gpus_parity.load,
    "steps": gpus_steps.steps,
    "growth": gpus_steps.growth,
    "hang": gpus_parity.hang,
}


def main(file: Path) -> None:
    plan = json.loads(file.read_text())
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
    world = join(plan)
    # a communicator of NCCL takes half a second and some memory: cases on one mesh share theirs
    patch.object(meshes, "init_device_mesh", cache(init_device_mesh)).start()
    folder = Path(plan["folder"])
    for number, case in enumerate(plan["cases"]):
        place = Place(world, plan["cpu"], Path(plan["scratch"]), folder / f"partial-{number}.json")
        try:
            found = one(place, case, plan["deadline"])
        except BaseException as error:
            traceback.print_exc()
            words = str(error).strip().splitlines() or [""]
            (folder / f"failed-{world.rank}.txt").write_text(f"{type(error).__name__}: {words[0][:500]}")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # what waits on a device for the others would hold up an ordinary end
        if world.rank == 0:
            place.write(folder / f"result-{number}.json", found)
        free()
    world.gather(0)
    os._exit(0)  # nothing is left to be said; communicators take seconds to be taken down


def one(place: Place, case: dict[str, Any], deadline: float) -> dict[str, Any]:
    if place.world.first(lambda: time.time() > deadline - case["limit"] / 3):
        return {"not_run": "the time was up"}
    began = time.monotonic()
    found = RUNS[case["run"]](place, **case["settings"])
    return found | {"case_seconds": round(time.monotonic() - began, 1)}


def join(plan: dict[str, Any]) -> World:
    """The group; a process on its own has groups too, so that collectives go through NCCL with one GPU as well."""
    cuda = not plan["cpu"]
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if plan["cap"]:
            total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, plan["cap"] * 1e9 / total))
    else:
        torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        return World.join(plan["timeout"], plan["timeout"], cuda)
    wait = timedelta(seconds=plan["timeout"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=wait)
    objects, files = (dist.new_group(backend="gloo", timeout=wait) for _ in range(2))
    return World(0, 1, 1, plan["timeout"], objects, files)


def free() -> None:
    """Nothing of a case is left for the next, neither memory nor compiled code."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
