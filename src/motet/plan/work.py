"""What each stage of a recipe asks of a device: the length of its rows, how many there are, and who else is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from motet.base.recipe import (
    CleanStage,
    Engine,
    Recipe,
    RlStage,
    Sampling,
    SftStage,
    Stage,
    SynthesizeStage,
    TrainingStage,
)
from motet.model.footprint import Sizes
from motet.stages.sieve import JUDGING

PROMPT = 1024
"""Tokens of a prompt, where a cache has to be planned before any is read."""


@dataclass(frozen=True)
class Work:
    """Of one stage."""

    name: str
    kind: str
    tokens: int
    """Of the longest row; 0 where nothing is trained."""
    longest: int
    """Of the longest document: a row is never shorter than it."""
    rows: int
    """In one optimizer step, all processes together, at most."""
    known: bool
    entropy_gradient: bool
    reference: bool
    """The weights that the stage starts from stay in memory."""
    lora: int
    """Rank of its adapters; 0: none."""
    muon: bool
    offload: bool
    """AdamW's moments leave the GPU whatever comes; where they may, is not counted on."""
    engine: Engine | None
    """Who samples for the stage."""
    engine_key: str
    """Where the recipe says so."""
    evaluator: Engine | None
    """Who samples for the evaluation of the weights that it made, when the learner has gone."""
    sampled: int
    """Tokens of a completion with its prompt."""

    @property
    def trains(self) -> bool:
        return self.tokens > 0


def works_of(recipe: Recipe, positions: int | None) -> list[Work]:
    """Of every stage, in order; of one that asks several models, one after the other, a work for each. `positions`: the
    model's own number."""
    found: list[Work] = []
    for name in recipe.stages:
        stage = recipe.stage[name]
        work = _work(name, stage, recipe, positions)
        if isinstance(stage, SynthesizeStage | CleanStage):
            asked = [replace(work, engine_key=key, engine=own, sampled=most + PROMPT)
                     for key, own, most in _asked(name, stage, recipe)]  # fmt: skip
            found += asked or [replace(work, engine=None)]
        else:
            found.append(work)
    return found


def _asked(name: str, stage: SynthesizeStage | CleanStage, recipe: Recipe) -> Iterator[tuple[str, Engine, int]]:
    """(key, engine, tokens of a completion): the teachers, and a judge where it is here."""
    if isinstance(stage, SynthesizeStage):
        for label, teacher in stage.teachers.items():
            yield f"stage.{name}.teachers.{label}", teacher, (teacher.sampling or stage.sampling).max_tokens
        if not stage.teachers:
            key = "engine" if stage.teacher is None else f"stage.{name}.teacher"
            yield key, stage.teacher or recipe.engine, stage.sampling.max_tokens
    judge = stage.rules.judge
    if judge is not None and not is_elsewhere(judge):
        yield f"stage.{name}.rules.judge", judge, JUDGING.max_tokens


def is_elsewhere(engine: Engine) -> bool:
    """Whether nothing of it is on this machine, as far as the recipe says."""
    return engine.kind in ("endpoint", "scripted") or bool(engine.urls)


def _work(name: str, stage: Stage, recipe: Recipe, positions: int | None) -> Work:
    sampling: Sampling = getattr(stage, "sampling", recipe.evaluation.sampling)
    longest = tokens = rows = 0
    if isinstance(stage, SftStage):
        longest = _context(stage, positions)
        tokens = max(stage.micro_batch_tokens, longest)
        most = getattr(stage, "batch_tokens", None) or stage.batch_size * longest
        rows = math.ceil(most / tokens)
    elif isinstance(stage, RlStage):
        longest = min(sampling.max_tokens + PROMPT, stage.micro_batch_tokens)
        tokens = stage.micro_batch_tokens
        sampled = stage.prompts_per_step * stage.group_size // stage.algorithm.minibatches
        rows = math.ceil(sampled * longest / tokens)
    trained = isinstance(stage, TrainingStage)
    evaluated = stage.evaluate if trained else stage.kind == "evaluate"
    longest_sampled = max(sampling.max_tokens, recipe.evaluation.sampling.max_tokens * evaluated)
    return Work(
        name=name,
        kind=stage.kind,
        tokens=tokens,
        longest=longest,
        rows=rows,
        known=isinstance(stage, SftStage),
        entropy_gradient=isinstance(stage, RlStage) and stage.algorithm.entropy_bonus > 0,
        reference=isinstance(stage, RlStage) and stage.algorithm.kl > 0,
        lora=stage.lora.rank if isinstance(stage, TrainingStage) and stage.lora else 0,
        muon=isinstance(stage, TrainingStage) and stage.optimizer.kind == "muon",
        offload=isinstance(stage, TrainingStage) and stage.optimizer.offload == "on",
        engine=None if isinstance(stage, SftStage) else recipe.engine,
        engine_key="engine",
        evaluator=recipe.engine if trained and evaluated else None,
        sampled=longest_sampled + PROMPT,
    )


def _context(stage: SftStage, positions: int | None) -> int:
    most = stage.rope.positions if stage.rope else positions
    if "context" in stage.model_fields_set or most is None:
        return stage.context
    return min(stage.context, most)


class Share(NamedTuple):
    """Of one GPU."""

    size: int
    words: str
    least: int = 0
    """Without so much it cannot work: its weights and one completion's cache."""
    unknown: str = ""
    """Why that cannot be told."""


def engine_share(
    engine: Engine | None, sampled: int, sizes: Sizes | str, element: int, memory: int, asleep: bool = False
) -> Share:
    """What an engine holds of a GPU that the learner uses as well, in the first process; all of its own elsewhere.
    `sampled`: tokens of a completion with its prompt; `sizes`: of its model, or why they cannot be told; `asleep`: the
    learner works, where the engine gives way to it."""
    if engine is None:
        return Share(0, "nothing is sampled")
    if is_elsewhere(engine):
        return Share(0, "sampled elsewhere")
    if engine.apart:
        return Share(0, f"vLLM, on GPUs of its own ({', '.join(map(str, engine.gpus))})")
    if engine.kind == "vllm" and asleep and engine.sleep:
        return Share(0, f"vLLM, asleep (sleep = {engine.sleep}) while the learner works")
    share, words = int(engine.memory_share * memory), f"vLLM, memory_share = {engine.memory_share:g}"
    if isinstance(sizes, str):
        return Share(share, words, unknown=sizes) if engine.kind == "vllm" else Share(0, "not known", unknown=sizes)
    weights, completion = element * sizes.parameters, sampled * kv_bytes(sizes, element)
    if engine.kind == "vllm":
        return Share(share, words, (weights + completion) // engine.gpus_of_a_server)
    words = f"weights {weights / 2**30:.1f} GiB, cache of {engine.batch_size} x {sampled:,} tokens"
    return Share(weights + engine.batch_size * completion, words)


def kv_bytes(sizes: Sizes, element: int) -> int:
    """Of one token, in all layers."""
    return 2 * sizes.layers * sizes.key_heads * sizes.head * element
