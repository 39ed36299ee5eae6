"""Training conversations from every kind of row, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.recipe import SftSource
from motet.base.records import Problem
from motet.data.conversations import Conversation, conversations, placed_conversations, read_conversations, solutions
from motet.tasks import ProblemSplit
from motet.tasks.stored import stored

USER = {"role": "user", "content": "12 + 7 = ?"}
THOUGHT = {"role": "assistant", "content": "19", "reasoning_content": "2 + 7 = 9"}


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Conversation]:
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_conversations(str(path), **options))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, THOUGHT]},
        {"messages": [USER, {"role": "assistant", "content": "\n<think>2 + 7 = 9</think>19"}]},
        {"prompt": "12 + 7 = ?", "completion": "<think>2 + 7 = 9</think>19"},
        {"prompt": "12 + 7 = ?", "completion": "19", "reasoning": "2 + 7 = 9"},
        {"prompt": [USER], "completion": [THOUGHT]},
        {"prompt": "12 + 7 = ?", "completion": [{"role": "assistant", "content": "19", "reasoning": "2 + 7 = 9"}]},
        {"messages": [USER, {"role": "assistant", "content": "19", "thinking": "2 + 7 = 9"}]},
        {"conversations": [{"from": "human", "value": "12 + 7 = ?"},
                           {"from": "gpt", "value": "<think>2 + 7 = 9</think>19"}]},
        {"conversations": [USER, THOUGHT]},
    ],
)  # fmt: skip
def test_every_kind_of_row_gives_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    (conversation,) = read(tmp_path, row)
    assert conversation.messages == (USER, THOUGHT)


def test_equal_conversations_have_equal_ids_and_an_own_id_wins(tmp_path: Path) -> None:
    row = {"messages": [USER, THOUGHT]}
    first, same, other, named = read(
        tmp_path, row, row, {"prompt": "12 + 7 = ?", "completion": "19"}, {**row, "id": 5, "domain": "math"}
    )
    assert first.id == same.id != other.id
    assert (named.id, named.domain, first.domain) == ("5", "math", "")


def test_think_tags_in_the_middle_of_an_answer_are_left_alone(tmp_path: Path) -> None:
    (conversation,) = read(tmp_path, {"prompt": "What is <think>?", "completion": "A tag: <think></think>."})
    assert conversation.messages[1] == {"role": "assistant", "content": "A tag: <think></think>."}


def test_columns_name_the_fields_of_the_file(tmp_path: Path) -> None:
    (conversation,) = read(tmp_path, {"q": "1 + 1", "a": "2"}, columns={"prompt": "q", "completion": "a"})
    assert [m["content"] for m in conversation.messages] == ["1 + 1", "2"]
    with pytest.raises(UserError, match="there is no field 'answer'"):
        read(tmp_path, {"q": "1 + 1"}, columns={"answer": "q"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "field 'completion' is missing"),
        ({"prompt": "x", "completion": 5}, "field 'completion' must be text, got 5"),
        ({"messages": [USER]}, "field 'messages' must end with a turn of the assistant, not of 'user'"),
        ({"messages": "x"}, "field 'messages' must be a list"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, r"field 'conversations\[0\]\.from' must be one of"),
        ({"conversations": [{"from": "gpt"}]}, r"field 'conversations\[0\]' must be"),
        ({"conversations": [{"role": "bot", "content": "x"}]}, r"field 'conversations\[0\]\.role' must be one of"),
        ({"messages": [USER, {**THOUGHT, "reasoning_content": [1]}]},
         r"field 'messages\[1\]\.reasoning_content' must be text, got \[1\]"),
        ({"prompt": "x", "completion": "y", "system": 5}, "field 'system' must be text, got 5"),
    ],
)  # fmt: skip
def test_a_wrong_row_names_file_line_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"c\.jsonl, line 2: " + message):
        read(tmp_path, {"messages": [USER, THOUGHT]}, row)


def test_a_rows_own_system_text_stands_before_turns_that_have_none(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Add."}
    sharegpt = {"system": "Add.", "conversations": [{"from": "human", "value": "2"}, {"from": "gpt", "value": "3"}]}
    first, second = read(tmp_path, sharegpt, {"system": "Other.", "messages": [own, USER, THOUGHT]})
    assert first.messages[0] == second.messages[0] == own
    assert [m["role"] for m in first.messages] == ["system", "user", "assistant"]
    (mapped,) = read(tmp_path, {"prompt": "1", "completion": "2", "s": {"t": "Add."}}, columns={"system": "s.t"})
    assert mapped.messages[0] == own


def test_a_conversation_knows_its_line_and_field_and_wrong_rows_come_between_the_others(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(
        json.dumps({"messages": [USER, THOUGHT]}) + '\n{"prompt": "x"}\n\n{"prompt": "x", "completion": "y"}\n'
    )
    first, wrong, last = placed_conversations(str(path))
    assert isinstance(first, Conversation) and isinstance(last, Conversation)
    assert (first.place, first.held_in) == (f"{path}, line 1", "messages")
    assert isinstance(wrong, UserError) and f"{path}, line 2: field 'completion' is missing" in str(wrong)
    assert (last.place, last.held_in) == (f"{path}, line 4", "completion")


def test_a_file_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no conversation"):
        read(tmp_path)


def problem(name: str, solution: dict[str, str] | None) -> Problem:
    metadata = {} if solution is None else {"solution": solution}
    return Problem(name, (USER,), "math", "19", "math", "sums", metadata)


def test_worked_solutions_become_conversations_and_problems_without_one_give_none() -> None:
    worked = {"reasoning": "2 + 7 = 9", "answer": "19"}
    found = list(solutions([problem("a", worked), problem("b", None), problem("c", {"reasoning": "", "answer": "19"})]))
    assert found[0] == Conversation((USER, THOUGHT), "a", "sums", "math")
    assert [c.id for c in found] == ["a", "c"]
    assert found[1].messages[1] == {"role": "assistant", "content": "19"}


def test_a_source_of_a_mixture_is_a_problem_set_a_stage_or_a_file(tmp_path: Path) -> None:
    stage = tmp_path / "synthesize"
    stage.mkdir()
    rows = [{"messages": [USER, {**THOUGHT, "content": text}], "problem_id": "p", "domain": "math"} for text in "ab"]
    (stage / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = ProblemSplit(stored([problem("a", {"reasoning": "r", "answer": "19"})]), stored([]), {})

    def both(source: SftSource) -> list[Conversation]:
        found = list(conversations(source, lambda name: split, tmp_path))
        return [item for item in found if isinstance(item, Conversation)]

    (solved,) = both(SftSource(problems="sums"))
    assert solved.id == "a"
    first, second = both(SftSource(stage="synthesize"))
    assert first.id.startswith("p/") and first.id != second.id
    assert (first.source, first.domain, first.messages[1]["content"]) == ("synthesize", "math", "a")
    assert len(both(SftSource(path=str(stage / "data.jsonl")))) == 2


def test_a_problem_set_without_any_worked_solution_is_refused_for_sft(tmp_path: Path) -> None:
    split = ProblemSplit(stored([problem("a", None)]), stored([]), {})
    with pytest.raises(UserError, match=r"problems\.sums: none of its problems has a worked solution"):
        list(conversations(SftSource(problems="sums"), lambda name: split, tmp_path))
