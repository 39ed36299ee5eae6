"""TRL's side of the comparison: SFTTrainer and GRPOTrainer on exactly what motet's stages read, step by step.

Same in both: start weights, token ids and loss masks, the rows of every step in their order, AdamW (fused, the same
betas and epsilon), the learning rate of every step, gradient clipping, float32; in RL also the prompts of every step,
the size of a group, the verifiers (motet's pool), the clipping bounds, the standardised advantages and the number of
optimizer steps on each sampled batch.

GRPO's words: motet samples 64 x 8 rollouts and takes S = 4 optimizer steps on them, each on a quarter of 128. In TRL
that is per_device_train_batch_size x gradient_accumulation_steps = 32 x 4, steps_per_generation = 4 x 4 (it counts
forward passes), num_iterations = 1, and max_steps counts optimizer steps. As 4 accumulated passes are no multiple of
16, TRL takes the old log-probabilities before the first of the four steps (motet: the anchor).

Left different, because TRL has no setting for it: its quarters are shuffled rollouts, motet's are whole groups; it
trains on groups whose rewards are all equal (advantage 0; motet leaves them out); its loss is divided by a quarter of
the batch's tokens, these groups' included (motet: by the tokens of the quarter); it adds 1e-4 to a group's deviation.

TRL runs with what was fastest for it on a CPU (`--sft-variant` and `--rl-variant` measure the others): no gradient
checkpointing, SDPA, no logging, evaluation or saving, no workers of the data loader, all 512 rollouts in one generate()
with its dynamic cache, 32 rows in a pass. One run of each on one core: 128 rows in a pass made GRPO 1.2 times slower, a
static cache made generation 1.4 times slower and continuous batching 10 times; padding-free rows made SFT 1.4 times
slower, as the SDPA of transformers builds a mask over the whole row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from motet.base import jsonl
from motet.base.recipe import Optimizer, Recipe, RlStage, SftStage
from motet.base.records import decode_problem
from motet.base.run import peak_memory_bytes
from motet.data.chat import ChatFormat
from motet.model.load import load_tokenizer
from motet.rl.advantages import reward_of
from motet.train.learner import learning_rate
from motet.verify.pool import Item, Pool

SFT_VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"train_sampling_strategy": "sequential"},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "padding_free": {"train_sampling_strategy": "sequential", "padding_free": True, "max_length": None},
}
RL_VARIANTS: dict[str, dict[str, Any]] = {
    "micro_batches": {"gradient_accumulation_steps": 4},
    "whole_batches": {},
    "static_cache": {"gradient_accumulation_steps": 4, "cache_implementation": "static"},
    "continuous": {"gradient_accumulation_steps": 4, "use_transformers_continuous_batching": True},
}
CUDA = torch.cuda.is_available()
CHECKED = 256
"""Rows whose tokens and masks are compared with motet's."""


def sft(recipe: Recipe, stage: str, data: Path, model: Path, out: Path, variant: str) -> dict[str, Any]:
    """Trains on rows of {prompt, completion, tokens, num_prompt} in the order of the file, a batch after the other."""
    began = time.perf_counter()
    config = recipe.stage[stage]
    assert isinstance(config, SftStage)
    rows = [row for _, row in jsonl.read(data)]
    policy, tokenizer = _load(model), load_tokenizer(model)
    arguments = {"max_length": config.context, **_common(config.optimizer, recipe.seed), **SFT_VARIANTS[variant]}
    trainer = SFTTrainer(
        policy,
        SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=config.batch_size,
            max_steps=config.steps,
            shuffle_dataset=False,
            **arguments,
        ),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in rows]),
        processing_class=tokenizer,
        optimizers=_optimizer(policy, config.optimizer, config.steps),
    )
    dataset: Any = trainer.train_dataset
    for row, prepared in zip(rows[:CHECKED], dataset, strict=False):
        scored = [-100] * row["num_prompt"] + row["tokens"][row["num_prompt"] :]
        assert prepared["input_ids"] == row["tokens"] and prepared["labels"] == scored, "not the tokens of motet"
    seconds, result = _timed(trainer)
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    figures = {"loss_mean": result.training_loss, "steps": result.global_step, "variant": variant}
    return {"train": seconds, "stage": time.perf_counter() - began, **figures, **_machine()}


