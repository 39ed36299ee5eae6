"""A pool of worker processes that judge: each item has a deadline, and a worker that passes it is killed and replaced.

    with Pool(workers=2, deadline_seconds=10.0) as pool:
        for index, verdict in pool.judge(Item(problem, completion.text, completion.stop) for ...):

Workers are separate programs (`python -m motet.verify.worker`), not forks: the parent holds threads. They start at
first use, import a verifier's packages when its first item comes (outside of its deadline), and end with the parent.
A worker that dies is replaced and its item tried once more; then the item is an infra_error and put in quarantine.
Among the items go canaries, whose verdict is known: a wrong one raises CanaryError from every method, for good.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import signs
from motet.base.errors import UserError
from motet.base.records import UNSCORED, Problem, Stop, Verdict, encode
from motet.verify import VERIFIERS, canaries
from motet.verify.canaries import CanaryError, Watch, misjudged
from motet.verify.crew import Crew, Job, Pending
from motet.verify.judge import Think, answer_part
from motet.verify.sandbox import Choice, Settings, resolved

log = logging.getLogger("motet")

IN_FLIGHT = 64
"""Items per worker that `judge` takes ahead of the verdicts."""
ORDERED_IN_FLIGHT = 1024
"""The same where verdicts come in order: behind a slow item the others go on."""
AHEAD_BYTES = 32 << 20
"""Texts taken ahead end here, whatever their number."""
MEMORY_BYTES = 4 << 30
"""Address space of one worker; one that holds more than half of it between items is replaced."""
MOST_ALARMS = 20


@dataclass(frozen=True, slots=True)
class Item:
    problem: Problem
    text: str
    stop: Stop
    think: Think = "required"
    open_think: bool = False
    deadline_seconds: float | None = None
    """Unset, the pool's."""
    settings: Settings | None = None
    """Limits of programs; unset, the pool's."""


class Judged(NamedTuple):
    number: int
    """Place among the items, from 0."""
    verdict: Verdict
    seconds: float
    """That the verifier took, imports left out; 0 where none was needed."""


