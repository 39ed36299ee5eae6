"""A run folder as it grows: each look reads what was added since the one before, and what was rewritten anew."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motet.base.errors import UserError
from motet.base.run import STOPPED
from motet.insight.wording import listing, table

LOG_LINES = 200


@dataclass
class Tail:
    """The lines of a growing file. A torn last line is kept until the rest of it comes; a file that was replaced or
    became shorter is read again from its start."""

    path: Path
    _offset: int = 0
    _inode: int = 0
    _torn: bytes = b""

    def more(self) -> tuple[list[bytes], bool]:
        """(new whole lines, whether they are all lines there are)."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                anew = state.st_ino != self._inode or state.st_size < self._offset
                if anew:
                    self._offset, self._torn, self._inode = 0, b"", state.st_ino
                file.seek(self._offset)
                found = file.read()
        except OSError:
            return [], False
        self._offset += len(found)
        *lines, self._torn = (self._torn + found).split(b"\n")
        return lines, anew


@dataclass
class Following:
    folder: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of metrics.jsonl, by stage, in order of steps; a repeated step has its last row."""
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    recipe: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of STAGE/alarms.jsonl."""

    def __post_init__(self) -> None:
        if not any((self.folder / name).exists() for name in ("resolved.json", "log.txt", "metrics.jsonl")):
            raise UserError(f"{self.folder}: no run folder (none of resolved.json, log.txt, metrics.jsonl is there)")
        self._metrics, self._log = Tail(self.folder / "metrics.jsonl"), Tail(self.folder / "log.txt")

    def look(self) -> None:
        self.recipe = document(self.folder / "resolved.json")
        lines, anew = self._metrics.more()
        if anew:
            self.rows.clear()
        for line in lines:
            row = _row(line)
            if isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
                self._add(row)
        lines, anew = self._log.more()
        if anew:
            self.log.clear()
        self.log.extend(line.decode("utf-8", "replace") for line in lines)
        for name in self.stages:
            self.manifests[name] = document(self.folder / name / "manifest.json")
            file = self.folder / name / "alarms.jsonl"
            if file.exists():
                self.events[name] = [row for line in _lines(file) if (row := _row(line))]

    @property
    def stages(self) -> list[str]:
        named = [str(name) for name in listing(self.recipe.get("stages"))]
        return named or list(self.rows)

    @property
    def current(self) -> str | None:
        """The stage that is under way, or the last one that was."""
        running = [name for name in self.stages if self.manifests.get(name, {}).get("status") == "running"]
        done = [name for name in self.stages if self.rows.get(name)]
        found = running or done
        return found[-1] if found else None

    @property
    def done(self) -> bool:
        found = [self.manifests.get(name, {}).get("status") for name in self.stages]
        return bool(found) and all(status == "done" for status in found)

    @property
    def stopped(self) -> bool:
        """An error ended the run: log.txt says so at its end."""
        return bool(self.log) and self.log[-1][9:].startswith(STOPPED)

    @property
    def touched(self) -> float:
        """When something was last written, in seconds since the epoch; 0 where nothing says."""
        files = [self.folder / "log.txt", self.folder / "metrics.jsonl"]
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def _add(self, row: dict[str, Any]) -> None:
        rows = self.rows.setdefault(row["stage"], [])
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)


def document(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        return table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # absent, or being replaced
        return {}


def _row(line: bytes) -> dict[str, Any]:
    try:
        return table(json.loads(line))
    except ValueError:
        return {}


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError:
        return []
