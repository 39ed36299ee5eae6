"""Two steps at full length, and how much memory the second one took: predicted against measured.

On a GPU the measure is the allocator's; elsewhere it is the sum of the tensors alive (plan/live.py).
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from motet.base.errors import UserError
from motet.base.recipe import Lora, Model, Optimizer
from motet.data.pack import Batch, Sample, pack
from motet.model.blocks import blocks_of, is_compiled
from motet.model.footprint import Compute, Forecast, Sizes, Training, forecast, row_of
from motet.model.load import load_config
from motet.model.recompute import Policy
from motet.plan.live import Live
from motet.plan.setup import Planner
from motet.plan.sizing import tiny_config
from motet.plan.work import Work
from motet.rl.objectives import ClippedPolicyLoss
from motet.train.learner import Learner
from motet.train.losses import cross_entropy

FIRST = 1024
"""Tokens of the first step, which allocates the optimizer's state, where it is not as long as the second."""


@dataclass(frozen=True)
class Probed:
    policies: dict[str, int]
    """How many blocks had which policy."""
    forecast: Forecast
    allocated: int
    """Highest number of bytes in tensors during the second step."""
    reserved: int
    """Highest number of bytes that the allocator had taken from the device; 0 where there is none."""
    seconds: float
    """Of the second step."""

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.forecast.total / self.allocated - 1.0


def sample_rows(rows: Sequence[Sequence[int]], vocabulary: int, device: torch.device) -> list[Batch]:
    """Rows of documents of these lengths, of random tokens that are all trained on."""
    stream = torch.Generator().manual_seed(0)
    batches = []
    for lengths in rows:
        drawn = [torch.randint(0, vocabulary, (n,), generator=stream).tolist() for n in lengths]
        samples = [Sample(tuple(tokens), (False, *[True] * (len(tokens) - 1)), 1.0) for tokens in drawn]
        batches += pack(samples, sum(lengths), device)
    return batches


def describe(learner: Learner, model: Model, rounds: int) -> tuple[Sizes, Compute, Training]:
    """What the prediction is made from, of a learner in one process."""
    element, weights = (getattr(torch, name).itemsize for name in (model.dtype, model.weights))
    trained = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
    on_gpu = learner.device.type == "cuda"
    rank = learner.lora.rank if learner.lora else 0
    compute = Compute(
        element, is_compiled(model, on_gpu), kernel=on_gpu and element == 2, rank=rank, host=on_gpu
    )  # fmt: skip
    training = Training(element, weights, adapters=trained if learner.lora else 0, rounds=rounds)
    return Sizes.of(learner.model, blocks_of(learner.model)), compute, training


def policies_of(learner: Learner, model: Model) -> list[Policy]:
    """Of the last row, for each block."""
    keeping = learner._keeping
    if keeping is not None:
        return keeping.policies
    chosen: Policy = "none" if model.recompute == "auto" else model.recompute
    return [chosen] * len(blocks_of(learner.model))


def probe(
    path: Path, model: Model, rows: Sequence[Sequence[int]], *, reinforced: bool = False, lora: Lora | None = None,
    short_first: bool = False,
) -> Probed:  # fmt: skip
    """Two steps of one process on `rows`, each a list of the lengths of its documents. `short_first`: the first of
    them on a few tokens, where a step takes long."""
    learner = Learner(path, model, Optimizer(learning_rate=1e-6, warmup_steps=0, offload="off"), 10, lora=lora)
    sizes, compute, training = describe(learner, model, len(rows))
    batches = sample_rows(rows, sizes.vocabulary, learner.device)
    _step(learner, sample_rows([[FIRST]], sizes.vocabulary, learner.device) if short_first else batches, reinforced)
    watch = nullcontext() if learner.device.type == "cuda" else Live(_held(learner))
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with watch:
        _step(learner, batches, reinforced)
    if isinstance(watch, Live):
        allocated, reserved = watch.peak, 0
    else:
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    seconds = time.perf_counter() - began
    policies = policies_of(learner, model)
    row = row_of(sizes, training, max(sum(lengths) for lengths in rows), known=not reinforced)
    predicted = forecast(sizes, compute, training, row, policies)
    return Probed(dict(Counter(policies)), predicted, allocated, reserved, seconds)


def _step(learner: Learner, batches: list[Batch], reinforced: bool) -> None:
    if reinforced:
        anchors = learner.logprobs(batches)
        learner.accumulate(batches, ClippedPolicyLoss(0.2, 0.28), anchors)
    else:
        learner.accumulate(batches, cross_entropy)
    learner.update()


def _held(learner: Learner) -> list[torch.Tensor]:
    state: list[Any] = [*learner.model.parameters(), *learner.model.buffers(), *learner.state().values()]
    return [tensor for tensor in state if isinstance(tensor, torch.Tensor)]


def measured_factor(found: Probed) -> float:
    """What a row's bytes are to be multiplied by, so that the prediction is what was measured."""
    row = found.forecast.peak
    others = found.forecast.total - row.total + row.gradients
    return max(0.5, (found.allocated - others) / (row.total - row.gradients))


def probe_stages(planner: Planner, works: Sequence[Work]) -> Iterator[tuple[str, Probed | str]]:
    """For each stage that trains: its longest row in this process, as long as a process's slice of it. Yields the
    stage's name and what was found, or why nothing was; later plans of the planner are corrected."""
    model = planner.recipe.model
    with tempfile.TemporaryDirectory() as place:
        if model.tiny is not None:
            path = Path(place) / "tiny"
            LlamaForCausalLM(tiny_config(model.tiny)).save_pretrained(path)
        elif model.path is not None and Path(model.path).is_dir():
            path = Path(model.path)
        else:
            raise UserError(f"--probe runs the model, and there is no folder {model.path} here; leave --probe out")
        for work in (work for work in works if work.trains):
            setup = planner.asked(work)
            tokens = min(-(-setup.row // setup.shape.sp), _positions(path))
            config = model.model_copy(update={"path": str(path), "tiny": None, "sizes": None})
            lora = getattr(planner.recipe.stage[work.name], "lora", None)
            try:
                found = probe(path, config, [[tokens]], reinforced=not work.known, lora=lora)
            except torch.OutOfMemoryError as error:
                yield work.name, f"{tokens:,} tokens ran out of memory here ({str(error).splitlines()[0]})"
                continue
            finally:
                gc.collect()
            planner.corrections[work.name] = measured_factor(found)
            yield work.name, found


def _positions(path: Path) -> int:
    return int(getattr(load_config(path), "max_position_embeddings", None) or 1 << 30)
