"""Packed causal attention on a GPU as one torch.library operation, `motet::attend`, whatever kernel runs inside.

Legend: T packed tokens, H query heads, K key/value heads, D head width, S documents, L tokens of one document.

One operation with a fake and an autograd formula is what torch.compile traces and selective checkpointing can keep. The
kernel is chosen inside it, by the lengths in host memory: nothing waits for the device and no compiled block depends on
how a row falls into documents. It returns the log-sum-exp as one flat [H * T] buffer in which each call of a kernel has
its own [H, tokens] block, in the order of the calls.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

log = logging.getLogger("motet")
DTYPES = (torch.bfloat16, torch.float16)
FLASH4_WIDTHS, CUDNN_WIDTH = (64, 96, 128), 128
"""Widths of a head that FlashAttention 4 takes forward and backward, and the largest of cuDNN; varlen takes up to 256.
All take multiples of 8 alone: other widths are filled up with zeros."""
LONG = 3072
"""From how many tokens on a document has a cuDNN call of its own. TFLOP/s of cuDNN and of varlen flash attention on an
H100, forward and backward: 69 and 165 at 1,024 tokens, 220 and 230 at 2,048, 348 and 268 at 4,096."""
STEP = 512
"""Lengths given to cuDNN are rounded up to it: it plans each new shape anew, at 140 ms for both passes."""

Tensors = tuple[torch.Tensor, ...]


class Row(NamedTuple):
    """The documents of a packed row."""

    starts: torch.Tensor
    """[S + 1] int32 on the device."""
    bounds: list[int]
    """The same numbers."""
    scale: float


class Kernel(Protocol):
    """Tensors are [tokens, heads, D]. `forward` gives out and the flat log-sum-exp, `backward` dq, dk, dv."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors: ...

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        """`saved`: query, key, value, out, log-sum-exp."""
        ...


class Flash4:
    """FlashAttention 4 (package flash-attn-4, module flash_attn.cute)."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors:
        q, k, v, options = self._call(row, query, key, value)
        out, lse = _flash4()._flash_attn_fwd(q, k, v, causal=True, return_lse=True, **options)[:2]
        return out.view(query.shape), lse.flatten()

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        query, key, value, out, lse = saved
        q, k, v, o, do, options = self._call(row, query, key, value, out, grad.contiguous())
        lse = lse.view(query.shape[1], -1) if len(row.bounds) > 2 else lse.view(1, query.shape[1], -1)
        deterministic = torch.are_deterministic_algorithms_enabled()
        grads = _flash4()._flash_attn_bwd(q, k, v, o, do, lse, causal=True, deterministic=deterministic, **options)
        return tuple(g.view(x.shape) for g, x in zip(grads[:3], (query, key, value), strict=True))

    def _call(self, row: Row, *tensors: torch.Tensor) -> Any:
        """One document is the dense kernel's, several are varlen's."""
        if len(row.bounds) == 2:
            return *(x[None] for x in tensors), {"softmax_scale": row.scale}
        longest = max(_lengths(row.bounds))
        options = {"softmax_scale": row.scale, "cu_seqlens_q": row.starts, "cu_seqlens_k": row.starts}
        return *tensors, options | {"max_seqlen_q": longest, "max_seqlen_k": longest}


class Cudnn:
    """cuDNN's attention, one call a document."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors:
        outs, lses = [], []
        for start, stop in _pairs(row.bounds):
            q, k, v = (_padded(x[start:stop]) for x in (query, key, value))
            out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, True, 0.0, True, False, scale=row.scale
            )
            outs.append(out[0, :, : stop - start].transpose(0, 1))
            lses.append(lse.view(lse.shape[1], -1)[:, : stop - start].flatten())
        return _joined(outs), _joined(lses)

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        query, key, value, out, flat = saved
        found: list[Tensors] = []
        none = flat.new_empty((), dtype=torch.int64)  # state of a dropout that there is not
        for start, stop in _pairs(row.bounds):
            q, k, v, o, do = (_padded(x[start:stop]) for x in (query, key, value, out, grad))
            heads, length = q.shape[1], stop - start
            lse = flat[heads * start : heads * stop].view(1, heads, length, 1)
            # padding: a probability of exp(s - 1e4), which is zero
            lse = F.pad(lse, (0, 0, 0, q.shape[2] - length), value=1e4).contiguous()
            grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
                do, q, k, v, o, lse, none, none, None, None, None, q.shape[2], q.shape[2], 0.0, True, scale=row.scale
            )
            found.append(tuple(g[0, :, :length].transpose(0, 1) for g in grads))
        return tuple(_joined(list(parts)) for parts in zip(*found, strict=True))


