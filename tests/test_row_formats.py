"""Rows in the shapes of verl, open-instruct, TRL, IFEval and IFBench, read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.recipe import ProblemSet
from motet.base.records import Problem
from motet.data.conversations import read_conversations
from motet.tasks import load_problem_set
from motet.tasks.files import placed_problems
from motet.verify.foreign import gold_text, reference_of
from motet.verify.instruction import gold

USER = [{"role": "user", "content": "How many?"}]
GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": USER,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0, "answer": "48 + 24 = 72\n#### 72", "question": "How many?"},
}
EURUS = {
    "data_source": "taco",
    "prompt": [{"role": "system", "content": "Think."}, *USER],
    "ability": "code",
    "reward_model": {"style": "rule", "ground_truth": json.dumps({"inputs": ["3 4\n"], "outputs": ["7\n"]})},
    "extra_info": {"split": "train", "index": 0},
}
IF_RLVR = {
    "key": "a",
    "messages": USER,
    "ground_truth": (
        "[{'instruction_id': ['last_word:last_word_answer', 'punctuation:no_comma'], "
        "'kwargs': [{'last_word': 'tea'}, None]}]"
    ),
    "dataset": "ifeval",
    "constraint_type": "multi",
    "constraint": "The last word of your response should be the word tea.",
}
RLVR_GSM = {"messages": USER, "ground_truth": "72", "dataset": "gsm8k"}
RLVR_IFEVAL = {
    "messages": USER,
    "ground_truth": json.dumps(
        {"func_name": "validate_word_constraint", "N": 50, "quantifier": "around", "word": None}
    ),
    "dataset": "ifeval",
    "constraint_type": "Number Words",
    "constraint": "Answer with around 50 words",
}
IFBENCH = {
    "key": "1",
    "prompt": "How many?",
    "instruction_id_list": ["count:numbers"],
    "kwargs": [{"N": 3, "keyword": None}],
}


def only(folder: Path, row: dict[str, Any], **settings: Any) -> Problem:
    path = folder / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    ((_, item),) = placed_problems("own", ProblemSet(path=str(path), **settings))
    if isinstance(item, UserError):
        raise item
    return item


@pytest.mark.parametrize(
    ("row", "verifier", "reference"),
    [
        (GSM8K, "math", "72"),
        (EURUS, "code", {"tests": [{"stdin": "3 4\n", "stdout": "7\n"}]}),
        (RLVR_GSM, "math", "72"),
        ({**RLVR_GSM, "ground_truth": ["72"], "dataset": ["gsm8k"]}, "math", "72"),
        (
            IF_RLVR,
            "instruction",
            [
                {"id": "last_word:last_word_answer", "kwargs": {"last_word": "tea"}},
                {"id": "punctuation:no_comma", "kwargs": {}},
            ],
        ),
        (
            RLVR_IFEVAL,
            "instruction",
            [
                {"id": "length_constraints:number_words", "kwargs": {"num_words": 45, "relation": "at least"}},
                {"id": "length_constraints:number_words", "kwargs": {"num_words": 56, "relation": "less than"}},
            ],
        ),
        (IFBENCH, "instruction", [{"id": "count:numbers", "kwargs": {"N": 3}}]),
        ({"prompt": USER, "solution": "$72$"}, "math", "72"),
        ({"prompt": "How many?", "solution": "It is $48 + 24 = \\boxed{72}$."}, "math", "72"),
        ({"prompt": "How many?", "answer": "72"}, "math", "72"),
        ({"prompt": "How many?", "ground_truth": 72}, "math", "72"),
    ],
)
def test_a_row_of_another_tool_is_read_as_it_is(
    tmp_path: Path, row: dict[str, Any], verifier: str, reference: Any
) -> None:
    problem = only(tmp_path, row)
    assert (problem.verifier, problem.domain, problem.reference) == (verifier, verifier, reference)
    assert problem.messages[-1] == USER[0]


@pytest.mark.parametrize("row", [GSM8K, EURUS, IF_RLVR, RLVR_GSM, RLVR_IFEVAL, IFBENCH])
def test_the_problems_are_usable_as_they_are(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    split = load_problem_set("own", ProblemSet(path=str(path), heldout=0.0), 1)
    assert len(split.train) == 1 and split.dropped == {}


def examples(kind: str) -> list[str]:
    """The lines of a block of docs/data.md."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    return page.split(f"```jsonl {kind}\n")[1].split("```")[0].splitlines()


