"""Whether engine and learner agree about the same weights: at a stage's start, and where a step's rollouts cannot tell.

With `overlap` a batch is of older weights: its log-probabilities differ from the learner's by what was learnt since. So
right after the load, while both have the same weights, the engine writes a little on some of the batch's prompts, and
the learner scores that. It is trained on by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from motet.base.recipe import RlStage
from motet.base.records import Group, seed_of
from motet.base.run import Timers, log
from motet.data.pack import pack
from motet.engine import arrival
from motet.engine.protocol import Engine, Request, SamplingParams
from motet.rl.reuse import engine_difference
from motet.rl.rollouts import refuse_broken
from motet.stages.context import Context
from motet.train.learner import Learner

PROMPTS = 8
TOKENS = 64
"""Of a completion at most: enough for a mean, and a moment's work beside a batch (ours)."""


class Agreement:
    def __init__(self, name: str, config: RlStage, context: Context) -> None:
        self._name, self._config, self._context = name, config, context

    def prove(self, engine: Engine, learner: Learner) -> None:
        """Called when the engine has its first weights. Raises UserError where vLLM's log-probabilities of four fixed
        prompts are further from the learner's than `engine.largest_drift`: of weights that it cuts up or calls by
        other names, no fingerprint tells that they arrived."""
        recipe = self._context.recipe
        if recipe.engine.kind == "vllm":
            asked, largest = (
                arrival.fixed_requests(self._context.chat),
                arrival.largest_drift(recipe.engine, recipe.model),
            )
            drift = arrival.probe(engine, asked, learner.logprobs, learner.device, largest)
            log.info("%s: engine and learner differ by %.2g nats a token on fixed prompts", self._name, drift)

    def measure(
        self, engine: Engine, learner: Learner, step: int, groups: Sequence[Group], metrics: Mapping[str, float],
        time: Timers,
    ) -> dict[str, float]:  # fmt: skip
        """engine/logprob_diff_mean and _max under the weights of after step `step`, where its rollouts were of older
        ones than the learner's; else nothing: `learn` has compared them. Called when the engine has those weights."""
        if not metrics["rollout/staleness_max"]:
            return {}
        sampling = self._config.sampling
        asked = groups[:PROMPTS]
        requests = [
            Request(group.rollouts[0].prompt_tokens, group.problem.messages,
                    seed_of(self._context.recipe.seed, self._name, step, "agreement", place))
            for place, group in enumerate(asked)
        ]  # fmt: skip
        params = SamplingParams(sampling.temperature, sampling.top_p, min(TOKENS, sampling.max_tokens))
        with time("probe"):
            answers = dict(engine.generate(requests, params))
            for index, group in enumerate(asked):
                refuse_broken(answers[index], group.problem.id)
            samples = [arrival.as_sample(request, answers[index]) for index, request in enumerate(requests)]
            batches = pack(
                samples, self._config.micro_batch_tokens, learner.device, learner.rows, learner.shares_prompts
            )
            return engine_difference([batches], [learner.logprobs(batches, sampling.temperature)])
