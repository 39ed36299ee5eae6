"""Supervised fine-tuning: a mixture of conversations, packed, the loss on the assistant's tokens only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import jsonl
from motet.base.errors import UserError, naming
from motet.base.recipe import SftSource, SftStage
from motet.base.records import seed_of
from motet.base.run import log, progress
from motet.data.conversations import conversations
from motet.data.lengths import edges, parts_of, places_by_band
from motet.data.mix import Chosen, Mixture, Part, weight_of
from motet.data.pack import Sample, pack
from motet.data.prepare import Limits, write_source
from motet.data.store import Store
from motet.model.rope import positions_of, require_positions
from motet.stages.context import Context
from motet.train import checkpoint
from motet.train.by_length import CrossEntropyByLength, means, measure
from motet.train.learner import Learner

COLUMNS = ("loss/nll", "heldout/loss", "optim/learning_rate", "optim/grad_norm", "tokens/second")
STORE = "store"
"""The stage's folder of rendered conversations, one folder a source; a finished stage does not keep it."""


def run(name: str, config: SftStage, context: Context, model: Path | str) -> None:
    folder = context.folder(name)
    if context.world.first((folder / "model").exists):
        context.world.first(lambda: _clean(folder))
        return
    data = prepare(name, config, context, model)
    learner = context.learner(name, config, model, config.steps)
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", learner)
    start = checkpoints.restore()
    context.run.drop_metrics(name, start + 1)
    loss = CrossEntropyByLength(data.ends)
    for step in progress(range(start, config.steps), config.steps - start, name):
        began = time.perf_counter()
        batches = pack(data.draw(step), config.micro_batch_tokens, learner.device, learner.rows)
        scored = sum(batch.num_scored for batch in batches)
        sums = learner.accumulate(batches, loss)
        updated = learner.update()
        metrics = {**means(sums, scored), **updated}
        seconds = time.perf_counter() - began
        tokens = sum(batch.tokens_T.numel() for batch in batches)
        metrics |= {
            "tokens/trained": scored,
            "tokens/packed": tokens,
            "tokens/second": tokens / seconds,
            "time/step": seconds,
        }
        metrics |= _probe(name, config, context, learner, data, step + 1)
        context.run.report(name, step + 1, config.steps, metrics, COLUMNS)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            checkpoints.save(step + 1)
    learner.export(folder / "model", context.tokenizer)
    checkpoints.remove()
    context.world.first(lambda: _clean(folder))


class Prepared(NamedTuple):
    """What an SFT stage trains on; it is on disk but for the step that is drawn."""

    mixture: Mixture[Sample]
    batch_size: int
    heldout: list[Store]
    ends: list[int]
    """Upper ends of the lengths and positions by which the loss is told apart."""

    def draw(self, step: int) -> list[Sample]:
        return self.mixture.draw(step, self.batch_size)


def prepare(name: str, config: SftStage, context: Context, model: Path | str) -> Prepared:
    """Renders every conversation once into STAGE/store and writes data.json: what was read, dropped (and why) and kept.
    What an earlier start of the stage has rendered is used again."""
    longest = _longest(name, config, model)
    limits = Limits(config.min_tokens, longest, config.heldout, config.lengths[-1].up_to if config.lengths else None)
    store = context.folder(name) / STORE
    sources = context.world.first(lambda: _write(name, config, context, limits))
    labels = [_label(source) for source in config.data]
    trained = [Store(store / str(i) / "train") for i in range(len(labels))]
    if not sum(map(len, trained)):
        raise UserError(
            f"stage.{name}: no conversation is left to train on: "
            + "; ".join(f"{s['name']}: {s['rows']} rows, dropped {s['dropped']}" for s in sources)
            + f". A context of {longest} tokens may be shorter than the conversations."
        )
    most = max(int(own.lengths.max()) for own in trained if len(own))
    if most > config.micro_batch_tokens:
        raise UserError(
            f"stage.{name}: a conversation of {most} tokens is longer than micro_batch_tokens = "
            f"{config.micro_batch_tokens}, the most that one pass may hold. Raise it, or lower context."
        )
    _refuse_empty_bands(name, config, trained)
    parts = [
        part
        for place, (label, own, source) in enumerate(zip(labels, trained, config.data, strict=True))
        for part in parts_of(label, f"{place}", own, weight_of(source.weight), config.lengths)
    ]
    try:
        mixture = Mixture(parts, seed_of(context.recipe.seed, name))
    except ValueError as error:
        raise UserError(f"stage.{name}.data: {error}. Give another source or band a weight there.") from error
    batch_size = _batch_size(config, mixture)
    ends = edges(longest, config.lengths)
    described = {"sources": sources, **_figures(trained, ends), "context": longest, "batch_size": batch_size}
    context.world.first(lambda: jsonl.write_json(context.folder(name) / "data.json", described))
    heldout = [Store(store / str(i) / "heldout") for i in range(len(labels))] if config.heldout else []
    return Prepared(mixture, batch_size, heldout, ends)


