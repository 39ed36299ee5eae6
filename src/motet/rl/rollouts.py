"""Rollouts: problems in, judged groups out, each rollout on disk as soon as it is judged."""

from __future__ import annotations

import math
import queue
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from motet.base import jsonl
from motet.base.beside import Beside
from motet.base.errors import UserError
from motet.base.recipe import Sampling
from motet.base.records import (
    Completion,
    Group,
    Problem,
    Rollout,
    Verdict,
    decode_group,
    decode_rollout,
    encode,
    seed_of,
)
from motet.base.run import progress
from motet.data.chat import ChatFormat
from motet.engine.protocol import Engine, InWaves, Recorded, Request, SamplingParams
from motet.verify.canaries import CanaryError
from motet.verify.pool import Item, Pool


class Sampler:
    """An engine, the chat format of what it writes, and the pool that judges it."""

    judging = 0.0
    """Seconds that calls of `groups` have waited for verdicts when all was sampled, since somebody put it to zero."""

    oldest: int | None = None
    """Finished files of versions from this one on are read back too; unset, those of the weights in use alone."""

    behind = False
    """Whether `groups` returns while its file is still being finished, which `settle` and the next call wait for. The
    journal holds everything until then."""

    def __init__(self, engine: Engine, chat: ChatFormat, pool: Pool) -> None:
        self.engine = engine
        self.chat = chat
        self.pool = pool
        self._finishing: Beside[None] | None = None

    def groups(
        self,
        problems: Sequence[Problem],
        n: int,
        sampling: Sampling,
        stream: tuple[object, ...],
        file: Path,
        title: str,
    ) -> list[Group]:
        """`n` rollouts of each problem, in the order of `problems`; `file` gets one group a line.

        `stream` names the random numbers: the same stream and weights give the same rollouts, and a problem that
        occurs twice gets different ones. While it samples, a journal beside `file` takes each rollout; a killed call
        goes on from there, and a finished one with the same version of the weights is read back. An engine that works
        in waves samples an unfinished one again whole; what the journal has of it stands.
        """
        self.settle()
        journal_path = file.with_suffix(".part.jsonl")
        version = self.engine.version
        if isinstance(self.engine, Recorded):
            self.engine.keep(file)
        finished = _read_back(file, range(version if self.oldest is None else self.oldest, version + 1))
        if finished is not None:
            journal_path.unlink(missing_ok=True)
            return finished
        places: list[tuple[int, int]] = []  # (position in problems, index among the rollouts of that problem)
        occurrences: Counter[str] = Counter()
        for p, problem in enumerate(problems):
            places += [(p, n * occurrences[problem.id] + i) for i in range(n)]
            occurrences[problem.id] += 1
        with jsonl.Journal(journal_path) as journal:
            known = {(r["problem"], r["index"]): r["rollout"] for r in journal.rows if r["version"] == version}
            done = {(p, i): decode_rollout(known[problems[p].id, i]) for p, i in places if (problems[p].id, i) in known}
            todo = {index for index, place in enumerate(places) if place not in done}
            if todo:
                self.pool.begin(problem.verifier for problem in problems)
            try:
                for index, rollout in self._sample(problems, places, todo, sampling, stream, title):
                    p, i = places[index]
                    done[p, i] = rollout
                    row = {"problem": problems[p].id, "index": i, "version": version, "rollout": encode(rollout)}
                    journal.append(row)
            except CanaryError:
                # its verdicts are those of a verifier that is not to be trusted; its texts are kept
                journal_path.replace(journal_path.with_suffix(".distrusted"))
                raise
        rollouts = [done[place] for place in places]
        groups = [Group(problem, tuple(rollouts[p * n : (p + 1) * n])) for p, problem in enumerate(problems)]
        self._finishing = Beside(lambda: _finish(file, groups, journal_path), "finish-rollouts")
        if not self.behind:
            self.settle()
        return groups

    def settle(self) -> None:
        """Until the file of the last call is whole on disk. Raises what went wrong, a full disk, say."""
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def leave(self) -> None:
        """After an error elsewhere: nothing is written behind the back of whoever goes on with the run."""
        if self._finishing is not None:
            self._finishing.wait()

    def _sample(
        self,
        problems: Sequence[Problem],
        places: Sequence[tuple[int, int]],
        todo: Collection[int],
        sampling: Sampling,
        stream: tuple[object, ...],
        title: str,
    ) -> Iterator[tuple[int, Rollout]]:
        """Yields (index into places, rollout) for those of `todo`, as each is judged."""
        prompts = [self.chat.prompt(problem.messages) for problem in problems]
        requests = [Request(prompts[p], problems[p].messages, seed_of(*stream, problems[p].id, i)) for p, i in places]
        params = SamplingParams(sampling.temperature, sampling.top_p, sampling.max_tokens)
        pending: dict[Future[Verdict], tuple[int, Completion]] = {}
        judged: queue.SimpleQueue[Future[Verdict]] = queue.SimpleQueue()

        def ended(future: Future[Verdict]) -> tuple[int, Rollout]:
            index, completion = pending.pop(future)
            return index, Rollout(requests[index].prompt_tokens, completion, future.result())

        for index, completion in progress(self._completions(requests, todo, params), len(todo), title):
            refuse_broken(completion, problems[places[index][0]].id)
            future = self.pool.submit(self._item(problems[places[index][0]], completion))
            pending[future] = (index, completion)
            future.add_done_callback(judged.put)
            while not judged.empty():
                yield ended(judged.get())
        began = time.perf_counter()
        while pending:
            yield ended(judged.get())
        self.pool.verdicts_stand()
        self.judging += time.perf_counter() - began

    def _completions(
        self, requests: Sequence[Request], todo: Collection[int], params: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        if isinstance(self.engine, InWaves):
            found = self.engine.generate_waves(requests, todo, params)
            return ((index, completion) for index, completion in found if index in todo)
        left = sorted(todo)
        found = self.engine.generate([requests[index] for index in left], params)
        return ((left[place], completion) for place, completion in found)

    def _item(self, problem: Problem, completion: Completion) -> Item:
        chat = self.chat.config
        return Item(problem, completion.text, completion.stop, chat.think, chat.open_think)


def refuse_broken(completion: Completion, problem: str) -> None:
    """A log-probability that is no number comes of weights or kernels that are broken: what they sample is noise."""
    if not math.isfinite(sum(completion.logprobs)):
        place = next(i for i, value in enumerate(completion.logprobs) if not math.isfinite(value))
        raise UserError(
            f"the engine told {completion.logprobs[place]} as the log-probability of token {place + 1} of "
            f"{len(completion.tokens)}, for the problem {problem!r}, with weights of version {completion.version}: its "
            "weights or kernels are broken. What was judged before is kept: start again, with model.dtype = "
            '"float32" where it comes back'
        )


def _finish(file: Path, groups: Sequence[Group], journal: Path) -> None:
    jsonl.write(file, (encode(group) for group in groups))
    journal.unlink()


def _read_back(file: Path, versions: range) -> list[Group] | None:
    """The groups of a finished file; None where there is none, or other weights sampled it."""
    if not file.exists():
        return None
    groups = [decode_group(row) for _, row in jsonl.read(file)]
    same = all(r.completion.version in versions for group in groups for r in group.rollouts)
    return groups if same else None
