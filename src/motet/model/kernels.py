"""Causal attention inside each document of a packed row: which kernel runs, and how documents are laid out for it.

Legend: T packed tokens, H query heads, K key/value heads, D head width, S documents, L tokens of the longest one.

On a GPU in bfloat16 or float16, `attend` is one operation of torch.library (model/packed.py). It takes FlashAttention 4
where it can be imported, else cuDNN for each long document and varlen flash attention for runs of short ones.

Elsewhere documents of similar length are gathered into one right-padded [S, L] call of SDPA with `is_causal`: a query
only sees earlier columns, and in its own row those are its own document's, so padding needs no mask and the result is
exact. A document alone in its bucket is sliced, not gathered. `tests/test_attention.py` compares with one call per
document, and `bench/attention.py` compares every kernel of a GPU with float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from motet.model import packed

# Not cuDNN: it plans anew for each shape, and buckets of short documents have a new one every step.
_FIXED_COST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class Bucket:
    gather_SL: torch.Tensor | None
    """Indices into the packed row, padding pointing at token 0; None: one document, `start` to `stop`."""
    valid_N: torch.Tensor | None
    """Which of the S * L gathered rows are tokens whose result is taken from here, as indices."""
    target_N: torch.Tensor | None
    """Where in the packed row they belong."""
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Documents:
    """How a packed row of T tokens falls into documents, planned once for all layers."""

    lengths: tuple[int, ...]
    starts: torch.Tensor
    """[S + 1] int32 on the row's device: where each document starts, then T."""
    starts_host: torch.Tensor
    """The same in host memory: a kernel is chosen by lengths without waiting for the device, and a compiled block sees
    a tensor whose values it does not depend on."""
    waste: float = 1.25
    after: tuple[int, ...] = ()
    """Of each document the place of the one that it goes on from, -1 for none; empty: none goes on from another. So a
    prompt lies once before all of its completions. Read where buckets are used (`reads_shared_prompts`)."""

    @staticmethod
    def plan(
        lengths: list[int], device: torch.device | str = "cpu", waste: float = 1.25, after: tuple[int, ...] = ()
    ) -> Documents:
        """`waste` bounds a bucket's longest document relative to its shortest, where buckets are used."""
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return Documents(tuple(lengths), starts.to(device), starts, waste, after)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Example: lengths [4, 100, 5] give a bucket of the documents of 5 and 4 and one of the document of 100. What
        goes on from another document is one text with it; the first such text yields the common tokens' results."""
        starts, device = self.starts_host.tolist(), self.starts.device
        before = [p if p >= 0 else None for p in self.after] or [None] * len(self.lengths)
        first = {parent: i for i, parent in reversed(list(enumerate(before))) if parent is not None}
        common = [0 if parent is None else self.lengths[parent] for parent in before]
        lengths = [own + shared for own, shared in zip(self.lengths, common, strict=True)]
        order = sorted((i for i in range(len(lengths)) if i not in first), key=lambda i: -lengths[i])
        buckets: list[Bucket] = []
        while order:
            longest = lengths[order[0]]
            members = [i for i in order if lengths[i] * self.waste >= longest]
            order = order[len(members) :]
            if len(members) == 1 and before[members[0]] is None:
                start = starts[members[0]]
                buckets.append(Bucket(None, None, None, start, start + longest))
                continue
            column_L = torch.arange(longest)
            own_S1, common_S1, length_S1, shared_S1 = torch.tensor(
                [[[starts[i]], [common[i]], [lengths[i]], [starts[before[i] or 0]]] for i in members]
            ).unbind(1)  # fmt: skip
            yields_S1 = torch.tensor([[before[i] is None or first[before[i]] == i] for i in members])  # type: ignore[index]
            place_SL = torch.where(column_L < common_S1, shared_S1 + column_L, own_S1 + column_L - common_S1)
            valid_SL = column_L < length_S1
            gather_SL = torch.where(valid_SL, place_SL, 0)
            kept_SL = valid_SL & ((column_L >= common_S1) | yields_S1)
            buckets.append(
                Bucket(
                    gather_SL.to(device),
                    kept_SL.flatten().nonzero().flatten().to(device),
                    gather_SL[kept_SL].to(device),
                )
            )
        return tuple(buckets)


def attend(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    documents: Documents,
    scaling: float | None = None,
) -> torch.Tensor:
    """Returns [T, H, D]; differentiable in all three inputs. `scaling`: None means D ** -0.5."""
    if query_THD.is_cuda and query_THD.dtype in packed.DTYPES:
        scale = query_THD.shape[-1] ** -0.5 if scaling is None else scaling
        return packed.attend(query_THD, key_TKD, value_TKD, documents.starts, documents.starts_host, scale)
    return _bucketed(query_THD, key_TKD, value_TKD, documents, scaling)


def reads_shared_prompts(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether documents may go on from others (`Documents.after`) with tensors of this kind."""
    return not (torch.device(device).type == "cuda" and dtype in packed.DTYPES)


def describe(device: torch.device | str, dtype: torch.dtype, width: int = 128) -> str:
    """Which kernel `attend` runs for tensors of this kind and heads of this width, in words."""
    if torch.device(device).type == "cuda" and dtype in packed.DTYPES:
        return packed.describe(torch.device(device), width)
    return f"SDPA over documents of like length ({torch.device(device).type}, {str(dtype).removeprefix('torch.')})"


def _bucketed(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    documents: Documents,
    scaling: float | None,
) -> torch.Tensor:
    grouped = query_THD.shape[1] != key_TKD.shape[1]

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2)

    if len(documents.buckets) == 1 and documents.buckets[0].gather_SL is None:
        return sdpa(query_THD[None], key_TKD[None], value_TKD[None])[0]
    pieces, targets = [], []
    for bucket in documents.buckets:
        if bucket.gather_SL is None:
            part = slice(bucket.start, bucket.stop)
            pieces.append(sdpa(query_THD[None, part], key_TKD[None, part], value_TKD[None, part])[0])
            targets.append(torch.arange(bucket.start, bucket.stop, device=query_THD.device))
        else:
            assert bucket.valid_N is not None and bucket.target_N is not None
            flat = bucket.gather_SL.flatten()
            q, k, v = (
                x.index_select(0, flat).view(*bucket.gather_SL.shape, *x.shape[1:])
                for x in (query_THD, key_TKD, value_TKD)
            )
            with sdpa_kernel(_FIXED_COST):
                pieces.append(sdpa(q, k, v).flatten(0, 1).index_select(0, bucket.valid_N))
            targets.append(bucket.target_N)
    inverse_T = torch.empty_like(torch.cat(targets))
    inverse_T[torch.cat(targets)] = torch.arange(inverse_T.numel(), device=inverse_T.device)
    return torch.cat(pieces).index_select(0, inverse_T)
