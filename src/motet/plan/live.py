"""Bytes of the tensors that are alive, counted operation by operation: a CUDA allocator's figure, on any device.

What an operation allocates for itself and frees again is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Inside `with Live() as live:`, `live.peak` is the highest number of bytes in storages that operations made."""

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        """`held`: tensors that are there already and count too."""
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in held:
            self._add(tensor)
        self.peak = self.now()

    def now(self) -> int:
        """Asked of each storage anew: FSDP empties those of gathered weights and fills them again."""
        alive = (reference() for reference in list(self._storages.values()))
        return sum(storage.nbytes() for storage in alive if storage is not None)

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        self.peak = max(self.peak, self.now())
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key, None))
