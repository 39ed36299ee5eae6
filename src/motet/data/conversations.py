"""Training conversations from files, worked solutions and verified traces; nothing here knows of tokens.

One row of each kind that `read_conversations` takes::

    {"messages": [{"role": "user", "content": "12 + 7 = ?"},
                  {"role": "assistant", "reasoning_content": "12 + 7 = 19", "content": "19"}]}
    {"prompt": "12 + 7 = ?", "completion": "<think>12 + 7 = 19</think>19"}
    {"conversations": [{"from": "human", "value": "12 + 7 = ?"}, {"from": "gpt", "value": "19"}]}

Text between think tags at the start of an assistant turn becomes its `reasoning_content`; `reasoning` and `thinking`
of a turn mean the same. A row's own `system` text is put before turns that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import SftSource
from motet.base.records import Message, Problem, content_id, decode_problem
from motet.base.tables import Row, check_columns, read_rows, shown
from motet.tasks import ProblemSplit
from motet.tasks.files import message_list

OPEN, CLOSE = "<think>", "</think>"
FIELDS = ("messages", "prompt", "completion", "reasoning", "conversations", "system", "id", "domain")
SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    """The last turn is the assistant's; every assistant turn is trained on."""
    id: str
    source: str
    """Name of the problem set or stage, or the path, that it comes from."""
    domain: str = ""
    """Empty where the source does not say."""
    place: str = field(default="", compare=False)
    """File and line, or the problem, for error messages."""
    held_in: str = field(default="messages", compare=False)
    """The row's field with the assistant's turns."""


def conversations(
    source: SftSource, split: Callable[[str], ProblemSplit], run_folder: Path
) -> Iterator[Conversation | UserError]:
    """What one share of an SFT mixture names: the solutions of a problem set, the traces of a stage, or a file. One row
    is in memory at a time. A malformed row comes as its error."""
    if source.problems is not None:
        empty = True
        for found in solutions(split(source.problems).train):
            empty = False
            yield found
        if empty:
            raise UserError(f"problems.{source.problems}: none of its problems has a worked solution to train on")
    elif source.stage is not None and source.rows == "solutions":
        kept = jsonl.read(run_folder / source.stage / "problems.jsonl")
        yield from solutions(decode_problem(row) for _, row in kept)
    elif source.stage is not None:
        yield from traces(run_folder / source.stage)
    else:
        assert source.path is not None
        yield from placed_conversations(source.path, source.split, source.columns)


def read_conversations(
    path: str, split: str = "train", columns: Mapping[str, str] | None = None, source: str | None = None
) -> Iterator[Conversation]:
    """Conversations of a file, folder or hub data set. Raises UserError naming file, line and field."""
    for item in placed_conversations(path, split, columns, source):
        if isinstance(item, UserError):
            raise item
        yield item


def placed_conversations(
    path: str, split: str = "train", columns: Mapping[str, str] | None = None, source: str | None = None
) -> Iterator[Conversation | UserError]:
    """The same, a malformed row as the error that it would raise."""
    check_columns(columns or {}, FIELDS)
    empty = True
    for row in read_rows(path, split, columns, once=True):
        empty = False
        try:
            yield row if isinstance(row, UserError) else conversation_of(row, source or path)
        except UserError as error:
            yield error
    if empty:
        raise UserError(f"{path}: it holds no conversation")


def solutions(problems: Iterable[Problem]) -> Iterator[Conversation]:
    """The worked solutions of problems; one without `metadata["solution"]` gives none."""
    for problem in problems:
        solution = problem.metadata.get("solution")
        if solution:
            answer = _assistant(solution["answer"], solution.get("reasoning", ""))
            place = f"problems.{problem.source}, problem {problem.id}"
            yield Conversation((*problem.messages, answer), problem.id, problem.source, problem.domain, place)


def traces(stage_folder: Path) -> Iterator[Conversation]:
    """The verified traces of a synthesize stage: its data.jsonl, rows of messages, problem_id and domain.

    Several traces of one problem share its id's beginning: "PROBLEM/HASH".
    """
    for row in read_rows(str(stage_folder / "data.jsonl")):
        if isinstance(row, UserError):
            raise row
        messages = _ending_in_assistant(row, "messages", message_list(row, "messages", row.require("messages")))
        id = f"{row.text('problem_id')}/{_content_id(messages)}"
        yield Conversation(messages, id, stage_folder.name, row.text("domain"), row.place)


def conversation_of(row: Row, source: str) -> Conversation:
    if row.get("messages") is not None:
        messages, held_in = _turns(row, "messages"), "messages"
    elif row.get("conversations") is not None:
        messages, held_in = _sharegpt(row), "conversations"
    else:
        messages, held_in = _prompt_and_completion(row), "completion"
    system = row.optional_text("system")
    if system and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    own_id = row.get("id")
    id = str(own_id) if own_id is not None else _content_id(messages)
    messages, domain = _ending_in_assistant(row, held_in, messages), row.optional_text("domain") or ""
    return Conversation(messages, id, source, domain, row.place, held_in)


def _turns(row: Row, name: str) -> tuple[Message, ...]:
    messages = message_list(row, name, row.require(name))
    return tuple(_assistant_of(m) if m["role"] == "assistant" else m for m in messages)


def _prompt_and_completion(row: Row) -> tuple[Message, ...]:
    prompt, completion = row.require("prompt"), row.require("completion")
    turns = message_list(row, "prompt", [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    if isinstance(completion, list):  # TRL's conversational form: a list of one assistant turn
        return (*turns, *(_assistant_of(m) for m in message_list(row, "completion", completion)))
    return (*turns, _assistant(row.text("completion"), row.optional_text("reasoning") or ""))


def _sharegpt(row: Row) -> tuple[Message, ...]:
    turns = row.require("conversations")
    if not isinstance(turns, list) or not turns:
        raise row.error("conversations", f"must be a list of {{from, value}}, got {shown(turns)}")
    if isinstance(turns[0], Mapping) and "role" in turns[0]:  # many sets give turns of {role, content} this name
        return _turns(row, "conversations")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        place = f"conversations[{number}]"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise row.error(place, f"must be {{from, value}} with a text as value, got {shown(turn)}")
        role = SHAREGPT.get(str(turn.get("from")))
        if role is None:
            raise row.error(f"{place}.from", f"must be one of {', '.join(SHAREGPT)}, got {shown(turn.get('from'))}")
        messages.append(_assistant(turn["value"]) if role == "assistant" else {"role": role, "content": turn["value"]})
    return tuple(messages)


def _assistant_of(message: Message) -> Message:
    return _assistant(message["content"], message.get("reasoning_content", ""))


def _assistant(content: str, reasoning: str = "") -> Message:
    """An assistant turn; reasoning in think tags at the start of `content` is taken out, unless it is given apart."""
    if not reasoning and content.lstrip().startswith(OPEN) and CLOSE in content:
        reasoning, _, content = content.lstrip().removeprefix(OPEN).partition(CLOSE)
    message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def _ending_in_assistant(row: Row, name: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[-1]["role"] != "assistant":
        raise row.error(name, f"must end with a turn of the assistant, not of {messages[-1]['role']!r}")
    return messages


def _content_id(messages: tuple[Message, ...]) -> str:
    parts: list[Any] = [m.get(key, "") for m in messages for key in ("role", "reasoning_content", "content")]
    return content_id(*parts)
