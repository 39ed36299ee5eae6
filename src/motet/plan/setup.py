"""One way to run a stage, what it takes on each GPU, and the smallest change after which it fits."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from motet.base.errors import UserError
from motet.base.recipe import Engine, Machine, Recipe
from motet.model import footprint
from motet.model.blocks import is_compiled
from motet.model.footprint import MARGIN, Compute, Forecast, Row, Sizes, Training, row_of
from motet.model.keep import host_room
from motet.model.load import load_config
from motet.model.recompute import POLICIES, Policy
from motet.plan.sizing import from_config
from motet.plan.work import Share, Work, engine_share, is_elsewhere
from motet.train.mesh import Shape, fitting, resolve

BYTES = {"float32": 4, "bfloat16": 2}
EXPORTED = 4 << 30
"""Bytes of an exported file, which the first process holds in host memory while it is written."""
MOST_OF_A_GPU = 0.92
"""vLLM is given no more than this."""


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
    engine: Engine | None = None
    """Who samples between the steps."""
    offload: bool = False
    """optimizer.offload = "on" """


class Host(NamedTuple):
    """Bytes of host memory on a node."""

    saving: int
    """Copies of the state while a checkpoint is written in the background."""
    exporting: int
    offloaded: int
    """Pinned buffers of offloaded and hosted blocks and of moments."""
    asleep: int
    """Weights of engines that sleep."""

    @property
    def most(self) -> int:
        return self.offloaded + self.asleep + max(self.saving, self.exporting)


@dataclass(frozen=True)
class Sampling:
    """What a GPU holds while an engine samples."""

    engine: Share
    learner: int
    """Weights and optimizer, without a row; 0 where the learner has gone."""
    usable: int

    @property
    def total(self) -> int:
        return self.engine.size + self.learner

    @property
    def spare(self) -> int:
        """Less than nothing too where the engine's share is less than it needs."""
        short = self.engine.size - self.engine.least
        return short if short < 0 else self.usable - self.total


