"""Problems of one's own: JSON Lines, Parquet, a folder of them, or a hub data set.

One row, whose verifier follows from the field that holds its reference::

    {"prompt": "12 + 7 = ?", "answer": "19"}                                              math
    {"prompt": "Print the sum.", "tests": [{"stdin": "3 4\\n", "stdout": "7\\n"}]}          code
    {"prompt": "Write a haiku.", "instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]}   instruction

Optional: id, domain, split_key, reasoning and solution (a worked solution), function (code). `messages` may stand for
`prompt`. Read as they are, told by their keys:

    verl            prompt (a list of turns), reward_model.ground_truth
    open-instruct   messages, ground_truth, dataset
    TRL             prompt (a text or turns), and solution (the gold answer) or answer
    GSM8K           answer = steps, then "#### 19"
    IFEval, IFBench prompt, instruction_id_list, kwargs

A ground truth may be JSON of constraints or tests: see `motet.verify.foreign`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from motet.base.errors import UserError, naming
from motet.base.recipe import ProblemSet
from motet.base.records import Message, Problem, content_id
from motet.base.tables import Row, check_columns, read_rows, shown
from motet.verify.foreign import Unreadable, gold_text, instructions, reference_of

REFERENCES = {"math": "answer", "code": "tests", "instruction": "instructions"}
"""Verifier to the field that holds its reference."""
CODE_FIELDS = ("tests", "function", "test_code", "entry_point", "prompt_code")
FIELDS = (
    *("prompt", "messages", "answer", "instructions", "ground_truth", *CODE_FIELDS),
    *("id", "domain", "split_key", "reasoning", "solution"),
)
ROLES = ("system", "user", "assistant")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What chat turns call the reasoning of the assistant."""


def placed_problems(name: str, config: ProblemSet) -> Iterator[tuple[str, Problem | UserError]]:
    """(place, problem) of [problems.`name`], whose `path` is set: ("problems.jsonl, line 3", ...). A malformed row
    comes as its error, with "" where only the error tells the place."""
    if config.path is None:
        raise UserError(f"problems.{name}: path is missing")
    with naming(f"problems.{name}"):
        check_columns(config.columns, FIELDS)
        for row in read_rows(config.path, config.split, config.columns):
            if isinstance(row, UserError):
                yield "", row
                continue
            try:
                yield row.place, problem_of(row, name, config.verifier, config.domain)
            except UserError as error:
                yield row.place, error


def problem_of(row: Row, source: str, verifier: str | None = None, domain: str | None = None) -> Problem:
    """Raises UserError naming file, line and field."""
    row = _answered_in_reply(row)
    messages = prompt_messages(row)
    row = _own_fields(row, verifier)
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


def _answered_in_reply(row: Row) -> Row:
    """A conversation that ends with a worked answer, whose box (or ####) is the reference: its trace can be written
    anew. Any other row as it is."""
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    text = last.get("content") if isinstance(last, Mapping) and last.get("role") == "assistant" else None
    if not isinstance(text, str) or not ("\\boxed{" in text or "####" in text):
        return row
    held = (*REFERENCES.values(), "test_code", "ground_truth", "reward_model", "instruction_id_list", "solution")
    if any(row.get(field) is not None for field in held):
        return row
    return row._replace(values={**row.values, "ground_truth": gold_text(text)})


def prompt_messages(row: Row) -> tuple[Message, ...]:
    """`messages`, or `prompt` as a text or a list of messages; the last turn is the user's."""
    field = "messages" if row.get("messages") is not None else "prompt"
    value = row.require(field)
    if isinstance(value, str):
        if not value.strip():
            raise row.error(field, "is empty")
        return ({"role": "user", "content": value},)
    messages = message_list(row, field, value)
    if messages[-1]["role"] == "assistant" and len(messages) > 1 and row.get("ground_truth") is not None:
        messages = messages[:-1]  # rows of open-instruct may end with a reply
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
        message = {"role": str(turn["role"]), "content": turn["content"]}
        key = next((key for key in REASONING if turn.get(key)), None)
        if key is not None:
            if not isinstance(turn[key], str):
                raise row.error(f"{field}[{number}].{key}", f"must be text, got {shown(turn[key])}")
            message["reasoning_content"] = turn[key]
        messages.append(message)
    return tuple(messages)


def _own_fields(row: Row, verifier: str | None) -> Row:
    """A row of another tool with its reference in our field; a row of ours as it is."""
    if any(row.get(field) is not None for field in (*REFERENCES.values(), "test_code")):
        return row
    field, truth = _ground_truth(row)
    try:
        if truth is not None:
            if verifier not in (None, *REFERENCES):  # a user's own compares with what is there
                return row._replace(values={**row.values, "answer": truth})
            found, reference = reference_of(truth, None if verifier else _name(row))
        elif row.get("instruction_id_list") is not None:
            field = "kwargs"
            found, reference = "instruction", instructions(row.get("instruction_id_list"), row.get("kwargs"))
        elif row.get("solution") is not None and verifier in (None, "math"):
            field, found, reference = "solution", "math", gold_text(row.text("solution"))
            if row.text("solution").strip() == reference or "\\boxed" not in row.text("solution"):
                row = row._replace(values={**row.values, "solution": None})  # no worked solution but the answer alone
        else:
            return row
    except Unreadable as error:
        raise row.error(field, str(error)) from error
    if verifier is not None and found != verifier:
        raise row.error(field, f"is a reference of {found}, and not of {verifier}: {shown(truth)}")
    if found == "code":
        return row._replace(values={**row.values, "code_reference": reference})
    return row._replace(values={**row.values, REFERENCES[found]: reference})


def _ground_truth(row: Row) -> tuple[str, Any]:
    """The gold answer of a row of verl or open-instruct, and the field that holds it."""
    model = row.get("reward_model")
    if isinstance(model, Mapping):
        return "reward_model.ground_truth", model.get("ground_truth")
    return "ground_truth", row.get("ground_truth")


def _name(row: Row) -> str | None:
    """What open-instruct calls the row's verifier."""
    name = row.get("dataset")
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    return name if isinstance(name, str) and isinstance(row.get("messages"), list) else None


def _verifier(row: Row) -> str:
    if row.get("code_reference") is not None:
        return "code"
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
    if isinstance(row.get("code_reference"), dict):
        return dict(row.get("code_reference"))
    if row.get("test_code") is not None:
        code = row.optional_text("prompt_code") or ""
        return {"entry_point": row.text("entry_point"), "test_code": row.text("test_code"), "prompt_code": code}
    function = row.optional_text("function")
    return {"tests": row.require("tests"), **({} if function is None else {"function": function})}


def _math_answer(row: Row) -> tuple[str, str]:
    """(final answer, worked steps before it). "16 - 7 = 9\\n#### 9" is ("9", "16 - 7 = 9")."""
    value = row.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value), ""
    if value is None:
        raise row.missing("answer")
    if not isinstance(value, str) or not value.strip():
        raise row.error("answer", f"must be a number or a text, got {shown(value)}")
    steps, mark, final = value.rpartition("####")
    return (final.strip().replace(",", ""), steps.strip()) if mark else (value.strip(), "")
