"""FSDP2 over the mesh: block by block, then the root with embeddings, last norm and head."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from motet.base.recipe import Mesh as MeshConfig
from motet.model.blocks import blocks_of
from motet.train.mesh import Mesh
from motet.train.policy import Policy


def shard(policy: Policy, mesh: Mesh, config: MeshConfig, dtype: torch.dtype) -> FSDPModule:
    """Weights are gathered in `dtype`; gradients are summed, never averaged, in float32."""
    shared: dict[str, Any] = {
        "mesh": mesh.states,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    blocks = blocks_of(policy.model)
    for place, block in enumerate(blocks):
        # the backward pass begins with the last block: it would be gathered again at once
        last = place == len(blocks) - 1
        fully_shard(block, reshard_after_forward=config.reshard_after_forward and not last, **shared)
    root: FSDPModule = fully_shard(policy, reshard_after_forward=False, **shared)
    for module in (root, *blocks):
        assert isinstance(module, FSDPModule)
        # one division is enough, by the step's number of tokens; gloo has no sum with a factor
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return root


def begin_round(root: FSDPModule, config: MeshConfig, last: bool) -> None:
    """Before each micro-batch. With the last one of a step the gradients cross the network, and the root, which the
    other rounds leave gathered, is cut again."""
    root.set_requires_gradient_sync(last or not config.reduce_once)
    root.set_requires_all_reduce(last)
    root.set_reshard_after_backward(last, recurse=False)


def cut_again(root: FSDPModule) -> None:
    """After forward passes without a backward one: what they left gathered is freed."""
    assert isinstance(root, torch.nn.Module)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def largest_part(own: torch.Tensor) -> int:
    """Elements of the largest part of it that a process has: what all of them count with, to decide alike."""
    if not isinstance(own, DTensor):
        return own.numel()
    rows, parts = own.shape[0], 1
    for place, axis in zip(own.placements, range(own.device_mesh.ndim), strict=True):
        parts *= own.device_mesh.size(axis) if place.is_shard(0) else 1
    return -(-rows // parts) * (own.numel() // rows)
