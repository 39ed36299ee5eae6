"""AdamW of all parameters in one pass over memory, in triton: clipping, weight decay, both moments, the step, and the
rounded weights that the model computes with.

torch's fused AdamW wants gradients of the weights' type. Computed in bfloat16 on float32 weights, a parameter's
gradient would be copied into float32, read for the norm, read again, and the new weight read once more to be rounded:
44 bytes a parameter, where 30 are enough (gradient twice 2; weight and moments read and written, 24; rounded 2).

Its slow twin is torch's AdamW (tests/test_adamw_kernels.py). Legend: P parameters (tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

Item = TypeVar("Item")
Key = TypeVar("Key")

BLOCK, WARPS = 1024, 4
"""Elements of a program, and its warps."""
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Tensors(NamedTuple):
    """Of one parameter, all of one shape and laid out alike, without gaps: as autograd lays gradients out."""

    weight: torch.Tensor
    gradient: torch.Tensor
    first: torch.Tensor
    """Moment, of the weight's type, like the second."""
    second: torch.Tensor
    rounded: torch.Tensor | None
    """Gets the new weight."""

    @property
    def types(self) -> tuple[torch.dtype, torch.dtype, torch.dtype | None]:
        return self.weight.dtype, self.gradient.dtype, None if self.rounded is None else self.rounded.dtype


