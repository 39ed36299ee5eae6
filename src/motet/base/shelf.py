"""Sequences whose items lie on disk, one JSON line each, and are in memory only while they are used."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

from motet.base import jsonl

T = TypeVar("T")


class Shelf(Sequence[T], Generic[T]):
    """Takes items one by one and gives them back by number, as often as asked. In memory: 8 bytes an item.

    The file has no name and goes with the process, however that ends. It lies in `folder`, unset in the system's folder
    for temporary files. What is given back was through JSON: a tuple in it has become a list.
    """

    def __init__(
        self,
        encode: Callable[[T], Mapping[str, Any]],
        decode: Callable[[dict[str, Any]], T],
        folder: Path | None = None,
    ) -> None:
        self._encode, self._decode = encode, decode
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # it lives as long as the shelf
        weakref.finalize(self, _close, self._file)
        self._offsets = array("Q", [0])
        self._written = True

    def add(self, item: T) -> None:
        line = jsonl.dumps(self._encode(item)).encode("utf-8", "backslashreplace")
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._written = False

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if not self._written:
            self._file.flush()
            self._written = True
        start, end = self._offsets[index % len(self)], self._offsets[index % len(self) + 1]
        # pread: several threads may read at the same time
        return self._decode(json.loads(os.pread(self._file.fileno(), end - start, start)))


def _close(file: IO[bytes]) -> None:
    """Nobody reads it any more: what a full disk does not take is not missed."""
    with suppress(OSError):
        file.close()
