"""Problems of one's own: JSON Lines, Parquet, a folder of them, or a hub data set.

One row, whose verifier follows from the field that holds its reference::

    {"prompt": "12 + 7 = ?", "answer": "19"}                                              math
    {"prompt": "Print the sum.", "tests": [{"stdin": "3 4\\n", "stdout": "7\\n"}]}          code
    {"prompt": "Write a haiku.", "instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]}   instruction

Optional: id, domain, split_key, reasoning and solution (a worked solution), function (code). `messages` may stand for
`prompt`. Rows of verl (`prompt` a list, `reward_model.ground_truth`) and of GSM8K (`answer` = steps, "#### 19") are
read as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from motet.base.errors import UserError
from motet.base.recipe import ProblemSet
from motet.base.records import Message, Problem, content_id
from motet.base.tables import Row, read_rows, shown

REFERENCES = {"math": "answer", "code": "tests", "instruction": "instructions"}
"""Verifier to the field that holds its reference."""
CODE_FIELDS = ("tests", "function", "test_code", "entry_point", "prompt_code")
FIELDS = (
    *("prompt", "messages", "answer", "instructions", *CODE_FIELDS),
    *("id", "domain", "split_key", "reasoning", "solution"),
)
ROLES = ("system", "user", "assistant")


def read_problems(name: str, config: ProblemSet) -> Iterator[Problem | UserError]:
    """The problems of [problems.`name`], whose `path` is set; a malformed row comes as its error."""
    if config.path is None:
        raise UserError(f"problems.{name}: path is missing")
    unknown = next((field for field in config.columns if field not in FIELDS), None)
    if unknown is not None:
        raise UserError(f"problems.{name}.columns: there is no field {unknown!r}; known are {', '.join(FIELDS)}")
    for row in read_rows(config.path, config.split, config.columns):
        if isinstance(row, UserError):
            yield row
            continue
        try:
            yield problem_of(row, name, config.verifier, config.domain)
        except UserError as error:
            yield error


def problem_of(row: Row, source: str, verifier: str | None = None, domain: str | None = None) -> Problem:
    """Raises UserError naming file, line and field."""
    messages = prompt_messages(row)
    verifier = verifier or _verifier(row)
    reference, solution = _reference(row, verifier)
    reasoning = row.optional_text("reasoning")
    if solution is not None and reasoning is not None:
        solution = {**solution, "reasoning": reasoning}
    metadata: dict[str, Any] = {} if solution is None else {"solution": solution}
    if row.get("split_key") is not None:
        metadata["split_key"] = str(row.get("split_key"))
    own_id = row.get("id")
    return Problem(
        id=str(own_id) if own_id is not None else content_id(*(m["content"] for m in messages)),
        messages=messages,
        verifier=verifier,
        reference=reference,
        domain=domain or row.optional_text("domain") or (verifier if verifier in REFERENCES else "custom"),
        source=source,
        metadata=metadata,
    )


def prompt_messages(row: Row) -> tuple[Message, ...]:
    """`messages`, or `prompt` as a text or a list of messages; the last turn is the user's."""
    field = "messages" if row.get("messages") is not None else "prompt"
    value = row.require(field)
    if isinstance(value, str):
        if not value.strip():
            raise row.error(field, "is empty")
        return ({"role": "user", "content": value},)
    messages = message_list(row, field, value)
    if messages[-1]["role"] != "user":
        raise row.error(field, f"must end with a turn of the user, not of {messages[-1]['role']!r}")
    return messages


def message_list(row: Row, field: str, value: Any) -> tuple[Message, ...]:
    """Turns of `role`, `content` and, for the assistant, `reasoning_content`."""
    if not isinstance(value, list) or not value:
        raise row.error(field, f"must be a list of at least one {{role, content}}, got {shown(value)}")
    messages: list[Message] = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise row.error(f"{field}[{number}]", f"must be {{role, content}} with text in both, got {shown(turn)}")
        if turn.get("role") not in ROLES:
            given = shown(turn.get("role"))
            raise row.error(f"{field}[{number}].role", f"must be one of {', '.join(ROLES)}, got {given}")
        reasoning = turn.get("reasoning_content")
        message = {"role": str(turn["role"]), "content": turn["content"]}
        if isinstance(reasoning, str) and reasoning:
            message["reasoning_content"] = reasoning
        messages.append(message)
    return tuple(messages)


def _verifier(row: Row) -> str:
    if _ground_truth(row) is not None:
        return "math"
    held = [verifier for verifier, field in REFERENCES.items() if row.get(field) is not None]
    if not held and row.get("test_code") is not None:
        return "code"
    if not held:
        raise row.missing("answer", "(or tests, or instructions) ")
    if len(held) > 1:
        fields = " and ".join(REFERENCES[verifier] for verifier in held)
        raise UserError(f'{row.place}: it has {fields}; say which one counts with verifier = "{held[0]}"')
    return held[0]


def _reference(row: Row, verifier: str) -> tuple[Any, dict[str, str] | None]:
    """What the verifier compares with, and the worked solution, if the row allows one."""
    own = row.optional_text("solution")
    solution = None if own is None else {"reasoning": "", "answer": own}
    if verifier == "math":
        answer, steps = _math_answer(row)
        if own is None and (steps or row.get("reasoning") is not None):
            solution = {"reasoning": steps, "answer": f"\\boxed{{{answer}}}"}
        return answer, solution
    if verifier == "code":
        return _code_reference(row), solution
    if verifier == "instruction":
        return row.require("instructions"), solution
    held = next((f for f in ("answer", "tests", "instructions") if row.get(f) is not None), "answer")
    return row.require(held), solution


def _code_reference(row: Row) -> dict[str, Any]:
    if row.get("test_code") is not None:
        code = row.optional_text("prompt_code") or ""
        return {"entry_point": row.text("entry_point"), "test_code": row.text("test_code"), "prompt_code": code}
    function = row.optional_text("function")
    return {"tests": row.require("tests"), **({} if function is None else {"function": function})}


def _math_answer(row: Row) -> tuple[str, str]:
    """(final answer, worked steps before it). "16 - 7 = 9\\n#### 9" is ("9", "16 - 7 = 9")."""
    value = row.get("answer")
    if value is None:
        value = _ground_truth(row)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value), ""
    if value is None:
        raise row.missing("answer")
    if not isinstance(value, str) or not value.strip():
        raise row.error("answer", f"must be a number or a text, got {shown(value)}")
    steps, mark, final = value.rpartition("####")
    return (final.strip().replace(",", ""), steps.strip()) if mark else (value.strip(), "")


def _ground_truth(row: Row) -> Any:
    """The gold answer of a verl row."""
    model = row.get("reward_model")
    return model.get("ground_truth") if isinstance(model, Mapping) and row.get("answer") is None else None
