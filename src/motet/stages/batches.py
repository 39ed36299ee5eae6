"""The sampled batches of an RL stage, in order; with `overlap`, each while the learner steps on the one before.

    batches = Batches(selection, sampler, config, context, resumed)
    for step in ...:
        groups, metrics = batches.take(step, time)   # sampled now, or waited for
        batches.begin(step + 1)                      # with overlap: in a thread, by the weights that the engine has
        ...                                          # the learner steps
        batches.wait(time)                           # the engine is free, and may take the new weights

So a batch is sampled by the weights from before the last update, never by older ones. The engine has weights of its
own, and a batch is drawn only when the groups of the one before are known: what is drawn does not depend on who is
faster. A checkpoint is saved when the next batch is whole on disk; a resumed run reads it from there, though the
weights have moved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from motet.base.beside import Beside
from motet.base.recipe import RlStage
from motet.base.records import Group
from motet.base.run import Timers
from motet.rl.rollouts import Sampler
from motet.stages.context import Context
from motet.stages.selection import Selection
from motet.stages.shared import SharedSampler

Sampled = tuple[list[Group], dict[str, float]]


class Batches:
    def __init__(
        self, selection: Selection, sampler: Sampler, config: RlStage, context: Context, resumed: bool
    ) -> None:
        self._selection, self._config, self._world = selection, config, context.world
        self._sampler = sampler
        self._own = sampler.own if isinstance(sampler, SharedSampler) else sampler
        """The sampler of the first process, None in others: the thread must call none of them."""
        self._ahead: Beside[Sampled] | None = None
        self._begun: int | None = None
        if resumed and config.overlap and self._own is not None:
            inner = config.algorithm.passes * config.algorithm.minibatches
            self._own.oldest = self._own.engine.version - inner

    def take(self, step: int, time: Timers) -> Sampled:
        """The groups of step `step` (from 0), and figures of what was chosen."""
        if not self._config.overlap:
            groups, metrics = self._sample(self._sampler, step)
            time.part("generate", "judge", self._sampler.judging)
            return groups, metrics
        if self._begun != step:
            self.begin(step)
        ahead, self._ahead, self._begun = self._ahead, None, None
        began = perf_counter()
        found = self._world.first(lambda: _result(ahead))
        self._judged(began, time)
        if self._own is not None:
            self._own.oldest = None
        return found

    def begin(self, step: int) -> None:
        """Starts to sample step `step`, where batches overlap."""
        own = self._own
        if not self._config.overlap or step >= self._config.steps:
            return
        self._begun = step
        if own is not None:
            self._ahead = Beside(lambda: self._sample(own, step), f"sample-{step + 1}")

    def wait(self, time: Timers) -> None:
        """Until nothing is being sampled, and what was sampled is whole on disk. What went wrong while sampling raises
        in `take`, in all processes."""
        began = perf_counter()
        if self._ahead is not None:
            self._ahead.wait()
            self._judged(began, time)
        self._sampler.settle()

    def _judged(self, began: float, time: Timers) -> None:
        """Of what was waited for, the verdicts: they come last, when all is sampled."""
        judging = self._own.judging if self._own is not None else 0.0
        time.part("generate", "judge", min(judging, perf_counter() - began))

    def _sample(self, sampler: Sampler, step: int) -> Sampled:
        """The files are finished while the learner steps."""
        if self._own is not None:
            self._own.behind = True
        try:
            return self._selection.sample(sampler, step)
        finally:
            if self._own is not None:
                self._own.behind = False


def _result(ahead: Beside[Sampled] | None) -> Sampled:
    assert ahead is not None
    groups, metrics = ahead.result()
    return groups, {**metrics, "time/sample": round(ahead.seconds, 4)}


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """staleness: how many sampled batches the learner has stepped on since this one's weights, 0 or 1;
    rollout/staleness_max: how many updates the oldest of the rollouts is behind."""
    versions = {rollout.completion.version for group in groups for rollout in group.rollouts}
    return {"staleness": float(max(versions) < version), "rollout/staleness_max": float(version - min(versions))}
