"""One way to run a stage, what it takes on each GPU, and the smallest change after which it fits."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from motet.base.errors import UserError
from motet.base.recipe import Machine, Recipe
from motet.model import footprint
from motet.model.blocks import is_compiled
from motet.model.footprint import LADDER, MARGIN, Compute, Forecast, Row, Sizes, Training, row_of
from motet.model.recompute import Policy
from motet.plan.work import Share, Work, engine_share
from motet.train.mesh import Shape, fitting, resolve

BYTES = {"float32": 4, "bfloat16": 2}
EXPORTED = 4 << 30
"""Bytes of an exported file, which the first process holds in host memory while it is written."""


@dataclass(frozen=True)
class Setup:
    """Settings of a recipe that decide about memory."""

    shape: Shape
    recompute: str
    """model.recompute"""
    weights: str
    reduce_once: bool
    reshard: bool
    row: int
    """Tokens of a row at most."""
    rank: int
    """Of adapters; 0: everything is trained."""


class Host(NamedTuple):
    """Bytes of host memory on a node."""

    saving: int
    """Copies of the state while a checkpoint is written in the background."""
    exporting: int
    offloaded: int
    """Pinned buffers of offloaded blocks."""

    @property
    def most(self) -> int:
        return self.offloaded + max(self.saving, self.exporting)


@dataclass(frozen=True)
class Need:
    """What a setup takes."""

    setup: Setup
    forecast: Forecast
    policies: dict[str, int]
    """How many blocks have which policy."""
    engine: Share
    reference: int
    attention: int
    """Of the row's bytes: float32 sums of attention's backward pass."""
    exchanged: int
    """Of the row's bytes: what goes through Ulysses' all-to-alls."""
    total: int
    """Bytes of the fullest GPU."""
    usable: int
    host: Host

    @property
    def spare(self) -> int:
        return self.usable - self.total


class Planner:
    """Of one recipe on one machine."""

    def __init__(self, recipe: Recipe, machine: Machine, sizes: Sizes, on_gpu: bool = True) -> None:
        self.recipe, self.machine, self.sizes, self.on_gpu = recipe, machine, sizes, on_gpu
        self.memory = int(machine.memory_gib * 2**30)
        self.usable = int((1 - MARGIN) * self.memory) if on_gpu else self.memory
        self.per_node = min(*recipe.engine.gpus, machine.gpus) if recipe.engine.apart else machine.gpus
        """GPUs of a node that the learner's processes have: those before the engine's."""
        self.gpus = machine.nodes * self.per_node
        self.corrections: dict[str, float] = {}
        """Measured through predicted bytes of a stage's row, where a probe measured them."""

    def asked(self, work: Work) -> Setup:
        """What the recipe says. Raises UserError for a mesh that does not fit."""
        model, mesh = self.recipe.model, self.recipe.mesh
        try:
            shape = resolve(mesh, self.gpus, self.per_node, self.sizes.heads)
        except UserError as error:
            machine = f"{self.machine.nodes} x {self.per_node} GPUs of the learner, a process on each"
            raise UserError(f"{machine} (--nodes and --gpus plan for others): {error}") from None
        return Setup(
            shape, model.recompute, model.weights, mesh.reduce_once, mesh.reshard_after_forward, work.tokens, work.lora
        )

    def need(self, work: Work, setup: Setup) -> Need:
        """Of a stage that trains."""
        element = BYTES[self.recipe.model.dtype]
        training = self.training(work, setup)
        compute = self.compute(setup)
        tokens = math.ceil(setup.row / setup.shape.sp)
        row = row_of(self.sizes, training, tokens, work.known, work.entropy_gradient)
        engine = engine_share(work, self.sizes, element, self.memory, beside_learner=True)
        reference = element * self.sizes.parameters // training.shards if work.reference else 0
        others = engine.size + reference
        policies = self.policies(work, setup, compute, training, row, others)
        found = footprint.forecast(self.sizes, compute, training, row, policies, others)
        found = self._corrected(work, found)
        attention, exchanged = footprint.attention_bytes(self.sizes, compute, tokens)
        return Need(
            setup, found, dict(Counter(policies)), engine, reference, attention, exchanged, found.total, self.usable,
            self.host(setup, training, tokens, policies),
        )  # fmt: skip

    def training(self, work: Work, setup: Setup) -> Training:
        adapters = footprint.adapter_parameters(self.sizes, setup.rank) if setup.rank else 0
        return Training(
            BYTES[self.recipe.model.dtype],
            BYTES[setup.weights],
            adapters,
            slots=1 if work.muon else 2,
            parallel=setup.shape.size > 1,
            shards=setup.shape.dp_shard * setup.shape.sp,
            reshard=setup.reshard,
            reduce_once=setup.reduce_once,
            rounds=max(1, math.ceil(work.rows * work.tokens / setup.row / setup.shape.rows)),
        )

    def compute(self, setup: Setup) -> Compute:
        model = self.recipe.model.model_copy(update={"recompute": setup.recompute})
        kernel = self.on_gpu and model.dtype != "float32"
        return Compute(
            BYTES[model.dtype], is_compiled(model, self.on_gpu), setup.shape.sp, kernel, setup.rank, host=self.on_gpu
        )  # fmt: skip

    def policies(
        self, work: Work, setup: Setup, compute: Compute, training: Training, row: Row, others: int
    ) -> list[Policy]:
        """The recipe's, or what `auto` will choose."""
        if setup.recompute != "auto":
            return [setup.recompute] * self.sizes.layers  # type: ignore[list-item]
        if not self.on_gpu:
            return ["none"] * self.sizes.layers
        state = footprint.state_of(self.sizes, training)
        room = int((self.usable - others - state.held(row)) / self.corrections.get(work.name, 1.0))
        return footprint.choose(self.sizes, compute, row, room)

    def host(self, setup: Setup, training: Training, tokens: int, policies: Sequence[Policy]) -> Host:
        """A checkpoint is copied to host memory before it is written; on one CPU process it is written directly."""
        state = footprint.state_of(self.sizes, training)
        trained = training.adapters or self.sizes.parameters
        per_rank = training.weights * trained // training.shards + state.optimizer
        ranks = min(self.gpus, self.per_node)
        saving = ranks * per_rank if self.on_gpu or self.gpus > 1 else 0
        moved = Counter(policies)["offload"] * tokens * self.sizes.width * training.element if self.on_gpu else 0
        return Host(saving, min(EXPORTED, training.element * self.sizes.parameters), ranks * moved)

    def _corrected(self, work: Work, found: Forecast) -> Forecast:
        factor = self.corrections.get(work.name)
        if factor is None:
            return found
        peak = found.peak
        kept, working, head = (int(factor * size) for size in (peak.kept, peak.working, peak.head))
        total = kept + working + head + peak.gradients + peak.passing
        return replace(found, peak=peak._replace(total=total, kept=kept, working=working, head=head))

    def shapes(self) -> list[Shape]:
        """All meshes of this machine, those that share rows least first."""
        found = fitting(self.gpus, self.per_node, self.sizes.heads)
        return sorted(found, key=lambda shape: (shape.sp, shape.dp_replicate))

    def smallest_change(self, work: Work, setup: Setup) -> tuple[str, Need] | None:
        """The fewest settings to change, and of those changes the one that costs least time; None: nothing helps."""
        single = list(self._changes(work, setup))
        for count in (1, 2, 3):
            for chosen in itertools.combinations(single, count):
                if len({change.key for change in chosen}) < count:
                    continue
                changed = setup
                for change in chosen:
                    changed = change.apply(changed)
                need = self.need(work, changed)
                if need.spare >= 0:
                    return ", ".join(change.words for change in chosen), need
        return None

    def _changes(self, work: Work, setup: Setup) -> Iterator[Change]:
        """From the cheapest in time to the dearest."""
        if setup.recompute != "auto":
            order: list[Policy] = [*LADDER, "offload"]
            for policy in order[order.index(setup.recompute) + 1 :]:  # type: ignore[arg-type]
                yield _recompute(policy)
        else:
            yield _recompute("offload")
        for shape in self.shapes():
            if shape != setup.shape and shape.dp_shard * shape.sp >= setup.shape.dp_shard * setup.shape.sp:
                words = ", ".join(
                    f"mesh.{name} = {new}"
                    for name, new, old in zip(shape._fields, shape, setup.shape, strict=True)
                    if new != old
                )
                yield Change("mesh", words, lambda s, shape=shape: replace(s, shape=shape))  # type: ignore[misc]
        if setup.reduce_once and setup.shape.size > 1:
            yield Change("reduce_once", "mesh.reduce_once = false", lambda s: replace(s, reduce_once=False))
        shorter = [n for n in (setup.row // 2, setup.row // 4) if n >= work.longest]
        for row in shorter:
            words = f"stage.{work.name}.micro_batch_tokens = {row}"
            yield Change("row", words, lambda s, row=row: replace(s, row=row))  # type: ignore[misc]
        if setup.weights == "float32" and self.recipe.model.dtype == "bfloat16":
            yield Change("weights", 'model.weights = "bfloat16"', lambda s: replace(s, weights="bfloat16"))
        if not setup.rank:
            words = f"stage.{work.name}.lora = {{ rank = 16 }}"
            yield Change("lora", words, lambda s: replace(s, rank=16))


class Change(NamedTuple):
    key: str
    words: str
    apply: Callable[[Setup], Setup]


def _recompute(policy: Policy) -> Change:
    return Change("recompute", f'model.recompute = "{policy}"', lambda s: replace(s, recompute=policy))