def test_every_conversation_of_the_docs_is_read_and_means_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(examples("conversations")) + "\n", encoding="utf-8")
    found = [[m for m in c.messages if m["role"] != "system"] for c in read_conversations(str(path))]
    answer = {"role": "assistant", "content": "19", "reasoning_content": "2 + 7 = 9"}
    assert len(found) == 8 and all(turns == [{"role": "user", "content": "12 + 7 = ?"}, answer] for turns in found)


def test_every_problem_of_the_docs_is_read_and_usable(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in examples("problems")]
    problems = [only(tmp_path, row) for row in rows]
    assert [p.reference for p in problems[:5]] == ["19"] * 5 and problems[5].verifier == "instruction"
    for row in rows:
        path = tmp_path / "one.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        assert load_problem_set("own", ProblemSet(path=str(path), heldout=0.0), 1).dropped == {}


@pytest.mark.parametrize("row", [GSM8K, EURUS, IF_RLVR, RLVR_GSM, RLVR_IFEVAL, IFBENCH])
def test_a_row_from_parquet_is_that_from_json(tmp_path: Path, row: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    ((_, item),) = placed_problems("own", ProblemSet(path=str(tmp_path / "p.parquet")))
    assert item == only(tmp_path, row)


def test_columns_map_the_names_of_another_tool_and_a_wrong_one_names_line_and_column(tmp_path: Path) -> None:
    row = {"chat": USER, "meta": {"gold": "72"}, "name": "r1"}
    columns = {"messages": "chat", "ground_truth": "meta.gold", "id": "name"}
    problem = only(tmp_path, row, columns=columns)
    assert (problem.id, problem.reference, problem.messages) == ("r1", "72", tuple(USER))
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: there is no column 'meta\.golt'"):
        only(tmp_path, row, columns={**columns, "ground_truth": "meta.golt"})
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: field 'messages\[0\]\.role' must be one of"):
        only(tmp_path, {**row, "chat": [{"role": "bot", "content": "x"}]}, columns=columns)


def test_a_worked_solution_with_a_box_is_kept_and_a_bare_answer_is_none(tmp_path: Path) -> None:
    worked = "It is $48 + 24 = \\boxed{72}$."
    kept = only(tmp_path, {"prompt": "How many?", "solution": worked})
    assert kept.metadata == {"solution": {"reasoning": "", "answer": worked}}
    assert only(tmp_path, {"prompt": "How many?", "solution": "72"}).metadata == {}


def test_a_reply_at_the_end_of_open_instructs_messages_is_left_out(tmp_path: Path) -> None:
    row = {**RLVR_GSM, "messages": [*USER, {"role": "assistant", "content": "72"}]}
    assert only(tmp_path, row).messages == tuple(USER)


def test_a_function_called_by_tests_gets_its_arguments_from_json() -> None:
    lines = json.dumps({"fn_name": "add", "inputs": ["3\n4"], "outputs": ["7"]})
    tests = {"function": "add", "tests": [{"args": [3, 4], "expected": 7}]}
    assert reference_of(lines) == ("code", tests)
    assert reference_of({"fn_name": "add", "inputs": [[3, 4]], "outputs": [7]}) == ("code", tests)


def test_asserts_and_pairs_of_input_and_output_are_tests() -> None:
    assert reference_of('["assert add(1, 2) == 3"]') == ("code", {"mode": "assert", "tests": ["assert add(1, 2) == 3"]})
    pairs = '[{"input": "3 4", "output": "7"}, {"input": "1 1", "output": "2"}]'
    expected = [{"stdin": "3 4", "stdout": "7"}, {"stdin": "1 1", "stdout": "2"}]
    assert reference_of(pairs) == ("code", {"tests": expected})


@pytest.mark.parametrize(
    ("text", "gold"),
    [("72", "72"), ("$72$", "72"), ("$$72$$", "72"), ("a\n#### 1,000", "1000"), (r"So \boxed{\frac12}.", r"\frac12"),
     ("[1, 2]", "[1, 2]"), ("{1, 2}", "{1, 2}"), ("$a$ and $b$", "$a$ and $b$")],
)  # fmt: skip
def test_a_mathematical_answer_is_taken_out_of_its_wrapping(text: str, gold: str) -> None:
    assert gold_text(text) == gold
    assert reference_of(text) == ("math", gold)


FUNCTIONS: dict[str, dict[str, Any]] = {
    "verify_keywords": {"keyword_list": ["tea"]},
    "verify_keyword_frequency": {"word": "tea", "N": 2},
    "validate_forbidden_words": {"forbidden_words": ["tea"]},
    "verify_letter_frequency": {"letter": "a", "N": 0},
    "validate_response_language": {"language": "hi"},
    "verify_paragraph_count": {"N": 2},
    "validate_word_constraint": {"N": 5, "quantifier": "at most"},
    "verify_sentence_constraint": {"N": 1, "quantifier": "around"},
    "validate_paragraphs": {"N": 2, "first_word": "tea", "i": 1},
    "verify_postscript": {"postscript_marker": "P.S."},
    "validate_placeholders": {"N": 2},
    "verify_bullet_points": {"N": 2},
    "validate_title": {},
    "validate_choice": {"options": ["yes", "no"]},
    "validate_highlighted_sections": {"N": 2},
    "validate_sections": {"N": 2, "section_splitter": "Section"},
    "validate_json_format": {},
    "validate_repeat_prompt": {"original_prompt": "Say it."},
    "validate_two_responses": {},
    "validate_uppercase": {},
    "validate_lowercase": {},
    "validate_frequency_capital_words": {"N": 0, "quantifier": "at least"},
    "validate_end": {"end_phrase": "The end."},
    "validate_quotation": {},
    "validate_no_commas": {},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_older_constraints_has_its_instructions(name: str) -> None:
    verifier, reference = reference_of(json.dumps({"func_name": name, **FUNCTIONS[name], "unused": None}))
    assert verifier == "instruction"
    assert gold(Problem("p", (), verifier, reference, "instruction")) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**RLVR_GSM, "dataset": "string_f1", "ground_truth": "Paris"}, "field 'ground_truth' belongs to 'string_f1'"),
        (
            {**GSM8K, "reward_model": {"ground_truth": {"target": ["a"]}}},
            r"'reward_model.ground_truth' holds an object",
        ),
        ({**GSM8K, "reward_model": {"ground_truth": " "}}, "'reward_model.ground_truth' must be a text, a number"),
        ({**IFBENCH, "kwargs": []}, "field 'kwargs' must hold a list of instruction ids and a list of as many"),
        ({**RLVR_IFEVAL, "ground_truth": '{"func_name": "validate_rhyme"}'}, "constraint 'validate_rhyme'"),
        ({**RLVR_IFEVAL, "ground_truth": '{"func_name": "validate_end"}'}, "lacks an argument of validate_end"),
        ({**EURUS, "reward_model": {"ground_truth": '{"inputs": ["1"], "outputs": []}'}}, "as many outputs as inputs"),
    ],
)
def test_what_cannot_be_read_names_file_line_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: .*" + message):
        only(tmp_path, row)


def test_a_verifier_of_the_recipe_must_fit_the_reference(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a reference of code, and not of math"):
        only(tmp_path, EURUS, verifier="math")
    assert only(tmp_path, {**RLVR_GSM, "dataset": "string_f1"}, verifier="math").reference == "72"


def test_scoring_goes_into_the_problems_and_is_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(IF_RLVR) + "\n", encoding="utf-8")
    split = load_problem_set("own", ProblemSet(path=str(path), heldout=0.0, scoring="mean"), 1)
    assert split.train[0].metadata["scoring"] == "mean"
    path.write_text(json.dumps(RLVR_GSM) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="is for instructions; math is right or wrong"):
        load_problem_set("own", ProblemSet(path=str(path), heldout=0.0, scoring="mean"), 1)
