"""Checks of what a conversation became: which tokens are learned, and whether they are the right ones.

    mask    something is learned, and not everything
    think   a learned turn has one think block: opened once (by the prompt or by the turn) and closed once
    end     a learned turn ends with a stop token, and has none before its end
    prompt  what stands before a learned turn is what generation would see there, token by token
    text    nothing was cut: the learned tokens spell the turn to its end, and the prompt holds each message before it

With `chat.think = "off"` tags are text, and only a block that the prompt opened has to be closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from motet.base.records import Message, Verdict
from motet.data.chat import ChatFormat, Rendered
from motet.verify.structure import CLOSE, OPEN, split

CHECKS = ("mask", "think", "end", "prompt", "text")
TAIL = 16
"""Tokens at the end of a turn that are compared with its text where not all are."""


class Finding(NamedTuple):
    check: str
    detail: str


class Turn(NamedTuple):
    """A learned turn: tokens `start` to `stop` of `rendered`, made of messages[`place`]."""

    place: int
    rendered: Rendered
    start: int
    stop: int


def rendered(chat: ChatFormat, messages: Sequence[Message], whole: bool = True) -> tuple[list[Rendered], list[Finding]]:
    """The training examples of a conversation and what is wrong with them; no example where it cannot be rendered.

    `whole` renders every prompt a second time and compares all of the text; without it the ends are compared.
    """
    broken = _broken_tags(chat, messages)
    if broken:
        return [], broken
    examples = chat.render(messages)
    return examples, examine(chat, messages, examples, whole)


def examine(
    chat: ChatFormat, messages: Sequence[Message], examples: Sequence[Rendered], whole: bool = True
) -> list[Finding]:
    found = [finding for example in examples for finding in _mask(example)]
    spans = [(example, *span) for example in examples for span in stretches(example.loss_mask)]
    written = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if found:
        return found
    if len(spans) != len(written):
        return [Finding("mask", f"{len(written)} turns of the assistant, but {len(spans)} stretches are learned")]
    for index, (example, start, stop) in zip(written, spans, strict=True):
        turn = Turn(index, example, start, stop)
        found += _think(chat, messages, turn) + _end(chat, turn)
        found += _text(chat, messages, turn, whole)
        if whole:
            found += _prompt(chat, messages, turn)
    return found


def stretches(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Where learned tokens stand together. Example: F, T, T, F, T gives (1, 3) and (4, 5)."""
    found, place = [], 0
    while True in mask[place:]:
        start = mask.index(True, place)
        place = mask.index(False, start) if False in mask[start:] else len(mask)
        found.append((start, place))
    return found


def _mask(example: Rendered) -> list[Finding]:
    if not any(example.loss_mask):
        return [Finding("mask", "no token is learned")]
    if all(example.loss_mask):
        return [Finding("mask", "every token is learned: there is no prompt before the assistant's turn")]
    return []


def _broken_tags(chat: ChatFormat, messages: Sequence[Message]) -> list[Finding]:
    """Turns that `ChatFormat.completion` would refuse."""
    found = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and chat.config.think == "required":
            reasoning = message.get("reasoning_content", "")
            text = f"{OPEN}{reasoning}{CLOSE}{message['content']}" if reasoning else message["content"]
            parts = split(text, "required")
            if isinstance(parts, Verdict):
                advice = 'give its reasoning_content, or set chat.think = "off"'
                found.append(Finding("think", f"turn {index + 1}: {parts.detail} in {text[:60]!r}; {advice}"))
    return found


def _think(chat: ChatFormat, messages: Sequence[Message], turn: Turn) -> list[Finding]:
    opening = chat.tokenizer.decode(list(turn.rendered.tokens[max(0, turn.start - TAIL) : turn.start]))
    by_prompt = opening.rstrip().endswith(OPEN)
    text = chat.completion_text(messages[turn.place])
    opened, closed = by_prompt + text.count(OPEN), text.count(CLOSE)
    if (opened, closed) == (1, 1) or (chat.config.think == "off" and not by_prompt):
        return []
    who = ", the first of them by the prompt" if by_prompt else ""
    return [
        Finding("think", f"turn {turn.place + 1}: {opened} x {OPEN}{who} and {closed} x {CLOSE}, one of each is due")
    ]


def _end(chat: ChatFormat, turn: Turn) -> list[Finding]:
    tokens = turn.rendered.tokens[turn.start : turn.stop]
    if tokens[-1] not in chat.stop_tokens:
        last = chat.tokenizer.decode([tokens[-1]])
        return [Finding("end", f"turn {turn.place + 1} ends with {last!r}, which is no stop token")]
    for stop in chat.stop_tokens:
        if stop in tokens[:-1]:
            place = tokens.index(stop)
            shown = chat.tokenizer.decode([stop])
            return [Finding("end", f"turn {turn.place + 1} has {shown!r} as its token {place + 1} of {len(tokens)}: "
                                   "the model would learn to stop there")]  # fmt: skip
    return []


def _prompt(chat: ChatFormat, messages: Sequence[Message], turn: Turn) -> list[Finding]:
    seen, given = chat.prompt(messages[: turn.place]), turn.rendered.tokens[: turn.start]
    if seen == given:
        return []
    place = next((i for i, (a, b) in enumerate(zip(seen, given, strict=False)) if a != b), min(len(seen), len(given)))
    around = slice(max(0, place - 3), place + 5)
    pair = [chat.tokenizer.decode(list(tokens[around])) for tokens in (given, seen)]
    return [Finding("prompt", f"turn {turn.place + 1}: the prompt differs from that of generation at token "
                              f"{place + 1}: {pair[0]!r} is trained on, {pair[1]!r} would be seen")]  # fmt: skip


def _text(chat: ChatFormat, messages: Sequence[Message], turn: Turn, whole: bool) -> list[Finding]:
    """Only what is missing counts: a tokenizer that normalises its text, or does not know a character, is no cut."""
    text = chat.completion_text(messages[turn.place])
    tokens = turn.rendered.tokens[turn.start : turn.stop]
    found = []
    tail = chat.decode(tokens[-TAIL:]).lstrip("\ufffd")
    if whole or not text.endswith(tail):
        spelt = chat.decode(tokens).rstrip("\ufffd")
        if len(spelt) < len(text.rstrip()) and text.startswith(spelt):
            lost = len(text) - len(spelt)
            found.append(Finding("text", f"turn {turn.place + 1}: its last {lost} of {len(text)} characters are cut"))
    if whole:
        prompt = chat.prompt_text(messages[: turn.place])
        for index, message in enumerate(messages[: turn.place]):
            if message["role"] != "assistant" and message["content"].strip() not in prompt:
                found.append(Finding("text", f"turn {turn.place + 1}: the template leaves out, or cuts, what message "
                                             f"{index + 1} ({message['role']}) says"))  # fmt: skip
    return found
