"""One source of an SFT stage, from its rows to stores of tokens: rendered, checked, chosen by length, counted.

One conversation is in memory at a time. What is kept lies in FOLDER/train and FOLDER/heldout (`motet.data.store`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from motet.base.errors import UserError, bad_row
from motet.base.records import Message, content_id
from motet.data import doctor
from motet.data.chat import ChatFormat, Rendered
from motet.data.conversations import Conversation
from motet.data.store import StoreWriter, description

WHOLE = 64
"""So many conversations of a source are checked against a second rendering; all others by their ends."""
SHOWN = 2
"""Conversations of a source that the report shows token by token."""
HEAD, REST = 160, 60
"""Tokens of a shown conversation's beginning and end; what is between them is left out."""


class Limits(NamedTuple):
    """In tokens."""

    shortest: int
    longest: int
    heldout: float = 0.0
    """Share of the conversations that is not trained on."""
    trained: int | None = None
    """Longest that is trained on, where it is less than `longest`; those held out are not cut short by it."""


def write_source(
    folder: Path, items: Iterable[Conversation | UserError], chat: ChatFormat, limits: Limits, drop_bad: bool
) -> dict[str, Any]:
    """{rows, dropped {reason: how many}, kept, heldout, examples}; what an earlier call wrote whole is not written
    again. Raises UserError naming file, line and field of the first bad row, unless `drop_bad`."""
    done = description(folder / "train")
    if done is not None:
        return done
    rows, dropped, examples = 0, Counter[str](), list[dict[str, Any]]()
    kept = {False: 0, True: 0}
    with StoreWriter(folder / "heldout") as aside, StoreWriter(folder / "train") as train:
        for item in items:
            rows += 1
            try:
                rendered = _rendered(item, chat, whole=rows <= WHOLE)
            except UserError as error:
                if not drop_bad:
                    raise
                dropped[getattr(error, "reason", "bad row")] += 1
                continue
            assert isinstance(item, Conversation)
            held = is_held_out(item.messages, limits.heldout)
            for example in rendered:
                wrong = _length(len(example.tokens), limits, held)
                if wrong:
                    dropped[wrong] += 1
                    continue
                (aside if held else train).add(*example)
                kept[held] += 1
                if len(examples) < SHOWN:
                    examples.append({"place": item.place, **pieces(chat, example)})
        counts = {"rows": rows, "dropped": dict(dropped), "kept": kept[False], "heldout": kept[True]}
        aside.close(counts)
        train.close({**counts, "examples": examples})  # last: with it the source is whole
    return {**counts, "examples": examples}


class Refused(UserError):
    """A conversation that the checks refuse; `reason` is what it is counted by."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_held_out(messages: Iterable[Message], share: float) -> bool:
    """By a hash of what stands before the first turn of the assistant: all traces of a problem are on one side."""
    if share == 0.0:
        return False
    before: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        before += [message["role"], message["content"]]
    return int(content_id("heldout", *before), 16) / 16**16 < share


def pieces(chat: ChatFormat, example: Rendered, head: int = HEAD, rest: int = REST) -> dict[str, Any]:
    """{"tokens": how many, "learned": how many, "pieces": [[text, learned], ...]}; a piece [None, how many] stands for
    tokens that are left out."""
    tokens, mask = example
    shown: list[list[Any]] = []
    for place, (token, learned) in enumerate(zip(tokens, mask, strict=True)):
        if len(tokens) <= head + rest or place < head or place >= len(tokens) - rest:
            shown.append([str(chat.tokenizer.decode([token])), bool(learned)])
        elif place == head:
            shown.append([None, len(tokens) - head - rest])
    return {"tokens": len(tokens), "learned": sum(mask), "pieces": shown}


def _rendered(item: Conversation | UserError, chat: ChatFormat, whole: bool) -> list[Rendered]:
    if isinstance(item, UserError):
        raise bad_row(item)
    place = f"{item.place or item.source}, conversation {item.id}, field {item.held_in!r}"
    try:
        examples, found = doctor.rendered(chat, item.messages, whole)
    except UserError as error:
        raise Refused(f"{place}: {error}", "cannot be rendered") from error
    if found:
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        raise Refused(
            f"{place}: check {found[0].check!r}: {found[0].detail}{more}. `motet inspect` shows the tokens; "
            'on_bad_row = "drop" leaves such rows out.',
            f"check: {found[0].check}",
        )
    return examples


def _length(length: int, limits: Limits, held: bool) -> str:
    """Why a conversation of so many tokens is dropped; empty where it is kept."""
    if length > limits.longest:
        return "longer than the context"
    if limits.trained is not None and length > limits.trained and not held:
        return "longer than lengths"
    return "shorter than min_tokens" if length < limits.shortest else ""
