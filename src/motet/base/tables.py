"""Rows of JSON from a file, a folder of files or a hub data set, each with the place it came from.

Both readers of user data (problems, conversations) stand on this file, so that their errors name the same things::

    Row(place="problems.jsonl, line 3", values={"prompt": "12 + 7 = ?", "answer": "19"})
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet.base.errors import UserError, how_to_install
from motet.base.json_list import read_list
from motet.base.recipe import nearest

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
AT_ONCE = 128
"""Rows of a Parquet or Arrow file that are Python objects at the same time."""
READ_AHEAD = 1 << 16
"""Bytes of a column."""
_MISSING = object()


class Row(NamedTuple):
    place: str
    """File and line, for error messages."""
    values: dict[str, Any]

    def get(self, field: str) -> Any:
        """The value of a field; None where the row has no such field or holds null."""
        return self.values.get(field)

    def require(self, field: str) -> Any:
        value = self.values.get(field)
        if value is None:
            raise self.missing(field)
        return value

    def text(self, field: str) -> str:
        value = self.require(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, got {shown(value)}")
        return value

    def optional_text(self, field: str) -> str | None:
        return None if self.get(field) is None else self.text(field)

    def error(self, field: str, trouble: str) -> UserError:
        return UserError(f"{self.place}: field {field!r} {trouble}")

    def missing(self, field: str, others: str = "") -> UserError:
        hint = nearest(field, [key for key, value in self.values.items() if value is not None])
        return self.error(field, f'{others}is missing; {hint}name its column with columns = {{ {field} = "..." }}')


def read_rows(
    path: str, split: str = "train", columns: Mapping[str, str] | None = None, once: bool = False
) -> Iterator[Row | UserError]:
    """Rows of a JSON Lines, JSON (a list), Parquet or Arrow file, of a folder of them in order of name, or of a hub
    data set ("owner/name" or "owner/name:configuration"). A folder may also be what Hugging Face datasets saved, or a
    copy of a data set's repository; then `split` says which of its files. Rows are read one by one.

    `columns` maps our fields to the source's, a dot going one level down: {"answer": "reward_model.ground_truth"}.
    `once`: a hub data set is not kept on this disk, but read as it arrives. A row that cannot be read comes as the
    error that it would raise, so that the caller may drop it and go on; a source that cannot be read at all raises
    UserError.
    """
    mapping = dict(columns or {})
    found = Path(path)
    if found.is_dir():
        files = _files_of(found, split)
        rows: Iterable[Row | UserError] = (row for file in files for row in _read_file(file))
    elif found.is_file():
        rows = _read_file(found)
    elif is_hub_id(path):
        rows = _read_hub(path, split, once)
    else:
        raise UserError(f"{path}: no such file or folder (a hub data set is owner/name)")
    for row in rows:
        yield _renamed(row, mapping) if isinstance(row, Row) and mapping else row


def check_columns(columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises UserError for a field of ours that there is not."""
    unknown = next((field for field in columns if field not in known), None)
    if unknown is not None:
        raise UserError(f"columns: there is no field {unknown!r}; known are {', '.join(known)}")


def is_hub_id(path: str) -> bool:
    name = path.partition(":")[0]
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and Path(name).suffix not in SUFFIXES


