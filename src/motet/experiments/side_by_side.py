"""Runs of several recipes beside each other, each in a process of its own with so many threads.

`python -m motet.experiments.side_by_side RECIPE.json FOLDER PARENT` is one of them; it ends with the process PARENT.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Recipe
from motet.base.run import console_log, log

LOOK_EVERY_SECONDS = 0.2
TOLD = 2000
"""Characters of what a failed run said at its end."""


class Task(NamedTuple):
    recipe: Recipe
    folder: Path
    """Of the run."""


class _Running(NamedTuple):
    task: Task
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    began: float


def run_beside(tasks: Sequence[Task], jobs: int, threads: int = 1, console: bool = False) -> None:
    """Runs those that are not done, in their order, `jobs` at a time, and returns when all have ended.

    Raises UserError with the words of the first that fails; the others are ended then, and keep what they had.
    """
    with console_log() if console else nullcontext():
        _run(deque(task for task in tasks if not _done(task)), jobs, threads)


def _done(task: Task) -> bool:
    return all(item.state == "done" for item in pipeline.plan(task.recipe, task.folder))


def _run(waiting: deque[Task], jobs: int, threads: int) -> None:
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.popleft(), threads))
            time.sleep(LOOK_EVERY_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _ended(one)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
            one.said.close()


def _start(task: Task, threads: int) -> _Running:
    place = task.folder.with_name(task.folder.name + ".json")
    jsonl.write_json(place, task.recipe.model_dump(mode="json"))
    said = task.folder.with_name(task.folder.name + ".err").open("w+b")
    number = str(threads)
    process = subprocess.Popen(
        _command(place, task.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env={**os.environ, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number},
    )
    log.info("%s begins", task.folder)
    return _Running(task, process, said, time.monotonic())


def _command(recipe: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "motet.experiments.side_by_side", str(recipe), str(folder), str(os.getpid())]


def _ended(one: _Running) -> None:
    one.said.seek(0)
    words = one.said.read().decode("utf-8", "replace").strip()
    one.said.close()
    if one.process.returncode:
        raise UserError(f"{one.task.folder} failed (exit status {one.process.returncode}): {words[-TOLD:]}")
    for suffix in (".json", ".err"):
        one.task.folder.with_name(one.task.folder.name + suffix).unlink()
    log.info("%s ended after %.0f s", one.task.folder, time.monotonic() - one.began)


def main(recipe: str, folder: str, parent: str) -> None:
    from motet.base.load_recipe import check

    _end_with(int(parent))
    try:
        pipeline.run(check(jsonl.read_json(Path(recipe)), folder), Path(folder), console=False)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _end_with(parent: int) -> None:
    """Nobody who is started later shall find the run folder taken by an orphan."""
    import ctypes
    import signal

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
