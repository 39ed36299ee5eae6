"""A block in three parts: what it does to each token by itself before attention, attention, and what it does to each
token after. The outer two run on one tile of the tokens after the other, forward and backward (the idea of ALST, arXiv
2506.13996, for a whole block), so what they compute on the way exists for a tile only.

A part is the block's own forward pass with another attention function: one that ends it, or one whose result is there
already. So it holds for every block in which attention alone looks at other tokens. What comes before attention is
computed once more with what comes after it.

Legend: T tokens of a row, t tokens of a tile, H query heads, K key/value heads, E head width, D model. In the backward
pass of a row, bytes for each token, e a value's, beside the block's input and the gradients of input and result:
queries, keys, values and their gradients 2 e E (H + 2 K), attention's result and its gradient 2 e E H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from motet.model.attention import OfRow


class _Reached(Exception):  # no error: the first part ends here
    def __init__(self, inputs: tuple[torch.Tensor, ...], scaling: float | None) -> None:
        super().__init__()
        self.inputs, self.scaling = inputs, scaling


class Halves:
    """One block on one row. `attend` is what the block's attention does with the whole row; `args` and `kwargs` are
    what its forward pass is given beside the hidden states; `size` is of a tile."""

    def __init__(
        self, block: torch.nn.Module, attend: OfRow, args: tuple[Any, ...], kwargs: dict[str, Any], size: int
    ) -> None:
        self._block, self._attend, self._args, self._kwargs, self._size = block, attend, args, kwargs, size

    @torch.no_grad()
    def forward(self, hidden_1TD: torch.Tensor) -> torch.Tensor:
        inputs, scaling = self._inputs(hidden_1TD)
        out_THE = self._attend(inputs[0], inputs[1], inputs[2], scaling)
        del inputs
        result_1TD = torch.empty_like(hidden_1TD)
        for part in self._parts(hidden_1TD):
            result_1TD[:, part] = self._after(hidden_1TD[:, part], out_THE[part], part, hidden_1TD.shape[1])
        return result_1TD

    def backward(
        self, hidden_1TD: torch.Tensor, grad_1TD: torch.Tensor, past_the_peak: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """The gradient of the block's input; those of its parameters are added to theirs, summed over the tiles in
        float32. `past_the_peak` is called when attention's backward pass is done, where most memory is taken."""
        tokens = hidden_1TD.shape[1]
        sums = _Sums([p for p in self._block.parameters() if p.requires_grad])
        found, scaling = self._inputs(hidden_1TD)
        inputs = [x.requires_grad_() for x in found]
        del found
        with torch.enable_grad():
            out_THE = self._attend(inputs[0], inputs[1], inputs[2], scaling)
        grad_out_THE = torch.empty_like(out_THE)
        grad_hidden_1TD = torch.empty_like(hidden_1TD)
        for part in self._parts(hidden_1TD):
            with torch.enable_grad():
                piece, out = (x.detach().requires_grad_() for x in (hidden_1TD[:, part], out_THE[part]))
                result = self._after(piece, out, part, tokens)
            grads = sums.add([result], [piece, out], [grad_1TD[:, part]])
            grad_hidden_1TD[:, part], grad_out_THE[part] = grads
            del piece, out, result, grads
        grad_inputs = torch.autograd.grad(out_THE, inputs, grad_out_THE)
        del inputs, out_THE, grad_out_THE
        past_the_peak()
        for part in self._parts(hidden_1TD):
            with torch.enable_grad():
                piece = hidden_1TD[:, part].detach().requires_grad_()
                before, _ = self._before(piece, part, tokens)
            (grad,) = sums.add(before, [piece], [g[part] for g in grad_inputs])
            grad_hidden_1TD[:, part] += grad
            del piece, before, grad
        sums.give()
        return grad_hidden_1TD

    def _parts(self, hidden_1TD: torch.Tensor) -> list[slice]:
        tokens = hidden_1TD.shape[1]
        return [slice(start, min(start + self._size, tokens)) for start in range(0, tokens, self._size)]

    @torch.no_grad()
    def _inputs(self, hidden_1TD: torch.Tensor) -> tuple[list[torch.Tensor], float | None]:
        """Of the whole row's attention."""
        whole: list[torch.Tensor] = []
        scaling = None
        for part in self._parts(hidden_1TD):
            found, scaling = self._before(hidden_1TD[:, part], part, hidden_1TD.shape[1])
            whole = whole or [x.new_empty(hidden_1TD.shape[1], *x.shape[1:]) for x in found]
            for one, piece in zip(whole, found, strict=True):
                one[part] = piece
        return whole, scaling

    def _before(
        self, hidden_1tD: torch.Tensor, part: slice, tokens: int
    ) -> tuple[tuple[torch.Tensor, ...], float | None]:
        def end(*inputs_and_scaling: Any) -> torch.Tensor:
            *inputs, scaling = inputs_and_scaling
            raise _Reached(tuple(inputs), scaling)

        try:
            self._run(hidden_1tD, part, tokens, end)
        except _Reached as reached:
            reached.__traceback__ = None  # its frames hold what the part computed on the way
            return reached.inputs, reached.scaling
        raise AssertionError(f"{type(self._block).__name__} did not call attention")

    def _after(self, hidden_1tD: torch.Tensor, out_tHE: torch.Tensor, part: slice, tokens: int) -> torch.Tensor:
        return self._run(hidden_1tD, part, tokens, lambda *_: out_tHE)

    def _run(self, hidden_1tD: torch.Tensor, part: slice, tokens: int, attend: OfRow) -> torch.Tensor:
        args, kwargs = _cut((self._args, self._kwargs), part, tokens)
        found: torch.Tensor = type(self._block).forward(self._block, hidden_1tD, *args, **kwargs, instead=attend)
        return found


class _Sums:
    """Float32 sums of gradients of parameters."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sums: list[torch.Tensor | None] = [None] * len(self._parameters)

    def add(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of `inputs`; those of parameters are added."""
        wanted = [*inputs, *self._parameters]
        found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
        for i, grad in enumerate(found[len(inputs) :]):
            if grad is not None:
                own = self._sums[i]
                self._sums[i] = grad.float() if own is None else own.add_(grad)
        return found[: len(inputs)]

    def give(self) -> None:
        """To the parameters, as a backward pass does: hooks on them run."""
        pairs = [(p, s.to(p.dtype)) for p, s in zip(self._parameters, self._sums, strict=True) if s is not None]
        self._sums = []
        if pairs:
            torch.autograd.backward([p for p, _ in pairs], [s for _, s in pairs])


def _cut(value: Any, part: slice, tokens: int) -> Any:
    """Of every tensor [1, T, ...] or [T] the tokens of the tile."""
    if isinstance(value, torch.Tensor):
        if value.ndim >= 2 and value.shape[0] == 1 and value.shape[1] == tokens:
            return value[:, part]
        return value[part] if value.shape == (tokens,) else value
    if type(value) in (tuple, list):
        return type(value)(_cut(one, part, tokens) for one in value)
    return {key: _cut(one, part, tokens) for key, one in value.items()} if type(value) is dict else value
