"""The two sides of grpo_vs_trl.py, each run in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import capped
import profiles
import random_model
import torch
from grpo_vs_trl import GROUP, PROMPT_TOKENS, PROMPTS, SETTINGS, Clock, now, reward

CUDA = torch.cuda.is_available()
LOOKED_AT = 5
"""The step in which it is looked at what the trainer's memory consists of."""


def prompts(options: argparse.Namespace) -> list[list[int]]:
    """Of all steps, one after the other."""
    vocabulary = random_model.SHAPES[options.shape]["vocab_size"]
    return random_model.prompts(PROMPTS * options.steps, PROMPT_TOKENS, vocabulary)


def motet(options: argparse.Namespace) -> dict[str, Any]:
    from motet.base.recipe import Algorithm, Chat, Engine, Guard, Mix, Model, Optimizer, RlStage, Sampling
    from motet.base.run import Timers
    from motet.data.chat import ChatFormat
    from motet.data.pack import Sample
    from motet.engine import vllm
    from motet.engine.protocol import Request, SamplingParams
    from motet.model.load import load_tokenizer
    from motet.rl.advantages import standardised
    from motet.rl.reuse import learn
    from motet.train.learner import Learner

    model = Model(path=str(options.model), dtype="bfloat16" if CUDA else "float32")
    config = RlStage(
        kind="rl", problems=(Mix(problems="parity"),), steps=options.steps, prompts_per_step=PROMPTS, group_size=GROUP,
        micro_batch_tokens=12_288,  # 32 rollouts of 128 + 256 tokens: two passes
        optimizer=Optimizer(learning_rate=SETTINGS["learning_rate"], schedule="constant", warmup_steps=0),
        algorithm=Algorithm(
            clip_low=SETTINGS["clip_low"], clip_high=SETTINGS["clip_high"], aggregation="tokens", guard=Guard(on=False),
            passes=1, minibatches=1,
        ),
        sampling=Sampling(temperature=1.0, max_tokens=options.tokens),
    )  # fmt: skip
    learner, clock = Learner(options.model, model, config.optimizer, options.steps), Clock()
    chat = ChatFormat(load_tokenizer(options.model), Chat(think="off"))
    settings = Engine(
        kind="vllm",
        sleep=options.sleep if CUDA else 0,
        memory_share=SETTINGS["memory_share"] * capped.share(),
        batch_size=PROMPTS * GROUP,
        context=PROMPT_TOKENS + options.tokens,
        eager=not CUDA,
    )
    engine = vllm.make(options.model, model, chat, settings)
    watch_sleep(clock)
    engine.load(learner.weights(), 0)
    rows, tokens, metrics = prompts(options), 0, dict[str, float]()
    for step in range(options.steps):
        clock.start_step()
        mine = [tuple(row) for row in rows[step * PROMPTS : (step + 1) * PROMPTS] for _ in range(GROUP)]
        asked = [Request(row, (), 10_000 * step + i) for i, row in enumerate(mine)]
        with phase(clock, "sample"):
            answers = dict(engine.generate(asked, SamplingParams(1.0, 1.0, options.tokens)))
        live = []
        for start in range(0, len(asked), GROUP):
            members = range(start, start + GROUP)
            advantages = standardised([reward(answers[i].tokens) for i in members]) or [0.0] * GROUP
            live.append([
                Sample(asked[i].prompt_tokens + answers[i].tokens,
                       (False,) * len(asked[i].prompt_tokens) + (True,) * len(answers[i].tokens),
                       advantage or 0.0, answers[i].logprobs)
                for i, advantage in zip(members, advantages, strict=True)
            ])  # fmt: skip
        tokens += sum(len(c.tokens) for c in answers.values())
        timers = Timers()
        last = options.profile and step == options.steps - 1
        with profiles.recorded() if last else contextlib.nullcontext():
            metrics = learn(learner, live, config, timers)
            now()
        for name in ("anchor", "train"):
            clock.add(name, timers.seconds[name])
        with phase(clock, "load"):
            engine.load(learner.weights(), learner.version)
            learner.rest()
        clock.end_step()
    reported = ("engine/logprob_diff_mean", "correction/importance_mean", "correction/ess", "optim/grad_norm")
    return {
        **clock.medians(),
        "tokens_per_step": tokens / options.steps,
        **{name: metrics[name] for name in reported},
        "device_gib_after": clock.used,
        **peak(),
        **({"profile": dict(profiles.last)} if options.profile else {}),
    }


