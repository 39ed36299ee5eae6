"""The items of a JSON list, one by one: of the file so much is in memory as its longest item takes, and a chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from motet.base.errors import UserError

CHUNK = 1 << 20
LONGEST = 1 << 28
"""Characters of one item; a longer one is refused, as is a file in which a quotation mark is never closed."""
_SPACE = " \t\n\r"
_NEAR = 16
"""A fault so near to the end of what was read may be that the rest is missing: "\\ud8", "-Infini"."""


def read_list(path: Path) -> Iterator[Any]:
    """Raises UserError for what is not one list, at the item where that shows."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from _Reader(path, file).items()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error


class _Reader:
    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._ended = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def items(self) -> Iterator[Any]:
        first = self._next()
        if first != "[":
            lines = " JSON Lines belong in a .jsonl file." if first == "{" else ""
            raise UserError(f"{self._path}: a .json file must hold one list of objects.{lines}")
        self._at += 1
        number = 0
        if self._next() == "]":
            self._at += 1
        else:
            while True:
                number += 1
                yield self._item(number)
                self._at += 1
                if self._text[self._at - 1] == "]":
                    break
        if self._next():
            raise UserError(f"{self._path}: not JSON (after the list of {number:,} items there is more)")

    def _item(self, number: int) -> Any:
        """The item that begins here; `_at` is at the comma or bracket after it then."""
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                whole = self._ended or (
                    error.pos < len(self._text) - _NEAR and not error.msg.startswith("Unterminated string")
                )
                if whole:
                    raise self._trouble(number, error.msg) from error
            else:
                while end < len(self._text) and self._text[end] in _SPACE:
                    end += 1
                if self._text[end : end + 1] in ("]", ","):
                    self._at = end
                    return value
                if self._ended or end < len(self._text) - _NEAR:  # else it may be a number that goes on
                    raise self._trouble(number, "a comma or the end of the list is missing after it")
            if len(self._text) - self._at > LONGEST:
                raise self._trouble(number, f"no end within {LONGEST:,} characters")
            self._read()

    def _trouble(self, number: int, why: str) -> UserError:
        return UserError(f"{self._path}, item {number}: not JSON ({why}). JSON Lines belong in a .jsonl file.")

    def _next(self) -> str:
        """The next character that is no space, at which `_at` is then; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read()

    def _read(self) -> None:
        """As much again as is held, so that a long item is not parsed too often."""
        kept = self._text[self._at :]
        more = self._file.read(max(CHUNK, len(kept)))
        self._text, self._at, self._ended = kept + more, 0, not more
