"""The run folder: the log, the metrics, the timers. Files are the truth; a console only shows them.

runs/NAME/ recipe.toml resolved.json lineage.json log.txt metrics.jsonl report.html report.json STAGE/...
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from motet.base import jsonl, signs
from motet.base.errors import Elsewhere, UserError

log = logging.getLogger("motet")
T = TypeVar("T")
LABELS = {"reward/mean": "reward", "tokens/second": "tokens/s", "time/step": "seconds"}
"""Figures whose last word alone would not say what they are, by name in the log."""
STOPPED = "stopped: "
"""Begins the last line of log.txt where an error ended the run."""


def follows() -> bool:
    """Of a run of several processes the first one writes, prints and shows; this is another one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


class Tracker(Protocol):
    """Where figures go besides the run folder (`base/tracking.py`); it never raises and never waits."""

    def report(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def close(self) -> None: ...


class Run:
    """An open run folder. One process writes it at a time."""

    def __init__(self, folder: Path, console: bool = True) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        except OSError as error:
            if error.errno == errno.ENOSPC:  # the command says it of any file
                raise
            raise UserError(f"{folder}: no run can be written there ({error.strerror}); give another --runs") from error
        assert file.stream is not None
        if not _locked(file.stream):
            file.close()
            raise UserError(f"{folder}: another process is writing this run; wait for it, or give another name")
        self._metrics = jsonl.Journal(folder / "metrics.jsonl")
        self.trackers: Sequence[Tracker] = ()
        self.folder = folder
        self.console = console
        self._handlers: list[logging.Handler] = [file]
        if console:
            self._handlers.append(_StandardError())
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
        self._metrics.append({"time": round(time.time(), 3), "stage": stage, "step": step, **metrics})
        shown = "  ".join(
            f"{LABELS.get(name) or name.split('/')[-1]} {metrics[name]:.4g}" for name in columns if name in metrics
        )
        log.info("%s %d/%d  %s", stage, step, total, shown)
        for tracker in self.trackers:
            tracker.report(stage, step, metrics)

    def alert(self, title: str, text: str) -> None:
        """To the trackers; the log has it already."""
        for tracker in self.trackers:
            tracker.alert(title, text)

    def drop_metrics(self, stage: str, from_step: int) -> None:
        """Removes the rows of a stage from `from_step` on: a resumed run writes them again."""
        path = self.folder / "metrics.jsonl"
        rows = [row for _, row in jsonl.read(path)]
        kept = [row for row in rows if row["stage"] != stage or row["step"] < from_step]
        if len(kept) < len(rows):
            self._metrics.close()
            jsonl.write(path, kept)
            self._metrics = jsonl.Journal(path)

    def close(self) -> None:
        self._metrics.close()
        for tracker in self.trackers:
            tracker.close()
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        log.propagate = True

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, Elsewhere):
            self._note_end(error)
        self.close()

    def _note_end(self, error: BaseException) -> None:
        """Why the run ended, on one line of log.txt alone: the command itself tells whoever sees its console."""
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}"
        text = STOPPED + " ".join(what.split())
        for handler in self._handlers[:1]:
            handler.emit(log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None))


class Followed(Run):
    """The run folder in a process that only follows: nothing is written and nothing is shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = False
        self.trackers = ()
        self._handlers = []

    def report(self, stage: str, step: int, total: int, metrics: Mapping[str, float], columns: Iterable[str]) -> None:
        pass

    def drop_metrics(self, stage: str, from_step: int) -> None:
        pass

    def close(self) -> None:
        pass


def _locked(file: TextIO) -> bool:
    """Takes a lock that ends with the process, however it ends; False where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can be kept out
        return True
    return True


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time: a progress bar puts a stream there that keeps lines off its row."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


@contextmanager
def console_log() -> Iterator[None]:
    """For a command without a run folder: its log goes to standard error."""
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("motet: %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


class Timers:
    """Seconds by name: `with timers("generate"): ...`, then `timers.metrics()`. An error that passes through is given
    the innermost name as its attribute `phase`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            if not hasattr(error, "phase"):  # the innermost one
                error.phase = name  # type: ignore[attr-defined]
            raise
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def part(self, of: str, name: str, seconds: float) -> None:
        """Counts `seconds` of what `of` takes as `name`."""
        self.seconds[of] = self.seconds.get(of, 0.0) - seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}": round(value, 4) for name, value in self.seconds.items()}


_displays: list[Any] = []
"""The rich display of each loop that is under way, outermost first."""


def progress(items: Iterable[T], total: int | None, title: str) -> Iterator[T]:
    """Passes `items` on; on a terminal with a bar and the time left, elsewhere silently. None: their number is not
    known."""
    if follows() or not sys.stderr.isatty():
        for item in items:
            signs.give()
            yield item
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # two displays at once would overwrite each other: an inner loop is one more row of the outer one's
    outer = _displays[-1] if _displays else None
    display = outer or Progress(*columns, console=Console(stderr=True), transient=True)
    with nullcontext() if outer else display:
        task = display.add_task(title, total=total)
        _displays.append(display)
        try:
            for item in items:
                signs.give()
                yield item
                display.advance(task)
        finally:
            _displays.pop()
            display.remove_task(task)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
