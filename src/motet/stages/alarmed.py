"""What is done about an alarm: said, paused for, or rolled back from; and an error of memory, explained.

STAGE/alarms.jsonl holds every event in order: `alarm` (raised), `pause`, `rollback` (begun) and `rolled back`. A pause
is an end with exit code 3 that the same command does not pass until the recipe acknowledges it. A rollback sets aside
what was made since the last healthy checkpoint, in STAGE/rolled-back-N, and runs the stage on from there, as if it had
been killed then, with other random numbers.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import Elsewhere, Paused, UserError
from motet.base.recipe import RlStage
from motet.base.records import decode_group
from motet.base.run import log
from motet.rl import heldout
from motet.rl.alarms import Alarm, alarm_of
from motet.rl.alarms.monitor import FILE, Decision, Monitor
from motet.stages.context import Context
from motet.stages.probe import outcomes_before
from motet.train import memory
from motet.train.checkpoint import Checkpoints


class RolledBack(Exception):
    """Ends a run of the stage that begins again at an earlier step."""


class Alarms:
    """Of one RL stage, from its start or from where it was resumed."""

    def __init__(self, name: str, config: RlStage, context: Context) -> None:
        """Raises Paused where an earlier pause has not been answered."""
        self._name, self._config, self._context = name, config, context
        self._folder = context.folder(name)
        events = context.world.first(lambda: _events(self._folder))
        self.attempt = sum(event["event"] == "rolled back" for event in events)
        """How often the stage was rolled back: its random numbers depend on it."""
        self._monitor = Monitor(context.recipe, name, rolled_back=self.attempt)
        self._told = {(e["attempt"], alarm_of(e["alarm"]).id) for e in events if e["event"] == "alarm"}
        _stop_unless_answered(events, config)

    def begin(self, start: int, checkpoints: Checkpoints) -> None:
        """After `start` steps: what was seen of them, and a first checkpoint where a rollback may want one."""
        rows = self._context.world.first(lambda: _rows(self._context.run.folder / "metrics.jsonl", self._name, start))
        self._monitor.replay(rows)
        alarms = self._config.alarms
        if start == 0 and "rollback" in (alarms.action, *alarms.actions.values()):
            checkpoints.save(0)
        checkpoints.pinned = self._healthy(checkpoints)

    def look(self, step: int, metrics: Mapping[str, float], checkpoints: Checkpoints) -> None:
        """After step `step` was reported. Raises Paused, with a checkpoint of the step, or RolledBack."""
        decision = self._context.world.first(lambda: self._see({**metrics, "step": step}))
        checkpoints.pinned = self._healthy(checkpoints)
        if decision.do == "roll back":
            assert decision.cause is not None
            self._begin_rollback(decision.cause, checkpoints)
        if decision.do == "pause":
            assert decision.cause is not None
            checkpoints.save(step)
            checkpoints.wait()
            self._pause(decision.cause)

    def _see(self, row: Mapping[str, Any]) -> Decision:
        """In the first process."""
        decision = self._monitor.see(row)
        for alarm in decision.raised:
            if (self.attempt, alarm.id) not in self._told:
                tell(alarm, self._context, self.attempt)
        return decision

    def _pause(self, alarm: Alarm) -> None:
        self._context.world.first(lambda: _write(self._folder, "pause", self.attempt, alarm))
        raise Paused(_how_to_go_on(alarm, self._config))

    def _begin_rollback(self, alarm: Alarm, checkpoints: Checkpoints) -> None:
        target = self._healthy(checkpoints)
        if target is None:
            log.warning("%s: there is no healthy checkpoint to roll back to", self._name)
            self._pause(alarm)
        checkpoints.wait()
        about = {"to": target, "number": self.attempt + 1}
        self._context.world.first(lambda: _write(self._folder, "rollback", self.attempt, alarm, about))
        raise RolledBack

    def _healthy(self, checkpoints: Checkpoints) -> int | None:
        """The newest checkpoint that was saved without an alarm."""

        def newest() -> int | None:
            there = set(checkpoints.steps())
            return next((step for step in reversed(self._monitor.healthy) if step in there), None)

        return self._context.world.first(newest)


def run(name: str, config: RlStage, context: Context, stage: Callable[[str, RlStage, Context, Path | str], None],
        model: Path | str) -> None:  # fmt: skip
    """The stage, begun again after every rollback."""
    while True:
        context.world.first(lambda: finish_rollback(name, context))
        try:
            stage(name, config, context, model)
            return
        except RolledBack:
            pass
        memory.let_go()


def finish_rollback(name: str, context: Context) -> None:
    """Sets aside what a rollback undoes, where one was begun; a kill in between costs nothing."""
    folder = context.folder(name)
    events = _events(folder)
    if not events or events[-1]["event"] != "rollback":
        return
    event = events[-1]
    to, number = int(event["to"]), int(event["number"])
    aside = folder / f"rolled-back-{number}"
    for kind in ("rollouts", "probes"):
        for file in sorted((folder / kind).glob("*")):
            found = re.search(r"\d{5,}", file.name)
            if found and int(found[0]) > to:
                (aside / kind).mkdir(parents=True, exist_ok=True)
                file.replace(aside / kind / file.name)
    rows = [row for row in _rows(context.run.folder / "metrics.jsonl", name) if row["step"] > to]
    if rows:
        jsonl.write(aside / "metrics.jsonl", rows)
        context.run.drop_metrics(name, to + 1)
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(re.sub(r"\D", "", checkpoint.name)) > to:
            shutil.rmtree(checkpoint)
    alarm = alarm_of(event["alarm"])
    _write(folder, "rolled back", number, alarm, {"to": to, "number": number})
    log.warning("%s: rolled back from step %d to step %d because of %s; what was made since is in %s", name, alarm.step,
                to, alarm.rule, aside)  # fmt: skip


def after_evaluation(name: str, config: RlStage, context: Context) -> None:
    """Looks at the evaluation of the stage's weights, against that of the weights it started from. An alarm that pauses
    ends the run here, before the next stage."""
    file = context.folder(name) / "evaluation.jsonl"
    now = [decode_group(row) for _, row in jsonl.read(file)] if file.exists() else []
    evaluation, before = context.recipe.evaluation, outcomes_before(name, context)
    found = heldout.figures(now, before, evaluation.bootstrap, context.recipe.seed) if now else {}
    events = _events(context.folder(name))
    _stop_unless_answered(events, config)
    monitor = Monitor(context.recipe, name)
    *earlier, last = _rows(context.run.folder / "metrics.jsonl", name) or [{}]
    monitor.replay(earlier)
    decision = monitor.see({**last, **found, "step": config.steps})
    told = {alarm_of(event["alarm"]).id for event in events if event["event"] == "alarm"}
    for alarm in decision.raised:
        if alarm.id not in told:
            tell(alarm, context, 0)
    if decision.cause is not None:
        _write(context.folder(name), "pause", 0, decision.cause)
        raise Paused(_how_to_go_on(decision.cause, config))


@contextmanager
def explained(name: str, context: Context, planned: Callable[[], str] = str) -> Iterator[None]:
    """An error of memory becomes an alarm, and a UserError that says what it was and what to change. `planned`: asked
    then for what the plan had said of the stage."""
    try:
        yield
    except (Paused, Elsewhere):
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        if not memory.is_out_of_memory(error):
            raise
        rows = _rows(context.run.folder / "metrics.jsonl", name)
        step = int(rows[-1]["step"]) + 1 if rows else 1
        alarm = memory.explain(error, context.recipe, name, step, planned())
        if context.world.rank == 0:
            tell(alarm, context, 0)
        raise UserError("\n".join(alarm.lines())) from error


def tell(alarm: Alarm, context: Context, attempt: int) -> None:
    """In the log, in STAGE/alarms.jsonl, and to the trackers."""
    for line in alarm.lines():
        log.warning("%s", line)
    _write(context.folder(alarm.stage), "alarm", attempt, alarm)
    context.run.alert(f"{alarm.stage} step {alarm.step}: {alarm.rule}", alarm.sentence())


def _stop_unless_answered(events: Sequence[Mapping[str, Any]], config: RlStage) -> None:
    """Raises Paused after a pause, until the recipe acknowledges its alarm or no longer pauses for it."""
    if not events or events[-1]["event"] != "pause":
        return
    alarm, alarms = alarm_of(events[-1]["alarm"]), config.alarms
    if alarm.id not in alarms.acknowledged and alarms.of(alarm.rule) in ("pause", "rollback"):
        raise Paused(_how_to_go_on(alarm, config))


def _how_to_go_on(alarm: Alarm, config: RlStage) -> str:
    known = [*config.alarms.acknowledged, alarm.id]
    value = alarm.id if len(known) == 1 else "[" + ", ".join(f'"{text}"' for text in known) + "]"
    text = "\n".join(alarm.lines())
    return (
        f"paused at {alarm.stage} step {alarm.step} by the alarm {alarm.rule}; a checkpoint was saved.\n{text}\n"
        "To go on from here, give the same command and\n"
        f"  'stage.{alarm.stage}.alarms.acknowledged={value}'\n"
        "Other lines of the stage, changed, make it anew from its start; what was made lies in "
        f"{alarm.stage}.stale-N then."
    )


def _write(folder: Path, event: str, attempt: int, alarm: Alarm, more: Mapping[str, Any] | None = None) -> None:
    row = {"time": round(time.time(), 3), "event": event, "attempt": attempt, **(more or {}), "alarm": alarm.row()}
    jsonl.append(folder / FILE, row)


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    return [row for _, row in jsonl.read(path)] if path.exists() else []


def _rows(metrics: Path, stage: str, last: int | None = None) -> list[dict[str, Any]]:
    """The stage's rows of metrics.jsonl up to step `last`."""
    rows = [row for _, row in jsonl.read(metrics) if row["stage"] == stage]
    return [row for row in rows if last is None or row["step"] <= last]
