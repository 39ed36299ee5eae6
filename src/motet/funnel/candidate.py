"""One conversation on its way through the funnel, and the views of it that the rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from motet.base.records import Message, Stop, Verdict
from motet.funnel.words import Words, words
from motet.verify import latex
from motet.verify.structure import CLOSE, OPEN, Think, split


@dataclass(frozen=True, slots=True)
class Candidate:
    id: str
    """Of the row; examples and the judge's journal name it."""
    problem: str
    """Traces of one problem share it: its id, or where there is none a hash of the prompt."""
    domain: str
    messages: tuple[Message, ...]
    """The whole conversation as it will be written; the last turn is the assistant's."""
    turns: tuple[str, ...]
    """Text of each assistant turn as a model wrote it, think tags included."""
    stop: Stop | None = None
    """None where nobody knows."""
    verdict: Verdict | None = None
    """Of the last turn, where there is a gold answer."""
    verifier: str = ""
    """Which one gave the verdict."""
    tokens: int | None = None
    """Of the whole conversation in the student's tokenizer; None where no rule asks for it."""
    reasoning_tokens: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the written row."""

    def row(self) -> dict[str, Any]:
        """What is written for training."""
        return {"messages": self.messages, "problem_id": self.problem, "domain": self.domain, **self.more}


def turn_text(message: Message) -> str:
    """An assistant turn as a model would have written it."""
    reasoning = message.get("reasoning_content", "")
    return f"{OPEN}{reasoning}{CLOSE}{message['content']}" if reasoning else message["content"]


class View:
    """What is computed of a candidate at most once, for all rules."""

    def __init__(self, candidate: Candidate, think: Think, open_think: bool) -> None:
        self.candidate = candidate
        self.think = think
        self.open_think = open_think

    @cached_property
    def system(self) -> str:
        return "\n".join(m["content"] for m in self.candidate.messages if m["role"] == "system")

    @cached_property
    def prompt(self) -> str:
        """All turns of system and user."""
        return "\n".join(m["content"] for m in self.candidate.messages if m["role"] != "assistant")

    @cached_property
    def trace(self) -> str:
        """All that the assistant wrote."""
        return "\n".join(self.candidate.turns)

    @cached_property
    def lowered(self) -> str:
        return self.trace.lower()

    @cached_property
    def trace_words(self) -> Words:
        return words(self.trace)

    @cached_property
    def prompt_words(self) -> Words:
        return words(self.prompt)

    @cached_property
    def parts(self) -> tuple[str, str]:
        """(reasoning, answer) of the last turn; without a balanced think block all of it is answer."""
        text = self.candidate.turns[-1]
        found = split(text, "required" if OPEN in text or CLOSE in text else "off", self.open_think)
        return ("", text) if isinstance(found, Verdict) else found

    @property
    def reasoning(self) -> str:
        return self.parts[0]

    @property
    def answer(self) -> str:
        return self.parts[1]

    @cached_property
    def final(self) -> str | None:
        """Content of the answer's last box."""
        return last_box(self.answer)


def last_box(text: str) -> str | None:
    if "boxed" not in text and "fbox" not in text:
        return None
    found = latex.boxes(text)
    return found[-1].content.strip() if found else None


class Example(NamedTuple):
    """One dropped row, as the report shows it."""

    prompt: str
    text: str
    detail: str