def shown(value: Any) -> str:
    """A value as an error message shows it: at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _files_of(folder: Path, split: str) -> list[Path]:
    """The data files of a folder, in order of name."""
    if (folder / "dataset_dict.json").is_file():
        splits = [str(name) for name in json.loads((folder / "dataset_dict.json").read_text())["splits"]]
        if split not in splits:
            raise UserError(f"{folder}: there is no split {split!r}; {nearest(split, splits)}".rstrip("; "))
        folder = folder / split
    if (folder / "state.json").is_file():
        return [folder / data["filename"] for data in json.loads((folder / "state.json").read_text())["_data_files"]]
    files = [f for f in sorted(folder.iterdir()) if f.suffix in SUFFIXES and not f.name.startswith(".")]
    if files:
        return files
    below = [f for f in sorted(folder.rglob("*")) if f.suffix in (".parquet", ".jsonl", ".arrow")]
    files = [f for f in below if any(re.match(rf"{re.escape(split)}\b", part) for part in f.relative_to(folder).parts)]
    if below and not files:
        held = ", ".join(str(f.relative_to(folder)) for f in below[:4])
        raise UserError(f"{folder}: none of its files is of the split {split!r} (it holds {held})")
    if not files:
        raise UserError(f"{folder}: the folder holds no data file ({', '.join(SUFFIXES)})")
    return files


def _read_file(path: Path) -> Iterator[Row | UserError]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".arrow":
        return _read_arrow(path)
    if path.suffix == ".json":
        return _read_list(path)
    if path.suffix in SUFFIXES:
        return _read_lines(path)
    raise UserError(f"{path}: unknown kind of file {path.suffix!r}; give one of {', '.join(SUFFIXES)}")


def _read_lines(path: Path) -> Iterator[Row | UserError]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield UserError(f"{place}: not JSON ({error.msg} at column {error.colno}): {line.strip()[:80]!r}")
            else:
                yield _as_row(place, value)


def _read_list(path: Path) -> Iterator[Row | UserError]:
    for number, value in enumerate(read_list(path), 1):
        yield _as_row(f"{path}, item {number}", value)


def _as_row(place: str, value: Any) -> Row | UserError:
    if isinstance(value, dict):
        return Row(place, value)
    return UserError(f"{place}: a JSON object was expected, got {shown(value)}")


def _read_parquet(path: Path) -> Iterator[Row | UserError]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # read ahead, every group that was read stays in memory until the file is closed
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_AHEAD) as file:
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=AT_ONCE, row_groups=[group]):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{path}, row {number}", values)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _read_arrow(path: Path) -> Iterator[Row | UserError]:
    """A stream of record batches, as Hugging Face datasets writes them."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
            number = 0
            for batch in batches:
                for start in range(0, batch.num_rows, AT_ONCE):
                    for values in batch.slice(start, AT_ONCE).to_pylist():
                        number += 1
                        yield Row(f"{path}, row {number}", values)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Arrow file ({str(error).splitlines()[0]})") from error


def _read_hub(path: str, split: str, once: bool) -> Iterator[Row | UserError]:
    """`once`: as it arrives; else from the copy that Hugging Face datasets keeps on disk and maps into memory. Where
    the hub cannot be reached, that copy is what is read either way."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{path}: no such file or folder; to fetch it from the Hugging Face hub, {how_to_install('hub')}"
        ) from None
    name, _, configuration = path.partition(":")
    number = 0
    try:
        for values in load_dataset(name, configuration or None, split=split, streaming=once):
            number += 1
            yield Row(f"{path} [{split}], row {number}", dict(values))
    except (OSError, ValueError) as error:  # not found, gated, offline; an unknown configuration or split
        reason = (str(error) or type(error).__name__).splitlines()[0]
        place = f" after row {number:,}" if number else ""
        raise UserError(f"{path}, split {split!r}: cannot be loaded from the hub{place} ({reason})") from error


def _renamed(row: Row, columns: Mapping[str, str]) -> Row | UserError:
    values = {key: value for key, value in row.values.items() if key not in columns}
    for field, column in columns.items():
        value = _at(row.values, column)
        if value is _MISSING:
            hint = nearest(column, list(row.values)).rstrip("; ")
            return UserError(f"{row.place}: there is no column {column!r}, to which columns maps {field!r}; {hint}")
        values[field] = value
    return Row(row.place, values)


def _at(values: Any, column: str) -> Any:
    """The value of a column, else of a dotted path into nested objects."""
    if column in values:
        return values[column]
    for part in column.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _MISSING
        values = values[part]
    return values
