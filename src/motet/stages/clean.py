"""Conversations of any source through the data funnel, so that SFT stages use { stage = "clean" }."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from motet.base.errors import UserError, bad_row, naming
from motet.base.recipe import CleanStage, SftSource
from motet.base.records import Message, Problem, Verdict, content_id
from motet.base.tables import Row, check_columns, read_rows
from motet.data.conversations import FIELDS, Conversation, conversation_of, conversations
from motet.funnel import rules as table
from motet.funnel.candidate import Candidate, turn_text
from motet.stages import sieve
from motet.stages.context import Context
from motet.tasks.files import FIELDS as PROBLEM_FIELDS
from motet.tasks.files import problem_of
from motet.verify.pool import Item

REFERENCES = ("answer", "tests", "instructions", "test_code", "ground_truth", "reward_model", "instruction_id_list")
"""Fields of a row that may hold something to verify by."""
UNNAMED = "general"
"""Domain of conversations that name none."""
NO_GOLD = Verdict("invalid_problem", None, None, "there is no gold answer")


def run(name: str, config: CleanStage, context: Context, model: Path | str) -> None:
    if (context.folder(name) / "data.jsonl").exists():
        return
    counts = [{"name": _label(source), "rows": 0, "bad": 0} for source in config.data]

    def source(start: int) -> Iterator[Candidate]:
        for row in counts:
            row |= {"rows": 0, "bad": 0}
        rows = islice(_rows(name, config, context, counts), start, None)
        return _judged(rows, context) if config.gold else (candidate for candidate, _ in rows)

    sieve.run(name, source, config.rules, context, model, more={"sources": counts})


Unjudged = tuple[Candidate, Problem | None]


def _rows(name: str, config: CleanStage, context: Context, counts: list[dict[str, Any]]) -> Iterator[Unjudged]:
    for place, (source, count) in enumerate(zip(config.data, counts, strict=True)):
        with naming(f"stage.{name}.data[{place}]"):
            yield from _rows_of(source, config, context, count)


def _rows_of(source: SftSource, config: CleanStage, context: Context, count: dict[str, Any]) -> Iterator[Unjudged]:
    tokens = table.tokens_needed(config.rules)
    for number, item in enumerate(islice(_read(source, config.gold, context), config.count)):
        if isinstance(item, UserError):
            if source.on_bad_row == "error":
                raise bad_row(item)
            count["bad"] += 1
            continue
        count["rows"] += 1
        conversation, gold = item
        candidate = candidate_of(conversation, number, gold)
        yield (_with_tokens(candidate, context) if tokens else candidate), gold


def _read(source: SftSource, gold: bool, context: Context) -> Iterator[tuple[Conversation, Problem | None] | UserError]:
    if source.path is None:
        for item in conversations(source, context.split, context.run.folder):
            yield item if isinstance(item, UserError) else (item, None)
        return
    check_columns(source.columns, (*FIELDS, *(field for field in PROBLEM_FIELDS if field not in FIELDS)))
    for row in read_rows(source.path, source.split, source.columns, once=True):
        if isinstance(row, UserError):
            yield row
            continue
        try:
            conversation = conversation_of(row, source.path)
        except UserError as error:
            yield error
            continue
        yield conversation, _gold(row, conversation) if gold else None


def _gold(row: Row, conversation: Conversation) -> Problem | None:
    """The problem that a row's reference makes of its prompt; None where it holds none that can be read."""
    if all(row.get(field) is None for field in REFERENCES):
        return None
    prompt = [dict(message) for message in conversation.messages[:-1]]
    values = {**row.values, "messages": prompt, "prompt": None, "reasoning": None, "solution": None}
    try:
        return problem_of(row._replace(values=values), conversation.source)
    except UserError:
        return None


def candidate_of(conversation: Conversation, number: int, gold: Problem | None) -> Candidate:
    """`number` is the row's place in its source. Conversations with one prompt are of one problem."""
    messages = conversation.messages
    prompt = [message["content"] for message in messages[:-1]]
    return Candidate(
        id=f"{conversation.source}#{number}",
        problem=content_id(*prompt),
        domain=conversation.domain or (gold.domain if gold else UNNAMED),
        messages=messages,
        turns=tuple(turn_text(message) for message in messages if message["role"] == "assistant"),
        more={"source": conversation.source},
    )


def _with_tokens(candidate: Candidate, context: Context) -> Candidate:
    chat = context.chat
    *prompt, last = candidate.messages
    written: Message = last
    return replace(
        candidate,
        tokens=len(chat.prompt(prompt)) + len(chat.encode(candidate.turns[-1])) + 1,
        reasoning_tokens=len(chat.encode(written.get("reasoning_content", ""))),
    )


def _judged(rows: Iterator[Unjudged], context: Context) -> Iterator[Candidate]:
    """The same rows in order, with the verdict of those that have a gold answer. A reference that its verifier cannot
    use counts as none."""
    waiting: deque[Unjudged] = deque()
    chat = context.recipe.chat

    def items() -> Iterator[Item | Verdict]:
        for candidate, gold in rows:
            waiting.append((candidate, gold))
            yield NO_GOLD if gold is None else Item(gold, candidate.turns[-1], "end", chat.think)

    for _, verdict in context.pool.judge(items(), ordered=True):
        candidate, gold = waiting.popleft()
        if gold is None or verdict.kind == "invalid_problem":
            yield candidate
        else:
            yield replace(candidate, verdict=verdict, verifier=gold.verifier)
    context.pool.verdicts_stand()


def _label(source: SftSource) -> str:
    return source.problems or source.stage or source.path or ""
