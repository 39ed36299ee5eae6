"""Supervised fine-tuning: a mixture of conversations, packed, the loss on the assistant's tokens only."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import SftStage
from motet.base.records import seed_of
from motet.base.run import progress
from motet.data.conversations import Conversation, load_conversations
from motet.data.mix import Mixture, Part
from motet.data.pack import Sample, pack
from motet.stages.context import Context
from motet.train import checkpoint
from motet.train.losses import cross_entropy

COLUMNS = ("loss/nll", "optim/learning_rate", "optim/grad_norm", "tokens/second")


def run(name: str, config: SftStage, context: Context, model: Path | str) -> None:
    folder = context.folder(name)
    if (folder / "model").exists():
        checkpoint.remove(folder / "checkpoints")
        return
    mixture = _mixture(name, config, context)
    learner = context.learner(model, config.optimizer, config.steps)
    start = checkpoint.restore(folder / "checkpoints", learner)
    context.run.drop_metrics(name, start + 1)
    for step in progress(range(start, config.steps), config.steps - start, name):
        began = time.perf_counter()
        batches = pack(mixture.draw(step, config.batch_size), config.micro_batch_tokens, learner.device)
        metrics = {**learner.accumulate(batches, cross_entropy), **learner.update()}
        seconds = time.perf_counter() - began
        tokens = sum(batch.tokens_T.numel() for batch in batches)
        metrics |= {
            "tokens/trained": sum(batch.num_scored for batch in batches),
            "tokens/packed": tokens,
            "tokens/second": tokens / seconds,
            "time/step": seconds,
        }
        context.run.report(name, step + 1, config.steps, metrics, COLUMNS)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            checkpoint.save(folder / "checkpoints", step + 1, learner)
    learner.export(folder / "model", context.tokenizer)
    checkpoint.remove(folder / "checkpoints")


def _mixture(name: str, config: SftStage, context: Context) -> Mixture[Sample]:
    """Renders every conversation once and writes data.json: what was read, dropped (and why) and kept."""
    parts: list[Part[Sample]] = []
    sources = []
    for source in config.data:
        conversations = load_conversations(source, context.split, context.run.folder)
        samples, dropped = _render(conversations, config.context, context)
        label = source.problems or source.stage or source.path or ""
        sources.append({"name": label, "rows": len(conversations), "weight": source.weight, "dropped": dict(dropped)})
        parts.append(Part(label, samples, source.weight))
    if not any(part.items for part in parts):
        raise UserError(
            f"stage.{name}: no conversation is left to train on: "
            + "; ".join(f"{s['name']}: {s['rows']} rows, dropped {s['dropped']}" for s in sources)
            + f". A context of {config.context} tokens may be shorter than the conversations."
        )
    lengths = [len(sample.tokens) for part in parts for sample in part.items]
    jsonl.write_json(
        context.folder(name) / "data.json",
        {
            "sources": sources,
            "conversations": len(lengths),
            "tokens_mean": sum(lengths) / len(lengths),
            "tokens_max": max(lengths),
            "context": config.context,
        },
    )
    return Mixture(parts, seed_of(context.recipe.seed, name))


def _render(conversations: list[Conversation], longest: int, context: Context) -> tuple[list[Sample], Counter[str]]:
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    for conversation in conversations:
        try:
            examples = context.chat.render(conversation.messages)
        except UserError as error:
            raise UserError(f"{conversation.source}, conversation {conversation.id}: {error}") from error
        for rendered in examples:
            if len(rendered.tokens) > longest:
                dropped["longer than the context"] += 1
            else:
                samples.append(Sample(rendered.tokens, rendered.loss_mask))
    return samples, dropped
