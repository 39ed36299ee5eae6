"""The run folder: the log, the metrics, the timers. Files are the truth; a console only shows them.

runs/NAME/ recipe.toml resolved.json lineage.json log.txt metrics.jsonl report.html report.json STAGE/...
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from motet.base import jsonl

log = logging.getLogger("motet")
T = TypeVar("T")


class Run:
    """An open run folder. One process writes it at a time."""

    def __init__(self, folder: Path, console: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.console = console
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._handlers = [logging.FileHandler(folder / "log.txt", encoding="utf-8")]
        if console:
            self._handlers.append(logging.StreamHandler(sys.stderr))
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
            log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False

    def stage(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def report(self, stage: str, step: int, total: int, metrics: Mapping[str, float], columns: Iterable[str]) -> None:
        """One row in metrics.jsonl with every metric, one line in the log with `columns` of them."""
        self._metrics.write(
            jsonl.dumps({"time": round(time.time(), 3), "stage": stage, "step": step, **metrics}) + "\n"
        )
        self._metrics.flush()
        shown = "  ".join(f"{name.split('/')[-1]} {metrics[name]:.4g}" for name in columns if name in metrics)
        log.info("%s %d/%d  %s", stage, step, total, shown)

    def drop_metrics(self, stage: str, from_step: int) -> None:
        """Removes the rows of a stage from `from_step` on: a resumed run writes them again."""
        path = self.folder / "metrics.jsonl"
        rows = [row for _, row in jsonl.read(path)]
        kept = [row for row in rows if row["stage"] != stage or row["step"] < from_step]
        if len(kept) < len(rows):
            self._metrics.close()
            jsonl.write(path, kept)
            self._metrics = path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._metrics.close()
        for handler in self._handlers:
            log.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Timers:
    """Seconds by name: `with timers("generate"): ...`, then `timers.metrics()`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}": round(value, 4) for name, value in self.seconds.items()}


def progress(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Passes `items` on; on a terminal with a bar and the time left, elsewhere silently."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