class Pool:
    """Safe to use from several threads. `close` (or the end of a `with`) ends all workers at once."""

    def __init__(
        self,
        workers: int,
        deadline_seconds: float,
        sandbox: Choice = "auto",
        test_seconds: float = 4.0,
        quarantine: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if workers < 1 or deadline_seconds <= 0 or test_seconds <= 0 or memory_bytes <= 0:
            raise UserError(
                f"verification needs at least one worker, memory and positive times, got workers = {workers}, "
                f"deadline_seconds = {deadline_seconds}, test_seconds = {test_seconds}, memory_bytes = {memory_bytes}"
            )
        self.workers = workers
        self.deadline_seconds = deadline_seconds
        self.settings = Settings(sandbox=sandbox, test_seconds=test_seconds)
        self.canaries: Counter[str] = Counter()
        """Canaries judged rightly, by verifier."""
        self.unscored: Counter[tuple[str, str]] = Counter()
        """Items without a score, by verifier and kind."""
        self._crew = Crew(workers, memory_bytes, quarantine)
        self._lock = threading.Condition()
        self._watches: dict[str, Watch] = {}
        self._under_way: set[Future[Any]] = set()  # canaries
        self._alarms: set[tuple[str, str]] = set()
        self._begun = False

    def begin(self, verifiers: Iterable[str]) -> None:
        """Workers start, and import what these verifiers need, while there is nothing to judge yet: each is given a
        canary of each. Does nothing when called again, or once something was to be judged."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
            names = sorted(set(verifiers))
            for name in names:
                self._watches.setdefault(name, Watch())
        self._crew.add([self._canary(name, number) for number in range(self.workers) for name in names])

    def submit(self, item: Item | Verdict) -> Pending:
        """The verdict to come. A truncated or malformed completion has its verdict at once, without a worker; so has
        a Verdict, which stands for an item that could not even be made."""
        if isinstance(item, Verdict):
            return _ended(item)
        answer = answer_part(item.text, item.stop, item.think, item.open_think)
        if isinstance(answer, Verdict):
            return _ended(answer)
        seconds = item.deadline_seconds or self.deadline_seconds
        return self._enqueue(item.problem, answer, seconds, item.settings or self.settings)

    def judge(self, items: Iterable[Item | Verdict], ordered: bool = False) -> Iterator[tuple[int, Verdict]]:
        """Yields (index, verdict) as each is known, or in order; takes from `items` only a little ahead of that."""
        return ((judged.number, judged.verdict) for judged in self.timed(items, ordered))

    def timed(
        self, items: Iterable[Item | Verdict], ordered: bool = False, user_errors: bool = True
    ) -> Iterator[Judged]:
        """`judge` with the time of each verdict. Without `user_errors`, an item whose verifier cannot be loaded is an
        invalid_problem instead of an exception."""
        for number, future in self._stream((self.submit(item) for item in items), ordered):
            try:
                verdict = future.result()
            except CanaryError:
                raise
            except UserError as error:
                if user_errors:
                    raise
                verdict = Verdict("invalid_problem", None, None, str(error))
            yield Judged(number, verdict, future.seconds)

    def check(self, problems: Iterable[Problem], ordered: bool = False) -> Iterator[tuple[int, Verdict | None]]:
        """Yields (index, None) for each usable problem, (index, "invalid_problem" verdict) for one that is not."""
        futures = (self._enqueue(problem, None, self.deadline_seconds, self.settings) for problem in problems)
        return ((index, future.result()) for index, future in self._stream(futures, ordered))

    def verdicts_stand(self) -> None:
        """Waits for the canaries that are under way; raises CanaryError if any was ever judged wrongly."""
        with self._lock:
            under_way = set(self._under_way)
            self._lock.wait_for(lambda: not under_way & self._under_way)
        if self._crew.failed:
            raise self._crew.failed

    def close(self) -> None:
        """Ends all workers at once; verdicts that are still awaited are cancelled."""
        self._crew.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, problem: Problem, answer: str | None, seconds: float, settings: Settings) -> Pending:
        """`answer` None: the problem itself is checked."""
        verifier, future = problem.verifier, Pending()
        told = _told(resolved(settings) if verifier == "code" else settings)
        text = "" if answer is None else f', "answer": {json.dumps(answer)}'
        line = f'{{"problem": {json.dumps(encode(problem))}, "settings": {told}{text}}}\n'.encode()
        future.size = len(line)
        if answer is not None:
            future.add_done_callback(partial(self._alarm, verifier, problem.id))
        with self._lock:
            self._begun = True
            due = self._watches.setdefault(verifier, Watch()).due()
        self._crew.add([*(self._canary(verifier, number) for number in due), Job(line, verifier, seconds, future)])
        return future

    def _canary(self, verifier: str, number: int) -> Job:
        told = _told(resolved(self.settings) if verifier == "code" else self.settings)
        line = f'{{"canary": {number}, "verifier": {json.dumps(verifier)}, "settings": {told}}}\n'.encode()
        future = Pending()
        with self._lock:
            self._under_way.add(future)
        future.add_done_callback(partial(self._canary_judged, verifier, number))
        return Job(line, verifier, max(self.deadline_seconds, canaries.SECONDS), future, is_canary=True)

    def _canary_judged(self, verifier: str, number: int, future: Future[Any]) -> None:
        error: CanaryError | None = None
        if not future.cancelled() and future.exception() is None:
            told, verdict = future.result()
            watch = self._watches[verifier]
            if told is None and verdict is None:
                watch.silent = True
            elif told is not None and verdict.kind == told[1]:
                watch.alive = True
                with self._lock:
                    self.canaries[verifier] += 1
            elif told is not None or watch.alive or verifier in VERIFIERS:
                name, expected = told or (f"number {number}", "a verdict")
                error = misjudged(verifier, name, expected, verdict)
            else:
                watch.silent = True  # the file does not even load, which its items will say
        if error is not None:  # outside of the lock: what fails takes the crew's
            if self._crew.failed is None:
                log.error("%s", error)
            self._crew.fail(error)
        with self._lock:
            self._under_way.discard(future)
            self._lock.notify_all()

    def _alarm(self, verifier: str, problem: str, future: Future[Any]) -> None:
        """Counts what could not be judged, and says it once for each reason."""
        if future.cancelled() or future.exception() is not None:
            return
        verdict: Verdict = future.result()
        if verdict.kind not in UNSCORED:
            return
        with self._lock:
            self.unscored[verifier, verdict.kind] += 1
            reason = (verifier, verdict.detail[:60])
            known = reason in self._alarms or len(self._alarms) >= MOST_ALARMS
            self._alarms.add(reason)
        if not known:
            text = "%s: problem %s could not be judged (%s: %s); it is masked, and others like it"
            log.warning(text, verifier, problem, verdict.kind, verdict.detail)

    def _stream(self, futures: Iterator[Pending], ordered: bool) -> Iterator[tuple[int, Pending]]:
        room = self.workers * (ORDERED_IN_FLIGHT if ordered else IN_FLIGHT)
        done: queue.SimpleQueue[tuple[int, Pending]] = queue.SimpleQueue()
        early: dict[int, Pending] = {}  # ended, but one before them has not
        numbered = enumerate(futures)
        taken = given = size = 0
        while True:
            while taken - given < room and size < AHEAD_BYTES and (found := next(numbered, None)):
                index, future = found
                taken, size = taken + 1, size + future.size
                future.add_done_callback(partial(_put, done, index))
            if taken == given:
                break
            index, future = done.get()
            signs.give()
            early[index] = future
            while (number := given if ordered else index) in early:
                future = early.pop(number)
                given, size = given + 1, size - future.size
                yield number, future
        self.verdicts_stand()


@functools.lru_cache(maxsize=64)
def _told(settings: Settings) -> str:
    return json.dumps(asdict(settings))


def _ended(verdict: Verdict) -> Pending:
    future = Pending()
    future.set_result(verdict)
    return future


def _put(done: queue.SimpleQueue[tuple[int, Pending]], index: int, future: Pending) -> None:
    done.put((index, future))
