"""Sequence parallelism by heads (DeepSpeed-Ulysses, arXiv 2309.14509): all-to-all, attend, all-to-all.

Legend: P processes of the group, T tokens of the packed row, t = T / P of one process, H query heads, K key/value
heads, D head width.

Outside attention each process holds a slice of the row's tokens with all heads; inside, all tokens of a slice of the
heads. Attention itself does not know: it sees a whole row, its documents where they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from motet.model.kernels import Documents

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents, float | None], torch.Tensor]


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share a row. A name and a number, so that compiled code can hold it."""

    group: str
    size: int

    @staticmethod
    def of(group: dist.ProcessGroup) -> SequenceGroup:
        return SequenceGroup(group.group_name, group.size())


def ulysses(attend: Attend, sequence: SequenceGroup) -> Attend:
    """`attend` on a slice of the tokens: [t, H, D], [t, K, D], [t, K, D] -> [t, H, D]."""

    def attend_by_heads(
        query_tHD: torch.Tensor,
        key_tKD: torch.Tensor,
        value_tKD: torch.Tensor,
        documents: Documents,
        scaling: float | None = None,
    ) -> torch.Tensor:
        repeats = sequence.size // math.gcd(sequence.size, key_tKD.shape[1])
        if repeats > 1:  # a head for every process: with query head h goes key head h // (H / K), before and after
            key_tKD, value_tKD = (x.repeat_interleave(repeats, 1) for x in (key_tKD, value_tKD))
        query_THD, key_TKD, value_TKD = (_to_heads(x, sequence) for x in (query_tHD, key_tKD, value_tKD))
        return _to_tokens(attend(query_THD, key_TKD, value_TKD, documents, scaling), sequence)

    return attend_by_heads


def _to_heads(x_tHD: torch.Tensor, sequence: SequenceGroup) -> torch.Tensor:
    """[t, H, D] -> [T, H / P, D]."""
    tokens, heads, width = x_tHD.shape
    sent = x_tHD.view(tokens, sequence.size, heads // sequence.size, width).transpose(0, 1).contiguous()
    received: torch.Tensor = exchange(sent, sequence.group)
    return received.flatten(0, 1)


def _to_tokens(x_THD: torch.Tensor, sequence: SequenceGroup) -> torch.Tensor:
    """[T, H / P, D] -> [t, H, D]."""
    received: torch.Tensor = exchange(x_THD.view(sequence.size, -1, *x_THD.shape[1:]).contiguous(), sequence.group)
    return received.transpose(0, 1).flatten(1, 2)


@torch.library.custom_op("motet::exchange", mutates_args=())
def exchange(x: torch.Tensor, group: str) -> torch.Tensor:
    """Part i of the first axis goes to process i, and what process i sent comes to place i. Its own inverse. An
    operation that the dispatcher sees: recomputation can choose to keep its result, and compilation leaves it whole."""
    received = x.new_empty(x.shape)  # empty_like would take over strides, and the wire knows contiguous buffers only
    dist.all_to_all_single(received, x.contiguous(), group=_group(group))
    return received


@exchange.register_fake
def _(x: torch.Tensor, group: str) -> torch.Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[torch.Tensor, str], output: torch.Tensor) -> None:
    ctx.group = inputs[1]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return exchange(grad.contiguous(), ctx.group), None


exchange.register_autograd(_backward, setup_context=_setup)


class _Joined(torch.autograd.Function):
    """Values of a row's scored tokens: each process gives those of its slice, all have all of them."""

    @staticmethod
    def forward(ctx: Any, part_n: torch.Tensor, start: int, total: int, group: str) -> torch.Tensor:
        ctx.place = slice(start, start + part_n.shape[0])
        whole_N = part_n.new_zeros(total)
        whole_N[start : start + part_n.shape[0]] = part_n
        dist.all_reduce(whole_N, group=_group(group))
        return whole_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        # every process computes the same loss of the whole row: the gradient of its slice counts once
        return grad_N[ctx.place].contiguous(), None, None, None


def _group(name: str) -> dist.ProcessGroup:
    """By name, as torch's own collective operators find theirs."""
    resolve: Any = distributed_c10d._resolve_process_group
    group: dist.ProcessGroup = resolve(name)
    return group


def joined(part_n: torch.Tensor, start: int, total: int, sequence: SequenceGroup) -> torch.Tensor:
    """[n] of this process, which begins at `start` of the row's `total` scored tokens, -> [N]; differentiable."""
    whole_N: torch.Tensor = _Joined.apply(part_n, start, total, sequence.group)  # type: ignore[no-untyped-call]
    return whole_N
