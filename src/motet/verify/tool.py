"""`motet judge ROWS`: reads the rows as a stream, writes a verdict a line, and after a kill goes on where it was."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from motet.base import jsonl
from motet.base.errors import UserError
from motet.verify.canaries import CanaryError
from motet.verify.judge import Think
from motet.verify.pool import MEMORY_BYTES, Pool
from motet.verify.rows import Rules, judge_rows, row_id
from motet.verify.sandbox import Choice

WORKERS = 2
DEADLINE_SECONDS = 10.0


def rules_of(think: str, truncated_reward: float | None) -> Rules:
    """`think` as the command line has it: "open" is a required block whose first tag is the prompt's."""
    modes: dict[str, Think] = {"optional": "optional", "required": "required", "open": "required", "off": "off"}
    return Rules(modes[think], think == "open", truncated_reward)


def pool_of(
    workers: int | None,
    deadline: float | None,
    sandbox: Choice | None,
    memory_mb: int | None,
    quarantine: Path | None = None,
) -> Pool:
    """A pool from options of the command line, each with a default."""
    memory = MEMORY_BYTES if memory_mb is None else memory_mb << 20
    return Pool(workers or WORKERS, deadline or DEADLINE_SECONDS, sandbox or "auto", 4.0, quarantine, memory)


def run(rows: str, out: str, pool: Pool, rules: Rules, overwrite: bool = False, resume: bool = False) -> str:
    """Judges all rows of a file ("-": standard input) into another ("-": standard output); returns what it did.

    An output that holds verdicts is gone on with, if their ids are those of the first rows and no row is newer than
    they are (`resume` allows it); `overwrite` begins anew.
    """
    source, target = Path(rows), Path(out)
    with _opened(source) as lines:
        if out == "-":
            return _told(write(judge_rows(lines, pool, rules), sys.stdout.buffer), 0)
        held = target.exists() and target.stat().st_size > 0 and not overwrite
        if held and rows != "-" and not resume and source.stat().st_mtime > target.stat().st_mtime:
            raise UserError(
                f"{out} holds verdicts that are older than {rows}; give --overwrite to judge all rows again, or "
                "--resume if the rows that were judged already are the same"
            )
        with appended(target, iter(lines), overwrite) as (file, count):
            try:
                return _told(write(judge_rows(lines, pool, rules), file), count)
            except CanaryError as error:
                raise CanaryError(f"{error} What {out} holds is not to be trusted either: --overwrite.") from None


def _opened(source: Path) -> Any:
    if str(source) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return source.open("rb")
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}). Give the path of a JSON Lines file.") from error


def _told(rows: Iterable[Mapping[str, Any]], before: int) -> str:
    """Exhausts the rows; "1,000 rows in 0.8 s: correct 990, incorrect 10"."""
    start = time.perf_counter()
    kinds = Counter(row["kind"] for row in rows)
    count, seconds = kinds.total(), time.perf_counter() - start
    counted = ", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common())
    earlier = f" ({before:,} were judged before)" if before else ""
    return f"{count:,} rows in {seconds:.1f} s{earlier}" + (f": {counted}" if counted else "")


@contextmanager
def appended(out: Path, lines: Iterator[bytes], overwrite: bool = False) -> Iterator[tuple[IO[bytes], int]]:
    """The output opened behind the verdicts that it holds already, and their number; `lines` stands behind them too.

    A torn last line, left by a kill, is dropped. Raises UserError where another process writes the file, or where its
    verdicts are not those of the first lines.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        opened = out.open("ab+")
    except OSError as error:
        raise UserError(f"{out}: no verdicts can be written there ({error.strerror}); give another --out") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is writing it; wait for it, or give another --out") from None
        if overwrite:
            file.truncate(0)
        file.seek(0)
        good, count = 0, 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            count += 1
            _same_row(out, count, line, next(lines, None))
            good += len(line)
        file.truncate(good)
        yield file, count


def write(rows: Iterable[Mapping[str, Any]], file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """Passes the rows on as each is written and flushed: what was passed on survives a kill."""
    for row in rows:
        file.write((jsonl.dumps(row) + "\n").encode("utf-8", "backslashreplace"))
        file.flush()
        yield row


def _same_row(out: Path, number: int, verdict: bytes, line: bytes | None) -> None:
    advice = "give another --out, or --overwrite to judge all rows again"
    if line is None:
        raise UserError(f"{out} holds more verdicts than there are rows: it belongs to other rows; {advice}")
    try:
        row = json.loads(verdict)
        found = row["id"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out}, line {number}: this is no verdict of `motet judge`; {advice}") from None
    expected = row_id(line)
    if found != expected:
        raise UserError(
            f"{out}, line {number}: the verdict of row {found!r}, but the row there is {expected!r}; {advice}"
        )
