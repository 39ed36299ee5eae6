"""The embedded engine: transformers in this process, nothing to start.

Legend: B completions side by side, P longest prompt, C columns of the cache, V vocabulary.

Prompts are left-padded into one batch and decoded together over a preallocated cache. When a few rows are finished, the
last ones move into their places and the batch is that much shorter. Each row draws from a random stream of its own
(seed, position), so a completion does not depend on what is sampled beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import Cache, DynamicLayer

from motet.base import signs
from motet.base.errors import UserError
from motet.base.recipe import Model
from motet.base.records import Completion
from motet.data.chat import ChatFormat
from motet.engine.protocol import Request, SamplingParams
from motet.model.load import device_of, load_model

# Not cuDNN: it plans anew for each length of the cache, which made bfloat16 decoding 20 times slower on an H100.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CLOSED_UP = 0.97
"""The batch closes up when at most this share of its rows is still open."""


class TransformersEngine:
    """Samples from a copy of the weights in `model.dtype`; `load` overwrites them in place."""

    def __init__(self, path: str | Path, model: Model, chat: ChatFormat, batch_size: int) -> None:
        self.device = device_of(model)
        self.model = load_model(path, "sdpa", self.device, getattr(torch, model.dtype))
        known = inspect.signature(self.model.base_model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # which it was up to transformers 5.23
        self._chat = chat
        self._batch_size = batch_size
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copies every tensor. Raises UserError when names or shapes do not fit the model, or some are missing."""
        own = self.model.state_dict()
        seen = set()
        for name, tensor in weights:
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(f"new weights do not fit the engine's model: {name} of shape {tuple(tensor.shape)}")
            own[name].copy_(tensor)
            seen.add(name)
        if seen != set(own):
            raise UserError(f"new weights are incomplete: {sorted(set(own) - seen)[:3]} are missing")
        self._version = version

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        return self.generate_waves(requests, range(len(requests)), sampling)

    @torch.inference_mode()
    def generate_waves(
        self, requests: Sequence[Request], wanted: Collection[int], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """A wave is `batch_size` requests, in the order of their prompts' lengths."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        prompt = max((len(request.prompt_tokens) for request in requests), default=0)
        if longest is not None and prompt + sampling.max_tokens > longest:
            raise UserError(
                f"a prompt of {prompt} tokens and sampling.max_tokens = {sampling.max_tokens} are "
                f"{prompt + sampling.max_tokens} positions, over the model's {longest}; "
                + (
                    "lower sampling.max_tokens"
                    if prompt < longest
                    else "leave such problems out, or take a model with a larger window"
                )
            )
        # prompts of like length side by side: less padding
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_tokens))
        for start in range(0, len(order), self._batch_size):
            members = order[start : start + self._batch_size]
            if all(index not in wanted for index in members):
                continue
            yield from self._decode(members, [requests[i] for i in members], sampling)

    def close(self) -> None:
        del self.model

    def _decode(
        self, members: list[int], requests: list[Request], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        rows = _Rows(requests, sampling, self._chat.stop_tokens)
        prompt_length = max(len(r.prompt_tokens) for r in requests)
        capacity = prompt_length + sampling.max_tokens
        cache = _SlotCache(len(self.model.base_model.layers), capacity)
        # the rollouts of a problem share its prompt: it is read once, and its columns are copied to each of them
        prompts = {prompt: row for row, prompt in enumerate(dict.fromkeys(r.prompt_tokens for r in requests))}
        tokens_BP = torch.zeros(len(prompts), prompt_length, dtype=torch.long)
        visible_BC = torch.zeros(len(prompts), capacity, dtype=torch.bool)
        for prompt, row in prompts.items():
            tokens_BP[row, prompt_length - len(prompt) :] = torch.tensor(prompt)
            visible_BC[row, prompt_length - len(prompt) :] = True
        tokens_BP, visible_BC = tokens_BP.to(self.device), visible_BC.to(self.device)
        positions_BP = (visible_BC[:, :prompt_length].long().cumsum(1) - 1).clamp(min=0)
        causal_PP = torch.ones(prompt_length, prompt_length, dtype=torch.bool, device=self.device).tril()
        # a padding row sees itself, or its softmax would be over nothing
        eye_PP = torch.eye(prompt_length, dtype=torch.bool, device=self.device)
        mask = (visible_BC[:, None, None, :prompt_length] & causal_PP) | eye_PP
        logits_BV = self._forward(tokens_BP, positions_BP, mask, cache)
        positions_B = positions_BP[:, -1]
        if len(prompts) < len(requests):
            copies = torch.tensor([prompts[r.prompt_tokens] for r in requests], device=self.device)
            cache.copy(copies)
            visible_BC, positions_B, logits_BV = visible_BC[copies], positions_B[copies], logits_BV[copies]
        active = np.arange(len(requests))  # which request each row of the batch is
        for column in range(prompt_length, capacity + 1):
            signs.give()
            tokens_B = rows.sample(logits_BV, active, column - prompt_length)
            done = rows.finished[active]
            for row in active[done & ~rows.reported[active]]:
                rows.reported[row] = True
                yield members[row], rows.completion(row, self._chat, self._version)
            alive = int((~done).sum())
            if alive == 0:
                return
            if alive <= CLOSED_UP * len(active):
                places = np.arange(len(active))
                holes = np.flatnonzero(done[:alive])
                places[holes] = alive + np.flatnonzero(~done[alive:])
                places = places[:alive]
                cache.move(torch.from_numpy(places[holes]).to(self.device), torch.from_numpy(holes).to(self.device))
                keep = torch.from_numpy(places).to(self.device)
                visible_BC, positions_B = visible_BC[keep], positions_B[keep]
                tokens_B, active = tokens_B[places], active[places]
            visible_BC[:, column] = True
            positions_B = positions_B + 1
            mask = visible_BC[:, None, None, : column + 1]
            step_B1 = torch.from_numpy(tokens_B).to(self.device)[:, None]
            logits_BV = self._forward(step_B1, positions_B[:, None], mask, cache)

    def _forward(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, mask: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Float32 logits of the last column, [B, V]."""
        with sdpa_kernel(_KERNELS):
            hidden_BTD = self.model.base_model(
                input_ids=tokens_BT,
                position_ids=positions_BT,
                attention_mask=mask,
                use_cache=True,
                **{self._cache_name: cache},
            ).last_hidden_state
        logits_BV: torch.Tensor = self.model.get_output_embeddings()(hidden_BTD[:, -1]).float()
        return logits_BV


class _Rows:
    """What has been sampled so far, row by row, on the host."""

    def __init__(self, requests: list[Request], sampling: SamplingParams, stops: frozenset[int]) -> None:
        count, length = len(requests), sampling.max_tokens
        self._sampling = sampling
        self._stops = np.array(sorted(stops))
        self.tokens = np.zeros((count, length), dtype=np.int64)
        self.logprobs = np.zeros((count, length), dtype=np.float32)
        self.lengths = np.zeros(count, dtype=np.int64)
        self.ended = np.zeros(count, dtype=bool)
        self.finished = np.zeros(count, dtype=bool)
        self.reported = np.zeros(count, dtype=bool)
        self._uniform = np.stack([np.random.Generator(np.random.Philox(r.seed)).random(length) for r in requests])

    def sample(self, logits_BV: torch.Tensor, active: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
        """Draws one token a row; records it for the rows that are not finished. Returns the tokens [B]."""
        uniform_B = torch.from_numpy(self._uniform[active, step]).to(logits_BV.device)
        tokens_B, logprobs_B = draw(logits_BV, uniform_B, self._sampling)
        tokens, logprobs = tokens_B.cpu().numpy(), logprobs_B.cpu().numpy()
        open_rows = ~self.finished[active]
        rows = active[open_rows]
        self.tokens[rows, step] = tokens[open_rows]
        self.logprobs[rows, step] = logprobs[open_rows]
        self.lengths[rows] = step + 1
        self.ended[rows] = np.isin(tokens[open_rows], self._stops)
        self.finished[rows] = self.ended[rows] | (step + 1 >= self._sampling.max_tokens)
        return tokens

    def completion(self, row: int, chat: ChatFormat, version: int) -> Completion:
        tokens = tuple(self.tokens[row, : self.lengths[row]].tolist())
        logprobs = tuple(self.logprobs[row, : self.lengths[row]].tolist())
        return Completion(chat.decode(tokens), tokens, logprobs, "end" if self.ended[row] else "length", version)


def draw(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] by inversion of the cumulative distribution at `uniform_B` in [0, 1), and their log-probabilities [B]
    under the temperature (before the nucleus is cut). Temperature 0 takes the largest logit."""
    if sampling.temperature == 0.0:
        logprobs_BV = torch.log_softmax(logits_BV, -1)
        best_B = logits_BV.argmax(-1)
        return best_B, logprobs_BV.gather(1, best_B[:, None])[:, 0]
    logprobs_BV = torch.log_softmax(logits_BV / sampling.temperature, -1)
    probs_BV = logprobs_BV.exp()
    if sampling.top_p < 1.0:
        sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        probs_BV = torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV.masked_fill(outside_BV, 0.0))
    cumulative_BV = probs_BV.double().cumsum(-1)
    point_B1 = (uniform_B.double() * cumulative_BV[:, -1])[:, None]
    tokens_B = torch.searchsorted(cumulative_BV, point_B1, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in buffers of fixed capacity: a step writes one column and copies nothing."""

    keys: Any
    values: Any

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            self.keys = key_states.new_empty(batch, heads, self._capacity, width)
            self.values = value_states.new_empty(batch, heads, self._capacity, value_states.shape[-1])
        rows, stop = key_states.shape[0], self._used + key_states.shape[2]
        self.keys[:rows, :, self._used : stop] = key_states
        self.values[:rows, :, self._used : stop] = value_states
        self._used = stop
        return self.keys[:rows, :, :stop], self.values[:rows, :, :stop]

    def get_seq_length(self) -> int:
        return self._used

    def copy(self, rows: torch.Tensor) -> None:
        """Row i becomes what row rows[i] was; there may be more of them than before."""
        self.keys, self.values = self._copied(self.keys, rows), self._copied(self.values, rows)

    def move(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Row rows[i] goes to places[i]; what lies beyond the rows of the next `update` is not read any more."""
        for kept in (self.keys, self.values):
            kept.index_copy_(0, places, kept.index_select(0, rows))

    def _copied(self, kept: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # not kept[rows], which is several times slower on a CPU; and not the columns that hold nothing yet
        copied = kept.new_empty(len(rows), *kept.shape[1:])
        copied[:, :, : self._used] = kept[:, :, : self._used].index_select(0, rows)
        return copied


class _SlotCache(Cache):
    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[_SlotLayer(capacity) for _ in range(num_layers)])

    def copy(self, rows: torch.Tensor) -> None:
        for layer in self._slots():
            layer.copy(rows)

    def move(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        for layer in self._slots():
            layer.move(rows, places)

    def _slots(self) -> list[_SlotLayer]:
        layers: Any = self.layers
        return list(layers)
