"""The first pass: every row by itself, in several processes, in order, each block of rows on disk before the next.

What a row leaves behind is a line of rows.jsonl (as it will be written), a fixed-size record, a signature, and the runs
that it shares with evaluation questions. journal.jsonl says after each block how far all files are valid, so that a
killed pass goes on from there.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from motet.base import jsonl
from motet.base.recipe import RuleId, TraceRules
from motet.base.records import content_id
from motet.funnel import rules as table
from motet.funnel.candidate import Candidate, Example, View
from motet.funnel.consistency import answer_key
from motet.funnel.contamination import Index
from motet.funnel.duplicates import SIZE, signature
from motet.funnel.rules import Count, Rule
from motet.funnel.words import text_hash
from motet.verify.structure import Think

log = logging.getLogger("motet")

RECORD = np.dtype([
    ("offset", np.uint64), ("length", np.uint32), ("words", np.uint32), ("text", np.uint64), ("prompt", np.uint64),
    ("problem", np.uint64), ("answer", np.uint64), ("domain", np.uint16), ("judged", np.bool_),
])  # fmt: skip
"""Of a row in rows.jsonl: where it is, words of its trace, hashes of conversation, prompt, problem and answer (0 for
none), number of its domain, and whether it has a verdict."""
FILES = ("rows.jsonl", "records", "signatures", "hits-short", "hits-numbers")
BLOCK = 256
"""Rows that a process is given at once."""
INLINE = 4
"""Blocks that are read before other processes are started."""
REPORT_EVERY = 20_000


class Settings(NamedTuple):
    rules: TraceRules
    questions: Index
    think: Think
    open_think: bool


class Passed(NamedTuple):
    """One row that no rule of its own drops."""

    line: bytes
    words: int
    text: int
    prompt: int
    problem: int
    answer: int
    domain: str
    judged: bool
    short: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Scanned(NamedTuple):
    """What one block came to."""

    asked: dict[str, int]
    """Rows by domain."""
    verdicts: dict[str, int]
    passed: list[Passed]
    signatures: NDArray[np.uint32]
    """[rows passed, SIZE]"""
    found: list[tuple[RuleId, Example]]
    """Of every row that a rule dropped (or would have): the rule, and why; with its texts where it may be shown."""


@dataclass
class Totals:
    """So far; one line of the journal."""

    read: int = 0
    """Rows taken from the source."""
    passed: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILES, 0))
    """Valid bytes of each file."""
    asked: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    domains: list[str] = field(default_factory=list)
    """By number."""
    counts: dict[str, Count] = field(default_factory=dict)


Source = Callable[[int], Iterable[Candidate]]
"""The rows from a position on; the same ones whenever it is called."""


def scan(source: Source, settings: Settings, folder: Path, processes: int) -> Totals:
    """Writes FILES into `folder`. A killed pass goes on where its journal ends."""
    folder.mkdir(parents=True, exist_ok=True)
    totals = _resume(folder, settings)
    shown = totals.read
    if shown:
        log.info("the funnel goes on after %d rows", shown)
    with _Files(folder, totals) as files:
        for block, scanned in _scanned(iter(source(totals.read)), settings, processes):
            files.add(block, scanned)
            if totals.read - shown >= REPORT_EVERY:
                shown = totals.read
                log.info("%d rows read, %d passed the rules of one row", totals.read, totals.passed)
    return totals


def scan_block(block: list[Candidate], settings: Settings, own: list[Rule]) -> Scanned:
    """`own`: the rules of one row, in order."""
    asked: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    passed: list[Passed] = []
    signatures: list[NDArray[np.uint32]] = []
    found: list[tuple[RuleId, Example]] = []
    for candidate in block:
        asked[candidate.domain] += 1
        if candidate.verdict is not None:
            verdicts[candidate.verdict.kind] += 1
        view = View(candidate, settings.think, settings.open_think)
        if not _dropped(view, own, found):
            passed.append(_pass(view, settings))
            signatures.append(signature(view.trace_words))
    stacked = np.stack(signatures) if signatures else np.zeros((0, SIZE), np.uint32)
    return Scanned(dict(asked), dict(verdicts), passed, stacked, found)


def _dropped(view: View, own: list[Rule], found: list[tuple[RuleId, Example]]) -> bool:
    for rule in own:
        assert rule.find is not None
        detail = rule.find(view)
        if detail is None:
            continue
        told = sum(id == rule.id for id, _ in found) < table.EXAMPLES
        found.append((rule.id, table.example(view, detail) if told else Example("", "", detail)))
        if rule.on:
            return True
    return False


def _pass(view: View, settings: Settings) -> Passed:
    candidate = view.candidate
    line = (jsonl.dumps(candidate.row()) + "\n").encode("utf-8", "backslashreplace")
    prompt = text_hash(view.prompt)
    hits = settings.questions.hits(view)
    answer = answer_key(view) if candidate.verdict is None else ""
    problem = text_hash(candidate.problem)
    text = text_hash(f"{view.prompt}\n{view.trace}")
    judged = candidate.verdict is not None
    hashed = text_hash(answer) if answer else 0
    return Passed(
        line, len(view.trace_words), text, prompt, problem, hashed, candidate.domain, judged, hits.short, hits.numbers
    )


class _Files:
    """Appends blocks, and after each the line of the journal that makes it valid."""

    def __init__(self, folder: Path, totals: Totals) -> None:
        self.totals = totals
        self._open = {name: (folder / name).open("ab") for name in FILES}
        self._journal = jsonl.Journal(folder / "journal.jsonl")

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._journal.close()

    def add(self, size: int, scanned: Scanned) -> None:
        totals = self.totals
        _add(totals.asked, scanned.asked)
        _add(totals.verdicts, scanned.verdicts)
        shown: dict[str, list[Example]] = {}
        for id, example in scanned.found:
            if totals.counts.setdefault(id, Count()).add(example):
                shown.setdefault(id, []).append(example)
        records = np.zeros(len(scanned.passed), RECORD)
        offset = totals.sizes["rows.jsonl"]
        hits: dict[str, list[NDArray[np.uint64]]] = {"hits-short": [], "hits-numbers": []}
        for number, row in enumerate(scanned.passed):
            if row.domain not in totals.domains:
                totals.domains.append(row.domain)
            domain = totals.domains.index(row.domain)
            records[number] = (
                offset, len(row.line), row.words, row.text, row.prompt, row.problem, row.answer, domain, row.judged
            )  # fmt: skip
            offset += len(row.line)
            at = np.uint64((totals.passed + number) << 32)
            hits["hits-short"].append(row.short.astype(np.uint64) | at)
            hits["hits-numbers"].append(row.numbers.astype(np.uint64) | at)
        self._write("rows.jsonl", b"".join(row.line for row in scanned.passed))
        self._write("records", records.tobytes())
        self._write("signatures", scanned.signatures.tobytes())
        for name, found in hits.items():
            self._write(name, b"".join(part.tobytes() for part in found))
        totals.read += size
        totals.passed += len(scanned.passed)
        counts = {id: (count.rows, count.reasons) for id, count in totals.counts.items()}
        self._journal.append({**vars(totals), "counts": counts, "shown": shown})

    def _write(self, name: str, data: bytes) -> None:
        self._open[name].write(data)
        self._open[name].flush()
        self.totals.sizes[name] += len(data)


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for key, number in more.items():
        total[key] = total.get(key, 0) + number


def _resume(folder: Path, settings: Settings) -> Totals:
    """What is valid of an earlier pass by the same rules; the files are cut to that."""
    stamp = content_id(settings.rules.model_dump_json(), settings.think, str(settings.open_think),
                       *(f"{q.label} {q.text}" for q in settings.questions.questions))  # fmt: skip
    mark = folder / "settings"
    totals = Totals()
    if mark.exists() and mark.read_text() == stamp:
        with jsonl.Journal(folder / "journal.jsonl") as journal:
            if journal.rows:
                totals = _decode(journal.rows)
    else:
        (folder / "journal.jsonl").unlink(missing_ok=True)
        mark.write_text(stamp)
    for name in FILES:
        with (folder / name).open("ab") as file:
            file.truncate(totals.sizes[name])
    return totals


def _decode(rows: list[dict[str, Any]]) -> Totals:
    """Of the journal: counts are those of its last line, examples are spread over all."""
    last = {key: value for key, value in rows[-1].items() if key != "shown"}
    counts = {id: Count(number, reasons) for id, (number, reasons) in last["counts"].items()}
    for row in rows:
        for id, examples in row["shown"].items():
            counts[id].examples += [Example(*example) for example in examples]
    return Totals(**{**last, "counts": counts})


# ---- processes


def _scanned(rows: Iterator[Candidate], settings: Settings, processes: int) -> Iterator[tuple[int, Scanned]]:
    """(rows in the block, what it came to), in order."""
    own = _own(settings)
    blocks = iter(lambda: list(islice(rows, BLOCK)), [])
    first = list(islice(blocks, INLINE + 1 if processes > 1 else 0))
    if len(first) <= INLINE:
        for block in [*first] if processes > 1 else blocks:
            yield len(block), scan_block(block, settings, own)
        return
    context = multiprocessing.get_context("spawn")  # not fork: the parent may hold torch's threads
    waiting: deque[tuple[int, Future[Scanned]]] = deque()
    with ProcessPoolExecutor(processes, context, _start, (settings, os.getpid())) as pool:
        try:
            for block in _chain(first, blocks):
                waiting.append((len(block), pool.submit(_scan_block, block)))
                while len(waiting) > 2 * processes:
                    size, future = waiting.popleft()
                    yield size, future.result()
            while waiting:
                size, future = waiting.popleft()
                yield size, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chain(first: list[list[Candidate]], rest: Iterator[list[Candidate]]) -> Iterator[list[Candidate]]:
    while first:
        yield first.pop(0)
    yield from rest


def _own(settings: Settings) -> list[Rule]:
    return [rule for rule in table.build(settings.rules, settings.questions, settings.think) if rule.find is not None]


_mine: list[tuple[Settings, list[Rule]]] = []
"""Of a process of the pool."""


def _start(settings: Settings, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    _mine.append((settings, _own(settings)))


def _scan_block(block: list[Candidate]) -> Scanned:
    settings, own = _mine[0]
    return scan_block(block, settings, own)
