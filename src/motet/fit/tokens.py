"""What a student says of the tokens of given texts: log-probability and rank of each, one forward pass, no gradient.

Legend: T packed tokens, N scored tokens, C tokens of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from motet.base.recipe import Model
from motet.data.pack import Batch, Sample, pack
from motet.model import attention
from motet.model.footprint import rows_of_a_chunk
from motet.model.load import device_of, load_model


class Ranked(NamedTuple):
    """Of the scored tokens of one text, in order."""

    surprisal_N: torch.Tensor
    """-log p, nats, float32."""
    rank_N: torch.Tensor
    """1 + the number of tokens that are more probable: 1 for the most probable one, and for its equals."""


class Student:
    """Frozen weights in `model.dtype`, whole on one device."""

    def __init__(self, path: str | Path, model: Model) -> None:
        self.device = device_of(model)
        self._model: Any = load_model(path, attention.NAME, self.device, getattr(torch, model.dtype))

    @torch.no_grad()
    def read(self, samples: Sequence[Sample], max_tokens: int) -> Iterator[tuple[int, Ranked]]:
        """Yields (index into `samples`, its scored tokens), packed rows of at most `max_tokens` at a time.

        A sample longer than that is a row of its own. How samples fall into rows changes nothing.
        """
        for batch in pack(samples, max_tokens, self.device):
            surprisal_N, rank_N = self._score(batch)
            sizes = torch.bincount(batch.sequence_N, minlength=len(batch.order)).tolist()
            parts = zip(torch.split(surprisal_N.cpu(), sizes), torch.split(rank_N.cpu(), sizes), strict=True)
            for index, (surprisal, rank) in zip(batch.order, parts, strict=True):
                yield index, Ranked(surprisal, rank)

    def _score(self, batch: Batch) -> Ranked:
        hidden_1TD = self._model.base_model(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            documents=batch.documents,
            sequence=None,
        ).last_hidden_state
        hidden_ND = hidden_1TD[0].index_select(0, batch.scored_N)
        return rank(hidden_ND, self._model.get_output_embeddings().weight, batch.targets_N)


def rank(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, chunk: int | None = None) -> Ranked:
    """Surprisal and rank of `targets_N` under softmax(hidden @ weight.T), logits in float32.

    Only [chunk, V] logits exist at a time; unset, as many rows as `train/logprobs.py` takes.
    """
    chunk = chunk or rows_of_a_chunk(weight_VD.shape[0], hidden_ND.element_size())
    surprisals, ranks = [hidden_ND.new_zeros(0, dtype=torch.float32)], [targets_N.new_zeros(0)]
    weight_VD = weight_VD.to(hidden_ND.dtype)
    tensor_cores = hidden_ND.is_cuda and hidden_ND.dtype in (torch.bfloat16, torch.float16)
    float_VD = weight_VD if tensor_cores else weight_VD.float()
    for start in range(0, hidden_ND.shape[0], chunk):
        hidden_CD, targets_C = hidden_ND[start : start + chunk], targets_N[start : start + chunk]
        if tensor_cores:  # float32 sums, kept: logits rounded to bfloat16 would tie many ranks
            logits_CV = torch.mm(hidden_CD, float_VD.T, out_dtype=torch.float32)
        else:
            logits_CV = hidden_CD.float() @ float_VD.T
        target_C1 = logits_CV.gather(1, targets_C[:, None])
        surprisals.append(logits_CV.logsumexp(-1) - target_C1[:, 0])
        ranks.append((logits_CV > target_C1).sum(-1) + 1)
        del logits_CV  # before the next chunk has its own
    return Ranked(torch.cat(surprisals), torch.cat(ranks))
