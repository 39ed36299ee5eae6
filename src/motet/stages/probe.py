"""Held-out problems sampled while RL goes on: how the model in training does on what it is not trained on."""

from __future__ import annotations

from motet.base.recipe import RlStage
from motet.base.run import Timers
from motet.base.statistics import ALL, evaluate_groups
from motet.rl.rollouts import Sampler
from motet.stages import evaluate
from motet.stages.context import Context


class Probe:
    """The first `probe` problems of each set of the evaluation, with the evaluation's own random numbers: the last
    probe and the evaluation that follows agree on them."""

    def __init__(self, name: str, config: RlStage, context: Context) -> None:
        self._name, self._config, self._context = name, config, context
        self._sets = evaluate.sets(context) if config.probe_every is not None else []

    def measure(self, sampler: Sampler, step: int, time: Timers) -> dict[str, float]:
        """After step `step` (from 1), where one is due: heldout/pass, _low and _high (95 %), heldout/pass/DOMAIN."""
        if self._config.probe_every is None or step % self._config.probe_every:
            return {}
        with time("probe"):
            return self._measure(sampler, step)

    def _measure(self, sampler: Sampler, step: int) -> dict[str, float]:
        recipe, groups = self._context.recipe, []
        for label, problems, samples, sampling in self._sets:
            chosen = problems[: self._config.probe]
            if chosen:
                file = self._context.folder(self._name) / "probes" / f"step-{step:05d}-{label}.jsonl"
                stream = (recipe.seed, "evaluation", label)
                groups += sampler.groups(chosen, samples, sampling, stream, file, f"{self._name} {step} probe {label}")
        domains = evaluate_groups(groups, recipe.evaluation.bootstrap, recipe.seed)["domains"]
        found = {name: row["pass_at_1"] for name, row in domains.items() if row["pass_at_1"]["mean"] is not None}
        if ALL not in found:
            return {}
        whole = found.pop(ALL)
        metrics = {"heldout/pass": whole["mean"], "heldout/pass_low": whole["low"], "heldout/pass_high": whole["high"]}
        return metrics | {f"heldout/pass/{name}": row["mean"] for name, row in found.items()}