@dataclass(frozen=True)
class Need:
    """What a setup takes."""

    setup: Setup
    forecast: Forecast
    policies: dict[str, int]
    """How many blocks have which policy."""
    engine: Share
    """While the learner works."""
    sampling: Sampling | None
    """Between the steps; None where nothing is sampled on the learner's GPUs."""
    reference: int
    attention: int
    """Of the row's bytes: float32 sums of attention's backward pass."""
    exchanged: int
    """Of the row's bytes: what goes through Ulysses' all-to-alls."""
    total: int
    """Bytes of the fullest GPU in a step."""
    usable: int
    host: Host
    host_usable: int | None
    """Of a node, where it is known."""

    @property
    def spare(self) -> int:
        """Bytes of the fullest GPU that are left, in a step or while the engine samples."""
        spare = self.usable - self.total
        return spare if self.sampling is None else min(spare, self.sampling.spare)

    @property
    def host_spare(self) -> int:
        return 0 if self.host_usable is None else self.host_usable - self.host.most

    @property
    def fits(self) -> bool:
        return self.spare >= 0 and self.host_spare >= 0


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
        self._others: dict[str, Sizes | str] = {}
        """Sizes of models that are not trained, by path."""

    def asked(self, work: Work) -> Setup:
        """What the recipe says. Raises UserError for a mesh that does not fit."""
        model, mesh = self.recipe.model, self.recipe.mesh
        try:
            shape = resolve(mesh, self.gpus, self.per_node, self.sizes.heads)
        except UserError as error:
            machine = f"{self.machine.nodes} x {self.per_node} GPUs of the learner, a process on each"
            raise UserError(f"{machine} (--nodes and --gpus plan for others): {error}") from None
        return Setup(
            shape, model.recompute, model.weights, mesh.reduce_once, mesh.reshard_after_forward, work.tokens, work.lora,
            work.engine, work.offload,
        )  # fmt: skip

    def need(self, work: Work, setup: Setup) -> Need:
        """Of a stage that trains."""
        element = BYTES[self.recipe.model.dtype]
        training = self.training(work, setup)
        compute = self.compute(setup)
        tokens = math.ceil(setup.row / setup.shape.sp)
        row = row_of(self.sizes, training, tokens, work.known, work.entropy_gradient)
        engine = self.share(setup.engine, work.sampled, asleep=True)
        reference = element * self.sizes.parameters // training.shards if work.reference else 0
        others = engine.size + reference
        policies = self.policies(work, setup, compute, training, row, others)
        found = footprint.forecast(self.sizes, compute, training, row, policies, others)
        found = self._corrected(work, found)
        attention, exchanged = footprint.attention_bytes(self.sizes, compute, tokens)
        sampling = self.sampling(work, setup.engine, reference + footprint.at_rest(self.sizes, training))
        host_usable = None if self.machine.host_gib is None else int(self.machine.host_gib * 2**30)
        return Need(
            setup, found, dict(Counter(policies)), engine, sampling, reference, attention, exchanged, found.total,
            self.usable, self.host(setup, training, tokens, policies), host_usable,
        )  # fmt: skip

    def share(self, engine: Engine | None, sampled: int, asleep: bool = False) -> Share:
        """Of an engine, by the model that it has: a teacher's or judge's own, else the one that is trained."""
        sizes = self._sizes_by(engine) if engine is not None else self.sizes
        return engine_share(engine, sampled, sizes, BYTES[self.recipe.model.dtype], self.memory, asleep)

    def _sizes_by(self, engine: Engine) -> Sizes | str:
        """Of an engine's model; why they cannot be told, where its configuration cannot be read."""
        if engine.model in (None, self.recipe.model.path) or is_elsewhere(engine):
            return self.sizes
        assert engine.model is not None
        if engine.model not in self._others:
            try:
                self._others[engine.model] = from_config(load_config(engine.model))
            except (UserError, ValueError) as error:
                self._others[engine.model] = str(error)
        return self._others[engine.model]

    def sampling(self, work: Work, engine: Engine | None, learner: int = 0) -> Sampling | None:
        """While an engine samples on the learner's GPUs, beside so many bytes of the learner's. vLLM leaves what is not
        its share alone; of what the learner has, a part is lost to fragmentation."""
        share = self.share(engine, work.sampled)
        if not share.size or engine is None:
            return None
        return Sampling(share, learner, self.usable if learner or engine.kind != "vllm" else self.memory)

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
            offload=setup.offload and setup.shape.size == 1,
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
        usable = 0 if self.machine.host_gib is None else int(self.machine.host_gib * 2**30)
        hosted = host_room(usable, min(self.gpus, self.per_node), self._saved(training) + state.away)
        return footprint.choose(self.sizes, compute, row, room, hosted)

    def host(self, setup: Setup, training: Training, tokens: int, policies: Sequence[Policy]) -> Host:
        state, ranks = footprint.state_of(self.sizes, training), min(self.gpus, self.per_node)
        saving = ranks * self._saved(training)
        kept = footprint.block_bytes(self.sizes, self.compute(setup)).kept
        inputs = Counter(policies)["offload"] * self.sizes.width * training.element
        moved = tokens * (inputs + Counter(policies)["hosted"] * (kept["matmul"] - kept["hosted"]))
        moved = moved * self.on_gpu + state.away
        weights, engine = training.element * self.sizes.parameters, setup.engine
        asleep = engine is not None and engine.sleep == 1 and not engine.urls
        servers = max(1, len(engine.gpus) // engine.gpus_of_a_server) if engine is not None else 0
        return Host(saving, min(EXPORTED, weights), ranks * moved, servers * weights * asleep)

    def _saved(self, training: Training) -> int:
        """Bytes of a process's part of a checkpoint, which is copied to host memory before it is written; on one CPU
        process it is written directly."""
        trained = training.adapters or self.sizes.parameters
        own = training.weights * trained // training.shards + footprint.state_of(self.sizes, training).optimizer
        return own if self.on_gpu or self.gpus > 1 else 0

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
                if need.fits:
                    return ", ".join(change.words for change in chosen), need
        return None

    def smallest_engine(self, work: Work, engine: Engine) -> tuple[str, Sampling] | None:
        """What makes an engine fit where the learner has gone; None: nothing does."""
        for changed, words in _engines(engine, "engine" if engine is work.evaluator else work.engine_key):
            found = self.sampling(work, changed)
            if found is None or found.spare >= 0:
                return (words, found) if found is not None else None
        return None

    def _changes(self, work: Work, setup: Setup) -> Iterator[Change]:
        """From the cheapest in time to the dearest."""
        if setup.recompute != "auto":
            order = POLICIES[POLICIES.index(setup.recompute) + 1 :]
            yield from (_recompute(policy) for policy in order if policy != "hosted")
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
        overlap = getattr(self.recipe.stage[work.name], "overlap", False)
        if setup.engine is not None and self.sampling(work, setup.engine) is not None:
            if setup.engine.kind == "vllm" and not setup.engine.sleep and self.on_gpu and not overlap:
                asleep = setup.engine.model_copy(update={"sleep": 2})
                yield Change("engine", f"{work.engine_key}.sleep = 2", lambda s: replace(s, engine=asleep))
            for other, words in _engines(setup.engine, work.engine_key):
                yield Change("engine", words, lambda s, other=other: replace(s, engine=other))  # type: ignore[misc]
        if self.on_gpu and setup.shape.size == 1 and not work.muon and not setup.offload:
            words = f'stage.{work.name}.optimizer.offload = "on"'
            yield Change("offload", words, lambda s: replace(s, offload=True))
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


def _engines(engine: Engine, key: str) -> Iterator[tuple[Engine, str]]:
    """The same engine with less memory, or, of vLLM, with more: from the setting that is nearest."""
    if engine.kind == "vllm":
        shares = [round(engine.memory_share * factor, 2) for factor in (0.75, 0.5, 1.25, 1.5, 2.0)]
        for share in (share for share in shares if 0.0 < share <= MOST_OF_A_GPU):
            yield engine.model_copy(update={"memory_share": share}), f"{key}.memory_share = {share:g}"
        return
    size = engine.batch_size // 2
    while size:
        yield engine.model_copy(update={"batch_size": size}), f"{key}.batch_size = {size}"
        size //= 2
