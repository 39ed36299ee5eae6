"""A module that maps each token by itself, an MLP or a norm, run on one tile of the tokens after the other (the idea of
ALST, arXiv 2506.13996): what it computes on the way exists for a tile only, in the forward and in the backward pass.

Legend: T tokens, t tokens of a tile, D model. The backward pass runs each tile again and sums the gradients of the
parameters over the tiles in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from motet.model.footprint import TILE


def tile(module: torch.nn.Module, size: int = TILE) -> None:
    """Replaces its forward pass: [1, T, D] -> [1, T, E], where token i of the result depends on token i alone. A row of
    at most `size` tokens is run as before."""
    module.forward = partial(_run, module, size)


def _run(module: torch.nn.Module, size: int, hidden_1TD: torch.Tensor) -> torch.Tensor:
    if hidden_1TD.shape[1] <= size:
        whole: torch.Tensor = type(module).forward(module, hidden_1TD)
        return whole
    parameters = dict(module.named_parameters())
    out: torch.Tensor = _Tiled.apply(module, size, tuple(parameters), hidden_1TD, *parameters.values())  # type: ignore[no-untyped-call]
    return out


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        module: torch.nn.Module,
        size: int,
        names: tuple[str, ...],
        hidden_1TD: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.module, ctx.size, ctx.names = module, size, names
        ctx.save_for_backward(hidden_1TD, *parameters)
        out: torch.Tensor | None = None
        for part in _parts(hidden_1TD.shape[1], size):
            piece_1tE = type(module).forward(module, hidden_1TD[:, part])
            if out is None:
                out = piece_1tE.new_empty(1, hidden_1TD.shape[1], piece_1tE.shape[2])
            out[:, part] = piece_1tE
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad_1TE: torch.Tensor) -> tuple[Any, ...]:
        hidden_1TD, *parameters = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        sums = {i: torch.zeros_like(parameters[i], dtype=torch.float32) for i in wanted}
        grad_hidden_1TD = torch.empty_like(hidden_1TD)
        for part in _parts(hidden_1TD.shape[1], ctx.size):
            with torch.enable_grad():
                piece = hidden_1TD[:, part].detach().requires_grad_()
                own = [parameter.detach().requires_grad_(i in sums) for i, parameter in enumerate(parameters)]
                out = _called(ctx.module, dict(zip(ctx.names, own, strict=True)), piece)
            grads = torch.autograd.grad(out, [piece, *(own[i] for i in wanted)], grad_1TE[:, part])
            grad_hidden_1TD[:, part] = grads[0]
            for i, grad in zip(wanted, grads[1:], strict=True):
                sums[i] += grad
        found = (sums[i].to(p.dtype) if i in sums else None for i, p in enumerate(parameters))
        return None, None, None, grad_hidden_1TD, *found


def _called(module: torch.nn.Module, parameters: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """The module's own class's forward pass, on these parameters."""
    tiled, module.forward = module.forward, partial(type(module).forward, module)
    try:
        out: torch.Tensor = torch.func.functional_call(module, parameters, (hidden,))
    finally:
        module.forward = tiled
    return out


def _parts(tokens: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
