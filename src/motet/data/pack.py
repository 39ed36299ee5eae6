"""Samples to packed batches: the one form in which SFT and RL reach the learner.

Legend: T packed tokens of a batch, N scored tokens (those whose loss mask is set).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from motet.model.kernels import Documents


@dataclass(frozen=True, slots=True)
class Sample:
    """One document to train on, in SFT and RL alike.

    Example: tokens (5, 9, 7, 2) with mask (F, F, T, T) trains the model to write 7 after 5 9, and 2 after 5 9 7.
    """

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True where the token is to be predicted; the first token never is."""
    advantage: float = 0.0
    """Of every scored token (RL)."""
    logprobs: tuple[float, ...] = ()
    """Behaviour log-probabilities of the scored tokens, in order (RL); empty when the engine gave none."""
    domain: str = ""
    weight: float = 1.0
    """Of every scored token in the summed loss (RL)."""


@dataclass(frozen=True, slots=True)
class Batch:
    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    """Position of each token in its own document."""
    documents: Documents
    scored_N: torch.Tensor
    """Indices of the tokens from whose hidden state a scored token is predicted."""
    targets_N: torch.Tensor
    """The scored tokens."""
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    """What a token's loss counts for; the learner divides the sum by the number of scored tokens all the same."""
    behaviour_N: torch.Tensor
    """Behaviour log-probabilities; NaN where unknown."""
    sequence_N: torch.Tensor
    """Which of the batch's samples a scored token belongs to, as an index into `order`."""
    order: tuple[int, ...]
    """Which samples the batch holds, as indices into the packed sequence of samples."""
    reference_N: torch.Tensor | None = None
    """Log-probabilities under a reference policy, where there is one."""

    @property
    def num_scored(self) -> int:
        return int(self.targets_N.numel())


@dataclass(frozen=True, slots=True)
class Slice:
    """What one of the processes that share a row works on: t of its tokens, n of its scored tokens."""

    tokens_t: torch.Tensor
    positions_t: torch.Tensor
    documents: Documents
    """Of the whole row, its padding included."""
    scored_n: torch.Tensor
    """Indices into the slice."""
    targets_n: torch.Tensor
    start: int
    """Where its scored tokens begin among those of the row."""


