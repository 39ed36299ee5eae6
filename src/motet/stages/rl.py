"""GRPO with mixed-policy trajectory reuse: sample, judge, record, select, advantages, S steps, load."""

from __future__ import annotations

from pathlib import Path

from motet.base.errors import naming
from motet.base.recipe import RlStage
from motet.base.records import seed_of
from motet.base.run import Timers, log, progress
from motet.model.rope import require_positions
from motet.rl import experience
from motet.rl.reuse import learn
from motet.rl.telltales import speeds
from motet.stages.agreement import Agreement
from motet.stages.alarmed import Alarms
from motet.stages.batches import Batches, staleness
from motet.stages.context import Context
from motet.stages.probe import Probe
from motet.stages.selection import Selection
from motet.train import checkpoint

COLUMNS = ("reward/mean", "groups/live_share", "policy/entropy", "rollout/tokens_mean", "rollout/truncated_share",
           "inner_steps", "tokens/second", "time/step")  # fmt: skip


def run(name: str, config: RlStage, context: Context, model: Path | str) -> None:
    folder, seed = context.folder(name), context.recipe.seed
    if context.world.first((folder / "model").exists):
        context.world.first(lambda: checkpoint.remove(folder / "checkpoints"))
        return
    require_positions(name, "sampling.max_tokens", config.sampling.max_tokens, model)
    alarms = Alarms(name, config, context)
    selection = Selection(name, config, context, alarms.attempt)
    selection.prepare(model)
    probe, agreement = Probe(name, config, context), Agreement(name, config, context)
    inner = config.algorithm.passes * config.algorithm.minibatches
    learner = context.learner(name, config, model, config.steps * inner)
    reference = context.reference(name, config, model) if config.algorithm.kl else None
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", learner)
    start = checkpoints.restore()
    selection.restore(start)
    sampler = context.shared_sampler(model)
    sampler.engine.load(learner.weights(), learner.version)
    agreement.prove(sampler.engine, learner)
    learner.rest()
    context.run.drop_metrics(name, start + 1)
    alarms.begin(start, checkpoints)
    own_numbers = context.recipe.engine.kind == "transformers" and context.recipe.model.dtype == "float32"
    batches = Batches(selection, sampler, config, context, resumed=start > 0)
    for step in progress(range(start, config.steps), config.steps - start, name):
        time = Timers()
        with time("step"):
            with time("generate"):
                groups, chosen = batches.take(step, time)
            batches.begin(step + 1)
            shuffle = seed_of(seed, name, step, "shuffle")
            live, metrics = experience.build(groups, config.rewards, config.algorithm, shuffle, config.domain_rewards)
            metrics |= chosen | staleness(groups, learner.version)
            if live:
                fresh = not metrics["rollout/staleness_max"]
                with naming(f"stage.{name}"):
                    metrics |= learn(learner, live, config, time, reference, own_numbers, fresh)
            else:
                log.info("%s step %d: all %d groups are without a signal (%s); nothing was learnt", name, step + 1,
                         len(groups), experience.verdicts(metrics))  # fmt: skip
            with time("generate"):
                batches.wait(time)
            if live:
                with time("load"):
                    sampler.engine.load(learner.weights(), learner.version)
            metrics |= agreement.measure(sampler.engine, learner, step + 1, groups, metrics, time)
            learner.rest()
        metrics |= probe.measure(sampler, step + 1, time)
        metrics |= time.metrics() | speeds(metrics, time.seconds)
        context.run.report(name, step + 1, config.steps, metrics, COLUMNS)
        alarms.look(step + 1, metrics, checkpoints)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            checkpoints.save(step + 1)
            selection.save(step + 1)
    selection.save(config.steps)
    sampler.engine.close()
    learner.export(folder / "model", context.tokenizer)
    checkpoints.remove()
