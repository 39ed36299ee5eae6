"""The model as the learner calls it: body and head in one module.

Sharding gathers the weights of a module when its forward begins. The head is not called, its weight is read: so the
module that holds it is ours, embeddings and head (often one tensor) are in its group, and nobody calls a part of it.
"""

from __future__ import annotations

from typing import Any

import torch

from motet.data.pack import Slice
from motet.model.ulysses import SequenceGroup
from motet.train.heads import foreign_head
from motet.train.logprobs import EntropyUse, Scored, score


class Policy(torch.nn.Module):
    def __init__(self, model: Any, head: str = "own") -> None:
        """`head`: of losses whose coefficients are known beforehand; ours is that of all others."""
        super().__init__()
        self.model = model
        self._foreign = foreign_head(head) if head != "own" else None

    def forward(
        self,
        row: Slice,
        temperature: float,
        sequence: SequenceGroup | None,
        entropy: EntropyUse,
        coefficients_n: torch.Tensor | None,
    ) -> Scored:
        """Of the slice's scored tokens."""
        hidden_1tD = self.model.base_model(
            input_ids=row.tokens_t[None],
            position_ids=row.positions_t[None],
            use_cache=False,
            documents=row.documents,
            sequence=sequence,
        ).last_hidden_state
        hidden_nD = hidden_1tD[0].index_select(0, row.scored_n)
        head_VD = self.model.get_output_embeddings().weight
        if self._foreign is not None and coefficients_n is not None:
            return self._foreign.score(hidden_nD, head_VD, row.targets_n, temperature, coefficients_n)
        return score(hidden_nD, head_VD, row.targets_n, temperature, entropy=entropy, coefficients_N=coefficients_n)