def trl(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    clock = Clock()
    watch_sleep(clock)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start_step()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_step()
            taken = clock.steps[-1]
            taken["train"] = taken["step"] - sum(taken.get(p, 0.0) for p in ("sample", "anchor", "load"))

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            loaded, began = clock.steps[-1].get("load", 0.0), now()
            result = super()._generate_single_turn(*arguments, **named)  # type: ignore[no-untyped-call]
            clock.add("sample", now() - began - (clock.steps[-1].get("load", 0.0) - loaded))
            return result

        def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*arguments, **named)  # type: ignore[no-untyped-call]
            began = now()
            result = super()._get_per_token_logps_and_entropies(*arguments, **named)  # type: ignore[no-untyped-call]
            clock.add("anchor", now() - began)
            return result

    words = AutoTokenizer.from_pretrained(options.model)  # type: ignore[no-untyped-call]
    rows = [{"prompt": " ".join(f"t{token}" for token in row)} for row in prompts(options)]
    batch, total = min(options.trl_batch[0], PROMPTS * GROUP), PROMPTS * GROUP
    counted: list[int] = []

    def parity(completion_ids: list[list[int]], **_: Any) -> list[float]:
        counted.extend(len(ids) for ids in completion_ids)
        return [reward(ids) for ids in completion_ids]

    with_vllm: dict[str, Any] = {
        "use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": options.sleep > 0,
        "vllm_gpu_memory_utilization": SETTINGS["memory_share"] * capped.share(),
        "vllm_max_model_length": PROMPT_TOKENS + options.tokens,
    } if CUDA else {"use_cpu": True}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            str(options.model), parity,
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=batch, gradient_accumulation_steps=total // batch,
                steps_per_generation=total // batch, num_generations=GROUP, num_iterations=1, max_steps=options.steps,
                max_completion_length=options.tokens, temperature=1.0, top_k=0, beta=0.0, loss_type="dapo",
                epsilon=SETTINGS["clip_low"], epsilon_high=SETTINGS["clip_high"],
                learning_rate=SETTINGS["learning_rate"],
                lr_scheduler_type="constant", max_grad_norm=SETTINGS["max_grad_norm"], bf16=CUDA,
                model_init_kwargs={"dtype": "float32"}, gradient_checkpointing=False, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, shuffle_dataset=False, seed=1, **with_vllm,
            ),
            train_dataset=Dataset.from_list(rows), processing_class=words, callbacks=[Steps()],
        )  # fmt: skip
        if CUDA:
            sync = trainer.vllm_generation.sync_weights

            def timed_sync(*arguments: Any, **named: Any) -> Any:
                began = now()
                result = sync(*arguments, **named)
                clock.add("load", now() - began)
                return result

            trainer.vllm_generation.sync_weights = timed_sync
        trainer.train()
    counts = {"tokens_per_step": sum(counted) / options.steps, "rows_in_a_pass": batch}
    return {**clock.medians(), **counts, "device_gib_after": clock.used, **peak()}


class phase:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._began = now()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, now() - self._began)


def watch_sleep(clock: Clock) -> None:
    """vLLM's going to sleep and waking, which are part of "sample" and "load", by themselves; and what is in use on the
    device when it is awake."""
    if not CUDA:
        return
    import vllm

    for name in ("sleep", "wake_up"):
        setattr(vllm.LLM, name, _watched(getattr(vllm.LLM, name), name, clock))


def _watched(call: Callable[..., Any], name: str, clock: Clock) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        began = now()
        result = call(*arguments, **named)
        if clock.steps:
            clock.add(name, now() - began)
        free, total = torch.cuda.mem_get_info()
        clock.used[name] = max(clock.used.get(name, 0.0), (total - free) / 2**30)
        if name == "sleep" and len(clock.steps) == LOOKED_AT:
            clock.used |= trainers_own()
        return result

    return timed


def trainers_own() -> dict[str, float]:
    """GiB that torch has for the trainer, vLLM's pools left out: in tensors, and in segments with these."""
    own = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == (0, 0)]  # type: ignore[no-untyped-call]
    names = {"trainers_tensors": "allocated_size", "trainers_segments": "total_size"}
    return {name: sum(s[key] for s in own) / 2**30 for name, key in names.items()}


def peak() -> dict[str, float]:
    """What torch's own allocator held at most: not vLLM's weights and cache, which sleep mode keeps elsewhere."""
    return {"peak_torch_gib": torch.cuda.max_memory_reserved() / 2**30 if CUDA else 0.0, "ended": time.time()}