def pack(
    samples: Sequence[Sample],
    max_tokens: int,
    device: torch.device | str = "cpu",
    rows: int = 1,
    share_prompts: bool = False,
) -> list[Batch]:
    """Longest first, each sample into the first batch with room. One longer than `max_tokens` is a batch of its own.

    With `rows` > 1, that many batches are worked on at the same time: their number becomes a multiple of it where the
    samples allow, all with about the same number of tokens. With `share_prompts` samples that begin with the same
    tokens up to the first scored one go together, and have these tokens once. How samples fall into batches changes
    memory and speed, never the summed loss.
    """
    units = _by_prompt(samples, max_tokens) if share_prompts else [[index] for index in range(len(samples))]
    lengths = [_tokens_of(samples, unit) for unit in units]
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(units)), key=lambda i: -lengths[i]):
        place = next((b for b, free in enumerate(room) if free >= lengths[index]), None)
        if place is None:
            bins.append([index])
            room.append(max_tokens - lengths[index])
        else:
            bins[place].append(index)
            room[place] -= lengths[index]
    if rows > 1:
        even = _evenly(lengths, rows * -(-len(bins) // rows))
        if max(sum(lengths[i] for i in members) for members in even) <= max(max_tokens, *lengths):
            bins = even
    return [_batch(samples, [units[index] for index in members], device) for members in bins]


def sliced(batch: Batch, part: int, parts: int) -> Slice:
    """Slice `part` of `parts`. The row is padded to a multiple of `parts` by one more document, which is not scored.

    Example: a row of 7 tokens in 2 parts becomes one of 8; part 1 has the tokens 4, 5, 6 and the padding.
    """
    if parts == 1:
        return Slice(batch.tokens_T, batch.positions_T, batch.documents, batch.scored_N, batch.targets_N, 0)
    length, device = batch.tokens_T.numel(), batch.tokens_T.device
    padding = -length % parts
    documents = batch.documents
    if padding:
        documents = Documents.plan([*documents.lengths, padding], device)
    size = (length + padding) // parts
    first = part * size
    tokens_T = torch.cat([batch.tokens_T, batch.tokens_T.new_zeros(padding)])
    positions_T = torch.cat([batch.positions_T, torch.arange(padding, device=device)])
    bounds = torch.tensor([first, first + size], device=device)
    start, stop = torch.searchsorted(batch.scored_N, bounds).tolist()
    return Slice(
        tokens_T[first : first + size],
        positions_T[first : first + size],
        documents,
        batch.scored_N[start:stop] - first,
        batch.targets_N[start:stop],
        start,
    )


def idle(tokens: int, device: torch.device | str) -> Batch:
    """A row for a process that has none: one document, its last token scored, so that every parameter has a gradient
    to multiply by zero."""
    return pack([Sample((0,) * tokens, (False,) * (tokens - 1) + (True,))], tokens, device)[0]


def _evenly(lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` lists of samples, the longest sample first to the list with the fewest tokens; no empty ones."""
    bins: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = min(range(count), key=lambda b: tokens[b])
        bins[place].append(index)
        tokens[place] += lengths[index]
    return [members for members in bins if members]


def _prompt_of(sample: Sample) -> tuple[int, ...]:
    """The tokens before the first scored one; none where nothing is scored."""
    return sample.tokens[: sample.loss_mask.index(True)] if True in sample.loss_mask else ()


def _by_prompt(samples: Sequence[Sample], max_tokens: int) -> list[list[int]]:
    """Samples with the same prompt, at most `max_tokens` together with it once; in the order of their first ones."""
    units: list[list[int]] = []
    latest: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for index, sample in enumerate(samples):
        prompt = _prompt_of(sample)
        unit, room = latest.get(prompt, ([], 0)) if prompt else ([], 0)
        own = len(sample.tokens) - len(prompt)
        if not unit or own > room:
            unit, room = [], max_tokens - len(prompt)
            units.append(unit)
        unit.append(index)
        latest[prompt] = unit, room - own
    return units


def _tokens_of(samples: Sequence[Sample], unit: Sequence[int]) -> int:
    common = len(_prompt_of(samples[unit[0]])) if len(unit) > 1 else 0
    return sum(len(samples[index].tokens) for index in unit) - common * (len(unit) - 1)


def _batch(samples: Sequence[Sample], units: Sequence[Sequence[int]], device: torch.device | str) -> Batch:
    """The samples of a unit of several have one prompt, which lies before all of them."""
    tokens, positions, scored, targets, behaviour = ([np.empty(0, dtype=np.int64)] for _ in range(5))
    lengths: list[int] = []
    after: list[int] = []
    order: list[int] = []
    counts: list[int] = []
    end = 0
    for unit in units:
        common = len(_prompt_of(samples[unit[0]])) if len(unit) > 1 else 0
        first, parent = end, len(lengths) if common else -1
        if common:
            tokens.append(np.array(samples[unit[0]].tokens[:common], dtype=np.int64))
            positions.append(np.arange(common))
            lengths.append(common)
            after.append(-1)
            end += common
        for index in unit:
            sample = samples[index]
            own, trained = np.array(sample.tokens, dtype=np.int64), np.array(sample.loss_mask, dtype=bool)
            places = trained[1:].nonzero()[0] + 1
            start = end - common  # where its first token would lie, if it had its prompt to itself
            tokens.append(own[common:])
            positions.append(np.arange(common, len(own)))
            scored.append(np.where(places > common, start, first) + places - 1)
            targets.append(own[places])
            behaviour.append(np.array(sample.logprobs) if sample.logprobs else np.full(len(places), np.nan))
            lengths.append(len(own) - common)
            after.append(parent)
            counts.append(len(places))
            order.append(index)
            end += len(own) - common

    def long(*parts: Any) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    def told(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(device)

    batch = Batch(
        tokens_T=long(*tokens),
        positions_T=long(*positions),
        documents=Documents.plan(lengths, device, after=tuple(after) if max(after) >= 0 else ()),
        scored_N=long(*scored),
        targets_N=long(*targets),
        advantages_N=told(np.repeat([samples[index].advantage for index in order], counts)),
        weights_N=told(np.repeat([samples[index].weight for index in order], counts)),
        behaviour_N=told(np.concatenate(behaviour)),
        sequence_N=long(np.arange(len(order)).repeat(counts)),
        order=tuple(order),
    )
    assert len(batch.behaviour_N) == len(batch.targets_N)
    return batch
