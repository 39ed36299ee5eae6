"""Reads a run folder, finished or killed: what is absent or torn becomes a sentence in `missing`, never an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motet.base.errors import UserError
from motet.insight.wording import listing, plural, table

EVALUATED = ("evaluate", "sft", "rl")


@dataclass(frozen=True)
class StageFolder:
    name: str
    kind: str
    """evaluate, sft, synthesize, filter, rl; "" where neither recipe nor manifest says."""
    status: str
    """done | unfinished | not started"""
    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    funnel: dict[str, Any] = field(default_factory=dict)
    filter: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, Any] = field(default_factory=dict)
    """Of a synthesize stage, by name."""
    judge: dict[str, Any] = field(default_factory=dict)
    """What a judge of facts took, where it is paid for."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """This stage's rows of metrics.jsonl, in order of steps; a repeated step keeps its last row."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The stage's table of the resolved recipe."""

    @property
    def domains(self) -> dict[str, Any]:
        """The evaluation by domain; empty where the stage was not (fully) evaluated."""
        return table(self.evaluation.get("domains"))


@dataclass(frozen=True)
class RunFolder:
    path: Path
    name: str
    recipe: str
    resolved: dict[str, Any]
    lineage: dict[str, Any]
    stages: tuple[StageFolder, ...]
    missing: list[str]

    def of_kind(self, kind: str) -> list[StageFolder]:
        return [stage for stage in self.stages if stage.kind == kind]

    @property
    def evaluated(self) -> list[StageFolder]:
        return [stage for stage in self.stages if stage.domains]


def read_run(path: Path) -> RunFolder:
    """Raises UserError where `path` is no run folder at all."""
    known = ("resolved.json", "recipe.toml", "metrics.jsonl", "lineage.json")
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder. Give the folder of a run, runs/NAME.")
    if not any((path / name).exists() for name in known) and not list(path.glob("*/manifest.json")):
        raise UserError(f"{path}: not a run folder (it holds none of {', '.join(known)}). Give runs/NAME.")
    missing: list[str] = []
    resolved = _document(path / "resolved.json", missing, path)
    lineage = _document(path / "lineage.json", missing, path)
    metrics = _metrics(path, missing)
    order = [str(name) for name in listing(resolved.get("stages"))]
    # folders that the recipe does not name are left-overs of another recipe; without one, what is there must do
    others = sorted(p.parent.name for p in path.glob("*/manifest.json") if ".stale-" not in p.parent.name)
    names = order or list(dict.fromkeys([*others, *metrics]))
    settings = table(resolved.get("stage"))
    stages = tuple(_stage(path, name, table(settings.get(name)), metrics.get(name, []), missing) for name in names)
    name = str(resolved.get("name") or path.resolve().name)
    return RunFolder(path, name, _recipe(path, missing), resolved, lineage, stages, missing)


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(byte offset, value) of each line that is JSON; (byte offset, None) for one that is not."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    yield offset, json.loads(line)
                except ValueError:
                    yield offset, None
            offset += len(line)


def _stage(
    run: Path, name: str, settings: dict[str, Any], metrics: list[dict[str, Any]], missing: list[str]
) -> StageFolder:
    path = run / name
    started = path.is_dir() or bool(metrics)
    manifest = _optional(path / "manifest.json", missing, run)
    kind = str(manifest.get("kind") or settings.get("kind") or "")
    done = manifest.get("status") == "done"
    status = "done" if done else "unfinished" if started else "not started"
    if status == "unfinished":
        seen = f" after {plural(len(metrics), 'recorded step')}" if metrics else ""
        missing.append(f"Stage {name} did not finish{seen}.")
    elif status == "not started":
        missing.append(f"Stage {name} has not started.")
    expected = {"data.json": ("sft",), "funnel.json": ("synthesize", "clean"), "filter.json": ("filter",),
                "teachers.json": ("synthesize",), "judge.json": ()}  # fmt: skip
    found = {}
    for file, owners in expected.items():
        read = _document if done and kind in owners else _optional
        found[file] = read(path / file, missing, run)
    evaluation = _optional(path / "evaluation.json", missing, run)
    if done and not evaluation and kind in EVALUATED and settings.get("evaluate", True):
        missing.append(f"{name}/evaluation.json is missing: no evaluation of this stage.")
    return StageFolder(
        name, kind, status, path, manifest, evaluation, found["data.json"], found["funnel.json"], found["filter.json"],
        found["teachers.json"], found["judge.json"], metrics, settings,
    )  # fmt: skip


def _metrics(run: Path, missing: list[str]) -> dict[str, list[dict[str, Any]]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        missing.append("metrics.jsonl is missing: no curves.")
        return {}
    by_stage: dict[str, dict[int, dict[str, Any]]] = {}
    unread = 0
    for _, row in rows(path):
        if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
            by_stage.setdefault(row["stage"], {})[row["step"]] = row
        else:
            unread += 1
    if unread:
        missing.append(f"metrics.jsonl: {plural(unread, 'line')} could not be read.")
    return {name: [steps[step] for step in sorted(steps)] for name, steps in by_stage.items()}


def _recipe(run: Path, missing: list[str]) -> str:
    try:
        return (run / "recipe.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        missing.append("recipe.toml is missing.")
        return ""


def _document(path: Path, missing: list[str], run: Path) -> dict[str, Any]:
    if not path.exists():
        missing.append(f"{path.relative_to(run)} is missing.")
    return _optional(path, missing, run)


def _optional(path: Path, missing: list[str], run: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        missing.append(f"{path.relative_to(run)} could not be read (not JSON).")
        return {}
    return table(value)
