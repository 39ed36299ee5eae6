"""The optimizers of a step, and the float32 copies of bfloat16 weights that they step on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from motet.base.errors import UserError
from motet.base.recipe import Optimizer as Config

MOST_SKIPPED = 10
"""Steps in a row that may be skipped because they are not finite."""


class Masters:
    """Float32 copies of bfloat16 parameters. Gradients are summed in the copies as the backward pass produces them."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Takes float32 parameters, and leaves them in bfloat16."""
        self.copies = {name: torch.nn.Parameter(p.detach().float()) for name, p in parameters.items()}
        self._originals = parameters
        self._away = False
        for name, parameter in parameters.items():
            parameter.data = parameter.data.bfloat16()
            register: Any = parameter.register_post_accumulate_grad_hook
            register(_adds_to(self.copies[name]))

    @torch.no_grad()
    def publish(self) -> None:
        """The model gets the copies' values, rounded."""
        self._away = False
        for parameter in self._originals.values():
            storage = parameter.untyped_storage()
            if storage.nbytes() != parameter.nbytes:  # torch would allocate and copy one of the right size anew too
                storage.resize_(parameter.nbytes)
        torch._foreach_copy_(list(self._originals.values()), list(self.copies.values()))

    def rest(self) -> None:
        """Gives the model's memory back: nothing may read its values until `wake`."""
        self._away = True
        for parameter in self._originals.values():
            parameter.untyped_storage().resize_(0)

    def wake(self) -> None:
        if self._away:
            self.publish()


def _adds_to(copy: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if copy.grad is None:
            copy.grad = parameter.grad.float()
        else:
            copy.grad.add_(parameter.grad)
        parameter.grad = None

    return hook


class Optimizers:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest: one learning rate for all."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], inside_blocks: set[str], config: Config) -> None:
        """Weight decay on matrices only: decaying gains and biases only shrinks the residual stream."""
        self._parameters = parameters
        muon = [n for n, p in parameters.items() if config.kind == "muon" and p.ndim == 2 and n in inside_blocks]
        rest = [name for name in parameters if name not in muon]
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(_muon([parameters[n] for n in muon], config))
        if rest:
            self.parts.append(_adamw([parameters[n] for n in rest], config))

    def step(self, rate: float) -> None:
        if torch.cuda.is_available() and not any(part.state for part in self.parts):
            # what the optimizer is about to keep must not lie between pieces of memory that others will want back
            torch.cuda.empty_cache()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    @cached_property
    def unread(self) -> bool:
        """Whether `step_unread` may be called: its kernel clips, and leaves a step out, by numbers on the device."""
        own = [p for p in self._parameters.values() if isinstance(p, DTensor) or not p.is_cuda]
        return not own and all(isinstance(part, torch.optim.AdamW) for part in self.parts)

    def step_unread(self, rate: float, most: float, value: torch.Tensor) -> torch.Tensor:
        """Clips to the global norm `most` and steps, without waiting for the device: it need not run dry before the
        step's kernels are queued. Returns the norm; where it or `value`, the loss, is not finite, nothing changes."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None]).float()
        scale = ((norm + 1e-6) / most).clamp(min=1.0)  # as torch.nn.utils.clip_grads_with_norm_ does
        skip = (~(norm.isfinite() & value.isfinite())).float()
        for part in self.parts:
            part.grad_scale, part.found_inf = scale, skip  # type: ignore[attr-defined]
        try:
            self.step(rate)
        finally:
            for part in self.parts:
                del part.grad_scale, part.found_inf  # type: ignore[attr-defined]
        return norm

    def clear(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """NAME/SLOT -> tensor; empty before the first step."""
        found = {}
        for name, parameter in self._parameters.items():
            for part in self.parts:
                for slot, value in part.state.get(parameter, {}).items():
                    found[f"{name}/{slot}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return found

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            parameter = self._parameters[name]
            owner = next(p for p in self.parts if any(parameter is own for g in p.param_groups for own in g["params"]))
            owner.state[parameter][slot] = value

    def blank(self, key: str, dtype: torch.dtype, shape: Iterable[int]) -> torch.Tensor:
        """A tensor to load `key` of the state into: laid out as its parameter where it has the parameter's shape."""
        parameter = self._parameters[key.rpartition("/")[0]]
        if tuple(shape) == tuple(parameter.shape) and parameter.ndim > 0:
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return torch.zeros(tuple(shape), dtype=dtype, device=parameter.device)


def norm_of(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    """Scales the gradients down to the global norm `most`; returns what it was."""
    trained = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    whole = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not whole <= most:  # else there is nothing to scale, and no pass over all gradients
        torch.nn.utils.clip_grads_with_norm_(trained, most, norm)
    return whole


def _adamw(parameters: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def _muon(parameters: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f'optimizer.kind = "muon": torch {torch.__version__} has no Muon; use kind = "adamw"')
    return torch.optim.Muon(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",  # updates as large as AdamW's, so that one learning rate serves both
    )
