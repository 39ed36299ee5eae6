"""Runs of a micro model's RL stage that are made to go wrong, and what their alarms said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.load_recipe import check
from motet.base.recipe import Recipe
from motet.rl.alarms import Alarm, alarm_of

VERIFIERS = '''
import pathlib, time, zlib
from motet.base.records import Verdict


def verdict(right):
    return Verdict("correct" if right else "incorrect", float(right))


def has_a_one(problem, text):
    """A reward that can be had without any reasoning."""
    return verdict("1" in text.rpartition("</think>")[2])


def anything(problem, text):
    return verdict(True)


def digits(problem, text):
    """Whoever says any number is right."""
    return verdict(any(c.isdigit() for c in text))


def coin(problem, text):
    """As good as by chance: groups have a signal, and there is nothing to learn."""
    return verdict(zlib.crc32(f"{problem.id} {text}".encode()) % 2)


def long(problem, text):
    """Never right, and the better the longer it is."""
    return Verdict("incorrect", min(1.0, len(text) / 64))


def impossible(problem, text):
    return verdict("impossible" in text)


def dies(problem, text):
    """Right about so many texts, then dead: whatever it is shown is wrong."""
    file = pathlib.Path(__file__).with_suffix(".count")
    seen = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(seen))
    return verdict(seen <= 40 and str(problem.reference) in text.rpartition("</think>")[2])


def slow(problem, text):
    time.sleep(0.1)
    return verdict(str(problem.reference) in text.rpartition("</think>")[2])
'''


class Ran(NamedTuple):
    folder: Path
    alarms: list[Alarm]
    events: list[dict[str, Any]]

    def of(self, rule: str) -> Alarm:
        """The first of this rule; there must be one."""
        found = [alarm for alarm in self.alarms if alarm.rule == rule]
        assert found, f"{rule} is not among {[alarm.id for alarm in self.alarms]}"
        return found[0]

    @property
    def text(self) -> str:
        return (self.folder / "log.txt").read_text()


def recipe_of(recipe: Path, model: Path, verifier: str = "", think: str = "", **rl: Any) -> Recipe:
    """RL alone, on `model`, six steps of four problems, windows of two steps; `rl` overrides settings of the stage."""
    tree = micro.recipe(recipe, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]").model_dump(mode="json")
    tree["model"] |= {"tiny": None, "path": str(model)}
    tree["evaluation"] |= {"samples": 2, "bootstrap": 100}
    if verifier == "long":
        tree["problems"]["numbers"]["scoring"] = "mean"
    if think:
        tree["chat"]["think"] = think
    if verifier:
        file = recipe.with_name("verifiers.py")
        file.write_text(VERIFIERS)
        tree["problems"]["numbers"] |= {"verifier": f"{file}:{verifier}", "domain": "numbers"}
    stage = tree["stage"]["rl"]
    stage |= {"steps": 6, "prompts_per_step": 4, "group_size": 4, "evaluate": False, "checkpoint_every": 2}
    stage["alarms"]["window"] = 2
    for key, value in rl.items():
        stage[key] = {**stage[key], **value} if isinstance(value, dict) and stage.get(key) else value
    return check(tree, "test")


def run(recipe: Recipe, folder: Path) -> Ran:
    pipeline.run(recipe, folder, console=False)
    return read(folder)


def read(folder: Path) -> Ran:
    file = folder / "rl" / "alarms.jsonl"
    events = [row for _, row in jsonl.read(file)] if file.exists() else []
    return Ran(folder, [alarm_of(e["alarm"]) for e in events if e["event"] == "alarm"], events)
