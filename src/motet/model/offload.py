"""A block whose input waits for the backward pass in host memory, and which is computed again from it.

Copies run on a stream of their own: out while the next blocks run, back while the block after this one is computed
again. On a CPU, where there is nothing to move, this is full recomputation. A row longer than a tile goes through the
block in halves (model/halves.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from motet.model import attention, pinned
from motet.model.footprint import TILE
from motet.model.halves import Halves

SPARED = 6 * 2**30
"""Bytes of host memory that are left alone."""


def offloaded(
    host: Host, index: int, block: torch.nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """block(hidden, ...), of which only `hidden` is kept, outside of the device."""
    # a result has a gradient although nothing that goes into the first block may have one (adapters)
    anchor = torch.empty(0, device=hidden.device, requires_grad=True)
    out: torch.Tensor = _Offloaded.apply(anchor, hidden, host, index, block, args, kwargs)  # type: ignore[no-untyped-call]
    return out


def in_tiles(host: Host, block: torch.nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """block(hidden, ...) without gradients."""
    if hidden.shape[1] > host.tile:
        return _halves(host, block, args, kwargs).forward(hidden)
    out: torch.Tensor = type(block).forward(block, hidden, *args, **kwargs)
    return out


class Host:
    """Pinned pieces of host memory, those of a block used again in every step. Where host memory ends, inputs stay
    where they are: those of the later blocks, which the backward pass needs first."""

    def __init__(self, tile: int | None = None) -> None:
        """`tile`: tokens of one; unset, TILE."""
        self.tile = tile or TILE
        self._pieces: dict[int, list[torch.Tensor]] = {}
        self._held: dict[int, torch.Tensor | tuple[torch.Size, torch.dtype]] = {}
        self._coming: dict[int, tuple[torch.Tensor, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None

    def put(self, index: int, hidden: torch.Tensor) -> None:
        pieces = self._pieces.setdefault(index, [])
        missing = -(-hidden.nbytes // pinned.PIECE) - len(pieces)
        if not hidden.is_cuda or (missing > 0 and missing * pinned.PIECE > host_memory() - SPARED):
            self._held[index] = hidden
            return
        pieces += pinned.pieces(missing, on_gpu=True)
        self._held[index] = hidden.shape, hidden.dtype
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call,unused-ignore]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for piece, own in pinned.cut(pieces, 0, hidden):
                piece.copy_(own, non_blocking=True)
        hidden.record_stream(self._stream)

    def take(self, index: int) -> torch.Tensor:
        """The input of this block on the device."""
        held = self._held[index]
        if isinstance(held, torch.Tensor):
            found = held
        else:
            self._fetch(index, *held)
            found, ready = self._coming.pop(index)
            torch.cuda.current_stream().wait_event(ready)
        del self._held[index]
        return found

    def begin(self, index: int) -> None:
        """The input of this block, if there is one, begins to come back."""
        held = self._held.get(index)
        if isinstance(held, tuple):
            self._fetch(index, *held)

    def _fetch(self, index: int, shape: torch.Size, dtype: torch.dtype) -> None:
        if index in self._coming:
            return
        assert self._stream is not None
        hidden = torch.empty(shape, dtype=dtype, device="cuda")
        # its memory may have been another tensor's of the computation a moment ago
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for piece, own in pinned.cut(self._pieces[index], 0, hidden):
                own.copy_(piece, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
            ready.record(self._stream)
        self._coming[index] = hidden, ready


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that this process may still take: the machine's, or what its control group is allowed."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux
        return 1 << 62
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 1 << 62)
    group = root / "sys/fs/cgroup"
    try:
        most, now = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no group, or one without a limit
        return free
    return min(free, most - now + int(counts.get("inactive_file", 0)))


class _Offloaded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        hidden: torch.Tensor,
        host: Host,
        index: int,
        block: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        hidden = hidden.contiguous()
        ctx.call = host, index, block, args, kwargs
        host.put(index, hidden)
        return in_tiles(host, block, hidden, *args, **kwargs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        host, index, block, args, kwargs = ctx.call
        hidden = host.take(index)
        if hidden.shape[1] > host.tile:
            halves = _halves(host, block, args, kwargs)
            return None, halves.backward(hidden, grad, lambda: host.begin(index - 1)), *[None] * 5
        host.begin(index - 1)
        hidden = hidden.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            out = type(block).forward(block, hidden, *args, **kwargs)
        torch.autograd.backward(out, grad)
        return None, hidden.grad, *[None] * 5


def _halves(host: Host, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Halves:
    attend = attention.of_row(kwargs.get("documents"), kwargs.get("sequence"))
    return Halves(block, attend, args, kwargs, host.tile)