class Varlen:
    """FlashAttention 2 as torch ships it: what torch.nn.attention.varlen runs, whose signature varies by version."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors:
        longest = max(_lengths(row.bounds))
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, row.starts, row.starts, longest, longest, 0.0, True, False, scale=row.scale
        )
        return out, lse.flatten()

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        query, key, value, out, flat = saved
        longest = max(_lengths(row.bounds))
        state = torch.empty(2, dtype=torch.uint64, device=query.device)
        none = torch.empty(0, dtype=query.dtype, device=query.device)
        lse = flat.view(query.shape[1], -1)
        grads: Tensors = torch.ops.aten._flash_attention_backward(
            grad.contiguous(), query, key, value, out, lse, row.starts, row.starts, longest, longest, 0.0, True, state,
            none, scale=row.scale,
        )  # fmt: skip
        return grads


class ByLength:
    """Each document from `long` tokens on to one kernel, each run of shorter ones to another."""

    def __init__(self, longs: Kernel, shorts: Kernel, long: int = LONG) -> None:
        self.longs, self.shorts, self.long = longs, shorts, long

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors:
        parts = [kernel.forward(query[part], key[part], value[part], inner) for kernel, part, inner in self._calls(row)]
        outs, lses = zip(*parts, strict=True)
        return _joined(list(outs)), _joined(list(lses))

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        *tensors, flat = saved
        heads = grad.shape[1]
        parts = []
        for kernel, part, inner in self._calls(row):
            kept = (*(x[part] for x in tensors), flat[heads * part.start : heads * part.stop])
            parts.append(kernel.backward(grad[part], kept, inner))
        return tuple(_joined(list(grads)) for grads in zip(*parts, strict=True))

    def _calls(self, row: Row) -> Iterator[tuple[Kernel, slice, Row]]:
        for first, last, is_long in runs(_lengths(row.bounds), self.long):
            start = row.bounds[first]
            bounds = [bound - start for bound in row.bounds[first : last + 1]]
            inner = Row(row.starts[first : last + 1] - start, bounds, row.scale)
            yield self.longs if is_long else self.shorts, slice(start, row.bounds[last]), inner


def runs(lengths: list[int], long: int) -> list[tuple[int, int, bool]]:
    """(first document, one past the last, whether they are long): neighbours of one kind are one run.

    Example: lengths [9, 8, 1, 2, 9] with long = 8 give (0, 2, True), (2, 4, False), (4, 5, True).
    """
    found: list[tuple[int, int, bool]] = []
    for index, length in enumerate(lengths):
        is_long = length >= long
        first = found.pop()[0] if found and found[-1][2] == is_long else index
        found.append((first, index + 1, is_long))
    return found


class Plain:
    """The slow obvious twin: one document at a time, in the type given, with the whole [L, L] matrix."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> Tensors:
        outs, lses = [], []
        for start, stop in _pairs(row.bounds):
            q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
            scores = self._scores(q, k, row.scale)
            outs.append((scores.softmax(-1) @ self._repeated(v, q)).transpose(0, 1))
            lses.append(scores.logsumexp(-1).float().flatten())
        return _joined(outs), _joined(lses)

    def backward(self, grad: torch.Tensor, saved: Tensors, row: Row) -> Tensors:
        """By the definition; the scores are built anew, and the log-sum-exp is not read."""
        query, key, value, _, _ = saved
        found: list[Tensors] = []
        for start, stop in _pairs(row.bounds):
            q, k, v, do = (x[start:stop].transpose(0, 1) for x in (query, key, value, grad))
            probabilities = self._scores(q, k, row.scale).softmax(-1)
            grad_p = do @ self._repeated(v, q).transpose(1, 2)
            grad_s = probabilities * (grad_p - (grad_p * probabilities).sum(-1, keepdim=True)) * row.scale
            by_group = (k.shape[0], -1, *k.shape[1:])
            dk = (grad_s.transpose(1, 2) @ q).view(by_group).sum(1)
            dv = (probabilities.transpose(1, 2) @ do).view(by_group).sum(1)
            found.append(tuple(x.transpose(0, 1) for x in (grad_s @ self._repeated(k, q), dk, dv)))
        return tuple(_joined(list(parts)) for parts in zip(*found, strict=True))

    def _scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        scores = q @ self._repeated(k, q).transpose(1, 2) * scale
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, float("-inf"))

    def _repeated(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(like.shape[0] // x.shape[0], 0)


KERNELS: dict[str, Kernel] = {
    "flash4": Flash4(),
    "cudnn": Cudnn(),
    "varlen": Varlen(),
    "cudnn+varlen": ByLength(Cudnn(), Varlen()),
    "plain": Plain(),
}
_WORDS = {
    "flash4": "FlashAttention 4",
    "cudnn+varlen": f"cuDNN for documents from {LONG} tokens on, varlen flash attention for shorter ones",
    "varlen": "varlen flash attention",
}


def attend(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    starts: torch.Tensor,
    starts_host: torch.Tensor,
    scale: float,
    kernel: str = "",
) -> torch.Tensor:
    """Causal attention inside each document, [T, H, D]. `kernel`: a name of KERNELS; empty: the fastest."""
    width = query_THD.shape[-1]
    if missing := -width % 8:
        query_THD, key_TKD, value_TKD = (F.pad(x, (0, missing)) for x in (query_THD, key_TKD, value_TKD))
    out, _ = torch.ops.motet.attend(query_THD, key_TKD, value_TKD, starts, starts_host, scale, kernel)
    return out[..., :width] if missing else out  # type: ignore[no-any-return]


def fastest(device: torch.device, width: int = 128) -> str:
    """The kernel's name for heads of this width. FlashAttention 4 is written for compute capability 9 and 10, cuDNN's
    attention from 8 on. From 512 tokens a document to 64K it is the fastest, or within 6 % of it (8 documents of
    1,024)."""
    if device.type != "cuda":
        return "plain"
    major, _ = torch.cuda.get_device_capability(device)
    if major in (9, 10) and width in FLASH4_WIDTHS and _flash4_installed():
        return "flash4"
    cudnn: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return "cudnn+varlen" if major >= 8 and cudnn and width <= CUDNN_WIDTH else "varlen"


def describe(device: torch.device, width: int = 128) -> str:
    name = fastest(device, width)
    return _WORDS.get(name, name)


@torch.library.custom_op("motet::attend", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    starts_host: torch.Tensor,
    scale: float,
    kernel: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    row = Row(starts, starts_host.tolist(), scale)
    out, lse = KERNELS[kernel or fastest(query.device, query.shape[-1])].forward(query, key, value, row)
    return out.contiguous(), lse


@torch.library.custom_op("motet::attend_backward", mutates_args=())
def _attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    starts: torch.Tensor,
    starts_host: torch.Tensor,
    scale: float,
    kernel: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row = Row(starts, starts_host.tolist(), scale)
    found = KERNELS[kernel or fastest(query.device, query.shape[-1])].backward(grad, (query, key, value, out, lse), row)
    dq, dk, dv = (x.contiguous() for x in found)
    return dq, dk, dv


@_attend.register_fake
def _(query: torch.Tensor, *_: Any) -> Tensors:
    tokens, heads, _width = query.shape
    return query.new_empty(query.shape), query.new_empty((heads * tokens,), dtype=torch.float32)


@_attend_backward.register_fake
def _(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Tensors:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    query, key, value, starts, starts_host, ctx.scale, ctx.kernel = inputs
    ctx.save_for_backward(query, key, value, *output, starts, starts_host)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    grads = torch.ops.motet.attend_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.kernel)
    return *grads, None, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


@cache
def _flash4_installed() -> bool:
    """Whether it is there and can be imported."""
    try:
        if importlib.util.find_spec("flash_attn.cute") is None:
            return False
    except ImportError:  # no flash_attn at all
        return False
    try:
        interface = _flash4()
        return callable(interface._flash_attn_fwd) and callable(interface._flash_attn_bwd)
    except Exception as error:  # half a package, or of a version that does not go with its own needs or with this torch
        log.warning(
            "FlashAttention 4 is installed and of no use (%s: %s): attention runs without it. `python -c 'import "
            "flash_attn.cute'` says more; flash-attn-4 and quack-kernels have to be of the same time",
            type(error).__name__, error,
        )  # fmt: skip
        return False


@cache
def _flash4() -> ModuleType:
    return importlib.import_module("flash_attn.cute.interface")


def _lengths(bounds: list[int]) -> list[int]:
    return [stop - start for start, stop in _pairs(bounds)]


def _pairs(bounds: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(bounds))


def _padded(x_LHD: torch.Tensor) -> torch.Tensor:
    """[1, heads, L rounded up to STEP, D]; the added rows are zero and later than every query that counts."""
    missing = -x_LHD.shape[0] % STEP
    padded = F.pad(x_LHD, (0, 0, 0, 0, 0, missing)) if missing else x_LHD
    return padded.transpose(0, 1)[None]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
