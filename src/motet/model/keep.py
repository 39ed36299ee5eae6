"""Which blocks may keep how much for the backward pass: as much as the memory left allows.

The arithmetic is model/footprint.py's, the same as the plan's; what is allocated, and what is free, the device says.
The prediction is corrected by the peak that the first rows in fact had.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from motet.model import pinned
from motet.model.footprint import LINK, MARGIN, Compute, Row, Sizes, Training, choose, peak_of, state_of
from motet.model.kernels import Documents
from motet.model.offload import SPARED, host_memory
from motet.model.recompute import Policy

_UNCERTAIN, _MEASURED = 1.05, 1.02
"""Factors on the predicted bytes before and after a peak was seen."""
SEEN_MARGIN = 0.05
"""Of MARGIN what is left once a peak was seen: holes alone, whose size is known by then to be small beside it."""
_WORTH = 2**30
"""Bytes of a prediction from which on its error says something."""


class Keeping:
    """Chooses for each row. Its owner may set what the fields say; those that share a row have to compute the same
    things again, as these hold all-to-alls."""

    def __init__(
        self, blocks: Sequence[torch.nn.Module], model: Any, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        self.sizes = Sizes.of(model, blocks)
        ranks = [p.shape[0] for name, p in blocks[0].named_parameters() if ".lora_A." in name]
        kernel = dtype in (torch.bfloat16, torch.float16)
        self._compute = Compute(dtype.itemsize, compiled, kernel=kernel, rank=max(ranks, default=0))
        self._trained = sum(p.numel() for p in blocks[0].parameters() if p.requires_grad)
        self._head_trained = bool(model.get_output_embeddings().weight.requires_grad)
        self._device = device
        self.pending: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Bytes of the gradients, and of the optimizer state, that the step has yet to allocate."""
        self.agree: Callable[[int], int] = lambda room: room
        """Makes a number of bytes the same in all processes."""
        self.copies = 0
        """Bytes of host memory that a checkpoint takes of this process while it is written."""
        self.correction = _UNCERTAIN
        self.policies: list[Policy] = []
        """What was chosen last, for each block."""
        self._spread = Training(dtype.itemsize, dtype.itemsize)
        self._seen = False
        self._first, self._rounds = True, 1
        self._expected: tuple[int, int, int] | None = None
        self._host_room: int | None = None

    @property
    def words(self) -> str:
        """How many blocks have which policy."""
        return ", ".join(f"{count} x {policy}" for policy, count in Counter(self.policies).items())

    def spread(self, training: Training, sp: int) -> None:
        """The state is cut over processes, and `sp` of them share a row."""
        self._spread = training
        self._compute = replace(self._compute, sp=sp)

    def begin(self, place: int, rounds: int) -> None:
        """Row `place` of the `rounds` that this process works on in a step is next."""
        self._first, self._rounds = place == 0, rounds

    def __call__(self, tokens: int, documents: Documents | None = None) -> list[Policy]:
        gradients, states = self.pending()
        allocated, highest, reserved = _in_use(self._device)
        margin = SEEN_MARGIN if self._seen else MARGIN
        room = _usable(self._device, reserved, margin) - allocated - states
        row, waiting = self.row(tokens, gradients), self._waiting()
        if documents is not None:
            row = replace(row, attended=sum(n * n for n in documents.lengths) / sum(documents.lengths))
        if self._host_room is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self._host_room = self.agree(host_room(host_memory(), processes, self.copies))
            self._compute = replace(self._compute, link=self.agree(link(self._device)))
        policies = self.choose(row, self.agree(int((room - waiting) / self.correction)))
        self.policies = policies
        predicted = peak_of(self.sizes, self._compute, row, policies).total + waiting
        self._expected = allocated, predicted, highest
        return policies

    def row(self, tokens: int, gradients: int = 0) -> Row:
        """`gradients`: bytes that it is the first to allocate."""
        whole = self._trained * self.sizes.layers + (self.sizes.root if self._head_trained else 0)
        waiting = self._spread.parallel and self._spread.reduce_once and self._rounds > 1
        state = state_of(self.sizes, self._spread)
        return Row(
            tokens, tokens, head_trained=self._head_trained, trained=self._trained,
            fresh=gradients / whole if whole and not waiting else 0.0,
            passing=state.passing, reduced_at_end=state.reduced_at_end,
        )  # fmt: skip

    def choose(self, row: Row, room: int) -> list[Policy]:
        return choose(self.sizes, self._compute, row, room, self._host_room or 0)

    def _waiting(self) -> int:
        """Bytes yet to be allocated for whole gradients that wait for the step's last row. Gathered weights of the root
        and of the first block are there by now."""
        return state_of(self.sizes, self._spread).summed if self._first and self._rounds > 1 else 0

    def observe(self) -> None:
        """After a row's backward pass: where it set a new peak, that corrects the prediction."""
        if self._expected is None:
            return
        allocated, predicted, before = self._expected
        _, peak, _ = _in_use(self._device)
        if peak > before and predicted > _WORTH:
            self.correction = max(0.8, (peak - allocated) / predicted) * _MEASURED
            self._seen = True
        self._expected = None


def host_room(memory: int, processes: int, copies: int = 0) -> int:
    """Bytes of host memory, of which `memory` are to be had, that one of the processes of a machine takes for what its
    blocks keep: together they take half of what checkpoints leave, which take `copies` of each."""
    return max(0, memory - SPARED - processes * copies) // 2 // processes


def link(device: torch.device) -> int:
    """Bytes a second from a GPU to host memory, with what else goes on at the time: all processes of a machine ask at
    once."""
    if device.type != "cuda":
        return int(LINK)
    (piece,) = pinned.pieces(1, on_gpu=True)
    own = torch.empty(piece.numel(), dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(3):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        piece.copy_(own, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return int(piece.numel() / statistics.median(seconds))


def _in_use(device: torch.device) -> tuple[int, int, int]:
    """Bytes of tensors, the most there were, and what the allocator holds. torch.cuda.memory_allocated and its like
    flatten and sort all of the allocator's statistics to read one."""
    found = torch.cuda.memory_stats_as_nested_dict(device)
    if not found:  # nothing was allocated yet
        return 0, 0, 0
    tensors = found["allocated_bytes"]["all"]
    return tensors["current"], tensors["peak"], found["reserved_bytes"]["all"]["current"]


def _usable(device: torch.device, reserved: int, margin: float = MARGIN) -> int:
    """Bytes that this process may have in tensors, those that it has included: what others leave of the device, beside
    what it has `reserved`, or the share of it that was set (torch.cuda.set_per_process_memory_fraction)."""
    free, total = torch.cuda.mem_get_info(device)
    most = int(torch.cuda.get_per_process_memory_fraction() * total)  # it takes no device without a number
    return min(free + reserved, most) - int(margin * most)
