"""Training steps of a mesh: tokens per second, use of the GPUs, memory against the forecast, where the time goes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpus_place import Axes, Place
from gpus_trace import read, shares

from motet.base.load_recipe import load
from motet.base.recipe import Model, Optimizer
from motet.data.pack import Batch
from motet.model.blocks import blocks_of, is_compiled
from motet.model.footprint import LADDER, Compute, Forecast, Sizes, Training, forecast, row_of
from motet.model.recompute import Policy
from motet.model.skeleton import skeleton
from motet.plan.live import Live
from motet.plan.probe import policies_of, sample_rows
from motet.plan.report import plan_of, planner_of
from motet.rl.objectives import ClippedPolicyLoss
from motet.train.losses import cross_entropy

PEAK = 989e12
"""Dense bfloat16 products of an H100 or H200, floating-point operations a second."""
OPTIMIZER = Optimizer(learning_rate=1e-6, warmup_steps=0, schedule="constant")
RECIPE = Path(__file__).parent.parent / "recipes" / "motif-2-12.7b.toml"
STAGES = {"sft": "sft-64k", "rl": "rl"}
"""Of the recipe, whose plan is compared."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a learner and its steps."""

    shape: str
    axes: Axes
    loss: str = "sft"
    recompute: str = "auto"
    weights: str = "float32"
    reduce_once: bool = True

    def mesh(self) -> dict[str, Any]:
        return {"reduce_once": self.reduce_once}

    def model(self, place: Place) -> dict[str, Any]:
        dtype = "float32" if place.cpu else "bfloat16"
        weights = "float32" if place.cpu else self.weights
        return {"dtype": dtype, "weights": weights, "recompute": self.recompute}


class Trainer:
    """A learner with drawn weights, and its step."""

    def __init__(self, place: Place, settings: Settings) -> None:
        self.place, self.settings = place, settings
        folder = place.folder(settings.shape)
        began = time.monotonic()
        model = settings.model(place)
        self.learner = place.learner(folder, settings.axes, model, OPTIMIZER, settings.mesh(), random=True)
        self._wait()
        self.built = time.monotonic() - began
        self.model = self.learner.model
        self.sizes = Sizes.of(self.model, blocks_of(self.model))
        self.config = Model(path=settings.shape, device=place.device, **model)

    def batches(self, rows: Sequence[Sequence[int]]) -> list[Batch]:
        return sample_rows(rows, self.sizes.vocabulary, self.learner.device)

    def anchors(self, batches: Sequence[Batch]) -> tuple[list[torch.Tensor] | None, float]:
        """In RL, with the seconds that they take."""
        if self.settings.loss == "sft":
            return None, 0.0
        self._wait()
        began = time.monotonic()
        found = self.learner.logprobs(batches)
        self._wait()
        return found, self.place.slowest(time.monotonic() - began)

    def step(self, batches: Sequence[Batch], anchors: Sequence[torch.Tensor] | None) -> tuple[float, float]:
        """Forward, backward, clipping, AdamW. Returns seconds of the slowest process, and the gradients' norm."""
        self._wait()
        self.place.world.gather(0)
        began = time.monotonic()
        loss = cross_entropy if anchors is None else ClippedPolicyLoss(0.2, 0.28)
        self.learner.accumulate(batches, loss, anchors)
        norm = self.learner.update()["optim/grad_norm"]
        self._wait()
        return self.place.slowest(time.monotonic() - began), norm

    def _wait(self) -> None:
        if not self.place.cpu:
            torch.cuda.synchronize()

    @contextmanager
    def watched(self) -> Iterator[dict[str, Any]]:
        """Peaks of what happens inside, of the fullest process, in bytes."""
        found: dict[str, Any] = {}
        if self.place.cpu:
            state: list[Any] = [*self.model.parameters(), *self.model.buffers(), *self.learner.state().values()]
            with Live([tensor for tensor in state if isinstance(tensor, torch.Tensor)]) as live:
                yield found
            own = (live.peak, 0)
        else:
            torch.cuda.reset_peak_memory_stats()
            yield found
            own = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        everyone = self.place.world.gather(own)
        found["allocated"], found["reserved"] = (max(values) for values in zip(*everyone, strict=True))

    def forecast(self, rows: Sequence[Sequence[int]], policies: Sequence[Policy]) -> Forecast:
        """For the fullest process, of the arithmetic behind `motet plan`."""
        return predicted(self.place, self.sizes, self.settings, rows, policies)

    def figures(self, rows: Sequence[Sequence[int]], seconds: float, peaks: dict[str, Any]) -> dict[str, Any]:
        tokens = sum(map(sum, rows))
        gpus = max(1, self.place.world.size)
        policies = policies_of(self.learner, self.config)
        told = self.forecast(rows, policies).total
        flop = flop_of(self.sizes, [length for row in rows for length in row])
        return {
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_gpu": tokens / seconds / gpus,
            "mfu": flop / seconds / PEAK / gpus,
            **peaks,
            "forecast": told,
            "forecast_error": told / peaks["allocated"] - 1.0,
            "policies": dict(Counter(policies)),
        }


