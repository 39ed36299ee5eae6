"""Trackers: trackio and wandb are shown every row of figures and every alarm. The run folder stays the truth.

Each has a thread and a queue of its own: what is slow there costs the run nothing, and what fails is said once in the
log. Nothing of a tracker is imported before a recipe names it.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from motet.base.errors import how_to_install
from motet.base.recipe import Recipe
from motet.base.records import content_id
from motet.base.run import log

WAITING = 1000
"""Rows that may wait for a slow tracker; what comes on top is left out, and counted."""
SECONDS_TO_END = 20.0
"""How long the end of a run waits for what is still on its way."""


class Sink(Protocol):
    """A tracker's own interface, once it is open."""

    def log(self, row: dict[str, float]) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def finish(self) -> None: ...


class Background:
    """A `Tracker` of a run. It never raises and never waits, but for its end."""

    def __init__(self, name: str, begin: Callable[[], Sink]) -> None:
        self.name = name
        self._begin = begin
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(WAITING)
        self._left_out = 0
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def report(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Names begin with the stage's, and each stage counts its own steps: STAGE/step."""
        finite = {f"{stage}/{key}": float(value) for key, value in metrics.items() if math.isfinite(value)}
        self._put(lambda sink: sink.log({**finite, f"{stage}/step": float(step)}))

    def alert(self, title: str, text: str) -> None:
        self._put(lambda sink: sink.alert(title, text))

    def close(self) -> None:
        """Waits a while for what is on its way; a tracker that hangs is left behind."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=SECONDS_TO_END)
        self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            log.warning("tracking: %s did not end within %g s and was left behind", self.name, SECONDS_TO_END)
        elif self._left_out and not self._failed:
            log.warning("tracking: %s was too slow for %d rows, which are in metrics.jsonl", self.name, self._left_out)

    def _put(self, what: Callable[[Sink], None]) -> None:
        try:
            self._queue.put_nowait(what)
        except queue.Full:
            self._left_out += 1

    def _work(self) -> None:
        try:
            sink = self._begin()
            while (what := self._queue.get()) is not None:
                what(sink)
            sink.finish()
        except ImportError:
            self._say(f"is not installed: {how_to_install(self.name)}")
        except (Exception, SystemExit) as error:  # whatever a tracker does, the run goes on
            self._say(f"failed and gets no more figures ({type(error).__name__}: {error})")

    def _say(self, what: str) -> None:
        self._failed = True
        log.warning("tracking: %s %s; metrics.jsonl has everything", self.name, what)


def trackers(recipe: Recipe, folder: Path) -> list[Background]:
    """Those that the recipe names, one of each."""
    makers: dict[str, Callable[[], Sink]] = {
        "trackio": lambda: _Trackio(recipe),
        "wandb": lambda: _Wandb(recipe, folder),
    }
    return [Background(name, makers[name]) for name in dict.fromkeys(recipe.tracking.to)]


class _Trackio:
    def __init__(self, recipe: Recipe) -> None:
        import trackio

        self._module: Any = trackio
        config = recipe.model_dump(mode="json")
        trackio.init(project=recipe.tracking.project, name=recipe.name, config=config, resume="allow", embed=False)

    def log(self, row: dict[str, float]) -> None:
        self._module.log(row)

    def alert(self, title: str, text: str) -> None:
        self._module.alert(title=title, text=text)

    def finish(self) -> None:
        self._module.finish()


class _Wandb:
    def __init__(self, recipe: Recipe, folder: Path) -> None:
        import wandb

        # the folder names the run: killed, the same command goes on with the same one
        own = f"{recipe.name}-{content_id(str(folder.resolve()))}"
        self._run: Any = wandb.init(
            project=recipe.tracking.project, name=recipe.name, id=own, resume="allow", dir=str(folder),
            config=recipe.model_dump(mode="json"), mode=recipe.tracking.mode,
        )  # fmt: skip
        for stage in recipe.stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def log(self, row: dict[str, float]) -> None:
        self._run.log(row)

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text)

    def finish(self) -> None:
        self._run.finish()