def _write(name: str, config: SftStage, context: Context, limits: Limits) -> list[dict[str, Any]]:
    """What became of each source."""
    found = []
    for index, source in enumerate(config.data):
        rows = progress(conversations(source, context.split, context.run.folder), None, f"{name}: {_label(source)}")
        target = context.folder(name) / STORE / str(index)
        with naming(f"stage.{name}.data[{index}]"):
            counts = write_source(target, rows, context.chat, limits, source.on_bad_row == "drop")
        bad = sum(n for reason, n in counts["dropped"].items() if reason.startswith(("bad", "check", "cannot")))
        if bad:
            log.info("%s: %d of %d rows of %s were refused and dropped", name, bad, counts["rows"], _label(source))
        found.append({"name": _label(source), "weight": source.weight, **counts})
    return found


def _label(source: SftSource) -> str:
    return source.problems or source.stage or source.path or ""


def _refuse_empty_bands(name: str, config: SftStage, stores: Sequence[Store]) -> None:
    ends = [band.up_to for band in config.lengths]
    found = [places_by_band(store.lengths.tolist(), ends) for store in stores]
    for place, end in enumerate(ends):
        if not any(len(bands[place]) for bands in found):
            first = max(config.min_tokens, ends[place - 1] + 1 if place else 1)
            raise UserError(
                f"stage.{name}.lengths: no conversation has {first} to {end} tokens. Leave that band out, or give data "
                "that has such conversations."
            )


def _batch_size(config: SftStage, mixture: Mixture[Sample]) -> int:
    if config.batch_tokens is None:
        return config.batch_size
    shares = mixture.mean_shares(config.steps)
    mean = sum(share * _mean_tokens(part) for share, part in zip(shares, mixture.parts, strict=True))
    return max(1, round(config.batch_tokens / mean))


def _mean_tokens(part: Part[Sample]) -> float:
    items = part.items
    if isinstance(items, Store):
        return float(items.lengths.mean())
    assert isinstance(items, Chosen) and isinstance(items.items, Store)
    return float(items.items.lengths[items.places].mean())


def _figures(stores: Sequence[Store], ends: Sequence[int]) -> dict[str, Any]:
    """conversations, tokens_mean, tokens_max and lengths [{up_to, conversations, tokens}] of all sources together."""
    lengths = [length for store in stores for length in store.lengths.tolist()]
    bands = places_by_band(lengths, ends)
    rows = [
        {"up_to": end, "conversations": len(own), "tokens": sum(lengths[place] for place in own)}
        for end, own in zip(ends, bands, strict=True)
    ]
    mean = sum(lengths) / len(lengths)
    return {"conversations": len(lengths), "tokens_mean": mean, "tokens_max": max(lengths), "lengths": rows}


def _probe(
    name: str, config: SftStage, context: Context, learner: Learner, data: Prepared, done: int
) -> dict[str, float]:
    """The loss of the conversations held out, after so many steps. At the end each one's goes to heldout.jsonl."""
    last = done == config.steps
    if not data.heldout or not (last or (config.probe_every and done % config.probe_every == 0)):
        return {}
    if not sum(map(len, data.heldout)):
        return {}
    samples = (sample for store in data.heldout for sample in store)
    found = measure(learner, samples, data.ends, config.micro_batch_tokens)
    if last:
        context.world.first(lambda: jsonl.write(context.folder(name) / "heldout.jsonl", found.rows))
    return found.metrics


def _longest(name: str, config: SftStage, model: Path | str) -> int:
    """The context in tokens: what the recipe says; where it says nothing, at most the model's positions."""
    if "context" in config.model_fields_set:
        require_positions(name, "context", config.context, model)
        return config.context
    return min(config.context, positions_of(model) or config.context)


def _clean(folder: Path) -> None:
    checkpoint.remove(folder / "checkpoints")
    shutil.rmtree(folder / STORE, ignore_errors=True)
