"""The learner: four verbs over packed batches. Above it no device or rank; below it no reward, problem or advantage.

learner.accumulate(batches, loss)   forward and backward, the loss divided once by the step's number of tokens
learner.update()                    clip, optimizer step, version + 1
learner.logprobs(batches)           no gradient: the anchor
learner.weights()                   full tensors by Hugging Face name, for an engine or an export
learner.state() / load_state(state)  everything that the next step depends on (train/checkpoint.py keeps it)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from motet.base.errors import UserError
from motet.base.recipe import Model, Optimizer
from motet.data.pack import Batch
from motet.model import attention
from motet.model.load import device_of, export, load_model
from motet.train.logprobs import Scored, score
from motet.train.losses import Loss


class Learner:
    """One model with its optimizer. Weights, gradients and optimizer state are float32; matrix products are computed in
    `model.dtype` (autocast), the head and the loss in float32."""

    def __init__(self, path: str | Path, model: Model, optimizer: Optimizer, total_steps: int) -> None:
        """`total_steps` optimizer steps shape the learning rate's schedule."""
        self.device = device_of(model)
        self.model: Any = load_model(path, attention.NAME, self.device, torch.float32)
        self._dtype = getattr(torch, model.dtype)
        if model.gradient_checkpointing:
            _enable_checkpointing(self.model)
        _no_dropout(self.model)
        self.model.train()  # checkpointing asks for it
        self._head = self.model.get_output_embeddings()
        if getattr(self._head, "bias", None) is not None:
            raise UserError(f"{path}: the head has a bias, which motet does not support yet")
        self._body = self.model.base_model
        self._config = optimizer
        self._total_steps = total_steps
        self._optimizer = _adamw(self.model, optimizer)
        self.version = 0
        """How often the weights have been updated."""

    def accumulate(
        self,
        batches: Sequence[Batch],
        loss: Loss,
        extras: Sequence[torch.Tensor] | None = None,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Adds the gradients of sum(loss) / (number of scored tokens in all batches). Returns the loss's sums, divided
        by the same count. However the tokens fall into batches, the result is the same."""
        count = sum(batch.num_scored for batch in batches)
        if count == 0:
            raise ValueError("no token of this step has a loss: every loss mask is empty")
        totals: dict[str, float] = {}
        for index, batch in enumerate(batches):
            extra = extras[index] if extras is not None else None
            value, sums = loss(self._score(batch, temperature), batch, extra)
            torch.autograd.backward(value / count)
            for name, part in sums.items():
                totals[name] = totals.get(name, 0.0) + float(part)
        return {name: total / count for name, total in totals.items()}

    def update(self) -> dict[str, float]:
        """One optimizer step. A gradient that is not finite raises: it would destroy the weights."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm))
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient norm of optimizer step {self.version + 1} is {norm}; the weights were left as they are. "
                "A smaller optimizer.learning_rate is the usual cure."
            )
        rate = learning_rate(self._config, self.version, self._total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.version += 1
        return {"optim/grad_norm": norm, "optim/learning_rate": rate}

    @torch.no_grad()
    def logprobs(self, batches: Sequence[Batch], temperature: float = 1.0) -> list[torch.Tensor]:
        """Log-probabilities of the scored tokens, one tensor a batch."""
        return [self._score(batch, temperature).logprobs_N for batch in batches]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.detach()

    def export(self, folder: Path, tokenizer: Any) -> None:
        """Writes a Hugging Face folder in the type that the recipe computes in."""
        if self._dtype == torch.float32:
            export(self.model, tokenizer, folder)
            return
        copy = type(self.model)(self.model.config).to(self._dtype)
        copy.load_state_dict(self.model.state_dict())
        copy.generation_config = self.model.generation_config
        export(copy, tokenizer, folder)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "version": self.version}

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]

    def _score(self, batch: Batch, temperature: float) -> Scored:
        with self._autocast():
            hidden_1TD = self._body(
                input_ids=batch.tokens_T[None],
                position_ids=batch.positions_T[None],
                use_cache=False,
                documents=batch.documents,
            ).last_hidden_state
        return score(hidden_1TD[0].index_select(0, batch.scored_N), self._head.weight, batch.targets_N, temperature)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)


def _adamw(model: torch.nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Weight decay on matrices only: decaying gains and biases only shrinks the residual stream."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def _no_dropout(model: Any) -> None:
    """With dropout the anchor's log-probabilities would not be the ratio's own, and a resumed run not the same one."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _enable_checkpointing(model: Any) -> None:
    """transformers 5.23 renamed the method; both names mean the non-reentrant kind."""
    rename = getattr(model, "activation_checkpointing_enable", None)
    (rename or model.gradient_checkpointing_enable)({"use_reentrant": False})


def learning_rate(config: Optimizer, step: int, total: int) -> float:
    """Of optimizer step `step` (from 0): linear warm-up, then constant or a cosine to final_ratio.

    Example: peak 1, warm-up 2, total 6, final 0: 0.5, 1, 1, 0.854, 0.5, 0.146 (the cosine over steps 2..6).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_ratio + (1.0 - config.final_ratio) * cosine)
