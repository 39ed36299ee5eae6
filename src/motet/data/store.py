"""Rendered conversations on disk: written once by a stage, read in any order, in memory only while they are used.

FOLDER/tokens.bin holds int32, a trained token as itself and one of the context as -1 - token; FOLDER/offsets.bin holds
int64, where each conversation starts and where the last one ends. FOLDER/store.json is written last: a folder without
it was killed and is written again.

    tokens (5, 9, 7, 2) with mask (F, F, T, T)  ->  -6, -10, 7, 2
"""

from __future__ import annotations

import os
import shutil
import weakref
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from motet.base import jsonl
from motet.data.pack import Sample

if TYPE_CHECKING:
    import numpy

    Lengths = numpy.typing.NDArray[numpy.int64]

TOKENS, OFFSETS, DESCRIPTION = "tokens.bin", "offsets.bin", "store.json"


class StoreWriter:
    """Adds conversations to a new store; `close` makes it whole."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._tokens = (folder / TOKENS).open("wb")
        self._offsets = array("q", [0])

    def add(self, tokens: Sequence[int], loss_mask: Sequence[bool]) -> None:
        import numpy

        given = numpy.array(tokens, dtype=numpy.int32)
        self._tokens.write(numpy.where(numpy.array(loss_mask, dtype=bool), given, -1 - given).tobytes())
        self._offsets.append(self._offsets[-1] + len(given))

    def close(self, description: Mapping[str, Any]) -> None:
        with (self._folder / OFFSETS).open("wb") as offsets:
            self._offsets.tofile(offsets)
            for file in (self._tokens, offsets):
                file.flush()
                os.fsync(file.fileno())
        self._tokens.close()
        jsonl.write_json(self._folder / DESCRIPTION, description)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tokens.close()


class Store(Sequence[Sample]):
    """The conversations of a store, each read from disk when it is asked for."""

    def __init__(self, folder: Path) -> None:
        import numpy

        offsets = numpy.fromfile(folder / OFFSETS, dtype=numpy.int64)
        self._offsets = offsets
        self.lengths: Lengths = numpy.diff(offsets)
        """Tokens of each conversation."""
        self._file = os.open(folder / TOKENS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        import numpy

        place = index % len(self)
        read = os.pread(self._file, 4 * int(self.lengths[place]), 4 * int(self._offsets[place]))
        signed = numpy.frombuffer(read, dtype=numpy.int32)
        mask = signed >= 0
        return Sample(tuple(numpy.where(mask, signed, -1 - signed).tolist()), tuple(mask.tolist()))


def description(folder: Path) -> dict[str, Any] | None:
    """What the store was closed with; None where it is not whole."""
    path = folder / DESCRIPTION
    return jsonl.read_json(path) if path.exists() else None
