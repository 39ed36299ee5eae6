"""A filter of training conversations without rollouts: by their length and by how much they surprise the student.

STAGE/ difficulty.jsonl (one row a conversation: tokens, surprisal, kept or the reason), data.jsonl (those kept, as an
sft stage reads them), filter.json.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import UserError, bad_row, naming
from motet.base.recipe import FilterStage, OpenRows, SftSource
from motet.base.records import encode, seed_of
from motet.base.run import log, progress
from motet.base.shelf import Shelf
from motet.base.statistics import ALL
from motet.data.conversations import Conversation, conversations
from motet.data.mix import Mixture, Part
from motet.data.pack import Sample
from motet.fit.tokens import Student
from motet.stages.context import Context

Measured = dict[str, Any]
READ_AT_ONCE = 64
"""Conversations whose tokens are in memory together."""


def run(name: str, config: FilterStage, context: Context, model: Path | str) -> None:
    folder = context.folder(name)
    chosen = _chosen(name, config, context)
    student = context.student(model)
    rows: list[Measured] = []
    starts = range(0, len(chosen), READ_AT_ONCE)
    for start in progress(starts, len(starts), name):
        rows += _measured(chosen[start : start + READ_AT_ONCE], context, student, config.micro_batch_tokens)
    bounds = keep(rows, config.rows)
    jsonl.write(folder / "difficulty.jsonl", rows)
    kept = sum(row["kept"] for row in rows)
    if not kept:
        raise UserError(
            f"stage.{name}: none of {len(rows)} conversations lies between its quantiles; widen stage.{name}.rows"
        )
    jsonl.write(
        folder / "data.jsonl", (_row(c, row["domain"]) for c, row in zip(chosen, rows, strict=True) if row["kept"])
    )
    jsonl.write_json(folder / "filter.json", describe(rows, bounds))
    log.info("%s kept %d of %d conversations: %s", name, kept, len(rows), bounds)


def keep(rows: Sequence[Measured], rules: OpenRows) -> dict[str, dict[str, tuple[float, float]]]:
    """Adds `kept` and `reason` to every row, by the quantiles of its domain; returns these by domain and measure.

    A quantile is the value at that share of the sorted ones, linear between neighbours; the bounds themselves are kept.
    Example: surprisals 1, 2, 3, 4, 5 and quantiles 0.25, 0.75: 2, 3 and 4 are kept.
    """
    by_domain: defaultdict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        by_domain[row["domain"]].append(row)
    bounds: dict[str, dict[str, tuple[float, float]]] = {}
    for domain, members in sorted(by_domain.items()):
        shares = {"tokens": rules.length, "surprisal": rules.surprisal}
        bounds[domain] = {key: _quantiles([row[key] for row in members], ends) for key, ends in shares.items()}
        for row in members:
            row["reason"] = _reason(row, bounds[domain])
            row["kept"] = not row["reason"]
    return bounds


def describe(rows: Sequence[Measured], bounds: dict[str, dict[str, tuple[float, float]]]) -> dict[str, Any]:
    domains = sorted(bounds)
    kept = Counter(row["domain"] for row in rows if row["kept"])
    of = Counter(row["domain"] for row in rows)
    return {
        "method": "surprisal",
        "rollouts": 0,
        "tokens": sum(row["tokens"] for row in rows),
        "bounds": {d: {key: list(ends) for key, ends in found.items()} for d, found in bounds.items()},
        "dropped": dict(Counter(row["reason"] for row in rows if row["reason"])),
        "kept": {**{d: kept[d] for d in domains}, ALL: sum(kept.values())},
        "of": {**{d: of[d] for d in domains}, ALL: len(rows)},
    }


def _reason(row: Measured, bounds: dict[str, tuple[float, float]]) -> str:
    """The first measure that lies outside."""
    for key, below, above in (("tokens", "short", "long"), ("surprisal", "known to the model", "too surprising")):
        low, high = bounds[key]
        if not low <= row[key] <= high:
            return below if row[key] < low else above
    return ""


def _quantiles(values: Sequence[float], shares: tuple[float, float]) -> tuple[float, float]:
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(shares[0]), at(shares[1])


def _chosen(name: str, config: FilterStage, context: Context) -> Shelf[Conversation]:
    """By weight, `count` of them, on disk."""
    parts = []
    for place, source in enumerate(config.data):
        label = source.problems or source.stage or source.path or ""
        assert isinstance(source.weight, float)  # the recipe refuses a schedule here
        with naming(f"stage.{name}.data[{place}]"):
            read = _shelved(_usable(source, context), context)
        parts.append(Part(f"{place}/{label}", read, source.weight))
    if not any(len(part.items) for part in parts):
        raise UserError(f"stage.{name}: its data holds no conversation")
    return _shelved(Mixture(parts, seed_of(context.recipe.seed, name)).drawn(config.count), context)


def _shelved(items: Iterable[Conversation], context: Context) -> Shelf[Conversation]:
    shelf = Shelf[Conversation](encode, _conversation, context.run.folder)
    for item in items:
        shelf.add(item)
    return shelf


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(**{**row, "messages": tuple(row["messages"])})


def _usable(source: SftSource, context: Context) -> Iterator[Conversation]:
    for item in conversations(source, context.split, context.run.folder):
        if isinstance(item, UserError):
            if source.on_bad_row == "error":
                raise bad_row(item)
        else:
            yield item


def _measured(chosen: Sequence[Conversation], context: Context, student: Student, max_tokens: int) -> list[Measured]:
    """A row for each: its trained tokens, and their mean surprisal in nats."""
    samples, owners = _render(chosen, context)
    sums = [[0, 0.0] for _ in chosen]
    for index, ranked in student.read(samples, max_tokens):
        sums[owners[index]][0] += ranked.surprisal_N.numel()
        sums[owners[index]][1] += float(ranked.surprisal_N.double().sum())
    return [
        {"id": c.id, "domain": c.domain or "rows", "tokens": tokens, "surprisal": total / max(1, tokens)}
        for c, (tokens, total) in zip(chosen, sums, strict=True)
    ]


def _render(chosen: Sequence[Conversation], context: Context) -> tuple[list[Sample], list[int]]:
    """(samples, the conversation that each belongs to)."""
    samples, owners = [], []
    for owner, conversation in enumerate(chosen):
        try:
            examples = context.chat.render(conversation.messages)
        except UserError as error:
            raise UserError(f"{conversation.source}, conversation {conversation.id}: {error}") from error
        for rendered in examples:
            samples.append(Sample(rendered.tokens, rendered.loss_mask))
            owners.append(owner)
    return samples, owners


def _row(conversation: Conversation, domain: str) -> Measured:
    return {"messages": list(conversation.messages), "problem_id": conversation.id, "domain": domain}
