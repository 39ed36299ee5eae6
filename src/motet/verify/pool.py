"""A pool of worker processes that judge: each item has a deadline, and a worker that passes it is killed and replaced.

    with Pool(workers=2, deadline_seconds=10.0) as pool:
        for index, verdict in pool.judge(Item(problem, completion.text, completion.stop) for ...):

Workers are separate programs (`python -m motet.verify.worker`), not forks: the parent holds threads. They start at
first use, import a verifier's packages when its first item comes (outside of its deadline), and end with the parent.
A worker that dies is replaced and its item tried once more; then the item is an infra_error and put in quarantine.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from motet.base.errors import UserError
from motet.base.jsonl import Journal
from motet.base.records import Problem, Stop, Verdict, encode
from motet.verify.judge import answer_part
from motet.verify.process import Crashed, Overdue, Process
from motet.verify.sandbox import Choice, Settings, resolved
from motet.verify.structure import Think

BATCH = 16
"""Most cheap items sent to a worker at once."""
BATCH_BYTES = 1 << 18
IN_FLIGHT = 64
"""Items per worker that `judge` takes ahead of the verdicts."""
ATTEMPTS = 2
RECYCLE_AFTER = 20_000
"""Items after which a worker is replaced: caches of computer algebra grow for ever."""
CHEAP = frozenset({"math", "instruction", "procedural"})
"""Verifiers that run no programs: several items go to a worker at once."""


@dataclass(frozen=True, slots=True)
class Item:
    problem: Problem
    text: str
    stop: Stop
    think: Think = "required"
    open_think: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    line: bytes
    cheap: bool
    future: Future[Any]
    attempts: int = 0


class Pool:
    """Safe to use from several threads. `close` (or the end of a `with`) ends all workers at once."""

    def __init__(
        self,
        workers: int,
        deadline_seconds: float,
        sandbox: Choice = "auto",
        test_seconds: float = 4.0,
        quarantine: Path | None = None,
    ) -> None:
        if workers < 1 or deadline_seconds <= 0 or test_seconds <= 0:
            raise UserError(
                f"verification needs at least one worker and positive times, got workers = {workers}, "
                f"deadline_seconds = {deadline_seconds}, test_seconds = {test_seconds}"
            )
        self.workers = workers
        self.deadline_seconds = deadline_seconds
        self.settings = Settings(sandbox=sandbox, test_seconds=test_seconds)
        self.quarantine = quarantine
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._processes: set[Process] = set()
        self._closing = threading.Event()
        self._finalizer = weakref.finalize(self, _end, self._processes, self._closing)

    def submit(self, item: Item) -> Future[Verdict]:
        """The verdict to come. A truncated or malformed completion has its verdict at once, without a worker."""
        answer = answer_part(item.text, item.stop, item.think, item.open_think)
        future: Future[Verdict] = Future()
        if isinstance(answer, Verdict):
            future.set_result(answer)
        else:
            self._enqueue(item.problem, {"answer": answer}, future)
        return future

    def judge(self, items: Iterable[Item]) -> Iterator[tuple[int, Verdict]]:
        """Yields (index, verdict) as each is known; takes from `items` only a little ahead of that."""
        return self._stream(self.submit(item) for item in items)

    def check(self, problems: Iterable[Problem]) -> Iterator[tuple[int, Verdict | None]]:
        """Yields (index, None) for each usable problem, (index, "invalid_problem" verdict) for one that is not."""
        return self._stream(self._submit_check(problem) for problem in problems)

    def _submit_check(self, problem: Problem) -> Future[Verdict | None]:
        future: Future[Verdict | None] = Future()
        self._enqueue(problem, {}, future)
        return future

    def close(self) -> None:
        """Ends all workers at once; verdicts that are still awaited are cancelled."""
        with self._changed:
            self._finalizer()
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            if not job.future.cancel():  # it was put back after its worker died
                job.future.set_exception(CancelledError())
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, problem: Problem, extra: dict[str, Any], future: Future[Any]) -> None:
        settings = resolved(self.settings) if problem.verifier == "code" else self.settings
        message = {"problem": encode(problem), "settings": asdict(settings), **extra}
        job = _Job(json.dumps(message).encode() + b"\n", problem.verifier in CHEAP, future)
        with self._changed:
            if self._closing.is_set():
                raise RuntimeError("the pool is closed")
            self._jobs.append(job)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._serve, name=f"verify-{i}", daemon=True) for i in range(self.workers)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify()

    def _stream(self, futures: Iterator[Future[Any]]) -> Iterator[tuple[int, Any]]:
        done: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        waiting = 0
        numbered = enumerate(futures)
        while True:
            for index, future in itertools.islice(numbered, max(self.workers * IN_FLIGHT - waiting, 0)):
                waiting += 1
                future.add_done_callback(partial(_put, done, index))
            if not waiting:
                return
            index, ended = done.get()
            waiting -= 1
            yield index, ended.result()

    # what follows runs in one thread for each worker

    def _serve(self) -> None:
        process: Process | None = None
        while batch := self._take():
            process = self._run(process, batch)
        self._discard(process)

    def _take(self) -> list[_Job]:
        """The next job, and with a cheap one some cheap ones behind it; empty when the pool is closed."""
        batch: list[_Job] = []
        with self._changed:
            while not batch and not self._closing.is_set():
                if not self._jobs:
                    self._changed.wait()
                share = min(BATCH, 1 + len(self._jobs) // self.workers)
                size = 0
                while self._jobs and len(batch) < share and size < BATCH_BYTES:
                    if batch and not (batch[0].cheap and self._jobs[0].cheap):
                        break
                    job = self._jobs.popleft()
                    if job.future.running() or job.future.set_running_or_notify_cancel():
                        batch.append(job)
                        size += len(job.line)
        return batch

    def _run(self, process: Process | None, batch: list[_Job]) -> Process | None:
        """Judges a batch, or what of it can be judged before the process dies. Returns the process if it lives on."""
        done = 0
        try:
            process = self._fresh(process)
            for reply in process.exchange([job.line for job in batch], self.deadline_seconds):
                _settle(batch[done].future, reply)
                done += 1
            return process
        except Overdue:
            detail = f"no verdict within {self.deadline_seconds:g} s"
            batch[done].future.set_result(Verdict("timeout", 0.0, None, detail))
            done += 1
        except Crashed:
            done += self._gave_up(batch[done])
        except (UserError, OSError) as error:
            for job in batch[done:]:
                job.future.set_exception(error)
            done = len(batch)
        self._discard(process)
        self._put_back(batch[done:])
        return None

    def _fresh(self, process: Process | None) -> Process:
        if process is not None and process.judged < RECYCLE_AFTER:
            return process
        self._discard(process)
        with self._changed:
            if self._closing.is_set():
                raise Crashed
            process = Process()
            self._processes.add(process)
        process.wait_until_ready()
        return process

    def _discard(self, process: Process | None) -> None:
        if process is not None:
            process.kill()
            with self._changed:
                self._processes.discard(process)

    def _gave_up(self, job: _Job) -> bool:
        """Settles a job whose worker died, unless it has another attempt."""
        if self._closing.is_set():
            return False
        job.attempts += 1
        if job.attempts < ATTEMPTS:
            return False
        detail = f"the verifier process died {ATTEMPTS} times on this item"
        if self.quarantine:
            with self._changed, Journal(self.quarantine) as journal:
                journal.append({**json.loads(job.line), "detail": detail})
        job.future.set_result(Verdict("infra_error", None, None, detail))
        return True

    def _put_back(self, batch: list[_Job]) -> None:
        with self._changed:
            if not self._closing.is_set():
                self._jobs.extendleft(reversed(batch))
                self._changed.notify_all()
                return
        for job in batch:
            job.future.set_exception(CancelledError())


def _put(done: queue.SimpleQueue[tuple[int, Future[Any]]], index: int, future: Future[Any]) -> None:
    done.put((index, future))


def _settle(future: Future[Any], reply: dict[str, Any]) -> None:
    if "user_error" in reply:
        future.set_exception(UserError(reply["user_error"]))
    else:
        future.set_result(Verdict(**reply["verdict"]) if reply["verdict"] else None)


def _end(processes: set[Process], closing: threading.Event) -> None:
    closing.set()
    for process in tuple(processes):
        process.terminate()
