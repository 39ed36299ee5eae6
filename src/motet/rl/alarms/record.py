"""What a rule is given and what it says: the figures of a stage's steps in, an alarm with causes and lines out.

No torch: the same rules run while a stage trains, and again where a report is written from its files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from motet.base.recipe import FilterStage, Mix, Recipe, RlStage, RuleName, SftSource


@dataclass(frozen=True, slots=True)
class Cause:
    text: str
    evidence: str
    """What in this run speaks for it; empty where nothing does."""
    weight: float
    """How strongly, from 0 to 1: causes are told in this order."""
    change: tuple[str, ...] = ()
    """Lines of the recipe, `stage.rl.group_size = 16   # now 8`, or a command."""


@dataclass(frozen=True, slots=True)
class Alarm:
    rule: RuleName
    stage: str
    step: int
    seen: str
    matters: str
    causes: tuple[Cause, ...]
    """The likeliest first."""

    @property
    def id(self) -> str:
        return f"{self.rule}@{self.step}"

    def lines(self) -> list[str]:
        """For the log and the terminal: one fact a line, causes numbered, the lines to change under each."""
        found = [f"ALARM {self.stage} step {self.step}: {self.rule}", f"  seen: {self.seen}", f"  why: {self.matters}"]
        for number, cause in enumerate(self.causes, 1):
            found.append(f"  {number}. {cause.text}" + (f" ({cause.evidence})" if cause.evidence else ""))
            found += [f"       {line}" for line in cause.change]
        return found

    def sentence(self) -> str:
        """For the report."""
        first = self.causes[0]
        text = f"{self.stage}, step {self.step}: {self.seen} {self.matters} Likely: {first.text}"
        text += f" ({first.evidence})." if first.evidence else "."
        return text + (f" Change: {'; '.join(first.change)}" if first.change else "")

    def row(self) -> dict[str, Any]:
        return asdict(self)


def alarm_of(row: Mapping[str, Any]) -> Alarm:
    """The inverse of `row`."""
    causes = tuple(
        Cause(c["text"], c["evidence"], float(c["weight"]), tuple(map(str, c["change"]))) for c in row["causes"]
    )
    return Alarm(row["rule"], row["stage"], int(row["step"]), row["seen"], row["matters"], causes)


class Window(NamedTuple):
    first: float
    """Mean of the first window of steps."""
    last: float
    """Mean of the window that ends with the present step."""


@dataclass(slots=True)
class History:
    """The figures of a stage's steps so far, and the recipe that it runs."""

    recipe: Recipe
    stage: str
    step: int = 0
    domain: str = ""
    """Whose figures they are, where `within` gave them."""
    _series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl; what is no finite number is skipped."""
        self.step = int(row["step"])
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self._series.setdefault(key, []).append((self.step, float(value)))

    @property
    def config(self) -> RlStage:
        stage = self.recipe.stage[self.stage]
        assert isinstance(stage, RlStage)
        return stage

    def keys(self, prefix: str) -> list[str]:
        """What follows the prefix in the names of figures: `keys("pass/")` are the domains and "mean"."""
        return sorted(key.removeprefix(prefix) for key in self._series if key.startswith(prefix))

    @property
    def domains(self) -> list[str]:
        return [name for name in self.keys("pass/") if name != "mean"]

    def within(self, domain: str) -> History:
        """As if the domain were all there is: what is known of it stands for what is known of the whole."""
        others = tuple(f"/{other}" for other in self.domains if other != domain)
        series = {key: found for key, found in self._series.items() if not key.endswith(others)}
        for key in [key for key in series if key.endswith(f"/{domain}")]:
            name = key.removesuffix(f"/{domain}")
            series[name if "/" in name else f"{name}/mean"] = series[key]
        return History(self.recipe, self.stage, self.step, domain, series)

    def values(self, key: str) -> list[float]:
        return [value for _, value in self._series.get(key, ())]

    def now(self, key: str) -> float | None:
        """Of the present step."""
        series = self._series.get(key)
        return series[-1][1] if series and series[-1][0] == self.step else None

    def last(self, key: str) -> float | None:
        """The newest value, of whichever step."""
        series = self._series.get(key)
        return series[-1][1] if series else None

    def recent(self, key: str) -> list[float]:
        """The last window's values; empty where there are fewer, or the present step has none."""
        window, series = self.config.alarms.window, self._series.get(key, [])
        if len(series) < window or series[-1][0] != self.step:
            return []
        return [value for _, value in series[-window:]]

    def largest(self, key: str) -> float:
        """Of the last window's values, of whichever steps; 0 without any."""
        return max((value for _, value in self._series.get(key, [])[-self.config.alarms.window :]), default=0.0)

    def mean(self, key: str) -> float | None:
        found = self.recent(key)
        return fmean(found) if found else None

    def ends(self, key: str) -> Window | None:
        """First window and last; None while they overlap."""
        found, window = self.recent(key), self.config.alarms.window
        series = self._series.get(key, [])
        if not found or len(series) < 2 * window:
            return None
        return Window(fmean(value for _, value in series[:window]), fmean(found))

    # ---- the recipe's lines

    def line(self, key: str, value: object) -> str:
        """`stage.rl.KEY = value   # now ...`, KEY dotted below the stage."""
        return written(f"stage.{self.stage}.{key}", value, _at(self.config, key))

    def whole(self, key: str, value: object) -> str:
        """The same for a key of the whole recipe."""
        return written(key, value, _at(self.recipe, key))

    def filters(self) -> list[str]:
        """Names of the filter stages that the stage's problems come from."""
        named = [mix.stage for mix in self.config.problems if mix.stage is not None]
        return [name for name in dict.fromkeys(named) if isinstance(self.recipe.stage.get(name), FilterStage)]

    def source_of(self, domain: str) -> str:
        """The problem set that a domain most likely comes from."""
        sets = self.recipe.problems
        used = {mix.problems for mix in self.config.problems}
        named = [name for name, part in sets.items() if domain in (part.domain, name)]
        spare = [name for name in sets if name not in used]
        return next(iter([*named, *spare]), "NAME")

    @property
    def steps(self) -> str:
        """ "steps 8 to 12": the window."""
        first = max(1, self.step - self.config.alarms.window + 1)
        return f"steps {first} to {self.step}" if first < self.step else f"step {self.step}"


def written(key: str, value: object, now: object) -> str:
    """A line of the recipe; empty where it says already what is proposed."""
    return "" if toml(value) == toml(now) else f"{key} = {toml(value)}   # now {toml(now)}"


def toml(value: object) -> str:
    """As a recipe writes it. Floats have three significant digits."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.3g}"
        text = f"{float(text):.1f}" if "e+" in text and abs(value) < 1e6 else text
        return text if "." in text or "e" in text else text + ".0"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mix | SftSource):
        return toml(as_written(value))
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def as_written(part: Mix | SftSource) -> dict[str, Any]:
    """One of `problems` or `data` as the recipe has it, without what is left at its default."""
    return part.model_dump(exclude_defaults=True)


def ranked(causes: Sequence[Cause], most: int = 3) -> tuple[Cause, ...]:
    """The likeliest first; those without any weight only where nothing else is left."""
    told = [replace(cause, change=tuple(line for line in cause.change if line)) for cause in causes]
    ordered = sorted(told, key=lambda cause: -cause.weight)
    return tuple([cause for cause in ordered if cause.weight > 0.0][:most] or ordered[:most])


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _at(part: Any, key: str) -> object:
    for name in key.split("."):
        part = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
    return part
