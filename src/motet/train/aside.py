"""The optimizer's moments in host memory between an update and the end of the next backward pass.

Nothing reads them while rows go forward and backward, and they are 8 bytes a parameter: room for what blocks would
otherwise compute again. Copies run on a stream of their own, out while the next row goes forward, back while the last
row goes backward and frees what its blocks kept. On a CPU this is copying and changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from motet.base.errors import UserError
from motet.model import pinned
from motet.model.offload import SPARED, host_memory

SLOTS = ("exp_avg", "exp_avg_sq")
State = Mapping[Any, dict[str, Any]]
"""torch's: parameter -> slot -> value."""


class Moments:
    """Of one optimizer, and where they are, as `optimizer.offload` says."""

    def __init__(self, wanted: str, state: State, models: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """`models`: of each parameter that is stepped on the model's, whose gradient calls its moments back."""
        self.leaves = wanted == "on"
        """Whether they are put aside between an update and the end of the next backward pass."""
        self.last_row = False
        """Whether the row at work is a step's last."""
        self._state, self._stepped = state, list(models)
        self._aside: Aside | None = None
        in_parts = any(isinstance(parameter, DTensor) for parameter in models)
        if self.leaves and in_parts:
            raise UserError(
                'optimizer.offload = "on": moments are put aside where one process has all of them, here they are cut '
                "over several; take it out"
            )
        if self.leaves and not self._fit():
            raise UserError(
                'optimizer.offload = "on": host memory has no room for the moments, '
                f"{sum(2 * p.nbytes for p in self._stepped) / 2**30:.1f} GiB; take it out"
            )
        if self.leaves:
            for stepped, own in models.items():
                register: Any = own.register_post_accumulate_grad_hook
                register(partial(self._gradient_is_there, stepped))

    @property
    def bytes_away(self) -> int:
        return self._aside.bytes_away if self._aside is not None else 0

    def leave(self) -> None:
        if self.leaves and self._state:
            self._aside = self._aside or Aside(self._state, self._stepped)
            self._aside.leave()

    def here(self) -> None:
        """All are on the device for what is queued from now on."""
        if self._aside is not None:
            self._aside.ready()

    def copies(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of what is away, by slot, on the host."""
        return {} if self._aside is None else self._aside.copies(parameter)

    def forget(self) -> None:
        """The state is another's from now on."""
        self._aside = None

    def _gradient_is_there(self, stepped: torch.Tensor, _: torch.Tensor) -> None:
        if self.last_row and self._aside is not None:
            self._aside.come(stepped)

    def _fit(self) -> bool:
        """Whether host memory holds them."""
        return 2 * sum(p.nbytes for p in self._stepped) < host_memory() - SPARED


class Aside:
    """Moments of those parameters that have some by now, all on the device at first."""

    def __init__(self, state: State, parameters: Sequence[torch.Tensor]) -> None:
        self._state = state
        self._places: dict[torch.Tensor, list[int]] = {}
        """Where each slot's bytes begin in the pieces, one after the other."""
        total = 0
        for parameter in parameters:
            if all(slot in state[parameter] for slot in SLOTS):
                self._places[parameter] = [total, total + parameter.nbytes]
                total += 2 * parameter.nbytes
        self._on_gpu = any(parameter.is_cuda for parameter in self._places)
        self._pieces = pinned.pieces(-(-total // pinned.PIECE), self._on_gpu)
        self._stream = torch.cuda.Stream() if self._on_gpu else None  # type: ignore[no-untyped-call,unused-ignore]
        self._away: set[torch.Tensor] = set()

    @property
    def bytes_away(self) -> int:
        return 2 * sum(parameter.nbytes for parameter in self._away)

    def leave(self) -> None:
        """All go, as soon as what is queued is done with them."""
        self._after_the_queue()
        for parameter, places in self._places.items():
            if parameter in self._away:
                continue
            own = self._state[parameter]
            for slot, place in zip(SLOTS, places, strict=True):
                with torch.cuda.stream(self._stream):
                    for piece, part in pinned.cut(self._pieces, place, own[slot]):
                        piece.copy_(part, non_blocking=True)
                if self._stream is not None:
                    own[slot].record_stream(self._stream)
                own[slot] = torch.empty(0, dtype=parameter.dtype)
            self._away.add(parameter)

    def copies(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of its moments that are away, by slot, on the host: the device may be full by now."""
        found: dict[str, torch.Tensor] = {}
        if parameter not in self._away:
            return found
        if self._stream is not None:
            self._stream.synchronize()
        for slot, place in zip(SLOTS, self._places[parameter], strict=True):
            found[slot] = torch.empty_like(parameter, requires_grad=False, device="cpu")
            for piece, part in pinned.cut(self._pieces, place, found[slot]):
                part.copy_(piece)
        return found

    def come(self, parameter: torch.Tensor) -> None:
        """It begins to come back, into memory that is asked for now; `ready` waits for it."""
        if parameter not in self._away:
            return
        self._away.remove(parameter)
        for slot, place in zip(SLOTS, self._places[parameter], strict=True):
            found = torch.empty_like(parameter, requires_grad=False)
            self._after_the_queue()  # its memory may have been another tensor's a moment ago
            with torch.cuda.stream(self._stream):
                for piece, part in pinned.cut(self._pieces, place, found):
                    part.copy_(piece, non_blocking=True)
            self._state[parameter][slot] = found

    def ready(self) -> None:
        """All are on the device for what is queued from now on."""
        for parameter in list(self._places):
            self.come(parameter)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _after_the_queue(self) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