def predicted(
    place: Place, sizes: Sizes, settings: Settings, rows: Sequence[Sequence[int]], policies: Sequence[Policy]
) -> Forecast:
    _, shard, sp = settings.axes
    element = 4 if place.cpu else 2
    known = settings.loss == "sft"
    held = 4 if settings.weights == "float32" or place.cpu else 2
    at_once = settings.axes[0] * shard
    training = Training(
        element, held, parallel=True, shards=shard * sp, reduce_once=settings.reduce_once,
        rounds=-(-len(rows) // at_once),
    )  # fmt: skip
    config = Model(path="drawn", device=place.device, **settings.model(place))
    compute = Compute(element, is_compiled(config, not place.cpu), sp, kernel=not place.cpu, host=not place.cpu)
    row = row_of(sizes, training, -(-max(map(sum, rows)) // sp), known)
    return forecast(sizes, compute, training, row, policies)


def flop_of(sizes: Sizes, lengths: Sequence[int]) -> float:
    """(6 N + 6 L d S) a token: N parameters (a tied head counted once), L layers, d heads x head width, S mean length
    of a token's document (causal attention is half of 12 L d S). Recomputation does not count."""
    attention = 6 * sizes.layers * sizes.heads * sizes.head
    return float(sum((6 * sizes.parameters + attention * length) * length for length in lengths))


def steps(
    place: Place, rows: list[list[int]], count: int = 1, trace: bool = True, planned: bool = False, **settings: Any
) -> dict[str, Any]:
    """A step of one round to warm up, then `count` of all rows, then one round under the profiler."""
    given = Settings(**{**settings, "axes": tuple(settings["axes"])})
    own = Trainer(place, given)
    at_once = given.axes[0] * given.axes[1]
    batches = own.batches(rows)
    anchors, anchor_seconds = own.anchors(batches)
    few = slice(0, at_once)
    found: dict[str, Any] = {"device": place.name, "built_seconds": round(own.built, 1)}
    warm, _ = own.step(batches[few], anchors and anchors[few])
    found["first_step_seconds"] = round(warm, 2)
    if own.learner._keeping is not None:  # its measured peak may change what is kept, and that is compiled then
        own.step(batches[few], anchors and anchors[few])
    place.keep(found)
    with own.watched() as peaks:
        taken = [own.step(batches, anchors) for _ in range(count)]
    seconds = statistics.median(one for one, _ in taken)
    found |= own.figures(rows, seconds, peaks) | {
        "all_seconds": [one for one, _ in taken],
        "gradient_norm": taken[-1][1],
    }
    if given.loss == "rl":
        found["anchor_seconds"] = anchor_seconds
        found["tokens_per_second_with_anchor"] = found["tokens"] / (seconds + anchor_seconds)
    if planned:
        found |= plan_of_recipe(place, given, found["allocated"])
    place.keep(found)
    if trace:
        found["trace"] = traced(own, batches[few], anchors and anchors[few])
    return found


def traced(own: Trainer, batches: Sequence[Batch], anchors: Sequence[torch.Tensor] | None) -> dict[str, Any]:
    """Shares of each kind of work, mean over the processes."""
    kinds = [torch.profiler.ProfilerActivity.CPU if own.place.cpu else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        own.step(batches, anchors)
    file = own.place.partial.with_suffix(f".trace-{own.place.world.rank}.json")
    profile.export_chrome_trace(str(file))
    everyone = [found for found in own.place.world.gather(shares(read(file, own.place.cpu))) if found]
    file.unlink()
    return {name: statistics.mean(found[name] for found in everyone) for name in everyone[0]} if everyone else {}


def plan_of_recipe(place: Place, settings: Settings, allocated: int) -> dict[str, Any]:
    """What `motet plan` says of the recipe's own stage, on this mesh and with this policy."""
    replicate, shard, sp = settings.axes
    gpus = replicate * shard * sp
    told = [
        f"mesh.dp_replicate={replicate}", f"mesh.dp_shard={shard}", f"mesh.sp={sp}", f"machine.gpus={gpus}",
        f"mesh.reduce_once={str(settings.reduce_once).lower()}", f"model.recompute='{settings.recompute}'",
    ]  # fmt: skip
    recipe = load(RECIPE, told)
    plan = plan_of(recipe, planner_of(recipe, nodes=1, gpus=gpus, memory=usable_gib(place)), tables=False)
    need = next(stage.need for stage in plan.stages if stage.work.name == STAGES[settings.loss])
    assert need is not None
    return {"motet_plan": need.total, "motet_plan_error": need.total / allocated - 1.0}


def usable_gib(place: Place) -> float:
    if place.cpu:
        return 80.0
    share = torch.cuda.get_per_process_memory_fraction()
    return share * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30


def growth(place: Place, lengths: list[int], **settings: Any) -> dict[str, Any]:
    """One learner, one row after the other, from short to long; each is measured once, after two short ones that
    compile. The policy is the one that keeps most of those whose longest row is predicted to fit."""
    given = Settings(**{**settings, "axes": tuple(settings["axes"])})
    given = dataclasses.replace(given, recompute=fitting(place, given, max(lengths)))
    own = Trainer(place, given)
    found: dict[str, Any] = {"device": place.name, "recompute": given.recompute, "rows": [], "forecast_of": {}}
    policies: list[Policy] = [given.recompute] * own.sizes.layers  # type: ignore[list-item]
    for length in (*lengths, 2 * max(lengths)):
        found["forecast_of"][length] = own.forecast([[length]], policies).total
    for length in (lengths[0] // 2, lengths[0]):
        batches = own.batches([[length]])
        own.step(batches, own.anchors(batches)[0])
    for length in lengths:
        batches = own.batches([[length]])
        anchors, _ = own.anchors(batches)
        with own.watched() as peaks:
            seconds, _ = own.step(batches, anchors)
        found["rows"].append({"length": length, **own.figures([[length]], seconds, peaks)})
        place.keep(found)
    return found


def fitting(place: Place, settings: Settings, longest: int) -> str:
    """From "attention" on: what keeps more would be another curve for each length."""
    policies: list[Policy] = [*LADDER[2:], "offload"]
    sizes = sizes_of(place.folder(settings.shape))
    for policy in policies:
        told = predicted(
            place, sizes, dataclasses.replace(settings, recompute=policy), [[longest]], [policy] * sizes.layers
        )
        if place.cpu or told.total < 0.92 * usable_gib(place) * 2**30:
            return policy
    return policies[-1]


def sizes_of(folder: Path) -> Sizes:
    model = skeleton(folder, "motet", torch.float32)
    return Sizes.of(model, blocks_of(model))
