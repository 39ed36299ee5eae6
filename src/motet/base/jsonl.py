"""JSON Lines: the format of everything that a run writes. Appends survive a kill; a torn last line is dropped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from motet.base import signs
from motet.base.errors import UserError

# half of a surrogate pair, which some texts hold, has no UTF-8; its backslash form is the JSON escape of it
_TEXT: Any = {"encoding": "utf-8", "errors": "backslashreplace"}


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, row). A malformed line raises UserError naming file and line."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give the path of a JSON Lines file.") from error
    with file:
        for number, line in enumerate(file, 1):
            signs.give()
            if not line.strip():
                continue
            shown = line.decode("utf-8", errors="replace").strip()[:80]
            try:
                row = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}): {shown!r}. "
                    "Every line must be one JSON object."
                ) from error
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason}): {shown!r}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: a JSON object was expected, got {shown!r}.")
            yield number, row


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes all rows or nothing (a temporary file, then a rename). Returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", **_TEXT) as file:
        for row in rows:
            signs.give()
            file.write(dumps(row) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one row; a torn last line, left by a kill, is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((dumps(row) + "\n").encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """One JSON document, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", **_TEXT) as file:
        file.write(json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The document that `write_json` wrote."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def dumps(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # a NaN or an infinity: written as a string, so that any reader can parse the file
        return json.dumps(_plain(row), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Journal:
    """An append-only file of rows, each flushed as it is written: what was appended survives SIGKILL.

    Opening it drops a torn last line, then `rows` holds everything that was there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = []
        good = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    self.rows.append(row)
                    good += len(line)
            if good < path.stat().st_size:
                os.truncate(path, good)
        self._file: IO[str] = path.open("a", **_TEXT)

    def append(self, row: Mapping[str, Any]) -> None:
        signs.give()
        self._file.write(dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