def rl(
    recipe: Recipe, stage: str, data: Path, model: Path, out: Path, variant: str, rows_in_a_pass: int | None = None
) -> dict[str, Any]:
    """Trains on rows of {prompt, tokens, problem}: the problems of the first step, then those of the second, ...

    On a GPU vLLM samples in this process, with motet's share of the memory and level of sleep, and a pass has
    `rows_in_a_pass` rollouts; on a CPU the number of passes is the variant's."""
    began = time.perf_counter()
    config = recipe.stage[stage]
    assert isinstance(config, RlStage)
    rows = [row for _, row in jsonl.read(data)]
    policy, tokenizer = _load(model), load_tokenizer(model)
    algorithm, inner = config.algorithm, config.algorithm.minibatches * config.algorithm.passes
    minibatch = config.prompts_per_step * config.group_size // algorithm.minibatches
    common = {**_common(config.optimizer, recipe.seed), **RL_VARIANTS[variant]}
    if CUDA:
        common |= _with_vllm(recipe) | {"gradient_accumulation_steps": minibatch // (rows_in_a_pass or minibatch)}
    pieces = common["gradient_accumulation_steps"]
    with Pool(recipe.verification.workers, recipe.verification.deadline_seconds, recipe.verification.sandbox) as pool:
        judge = _Judge(ChatFormat(tokenizer, recipe.chat), pool, config.rewards.model_dump())
        trainer = _TimedGRPO(
            policy,
            judge,
            args=GRPOConfig(
                output_dir=str(out),
                per_device_train_batch_size=minibatch // pieces,
                steps_per_generation=algorithm.minibatches * pieces,
                num_iterations=algorithm.passes,
                max_steps=config.steps * inner,
                num_generations=config.group_size,
                max_completion_length=config.sampling.max_tokens,
                temperature=config.sampling.temperature,
                epsilon=algorithm.clip_low,
                epsilon_high=algorithm.clip_high,
                beta=0.0,
                loss_type="dapo",
                scale_rewards="group",
                mask_truncated_completions=config.rewards.truncated is None,
                shuffle_dataset=False,
                **common,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": r["prompt"], "problem": json.dumps(r["problem"])} for r in rows]
            ),
            processing_class=tokenizer,
            optimizers=_optimizer(policy, config.optimizer, config.steps * inner),
        )
        ids = tokenizer([r["prompt"] for r in rows[:CHECKED]])["input_ids"]
        assert ids == [r["tokens"] for r in rows[:CHECKED]], "not the tokens of motet"
        # in motet the filter stage has started the workers before RL begins
        list(pool.check(decode_problem(r["problem"]) for r in rows[:CHECKED]))
        seconds, result = _timed(trainer)
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    figures = {"steps": config.steps, "optimizer_steps": result.global_step, "variant": variant}
    parts = {"generate": trainer.generate_seconds, "judge": judge.seconds, "reward_by_step": judge.means}
    return {"train": seconds, "stage": time.perf_counter() - began, **parts, **figures, **_machine()}


class _Judge:
    """motet's verifiers as a reward function."""

    __name__ = "verdict"

    def __init__(self, chat: ChatFormat, pool: Pool, rewards: dict[str, float | None]) -> None:
        self._chat, self._pool, self._rewards = chat, pool, rewards
        self.seconds = 0.0
        self.means: list[float] = []

    def __call__(self, completion_ids: Sequence[Sequence[int]], problem: Sequence[str], **_: Any) -> list[float | None]:
        began = time.perf_counter()
        think, open_think = self._chat.config.think, self._chat.config.open_think
        items = []
        for ids, row in zip(completion_ids, problem, strict=True):
            ended = ids[-1] in self._chat.stop_tokens
            text = self._chat.decode(ids)
            items.append(Item(decode_problem(json.loads(row)), text, "end" if ended else "length", think, open_think))
        rewards: list[float | None] = [None] * len(items)
        for index, verdict in self._pool.judge(items):
            rewards[index] = reward_of(verdict, self._rewards)
        scored = [r for r in rewards if r is not None]
        self.means.append(round(sum(scored) / max(1, len(scored)), 4))
        self.seconds += time.perf_counter() - began
        return rewards


class _TimedGRPO(GRPOTrainer):
    generate_seconds = 0.0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = super()._generate_single_turn(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.generate_seconds += time.perf_counter() - began
        return result


def _load(model: Path) -> Any:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    return policy.to("cuda" if CUDA else "cpu")


def _common(optimizer: Optimizer, seed: int) -> dict[str, Any]:
    return {
        "max_grad_norm": optimizer.max_grad_norm,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": CUDA,
        "use_cpu": not CUDA,
        "seed": seed,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def _with_vllm(recipe: Recipe) -> dict[str, Any]:
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": recipe.engine.memory_share,
        "vllm_max_model_length": recipe.engine.context,
        "vllm_enable_sleep_mode": recipe.engine.sleep > 0,
    }


def _optimizer(model: Any, config: Optimizer, steps: int) -> tuple[Any, Any]:
    """motet's optimizer and its learning rate for every step."""
    assert config.weight_decay == 0.0, "motet decays matrices only; give TRL two groups of parameters"
    adamw = torch.optim.AdamW(
        model.parameters(), config.learning_rate, config.betas, config.epsilon, weight_decay=0.0, fused=True
    )
    share = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: learning_rate(config, min(step, steps - 1), steps) / config.learning_rate
    )
    return adamw, share


def _timed(trainer: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = trainer.train()
    return time.perf_counter() - began, result


def _machine() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "peak_memory_bytes": peak_memory_bytes()}


transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
