"""Pinned host memory in pieces: what copies to and from a GPU run on their own from.

torch asks the driver for pinned memory, which faults in page after page by one thread: 0.84 GiB/s on a host where 8
threads that touch and register ordinary memory made 3.2 GiB/s (128 MiB at a time, 16 cores). Training at 64K tokens
takes 38 GB of it, a row of 2 million tokens 125. Where registering fails, it is torch's.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

PIECE = 2**27
"""Bytes of a piece. A power of two: torch rounds a pinned buffer's size up to the next one, which for an input of 2.1
GiB would take 4."""
THREADS = 8


def pieces(count: int, on_gpu: bool) -> list[torch.Tensor]:
    """So many [PIECE] uint8; for a GPU pinned, of no given content."""
    if not on_gpu:
        return [torch.empty(PIECE, dtype=torch.uint8) for _ in range(count)]
    device = torch.cuda.current_device()

    def piece(_: int) -> torch.Tensor:
        torch.cuda.set_device(device)  # a thread's own
        return _registered()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(piece, range(count)))


def cut(own: Sequence[torch.Tensor], start: int, tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Part by part, where a tensor's bytes are in pieces that lie one after the other, and these bytes. It begins at
    byte `start`."""
    flat, done = tensor.view(-1).view(torch.uint8), 0
    while done < flat.numel():
        index, inside = divmod(start + done, PIECE)
        piece = own[index][inside : inside + flat.numel() - done]
        yield piece, flat[done : done + piece.numel()]
        done += piece.numel()


class _Memory(mmap.mmap):
    """Ends its registration before its pages go."""

    address = 0
    """Where it is registered; 0: nowhere."""

    def __del__(self) -> None:
        if self.address and not sys.is_finalizing():
            torch.cuda.synchronize()  # a copy may be on its way
            _runtime().cudaHostUnregister(self.address)


def _registered() -> torch.Tensor:
    memory = _Memory(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # a child that is forked would share its pages until one of the two writes, and the GPU would keep the other's
    memory.madvise(mmap.MADV_DONTFORK)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    piece = torch.frombuffer(memory, dtype=torch.uint8).fill_(0)
    if int(_runtime().cudaHostRegister(piece.data_ptr(), PIECE, 0)):
        return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
    memory.address = piece.data_ptr()
    return piece


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
