"""What a block keeps for the backward pass and what it computes again, and the block's compilation.

| policy | kept beside the block's input | computed again |
| --- | --- | --- |
| none | everything that the backward pass reads | nothing |
| matmul | attention, and results of matrix products | norms, rotations, activations, residual sums |
| hosted | the same, in host memory until the block's turn comes (compiled blocks on a GPU) | the same |
| attention | attention (result and log-sum-exp) | everything else |
| full | nothing | everything |
| offload | nothing, and the input waits in host memory | everything, all but attention a tile of the tokens at a time |

Policies work per operation (`torch.utils.checkpoint.create_selective_checkpoint_contexts`) and change no number: what
is computed again is computed by the same operations from the same inputs.

A block's forward pass is replaced on the instance, so parameters keep their names and hooks on the module stay outside.
One compiled function serves all blocks of a policy, once with and once without gradients. It is compiled for every
number of documents. Its first length of a row compiles it for that length, and the second for every length; where rows
are known to differ (`any_length`) the first compiles it for every length. Then a new length is free. `fullgraph`: what
cannot be compiled raises, and so does the end of dynamo's patience with recompilations, which otherwise turns into
running uncompiled without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from motet.model import packed  # noqa: F401  # defines torch.ops.motet.attend
from motet.model.hosted import Hosted
from motet.model.kernels import Documents
from motet.model.offload import Host, in_tiles, offloaded

Policy = Literal["none", "matmul", "hosted", "attention", "full", "offload"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

_aten = torch.ops.aten
ATTENTION = frozenset(
    {
        torch.ops.motet.attend.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
MATMUL = frozenset({_aten.mm.default, _aten.addmm.default, _aten.bmm.default})


class Chooser(Protocol):
    def __call__(self, tokens: int, documents: Documents | None) -> Sequence[Policy]:
        """A policy for each block, for a row of which this process holds so many tokens, in these documents."""
        ...


def apply(
    blocks: Sequence[torch.nn.Module],
    policies: Sequence[Policy] | Policy | Chooser,
    compiled: bool = False,
    tile: int | None = None,
    any_length: bool = False,
) -> None:
    """Replaces each block's forward pass. `policies`: one for all blocks, or one for each, or what chooses them for a
    row. Without gradients nothing is kept, whatever the policy. What "offload" runs is never compiled: where it is
    needed, attention is nearly all of the time. `tile`: tokens of a tile of an offloaded block's row. `any_length`:
    rows will be of many lengths."""
    if isinstance(policies, str):
        if policies == "none" and not compiled:
            return
        policies = [policies] * len(blocks)
    runs: dict[Policy, Callable[..., Any]] = dict(_RUNS)
    if compiled:
        runs = {policy: compile_row(run, any_length) for policy, run in _RUNS.items()}
        runs["hosted"] = runs["matmul"]
    row = _Row(runs, policies, Host(tile))
    for index, block in enumerate(blocks):
        block.forward = partial(row.run, index, block)


def compile_row(run: Callable[..., Any], any_length: bool) -> Callable[..., Any]:
    """`run`, compiled, whose first two arguments are a module and the row's hidden states [1, T, D]."""
    compiled = torch.compile(run, fullgraph=True, **_options(any_length))

    def marked(module: torch.nn.Module, hidden_1TD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        _mark(hidden_1TD, [hidden_1TD, *args, *kwargs.values()], any_length)
        return compiled(module, hidden_1TD, *args, **kwargs)

    return marked


def _options(any_length: bool) -> dict[str, Any]:
    """On a GPU the row's size decides (from 5 x 2^20 values and 4,096 tokens on), with a guard, if one kernel makes
    both gradients of a norm: rows on both sides are compiled twice. Here it always does."""
    if not (any_length and torch.cuda.is_available()):
        return {}
    from torch._inductor import config  # takes seconds

    name = "mix_order_reduction_non_strict_mode"
    return {"options": {f"triton.{name}": True}} if hasattr(config.triton, name) else {}


def _mark(hidden_1TD: torch.Tensor, values: Iterable[Any], any_length: bool) -> None:
    """Tells dynamo which sizes are the row's alone. Where one of two tensors with a token in each place is not marked,
    their product makes the length of both a constant."""
    mark = torch._dynamo.maybe_mark_dynamic
    for value in values:
        if isinstance(value, Documents):
            mark(value.starts, 0)
            mark(value.starts_host, 0)
        elif any_length:
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, torch.Tensor) and one.shape[:2] == hidden_1TD.shape[:2]:
                    mark(one, 1)


class _Row:
    """Runs blocks by the policies of the row that they are given."""

    def __init__(
        self, runs: dict[Policy, Callable[..., Any]], policies: Sequence[Policy] | Chooser, host: Host
    ) -> None:
        self._runs, self._policies = runs, policies
        self._chosen: Sequence[Policy] = () if callable(policies) else policies
        self._host, self._hosted = host, Hosted()

    def run(self, index: int, block: torch.nn.Module, hidden_1TD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            if self._chosen and self._chosen[index] == "offload":
                return in_tiles(self._host, block, hidden_1TD, *args, **kwargs)
            return self._runs["none"](block, hidden_1TD, *args, **kwargs)
        if index == 0 and callable(self._policies):
            self._chosen = self._policies(hidden_1TD.shape[1], kwargs.get("documents"))
        policy = self._chosen[index]
        self._hosted.settle(index)
        if policy == "offload":
            return offloaded(self._host, index, block, hidden_1TD, *args, **kwargs)
        if policy == "hosted":
            out = self._hosted.run(index, self._runs[policy], block, hidden_1TD, *args, **kwargs)
        else:
            out = self._runs[policy](block, hidden_1TD, *args, **kwargs)
        if index and self._chosen[index - 1] == "hosted":
            out.register_hook(partial(self._hosted.begin, index - 1))
        return out


# Functions with a body of their own: dynamo counts compilations by code object, and closures share one.
def _keep_everything(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(block).forward(block, *args, **kwargs)


def _keep_matmul(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _checkpointed(block, args, kwargs, context_fn=_matmul_contexts)


def _keep_attention(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _checkpointed(block, args, kwargs, context_fn=_attention_contexts)


def _keep_nothing(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _checkpointed(block, args, kwargs)


_RUNS: dict[Policy, Callable[..., Any]] = {
    "none": _keep_everything,
    "matmul": _keep_matmul,
    "hosted": _keep_matmul,
    "attention": _keep_attention,
    "full": _keep_nothing,
}


def _checkpointed(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
    forward = type(block).forward
    # blocks draw no random numbers: there is no state to put back
    return checkpoint(forward, block, *args, use_reentrant=False, preserve_rng_state=False, **options, **kwargs)


def _chosen(kept: frozenset[Any], ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE


_attention_contexts = partial(create_selective_checkpoint_contexts, partial(_chosen, ATTENTION))
_matmul_contexts = partial(create_selective_checkpoint_contexts, partial(_chosen, ATTENTION | MATMUL))
