"""GPU memory that torch keeps for the learner's next step, given to an engine in the same process while that is awake.

torch's allocator hands a tensor a segment of the device and keeps the segment when the tensor dies. A training step
leaves hundreds of segments behind; vLLM's allocator cannot use one of them, so they go back before it wakes, each by a
call of its own, and the next step asks for hundreds anew. Here the learner's memory is asked for in a few large
segments once the engine sleeps: what the step needs is cut from them, and the next giving back is as few calls. No more
is asked for than any step had in use: what else torch held was holes, and would grow with each turn.
"""

from __future__ import annotations

import torch

SEGMENT = 1 << 30
"""Bytes of one: the largest tensors of a step, a chunk of logits (model/footprint.py: HEAD_BUDGET), fit into it. A
tensor that outlives a step keeps one segment from going back, and no more."""


class LentMemory:
    def __init__(self) -> None:
        self._lent = 0
        """Bytes that were given since the engine slept last."""

    def give(self) -> None:
        """All that torch keeps and no tensor uses goes back to the device."""
        if torch.cuda.is_available():
            held = torch.cuda.memory_reserved()
            torch.cuda.empty_cache()
            self._lent += held - torch.cuda.memory_reserved()

    def take_back(self) -> None:
        """As much as was given and a step had in use, in segments of SEGMENT bytes; less where others have taken it."""
        if torch.cuda.is_available():
            used = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
            whole, self._lent = min(self._lent, used) // SEGMENT, 0
            pieces = []
            try:
                for _ in range(whole):
                    pieces.append(torch.empty(SEGMENT, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                return
