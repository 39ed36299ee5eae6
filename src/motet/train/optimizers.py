"""The optimizers of a step, and the float32 copies of bfloat16 weights that they step on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from operator import is_not
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from motet.base.errors import UserError
from motet.base.recipe import Optimizer as Config
from motet.train.aside import Moments

try:
    from motet.train import adamw_kernels as kernels
except ImportError:  # no triton
    kernels = None  # type: ignore[assignment]

MOST_SKIPPED = 10
"""Steps in a row that may be skipped because they are not finite."""


class Masters:
    """Float32 copies of bfloat16 parameters. Their gradients are the parameters': the first as it came, in bfloat16,
    and when another is added, their sum in float32."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Takes float32 parameters, and leaves them in bfloat16."""
        self.copies = {name: torch.nn.Parameter(p.detach().float()) for name, p in parameters.items()}
        self._originals = parameters
        self._away = False
        for name, parameter in parameters.items():
            parameter.data = parameter.data.bfloat16()
            self.copies[name].grad_dtype = None  # any
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

    def rounded(self) -> dict[torch.Tensor, torch.Tensor]:
        """The model's parameter of each copy."""
        return {copy: self._originals[name] for name, copy in self.copies.items()}


def _adds_to(copy: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        found, parameter.grad = parameter.grad, None
        assert found is not None
        copy.grad = found if copy.grad is None else copy.grad.to(copy.dtype).add_(found)

    return hook


class Optimizers:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest: one learning rate for all."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        inside_blocks: set[str],
        config: Config,
        masters: Masters | None = None,
    ) -> None:
        """`parameters` are stepped on; where they are `masters`' copies, the model gets their new values. Weight decay
        on matrices only: decaying gains and biases only shrinks the residual stream."""
        self._parameters, self._masters, self._config = parameters, masters, config
        muon = [n for n, p in parameters.items() if config.kind == "muon" and p.ndim == 2 and n in inside_blocks]
        rest = [name for name in parameters if name not in muon]
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(_muon([parameters[n] for n in muon], config))
        if rest:
            self.parts.append(_adamw([parameters[n] for n in rest], config))
        models: dict[torch.Tensor, torch.Tensor] = {p: p for p in parameters.values()}
        models |= masters.rounded() if masters else {}
        self.moments = Moments(config.offload, self.parts[-1].state, models)

    def prepare(self) -> None:
        """Before a step's first row."""
        if self._one_pass:
            self._make_room()
            self._one_pass.prepare()
        self.moments.leave()

    @cached_property
    def unread(self) -> bool:
        """Whether `step_unread` may be called: its kernel clips, and leaves a step out, by numbers on the device."""
        own = [p for p in self._parameters.values() if isinstance(p, DTensor) or not p.is_cuda]
        return not own and all(isinstance(part, torch.optim.AdamW) for part in self.parts)

    def clip(self) -> float:
        """Scales the gradients down to the greatest norm over all; returns what it was."""
        self._of_one_type()
        trained, most = list(self._parameters.values()), self._config.max_grad_norm
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        whole = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not whole <= most:  # else there is nothing to scale, and no pass over all gradients
            torch.nn.utils.clip_grads_with_norm_(trained, most, norm)
        return whole

    def step(self, rate: float) -> None:
        """On gradients that were clipped."""
        self.moments.here()
        self._make_room()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
        if self._masters:
            self._masters.publish()
        self.moments.leave()

    def step_unread(self, rate: float, value: torch.Tensor) -> torch.Tensor:
        """Clips and steps without waiting for the device: it need not run dry before the step's kernels are queued.
        Returns the norm; where it or `value`, the loss, is not finite, nothing changes."""
        if self._one_pass:
            if self._masters:
                self._masters.wake()  # its tensors are written
            self.moments.here()
            begun = self._one_pass.begin()
            norm = begun.norm()
            begun.step(rate, *self._clipped(norm, value))
            self.moments.leave()
            return norm
        self._of_one_type()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None]).float()
        scale, skip = self._clipped(norm, value)
        for part in self.parts:
            part.grad_scale, part.found_inf = scale, skip  # type: ignore[attr-defined]
        try:
            self.step(rate)
        finally:
            for part in self.parts:
                del part.grad_scale, part.found_inf  # type: ignore[attr-defined]
        return norm

    def _clipped(self, norm: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What gradients are divided by, as torch.nn.utils.clip_grads_with_norm_ does, and 1.0 where the step is left
        out."""
        scale = ((norm + 1e-6) / self._config.max_grad_norm).clamp(min=1.0)
        return scale, (~(norm.isfinite() & value.isfinite())).float()

    @cached_property
    def _one_pass(self) -> OnePass | None:
        if kernels is None or not self.unread:
            return None
        return OnePass(self.parts, self._masters.rounded() if self._masters else {})

    def _make_room(self) -> None:
        """What the optimizer is about to keep must not lie between pieces of memory that others will want back."""
        if torch.cuda.is_available() and not any(part.state for part in self.parts):
            torch.cuda.empty_cache()

    def _of_one_type(self) -> None:
        """Gradients become of their parameters' types, as torch's optimizers want them."""
        for parameter in self._parameters.values():
            if parameter.grad is not None and parameter.grad.dtype != parameter.dtype:
                parameter.grad = parameter.grad.to(parameter.dtype)

    def clear(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """NAME/SLOT -> tensor; of what was put aside, a copy on the host."""
        found = {}
        for name, parameter in self._parameters.items():
            away = self.moments.copies(parameter)
            for part in self.parts:
                for slot, value in {**part.state.get(parameter, {}), **away}.items():
                    found[f"{name}/{slot}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return found

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """That and nothing else: what it does not hold begins anew."""
        self.moments.forget()
        for part in self.parts:
            part.state.clear()
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            parameter = self._parameters[name]
            owner = next(p for p in self.parts if any(parameter is own for g in p.param_groups for own in g["params"]))
            owner.state[parameter][slot] = value.to(parameter.device)

    def blank(self, key: str, dtype: torch.dtype, shape: Iterable[int]) -> torch.Tensor:
        """A tensor to load `key` of the state into: laid out as its parameter where it has the parameter's shape."""
        parameter = self._parameters[key.rpartition("/")[0]]
        if tuple(shape) == tuple(parameter.shape) and parameter.ndim > 0:
            return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        return torch.zeros(tuple(shape), dtype=dtype, device=parameter.device)


class OnePass:
    """The steps of torch's AdamW by one kernel that reads each gradient in its own type and rounds the new weights."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer], rounded: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """`rounded`: what gets a parameter's new value beside it."""
        self._groups = [(group, part.state) for part in parts for group in part.param_groups]
        self.rounded, self.places = rounded, kernels.Places()
        self._counters: tuple[list[torch.Tensor], torch.Tensor] | None = None
        self._decays: dict[tuple[float, ...], torch.Tensor] = {}

    def prepare(self) -> None:
        """The state of all that has none yet, as torch.optim.AdamW lays it out."""
        for group, state in self._groups:
            for parameter in group["params"]:
                if not state.get(parameter):
                    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    moments = [torch.zeros_like(parameter, requires_grad=False) for _ in range(2)]
                    state[parameter] = {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    def begin(self) -> Begun:
        """A step on the gradients that are there."""
        found = [(p, p.grad, state[p], group) for group, state in self._groups for p in group["params"]]
        return Begun(self, [(p, grad, state, group) for p, grad, state, group in found if grad is not None])

    def counters_P(self, states: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The numbers of steps taken, as one tensor of which the states' own are views: one kernel counts them all."""
        steps = [state["step"] for state in states]
        known = self._counters
        if known is None or len(known[0]) != len(steps) or any(map(is_not, known[0], steps)):
            counters_P = torch.stack(steps)
            for state, own in zip(states, counters_P.unbind(), strict=True):
                state["step"] = own
            known = self._counters = [state["step"] for state in states], counters_P
        return known[1]

    def decays_P(self, decays: tuple[float, ...], device: torch.device) -> torch.Tensor:
        if decays not in self._decays:  # most often the same in every step
            self._decays[decays] = torch.tensor(decays, dtype=torch.float64, device=device)
        return self._decays[decays]


class Begun:
    """A step of `OnePass`."""

    def __init__(self, whole: OnePass, own: Sequence[tuple[Any, torch.Tensor, dict[str, Any], dict[str, Any]]]) -> None:
        self._whole, self._own = whole, own
        rounded = whole.rounded.get
        self._table = kernels.Table(
            [kernels.Tensors(p, grad, s["exp_avg"], s["exp_avg_sq"], rounded(p)) for p, grad, s, _ in own], whole.places
        )

    def norm(self) -> torch.Tensor:
        return self._table.squares().sqrt()

    @torch.no_grad()
    def step(self, rate: float, scale: torch.Tensor, skip: torch.Tensor) -> None:
        for _, _, _, group in self._own:
            group["lr"] = rate
        group = self._own[0][3]
        counters_P = self._whole.counters_P([state for _, _, state, _ in self._own])
        taken_P = counters_P.add_(1.0 - skip).double()
        first, second = group["betas"]
        decays_P = self._whole.decays_P(tuple(group["weight_decay"] for _, _, _, group in self._own), taken_P.device)
        numbers_P3 = torch.stack((1.0 - first**taken_P, (1.0 - second**taken_P).sqrt(), decays_P), 1).float()
        self._table.step(numbers_P3, scale, skip, rate, group["betas"], group["eps"])


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
