"""Attention over packed documents, registered with transformers under the name "motet".

Legend: T packed tokens, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from motet.model.kernels import Documents, attend
from motet.model.ulysses import SequenceGroup, ulysses

NAME = "motet"
OfRow = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
"""([T, H, D], [T, K, D], [T, K, D], scaling) -> [T, H, D]."""
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    sequence: SequenceGroup | None = None,
    instead: OfRow | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document. Returns [1, T, H, D]. With `sequence`, T are this process's tokens of a
    row that several processes share, and `documents` describes the whole row. `instead` runs in place of all this,
    where a block is run a tile of its tokens at a time (model/halves.py).

    Raises ValueError for a model whose attention has more to it than this: a wrong number would be silent.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} asks for {name}={kwargs[name]!r}: not supported by this attention"
            )
    assert attention_mask is None and dropout == 0.0
    query_THD, key_TKD, value_TKD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD))
    run = instead or of_row(documents, sequence)
    return run(query_THD, key_TKD, value_TKD, scaling)[None], None


def of_row(documents: Documents | None, sequence: SequenceGroup | None) -> OfRow:
    """Attention over a whole row."""
    assert documents is not None
    run = attend if sequence is None else ulysses(attend, sequence)
    return lambda query, key, value, scaling: run(query, key, value, documents, scaling)


AttentionInterface.register(NAME, packed_attention)
