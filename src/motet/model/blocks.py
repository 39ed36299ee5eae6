"""The blocks of a model, and what is done to each before training: checkpointing, then compilation, then sharding.

The order matters. Recomputation has to happen inside what is compiled, and sharding's hooks outside of both: they
gather a block's weights before it runs and free them after.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from motet.base.errors import UserError
from motet.base.recipe import Model
from motet.model import recompute
from motet.model.keep import Keeping
from motet.model.tiles import tile


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """The transformer blocks of a causal LM, in order."""
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(f"{type(model).__name__}: no list of {count} blocks was found, which motet does not support yet")


def is_compiled(config: Model, on_gpu: bool) -> bool:
    """Whether blocks are compiled; what is offloaded never is."""
    wanted = config.compile == "on" or (config.compile == "auto" and on_gpu and config.dtype != "float32")
    return wanted and config.recompute != "offload"


def prepare(model: Any, config: Model, device: torch.device, any_length: bool = False) -> Keeping | None:
    """The one place where a block's recomputation and compilation are chosen; afterwards it may be sharded. Returns
    what chooses for each row, where the recipe leaves it open and there is a device's memory to choose by.
    `any_length`: rows will be of many lengths."""
    blocks = blocks_of(model)
    on_gpu = device.type == "cuda"
    compiled = is_compiled(config, on_gpu)
    keeping = None
    if config.recompute != "auto":
        recompute.apply(blocks, config.recompute, compiled, any_length=any_length)
    elif on_gpu:
        keeping = Keeping(blocks, model, device, getattr(torch, config.dtype), compiled)
        recompute.apply(blocks, keeping, compiled, any_length=any_length)
    else:
        recompute.apply(blocks, "none", compiled, any_length=any_length)
    norm = getattr(model.base_model, "norm", None)
    if compiled and norm is not None:
        norm.forward = partial(recompute.compile_row(type(norm).forward, any_length), norm)
    elif config.recompute == "offload" and norm is not None:
        tile(norm)
    return keeping
