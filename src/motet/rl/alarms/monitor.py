"""Alarms over time: raised once, lasting while the rule sees its pattern, ended after a quiet window.

All of it is a function of the rows of metrics.jsonl, so a resumed run knows by reading them what it knew before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from motet.base.recipe import Recipe, RlStage
from motet.rl.alarms import Alarm, History, look

FILE = "alarms.jsonl"
"""In the stage's folder: every event of its alarms, in order."""


class Decision(NamedTuple):
    do: Literal["go on", "pause", "roll back"]
    raised: tuple[Alarm, ...]
    """Those that began with this step."""
    cause: Alarm | None = None
    """For what it does."""


@dataclass(slots=True)
class _Lasting:
    alarm: Alarm
    """As it was when it was raised."""
    quiet: int = 0
    """Steps since the rule saw its pattern."""


@dataclass
class Monitor:
    recipe: Recipe
    stage: str
    healthy: list[int] = field(default_factory=lambda: [0])
    """Steps after which a checkpoint is due and no alarm was on, the newest last; 0 is the start."""
    rolled_back: int = 0

    def __post_init__(self) -> None:
        self._history = History(self.recipe, self.stage)
        self._active: dict[str, _Lasting] = {}

    @property
    def active(self) -> list[Alarm]:
        return [lasting.alarm for lasting in self._active.values()]

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that were looked at before."""
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> Decision:
        """One step's figures."""
        self._history.add(row)
        found: dict[str, Alarm] = {alarm.rule: alarm for alarm in look(self._history)}
        window = self._config.alarms.window
        for rule in list(self._active):
            lasting = self._active[rule]
            lasting.quiet = 0 if rule in found else lasting.quiet + 1
            if lasting.quiet >= window:
                del self._active[rule]
        raised = tuple(alarm for rule, alarm in found.items() if rule not in self._active)
        self._active |= {alarm.rule: _Lasting(alarm) for alarm in raised}
        step = self._history.step
        if not self._active and step % self._config.checkpoint_every == 0:
            self.healthy.append(step)
        return self._decide(raised)

    def _decide(self, raised: tuple[Alarm, ...]) -> Decision:
        alarms = self._config.alarms
        acts = {alarm: alarms.of(alarm.rule) for alarm in raised if alarm.id not in alarms.acknowledged}
        back = next((alarm for alarm, action in acts.items() if action == "rollback"), None)
        if back is not None and self.rolled_back < alarms.rollbacks:
            return Decision("roll back", raised, back)
        stop = back or next((alarm for alarm, action in acts.items() if action == "pause"), None)
        return Decision("pause", raised, stop) if stop is not None else Decision("go on", raised)

    @property
    def _config(self) -> RlStage:
        return self._history.config
