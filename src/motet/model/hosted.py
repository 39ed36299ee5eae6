"""What compiled blocks keep for the backward pass waits in host memory, and nothing of it is computed again.

On a long row a block's attention takes most of its time and little of the memory's, and the copy engines are idle:
what a block keeps leaves while the next ones run, and comes back while the one after it goes backward. How often that
can be, unseen, is a matter of arithmetic (model/footprint.py, `every`).

Tensors are caught where autograd saves them (`torch.autograd.graph.saved_tensors_hooks`): those as long as the row,
weights never. They stay on the device until the second block after theirs has run, which then waits for the copy; so
no memory is freed at a time that the host's lead decides, as it would be with `Tensor.record_stream`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from motet.model import pinned
from motet.model.footprint import BEHIND

LEAST = 256
"""Values of each token from which on a tensor is worth a copy; norms' deviations and log-sum-exps stay."""


class Hosted:
    """Of the blocks of a model. Pinned pieces are used again by every row."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._blocks: dict[int, weakref.WeakSet[_Away]] = {}
        self._leaving: deque[tuple[int, weakref.WeakSet[_Away]]] = deque()
        self._stream: torch.cuda.Stream | None = None

    def run(self, index: int, run: Callable[..., Any], block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """run(block, hidden_1TD, ...), of which what is kept begins to leave."""
        away: dict[tuple[int, int], _Away] = {}
        pack = partial(self._pack, away, args[0].shape[1])
        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
            out = run(block, *args, **kwargs)
        self._blocks[index] = weakref.WeakSet(away.values())
        self._leave(self._blocks[index])
        self._leaving.append((index, self._blocks[index]))
        return out

    def settle(self, index: int) -> None:
        """Before block `index` runs: of what began to leave BEHIND blocks ago, and of earlier rows, nothing is on the
        device any more."""
        while self._leaving and not index - BEHIND < self._leaving[0][0] < index:
            for one in self._leaving.popleft()[1]:
                one.let_go()

    def begin(self, index: int, _: torch.Tensor | None = None) -> None:
        """What this block kept begins to come back."""
        for one in self._blocks.get(index, ()):
            self._fetch(one)

    def _pack(self, away: dict[tuple[int, int], _Away], tokens: int, saved: torch.Tensor) -> Any:
        own = saved.detach()
        if not _is_long(saved, tokens):
            return own
        flat = own.as_strided((own.numel(),), (1,))
        key = (flat.data_ptr(), flat.nbytes)
        if key not in away:
            away[key] = _Away(flat)
        return _View(away[key], own.dtype, own.shape, own.stride())

    def _unpack(self, saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        away, dtype, shape, stride = saved
        if away.own is None:
            self._fetch(away)
            if away.ready is not None:
                torch.cuda.current_stream().wait_event(away.ready)
        flat: torch.Tensor = (away.own if away.own is not None else away.back).view(dtype)
        return flat.as_strided(shape, stride, flat.storage_offset())

    def _leave(self, block: weakref.WeakSet[_Away]) -> None:
        stream = self._after_the_queue(next(iter(block)).own) if block else None
        pieces, start = _Pieces(self._free, sum(one.nbytes for one in block), stream is not None), 0
        for one in block:
            one.pieces, one.start = pieces, start
            start += one.nbytes
            with torch.cuda.stream(stream):
                for piece, part in one.parts(one.own):
                    piece.copy_(part, non_blocking=True)
            one.left = _event(stream)

    def _fetch(self, one: _Away) -> None:
        if one.own is not None or one.back is not None:
            return
        one.back = torch.empty(one.size, dtype=one.dtype, device=one.device)
        stream = self._after_the_queue(one.back)  # its memory may have been another tensor's a moment ago
        with torch.cuda.stream(stream):
            for piece, part in one.parts(one.back):
                part.copy_(piece, non_blocking=True)
        one.ready = _event(stream)

    def _after_the_queue(self, tensor: torch.Tensor) -> torch.cuda.Stream | None:
        if not tensor.is_cuda:
            return None
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call,unused-ignore]
        self._stream.wait_stream(torch.cuda.current_stream())
        return self._stream


class _Pieces:
    """Host memory of a block's tensors, which lie there one after the other."""

    def __init__(self, free: list[torch.Tensor], size: int, on_gpu: bool) -> None:
        """`free`: those that nobody uses, where these come from and go to."""
        count = -(-size // pinned.PIECE)
        if count > len(free):
            free += pinned.pieces(count - len(free), on_gpu)
        self.own = [free.pop() for _ in range(count)]
        self._free = free

    def __del__(self) -> None:
        """The last of the tensors is gone. Copies are queued in order, so a piece may be used again at once."""
        self._free.extend(self.own)


class _Away:
    """One tensor's bytes: on the device until it is let go, in host memory, and back when asked for."""

    def __init__(self, own: torch.Tensor) -> None:
        self.own: Any = own
        self.size, self.dtype, self.device = own.numel(), own.dtype, own.device
        self.pieces: _Pieces | None = None
        self.start = 0
        """Of its bytes among the block's."""
        self.left: torch.cuda.Event | None = None
        self.back: Any = None
        self.ready: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def let_go(self) -> None:
        """What is queued from now on may use its memory."""
        if self.own is not None and self.left is not None:
            torch.cuda.current_stream().wait_event(self.left)
        self.own = None

    def parts(self, tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert self.pieces is not None
        return pinned.cut(self.pieces.own, self.start, tensor)

    def __del__(self) -> None:
        """The graph is done with it. Of one that was dropped, as after an error, copies may be on their way both ways:
        its memory on the device is nobody else's before they are there."""
        self.let_go()
        if self.ready is not None:
            torch.cuda.current_stream().wait_event(self.ready)


class _View(NamedTuple):
    """What autograd holds in place of a tensor."""

    away: _Away
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]


def _is_long(saved: torch.Tensor, tokens: int) -> bool:
    """Whether it grows with the row, and lies in one piece."""
    if isinstance(saved, torch.nn.Parameter) or saved.numel() < LEAST * tokens:
        return False
    dense = sorted(zip(saved.stride(), saved.shape, strict=True))
    expected = 1
    for stride, size in dense:
        if size > 1 and stride != expected:
            return False
        expected *= size
    return any(size % tokens == 0 for size in saved.shape)


def _event(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    if stream is None:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
    event.record(stream)
    return event