class Places:
    """Which piece of which tensor a program works on; the same in every step."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, sizes: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensor and piece of each program, int32."""
        if sizes not in self._known:
            pieces_P = torch.tensor([-(-size // BLOCK) for size in sizes])
            tensors = torch.repeat_interleave(torch.arange(len(sizes)), pieces_P)
            begins_P = pieces_P.cumsum(0) - pieces_P
            pieces = torch.arange(len(tensors)) - begins_P[tensors]
            self._known[sizes] = tensors.int().to(device), pieces.int().to(device)
        return self._known[sizes]


class Table:
    """Where all of a step's tensors lie: copied to the device once, for both kernels."""

    def __init__(self, parameters: Sequence[Tensors], places: Places) -> None:
        self._device = parameters[0].weight.device
        self._groups: list[_Group] = []
        for types, own in _grouped(enumerate(parameters), lambda pair: pair[1].types):
            rows = []
            for index, p in own:
                rounded = p.weight if p.rounded is None else p.rounded
                addresses = [tensor.data_ptr() for tensor in (p.weight, p.gradient, p.first, p.second, rounded)]
                rows.append([*addresses, p.weight.numel(), index])
            sizes = tuple(row[-2] for row in rows)
            tensors, pieces = places.of(sizes, self._device)
            # 16 bytes are read at once where all tensors begin at a multiple of them, as torch's own do
            alignment = 16 if all(address % 16 == 0 for row in rows for address in row[:5]) else 1
            self._groups.append(_Group(types, _on(self._device, rows), tensors, pieces, alignment))

    def squares(self) -> torch.Tensor:
        """The sum of all gradients' squares, a float32 scalar on the device; each program's sum is float32, theirs
        float64."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for own in self._groups:
            sums = torch.empty(len(own.tensors), dtype=torch.float32, device=self._device)
            _squares[(len(own.tensors),)](
                own.table, own.tensors, own.pieces, sums,
                G=_TYPES[own.types[1]], ALIGNED=own.alignment, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
            total += sums.sum(dtype=torch.float64)
        return total.float()

    def step(
        self,
        numbers_P3: torch.Tensor,
        scale: torch.Tensor,
        skip: torch.Tensor,
        rate: float,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        """One step of AdamW (Loshchilov & Hutter, ICLR 2019, algorithm 2) on the gradients divided by `scale`; nothing
        is written where `skip` is not 0. `numbers_P3`, float32: 1 - beta1^t, sqrt(1 - beta2^t), weight decay."""
        for own in self._groups:
            weight, gradient, rounded = own.types
            _step[(len(own.tensors),)](
                own.table, own.tensors, own.pieces, numbers_P3, scale, skip, rate,
                betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], epsilon,
                W=_TYPES[weight], G=_TYPES[gradient], R=_TYPES[rounded or weight], ROUNDS=rounded is not None,
                ALIGNED=own.alignment, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip


class _Group(NamedTuple):
    """Of parameters of the same types."""

    types: tuple[torch.dtype, torch.dtype, torch.dtype | None]
    table: torch.Tensor
    """A row for each: addresses of weight, gradient, moments and rounded weight, size, place among all parameters."""
    tensors: torch.Tensor
    pieces: torch.Tensor
    alignment: int


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> Iterable[tuple[Key, list[Item]]]:
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found.items()


def _on(device: torch.device, values: list[list[int]]) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=torch.int64)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _squares(table, tensors, pieces, sums, G: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    row = table + tl.load(tensors + program) * 7
    start = tl.load(pieces + program).to(tl.int64) * BLOCK
    gradients = tl.multiple_of(tl.load(row + 1), ALIGNED).to(tl.pointer_type(G)) + start + tl.arange(0, BLOCK)
    left = tl.load(row + 5) - start
    if left >= BLOCK:  # a mask would keep the compiler from reading 16 bytes at once
        g = tl.load(gradients).to(tl.float32)
    else:
        g = tl.load(gradients, mask=tl.arange(0, BLOCK) < left, other=0.0).to(tl.float32)
    tl.store(sums + program, tl.sum(g * g, 0))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _stepped(w, g, m, v, scale, rate, decay, b1, a1, b2, a2, epsilon, c1, c2):  # type: ignore[no-untyped-def]
    g, w = g.to(tl.float32) / scale, w.to(tl.float32)
    m = b1 * m.to(tl.float32) + a1 * g
    v = b2 * v.to(tl.float32) + a2 * g * g
    # rounded once: 1 - rate x decay would be a number of steps of 6e-8
    return w - rate * (decay * w + m / c1 / (tl.sqrt_rn(v) / c2 + epsilon)), m, v


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _step(  # type: ignore[no-untyped-def]
    table, tensors, pieces, numbers, scale, skip, rate, b1, a1, b2, a2, epsilon,
    W: tl.constexpr, G: tl.constexpr, R: tl.constexpr, ROUNDS: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        program = tl.program_id(0)
        row = table + tl.load(tensors + program) * 7
        start = tl.load(pieces + program).to(tl.int64) * BLOCK
        lanes = tl.arange(0, BLOCK)
        ws = tl.multiple_of(tl.load(row), ALIGNED).to(tl.pointer_type(W)) + start + lanes
        gs = tl.multiple_of(tl.load(row + 1), ALIGNED).to(tl.pointer_type(G)) + start + lanes
        ms = tl.multiple_of(tl.load(row + 2), ALIGNED).to(tl.pointer_type(W)) + start + lanes
        vs = tl.multiple_of(tl.load(row + 3), ALIGNED).to(tl.pointer_type(W)) + start + lanes
        rs = tl.multiple_of(tl.load(row + 4), ALIGNED).to(tl.pointer_type(R)) + start + lanes
        left = tl.load(row + 5) - start
        own = numbers + 3 * tl.load(row + 6)
        c1, c2, decay, divisor = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(scale)
        if left >= BLOCK:
            w, m, v = _stepped(
                tl.load(ws), tl.load(gs), tl.load(ms), tl.load(vs),
                divisor, rate, decay, b1, a1, b2, a2, epsilon, c1, c2,
            )  # fmt: skip
            tl.store(ws, w.to(W))
            tl.store(ms, m.to(W))
            tl.store(vs, v.to(W))
            if ROUNDS:
                tl.store(rs, w.to(R))
        else:
            here = lanes < left
            w, m, v = _stepped(
                tl.load(ws, mask=here, other=0.0), tl.load(gs, mask=here, other=0.0),
                tl.load(ms, mask=here, other=0.0), tl.load(vs, mask=here, other=0.0),
                divisor, rate, decay, b1, a1, b2, a2, epsilon, c1, c2,
            )  # fmt: skip
            tl.store(ws, w.to(W), mask=here)
            tl.store(ms, m.to(W), mask=here)
            tl.store(vs, v.to(W), mask=here)
            if ROUNDS:
                tl.store(rs, w.to(R), mask=here)
