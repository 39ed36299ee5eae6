"""The learner: four verbs over packed batches. Above it no device or rank; below it no reward, problem or advantage.

learner.accumulate(batches, loss)   forward and backward, the loss divided once by the step's number of tokens
learner.update()                    clip, optimizer step, version + 1
learner.logprobs(batches)           no gradient: the anchor
learner.weights()                   full tensors by Hugging Face name, for an engine or an export
learner.rest()                      memory that can be filled again goes back until the next of the first three
learner.state() / load_state(state)  everything that the next step depends on (train/checkpoint.py keeps it)

Where several processes train one model, each calls the same verbs with the same batches and takes its share of them;
what the verbs return is the same everywhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Lora, Model, Optimizer
from motet.base.recipe import Mesh as MeshConfig
from motet.base.run import log
from motet.data.pack import Batch, idle, sliced
from motet.model import attention, blocks, kernels
from motet.model.footprint import Training
from motet.model.load import device_of, load_config, load_model
from motet.model.skeleton import fill, skeleton
from motet.model.ulysses import joined
from motet.train import lora as adapters
from motet.train.export import write_model
from motet.train.logprobs import EntropyUse, Scored
from motet.train.losses import Loss
from motet.train.mesh import Mesh, deal, resolve
from motet.train.optimizers import MOST_SKIPPED, Masters, Optimizers
from motet.train.policy import Policy
from motet.train.shard import begin_round, cut_again, largest_part, shard
from motet.train.told import Told
from motet.train.world import World


class Learner:
    """One model with its optimizer. The optimizer steps on weights of `model.weights`; products are computed in
    `model.dtype`; gradients are summed, and the loss computed, in float32."""

    def __init__(
        self,
        path: str | Path,
        model: Model,
        optimizer: Optimizer,
        total_steps: int,
        lora: Lora | None = None,
        mesh: MeshConfig | None = None,
        world: World | None = None,
        notes: Path | None = None,
        seed: int = 1,
        any_length: bool = False,
    ) -> None:
        """`total_steps` optimizer steps shape the learning rate's schedule; `notes` is where batches with a loss or
        gradient that is not finite are written; `seed` is of the adapters' first values. `any_length`: rows will be of
        many lengths, so blocks are compiled for all of them at once, not for the first one first."""
        self.device = device_of(model)
        self.version = 0
        """How often the weights have been updated."""
        self.lora = lora
        self._path, self._notes, self._seed, self._any_length = path, notes, seed, any_length
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._weights_dtype: torch.dtype = getattr(torch, model.weights)
        self._config, self._total_steps = optimizer, total_steps
        self._mesh_config = mesh or MeshConfig()
        self.world = world or World()
        self._mesh: Mesh | None = None
        self._masters: Masters | None = None
        heads = load_config(path).num_attention_heads
        shape = resolve(self._mesh_config, self.world.size, self.world.per_node, heads)
        if shape.size == 1:
            self._build_whole(model)
        else:
            self._mesh = Mesh(shape, self.device, self.world.rank)
            self._build_in_parts(model, self._mesh)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        within = {id(p) for block in blocks.blocks_of(self.model) for p in block.parameters()}
        if self._mesh is None and self._dtype != self._weights_dtype:
            self._masters = Masters(trained)
        self._trained: Mapping[str, torch.nn.Parameter] = self._masters.copies if self._masters else trained
        inside = {n for n, p in trained.items() if id(p) in within}
        self._optimizers = Optimizers(self._trained, inside, optimizer, self._masters)
        if self._keeping is not None:
            self._keeping.pending = self._pending
            # a checkpoint's copy, of what is stepped on and its moments; and the moments that wait on the host
            held = 1 + self._optimizers.moments.leaves
            self._keeping.copies = sum(map(_bytes_of, self._trained.values())) + held * self._moments()
            if self._mesh is not None:
                self._keeping.agree = lambda room: min(self.world.gather(room))
                self._keeping.spread(self._spread(optimizer), self._mesh.shape.sp)
        about = self.model.config
        width = getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
        log.info("attention: %s", kernels.describe(self.device, self._dtype, width))
        self._last: list[Batch] = []
        self._unread: torch.Tensor | None = None
        """The loss of the gradients that are there, still on the device."""
        self._broken = ""
        self._skipped = 0

    @property
    def rows(self) -> int:
        """How many packed rows are worked on at the same time: `pack` is told, so that nobody is idle."""
        return self._mesh.shape.rows if self._mesh else 1

    @property
    def shares_prompts(self) -> bool:
        """Whether a packed row may hold a prompt once for all of its completions: `pack` is told."""
        return self._mesh is None and kernels.reads_shared_prompts(self.device, self._dtype)

    def accumulate(
        self,
        batches: Sequence[Batch],
        loss: Loss,
        extras: Sequence[torch.Tensor] | None = None,
        temperature: float = 1.0,
    ) -> Mapping[str, float]:
        """Adds the gradients of sum(loss) / (number of scored tokens in all batches). Returns the loss's sums, divided
        by the same count. However the tokens fall into batches and processes, the result is the same. Reading a sum
        waits for the device: after `update`, where that does not depend on it."""
        count = sum(batch.num_scored for batch in batches)
        if count == 0:
            raise ValueError("no token of this step has a loss: every loss mask is empty")
        self._last = list(batches)
        share = self._share(batches)
        totals: dict[str, torch.Tensor] = {}
        self._optimizers.prepare()
        with self.world.watched() as alive:
            for place, index in enumerate(share):
                alive()
                self._optimizers.moments.last_row = last = place == len(share) - 1
                if self._mesh:
                    begin_round(self._root, self._mesh_config, last)
                if self._keeping is not None:
                    self._keeping.begin(place, len(share))
                extra = extras[index] if extras is not None and index is not None else None
                sums = self._backward(batches[index] if index is not None else None, loss, extra, temperature, count)
                for name, part in sums.items():
                    totals[name] = totals[name] + part.double() if name in totals else part.double()
            if self._mesh is None and self._optimizers.unread:
                value = totals.pop("")
                self._unread = value if self._unread is None else self._unread + value
                return Told(totals, count)
            found = self._gathered(totals, batches)
        whole = found.pop("")
        if not math.isfinite(whole):
            self._broken = f"the loss is {whole / count}"
        return {name: total / count for name, total in found.items()}

    def update(self) -> dict[str, float]:
        """One optimizer step. A loss or gradient that is not finite would destroy the weights: they are left as they
        are, the batch is written down, and it raises, or goes on if the recipe says so."""
        rate = learning_rate(self._config, self.version, self._total_steps)
        if self._unread is not None:
            found = self._optimizers.step_unread(rate, self._unread)
            norm, value = torch.stack((found.double(), self._unread.double())).tolist()
            if not math.isfinite(norm) or not math.isfinite(value):
                return self._refuse(
                    f"the loss is {value}" if not math.isfinite(value) else f"the gradient norm is {norm}"
                )
        else:
            with self.world.watched():
                norm = self._optimizers.clip()
            if self._broken or not math.isfinite(norm):
                return self._refuse(self._broken or f"the gradient norm is {norm}")
            self._optimizers.step(rate)
        self._forget()
        self.version += 1
        self._skipped = 0
        return {"optim/grad_norm": norm, "optim/learning_rate": rate}

    def discard(self) -> None:
        """Forgets the gradients that were added since the last update."""
        self._forget()

    @torch.no_grad()
    def logprobs(self, batches: Sequence[Batch], temperature: float = 1.0) -> list[torch.Tensor]:
        """Log-probabilities of the scored tokens, one tensor a batch."""
        found: dict[int, torch.Tensor] = {}
        with self.world.watched() as alive:
            for index in self._share(batches):
                alive()
                scored = self._score(batches[index] if index is not None else None, temperature, entropy=False)
                if index is not None:
                    found[index] = scored.logprobs_N
            if self._mesh is None:
                return [found[index] for index in range(len(batches))]
            cut_again(self._root)
            sizes = [batch.num_scored for batch in batches]
            parts = [torch.zeros(size, device=self.device) for size in sizes]
            if self._mesh.part == 0:  # the processes of a row all have its values
                for index, values in found.items():
                    parts[index] = values
            whole = torch.cat(parts)
            dist.all_reduce(whole)
        return list(torch.split(whole, sizes))

    def rest(self) -> None:
        """Gives back what can be made again or waits elsewhere, until the model is needed: an engine in the same memory
        samples now."""
        if self._masters:
            self._masters.rest()
        self._optimizers.moments.leave()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every name of the model's state, one full tensor at a time; all processes go through all of them."""
        tensors = self._whole_tensors()
        if self.lora is not None:
            tensors = adapters.merged(self.model, tensors)
        tied: dict[str, list[str]] = {}
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            original = first.setdefault(id(parameter), name)
            if original != name:
                tied.setdefault(original, []).append(name)
        for name, tensor in tensors:
            yield name, tensor
            for other in tied.get(name, ()):
                yield other, tensor

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Of what is trained, by name, one full tensor at a time; all processes go through all of them. Where the state
        is cut they are whole after `accumulate`."""
        for name, parameter in self._trained.items():
            if parameter.grad is not None:
                grad = parameter.grad
                yield name, grad.full_tensor() if isinstance(grad, DTensor) else grad.to(parameter.dtype)

    def export(self, folder: Path, tokenizer: Any) -> None:
        """Writes a Hugging Face folder in the type that the recipe computes in, and the adapter beside it."""
        sizes = {name.replace(".base_layer.", "."): p.numel() for name, p in self._named() if ".lora_" not in name}
        once = ((name, tensor) for name, tensor in self.weights() if name in sizes)
        if self.lora is not None:
            self._export_adapter(folder.with_name("adapter"), self.lora)

        def write() -> None:
            try:
                write_model(folder, self.model, tokenizer, once, sizes, self._dtype)
            finally:
                deque(once, maxlen=0)

        if self.world.rank > 0:  # the processes gather each tensor together: all go through all of them
            deque(once, maxlen=0)
        self.world.first(write)

    def state(self) -> dict[str, torch.Tensor]:
        """Flat: weights/NAME, optimizer/NAME/SLOT, version, random/DEVICE. The tensors are the learner's own where they
        are on its device; beside a GPU those on the host are copies."""
        state = {f"weights/{name}": parameter.detach() for name, parameter in self._trained.items()}
        state |= {f"optimizer/{key}": value for key, value in self._optimizers.state().items()}
        state |= {"version": torch.tensor(self.version), "random/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["random/cuda"] = torch.cuda.get_rng_state()
        return state

    def blank(self, key: str, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A tensor to read `key` of a state into, where a fresh learner's state does not have it yet."""
        if key.startswith("optimizer/"):
            return self._optimizers.blank(key.removeprefix("optimizer/"), dtype, shape)
        return torch.zeros(tuple(shape), dtype=dtype)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(state[f"weights/{name}"])
        prefix = "optimizer/"
        self._optimizers.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        if self._masters:
            self._masters.publish()
        self.version = int(state["version"])
        torch.set_rng_state(state["random/cpu"])
        if self.device.type == "cuda" and "random/cuda" in state:
            torch.cuda.set_rng_state(state["random/cuda"])

    # ---- how it is built

    def _build_whole(self, model: Model) -> None:
        self.model: Any = load_model(self._path, attention.NAME, self.device, self._weights_dtype)
        self._prepare(model)
        if self.lora is not None and self._dtype != self._weights_dtype:
            for parameter in self.model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(self._dtype)
        self._policy = Policy(self.model, model.head)

    def _build_in_parts(self, model: Model, mesh: Mesh) -> None:
        self.model = skeleton(self._path, attention.NAME, self._weights_dtype)
        given = self._prepare(model)
        self._policy = Policy(self.model, model.head)
        self._root = shard(self._policy, mesh, self._mesh_config, self._dtype)
        fill(self.model, self._path, self.device, given)

    def _prepare(self, model: Model) -> dict[str, torch.Tensor]:
        """Adapters, then what is done to each block; sharding comes after. Returns the adapters' values."""
        _no_dropout(self.model)
        if getattr(self.model.get_output_embeddings(), "bias", None) is not None:
            raise UserError(f"{self._path}: the head has a bias, which motet does not support yet")
        values = adapters.inject(self.model, self.lora, self._seed) if self.lora is not None else {}
        self._keeping = blocks.prepare(self.model, model, self.device, self._any_length)
        self.model.train()  # checkpointing asks for it
        return values

    # ---- one micro-batch

    def _share(self, batches: Sequence[Batch]) -> list[int | None]:
        """Which batches this process works on, in order. All have the same number of rounds, None where one has
        nothing: every round gathers weights from everybody."""
        if self._mesh is None:
            return list(range(len(batches)))
        hands = deal([batch.tokens_T.numel() for batch in batches], self._mesh.shape.rows)
        own = hands[self._mesh.row]
        return [*own, *[None] * (max(map(len, hands)) - len(own))]

    def _backward(
        self, batch: Batch | None, loss: Loss, extra_N: torch.Tensor | None, temperature: float, count: int
    ) -> dict[str, torch.Tensor]:
        """The gradients of one batch, None weighing nothing. Returns the loss's sums, and its value under ""."""
        known = getattr(loss, "coefficients", None)
        coefficients_N = known(batch) / count if known is not None and batch is not None else None
        scored = self._score(batch, temperature, getattr(loss, "entropy", True), coefficients_N)
        if batch is None:
            torch.autograd.backward(0.0 * scored.logprobs_N.sum())
            return {}
        if scored.weighted is None:
            value, sums = loss(scored, batch, extra_N)
            torch.autograd.backward(value / count)
        else:
            torch.autograd.backward(scored.weighted)
            value, sums = loss(scored._replace(weighted=None), batch, extra_N)
        if self._keeping is not None:
            self._keeping.observe()
        return {"": value.detach(), **sums}

    def _pending(self) -> tuple[int, int]:
        """Bytes of the gradients, and of the optimizer state, that the step has yet to allocate. What comes back while
        a row goes backward counts as its gradients do."""
        # a master's first gradient is kept as it comes, and of its own type once another is added
        first = self._dtype if self._masters else None
        gradients = 0
        for own in self._trained.values():
            if own.grad is None:
                gradients += largest_part(own) * (first or own.dtype).itemsize
            elif own.grad.dtype != own.dtype:
                gradients += largest_part(own) * (own.dtype.itemsize - own.grad.dtype.itemsize)
        gradients += self._optimizers.moments.bytes_away
        there = any(part.state for part in self._optimizers.parts)
        return gradients, 0 if there else self._moments()

    def _moments(self) -> int:
        """Bytes of Muon's one and AdamW's two for each parameter."""
        total = 0
        for part in self._optimizers.parts:
            own = [p for group in part.param_groups for p in group["params"]]
            total += (2 if isinstance(part, torch.optim.AdamW) else 1) * sum(map(_bytes_of, own))
        return total

    def _spread(self, optimizer: Optimizer) -> Training:
        """How the state lies on a mesh, for the prediction of memory."""
        assert self._mesh is not None
        adapters = sum(p.numel() for p in self._trained.values()) if self.lora is not None else 0
        return Training(
            self._dtype.itemsize, self._weights_dtype.itemsize, adapters,
            slots=1 if optimizer.kind == "muon" else 2,
            parallel=True, shards=self._mesh.shape.dp_shard * self._mesh.shape.sp,
            reshard=self._mesh_config.reshard_after_forward, reduce_once=self._mesh_config.reduce_once,
        )  # fmt: skip

    def _score(
        self,
        batch: Batch | None,
        temperature: float,
        entropy: EntropyUse,
        coefficients_N: torch.Tensor | None = None,
    ) -> Scored:
        """Of all scored tokens of the row: where processes share it, each computes those of its slice."""
        if self._masters:
            self._masters.wake()
        part, parts = (self._mesh.part, self._mesh.shape.sp) if self._mesh else (0, 1)
        sequence = self._mesh.sequence if self._mesh else None
        batch = batch or idle(2 * parts, self.device)
        row = sliced(batch, part, parts)
        if coefficients_N is not None:
            coefficients_N = coefficients_N[row.start : row.start + row.targets_n.numel()]
        scored: Scored = self._policy(row, temperature, sequence, entropy, coefficients_N)
        if sequence is None:
            return scored
        logprobs_N = joined(scored.logprobs_N, row.start, batch.num_scored, sequence)
        entropy_N = scored.entropy_N
        if entropy_N is not None:
            entropy_N = joined(entropy_N, row.start, batch.num_scored, sequence)
        return Scored(logprobs_N, entropy_N, scored.weighted)

    def _gathered(self, totals: Mapping[str, torch.Tensor], batches: Sequence[Batch]) -> dict[str, float]:
        """The sums over all processes, each row counted once."""
        values = torch.stack(list(totals.values())).tolist() if totals else []
        own = dict(zip(totals, values, strict=True))
        if self._mesh is None:
            return own
        print_of_step = [(batch.num_scored, *batch.documents.lengths) for batch in batches]
        everyone = self.world.gather((own if self._mesh.part == 0 else {}, hash(tuple(print_of_step))))
        assert len({seen for _, seen in everyone}) == 1, "the processes of the run were given different batches"
        summed: dict[str, float] = {}
        for found, _ in everyone:
            for name, value in found.items():
                summed[name] = summed.get(name, 0.0) + value
        return summed

    def _forget(self) -> None:
        self._broken, self._unread = "", None
        self._optimizers.clear()

    def _refuse(self, what: str) -> dict[str, float]:
        self._forget()
        self._skipped += 1
        step, place = self.version + 1, ""
        if self._notes is not None:
            file = self._notes / f"nonfinite-{step}.jsonl"
            place = f" The batch is in {file}."
            if self.world.rank == 0:
                jsonl.write(file, [_described(batch) for batch in self._last])
        if self._config.on_nonfinite == "stop" or self._skipped > MOST_SKIPPED:
            again = f" It is the {self._skipped}th step in a row." if self._skipped > 1 else ""
            raise UserError(
                f"optimizer step {step}: {what}; the weights were left as they were.{again}{place} {self._cure()}"
            )
        log.info("optimizer step %d: %s; skipped.%s", step, what, place)
        return {
            "optim/skipped": 1.0,
            "optim/learning_rate": learning_rate(self._config, self.version, self._total_steps),
        }

    def _cure(self) -> str:
        """What to do about a loss or gradient that is not finite; all processes ask."""
        parts = ((name, t.to_local() if isinstance(t, DTensor) else t) for name, t in self._named())
        own = [name for name, part in parts if not bool(part.isfinite().all())]
        broken = sorted({name for names in self.world.gather(own) for name in names})
        if not broken:
            skip = 'optimizer.on_nonfinite = "skip" leaves such steps out.'
            return f"A smaller optimizer.learning_rate is the usual cure; {skip}"
        found = f"The weights themselves were not finite before it ({len(broken)} of them, {broken[0]} for one)"
        if self.version == 0:
            return f"{found}, as they are in {self._path}: copy or export that model again."
        return f"{found}: an earlier step was too large. Make optimizer.learning_rate smaller."

    # ---- whole tensors

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters, the trained ones as exact as they are kept, and buffers that are part of the state."""
        for name, parameter in self.model.named_parameters():
            yield name, self._trained.get(name, parameter).detach()
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for name, buffer in self.model.state_dict(keep_vars=True).items():
            if name not in parameters:
                yield name, buffer

    def _whole_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._named():
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _export_adapter(self, folder: Path, config: Lora) -> None:
        own = {name: tensor.cpu() for name, tensor in self._whole_tensors() if ".lora_" in name}
        self.world.first(lambda: adapters.save_adapter(folder, config, str(self._path), own))


def _bytes_of(own: torch.Tensor) -> int:
    """Of the largest part that a process has."""
    return largest_part(own) * own.dtype.itemsize


def _described(batch: Batch) -> dict[str, Any]:
    return {
        "lengths": list(batch.documents.lengths),
        "tokens": batch.tokens_T.tolist(),
        "scored": batch.scored_N.tolist(),
        "advantages": batch.advantages_N.tolist(),
        "behaviour_logprobs": batch.behaviour_N.tolist(),
    }


def _no_dropout(model: Any) -> None:
    """With dropout the anchor's log-probabilities would not be the ratio's own, and a resumed run not the same one."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def learning_rate(config: Optimizer, step: int, total: int) -> float:
    """Of optimizer step `step` (from 0): linear warm-up, then constant or a cosine to final_ratio.

    Example: peak 1, warm-up 2, total 6, final 0: 0.5, 1, 1, 0.854, 0.5, 0.146 (the cosine over steps 2..6).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_ratio + (1.0 - config.final_ratio) * cosine)
