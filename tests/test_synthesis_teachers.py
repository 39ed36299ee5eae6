"""Several teachers, caps of cost, existing questions and answers: through the stage, against a counting server."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_endpoint
import micro
from fake_endpoint import FakeEndpoint
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.recipe import ProblemSet, SynthesizeStage
from motet.base.records import Group, Problem, decode_group
from motet.stages.teachers import plan, put_to
from motet.tasks import load_problem_set

HEAD = micro.RECIPE.partition("[defaults.sft]")[0].partition("\nstages = ")[0]
BODY = """
stages = ["traces"]
[model]
device = "cpu"
tiny = { hidden = 32, layers = 2, heads = 2, mlp = 64, context = 64 }
[verification]
workers = 1
deadline_seconds = 60.0
[problems.numbers]
path = "PROBLEMS"
heldout = 0.2
[stage.traces]
kind = "synthesize"
problems = [{ problems = "numbers" }]
count = 6
samples = 2
sampling = { max_tokens = 64 }
"""
ONE = """
[stage.traces.teacher]
kind = "endpoint"
url = "URL"
model = "big"
batch_size = 2
price = { input = 1000.0, output = 10000.0 }
"""
TWO = """
[stage.traces.teachers.big]
kind = "endpoint"
url = "URL"
model = "big"
share = 2.0
[stage.traces.teachers.small]
kind = "endpoint"
url = "URL"
model = "small"
sampling = { max_tokens = 32, temperature = 0.5 }
ask = "Be brief. {prompt}"
"""


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    server = FakeEndpoint()
    yield server
    server.close()


def write(folder: Path, url: str, teachers: str) -> Path:
    micro.write_recipe(folder)
    path = folder / "teachers.toml"
    text = (HEAD + BODY + teachers).replace("PROBLEMS", str(folder / "problems.jsonl")).replace("URL", url)
    path.write_text(text)
    return path


def run(path: Path, folder: Path, *overrides: str) -> Path:
    pipeline.run(load(path, list(overrides)), folder, path, console=False)
    return folder / "traces"


def groups_of(stage: Path) -> list[Group]:
    return [decode_group(row) for _, row in jsonl.read(stage / "groups.jsonl")]


def problem(number: int, domain: str = "math") -> Problem:
    return Problem(f"p{number}", ({"role": "user", "content": f"Say {number}"},), "math", str(number), domain)


def stage(**settings: Any) -> SynthesizeStage:
    teachers: dict[str, dict[str, Any]] = {"a": {"script": "x", "share": 2.0}, "b": {"script": "y"}}
    if settings.get("assign") == "all":
        del teachers["a"]["share"]
    teachers = {name: {"kind": "scripted", **teacher} for name, teacher in teachers.items()}
    return SynthesizeStage(kind="synthesize", problems=({"problems": "n"},), teachers=teachers, **settings)  # type: ignore


# ---- who is asked what


def test_problems_go_to_teachers_by_their_shares_in_each_domain() -> None:
    problems = [problem(n, domain) for n, domain in enumerate(["math"] * 6 + ["code"] * 3)]
    given = {asked.name: asked.positions for asked in plan(problems, stage())}
    # 2 to 1, whoever is further behind: a b a a b a, and anew in the other domain: a b a
    assert given == {"a": [0, 2, 3, 5, 6, 8], "b": [1, 4, 7]}


def test_every_teacher_gets_every_problem_when_asked_to() -> None:
    given = {asked.name: asked.positions for asked in plan([problem(1), problem(2)], stage(assign="all"))}
    assert given == {"a": [0, 1], "b": [0, 1]}


def test_a_problem_is_put_in_the_words_of_ask() -> None:
    system = {"role": "system", "content": "Be right."}
    given = Problem("p", (system, {"role": "user", "content": "12 + 7 = ?"}), "math", "19", "math")
    put = put_to(given, "{prompt} Answer in \\boxed{}.")
    assert put.messages == (system, {"role": "user", "content": "12 + 7 = ? Answer in \\boxed{}."})


def test_several_teachers_write_one_data_set_in_which_each_row_says_whose_it_is(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    folder = run(write(tmp_path, endpoint.url, TWO), tmp_path / "run")
    groups = groups_of(folder)
    assert [group.problem.metadata["teacher"] for group in groups] == ["big", "small", "big", "big", "small", "big"]
    assert not any("brief" in message["content"] for group in groups for message in group.problem.messages)
    small = [body for body in endpoint.bodies if body["model"] == "small"]
    assert len(small) == 2 and len(endpoint.bodies) == 6
    assert all(body["messages"][-1]["content"].startswith("Be brief. Say ") for body in small)
    assert {(body["max_tokens"], body["temperature"], body["n"]) for body in small} == {(32, 0.5, 2)}
    table = jsonl.read_json(folder / "teachers.json")
    assert {name: (row["problems"], row["traces"], row["requests"]) for name, row in table.items()} == {
        "big": (4, 8, 4), "small": (2, 4, 2),
    }  # fmt: skip
    assert sum(row["correct"] for row in table.values()) == sum(
        rollout.verdict.kind == "correct" for group in groups for rollout in group.rollouts
    )
    rows = [row for _, row in jsonl.read(folder / "data.jsonl")]
    assert rows and {row["teacher"] for row in rows} <= {"big", "small"}
    assert {name: row["kept"] for name, row in table.items()} == {
        name: sum(row["teacher"] == name for row in rows) for name in ("big", "small")
    }
    page = (folder.parent / "report.html").read_text()
    assert all(f'<tr><th>{name}</th><td class="n">{row["problems"]}</td>' in page for name, row in table.items())
    assert sorted(path.name for path in (folder / "raw").iterdir()) == [
        "groups-big.jsonl.gz", "groups-big.requests.jsonl", "groups-small.jsonl.gz", "groups-small.requests.jsonl",
    ]  # fmt: skip
    assert not list(folder.glob("groups-*.jsonl"))


# ---- cost


def test_the_cap_of_cost_stops_the_run_before_it_is_passed_and_raised_the_same_command_goes_on(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    recipe, folder = write(tmp_path, endpoint.url, ONE), tmp_path / "run"
    # a request takes 10 tokens in and 40 out, 0.01 + 0.4; at most 134 ("Say 37" and its template) and 128: 1.414
    with pytest.raises(
        UserError, match=r"cost cap is reached: 1\.23 of 2\.5 .* up to 1\.414\. All 6 completions are kept"
    ):
        run(recipe, folder, "stage.traces.teacher.caps.cost=2.5")
    assert len(endpoint.bodies) == 3
    stage = run(recipe, folder, "stage.traces.teacher.caps.cost=100.0", "stage.traces.teacher.batch_size=1")
    assert set(endpoint.asked.values()) == {1} and len(endpoint.bodies) == 6
    assert not list(folder.glob("traces.stale-*"))
    bill = jsonl.read_json(stage / "teachers.json")["teacher"]
    (row,) = jsonl.read_json(folder / "report.json")["teachers"]["traces"].values()
    assert (row["requests"], row["cost"], row["output_tokens"]) == (6, 2.46, 240)
    assert row["kept"] == len((stage / "data.jsonl").read_text().splitlines())
    assert (bill["requests"], bill["input_tokens"], bill["output_tokens"], bill["cost"]) == (6, 60, 240, 2.46)
    calm = run(recipe, tmp_path / "calm")
    assert (stage / "groups.jsonl").read_bytes() == (calm / "groups.jsonl").read_bytes()


def test_other_rules_and_a_larger_count_ask_for_what_is_missing_alone(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    recipe, folder = write(tmp_path, endpoint.url, ONE), tmp_path / "run"
    run(recipe, folder)
    stage = run(recipe, folder, "stage.traces.rules.max_per_problem=1", "stage.traces.count=8")
    assert (folder / "traces.stale-1").exists()
    assert set(endpoint.asked.values()) == {1} and len(endpoint.bodies) == 8
    assert len(groups_of(stage)) == 8
    assert jsonl.read_json(stage / "teachers.json")["teacher"]["requests"] == 2


def test_the_log_estimates_time_and_cost_and_says_what_went_on(
    tmp_path: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motet.engine.endpoint.TELL_EVERY_SECONDS", 0.0)
    recipe, folder = write(tmp_path, endpoint.url, ONE), tmp_path / "run"
    with pytest.raises(UserError):
        run(recipe, folder, "stage.traces.teacher.caps.cost=2.5")
    run(recipe, folder)
    log = (folder / "log.txt").read_text()
    assert re.search(
        r"big: 1 of 12 completions; about \d+ s and [\d.]+ more; cost (0\.41; 10|0\.82; 20|1\.23; 30) tokens in", log
    )
    # of the six that came before the cap, those that were judged by then are not even looked up
    told = re.search(r"big: (\d+) of (\d+) completions are on disk", log)
    found, of = map(int, told.groups()) if told else (0, 6)
    assert 12 - of + found == 6
    assert f"big: {of} of {of} completions; cost 2.46; 60 tokens in, 240 out" in log


def test_the_key_is_in_no_file_not_even_where_the_server_quotes_it(
    tmp_path: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTET_TEST_KEY", "sk-of-nobody")
    answer = fake_endpoint.reply_to
    monkeypatch.setattr("fake_endpoint.reply_to", lambda *given: {**answer(*given), "debug": "sent with sk-of-nobody"})
    run(write(tmp_path, endpoint.url, ONE), tmp_path / "run", "stage.traces.teacher.api_key_env=MOTET_TEST_KEY")
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix != ".gz"]
    texts += [gzip.decompress(path.read_bytes()) for path in (tmp_path / "run").rglob("*.gz")]
    assert any(b"sent with ***" in text for text in texts)
    assert not any(b"sk-of-nobody" in text for text in texts)


# ---- existing questions and answers


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "question"}, {"question": "Say 37", "answer": "37"}),
        ({"prompt": "question"}, {"question": "Say 37", "answer": "3 then 7\n#### 37"}),
        ({}, {"prompt": "Say 37", "answer": 37}),
        ({}, {"messages": [{"role": "user", "content": "Say 37"},
                           {"role": "assistant", "content": "3 7, so \\boxed{37}"}]}),
    ],
)  # fmt: skip
def test_questions_and_answers_become_problems_to_be_verified_against_the_answer(
    tmp_path: Path, columns: dict[str, str], row: dict[str, Any]
) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (given,) = load_problem_set("qa", ProblemSet(path=str(path), columns=columns, heldout=0.0), 1).train
    assert (given.messages, given.verifier, given.reference) == (
        ({"role": "user", "content": "Say 37"},), "math", "37",
    )  # fmt: skip


def test_new_traces_for_existing_questions_are_verified_against_their_answers(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    recipe = write(tmp_path, endpoint.url, ONE)
    (tmp_path / "qa.jsonl").write_text(
        "".join(json.dumps({"question": f"Say {n}", "answer": str(n)}) + "\n" for n in range(20, 30))
    )
    text = recipe.read_text().replace(
        f'path = "{tmp_path / "problems.jsonl"}"',
        f'path = "{tmp_path / "qa.jsonl"}"\ncolumns = {{ prompt = "question" }}',
    )
    recipe.write_text(text)
    folder = run(recipe, tmp_path / "run")
    rows = [row for _, row in jsonl.read(folder / "data.jsonl")]
    assert rows and len(rows) == jsonl.read_json(folder / "teachers.json")["teacher"]["correct"]
    for row in rows:
        question, turn = row["messages"]
        assert turn["content"].strip() == f"\\boxed{{{question['content'].split()[-1]}}}"
        assert turn["reasoning_content"]


# ---- what a recipe may not say


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.traces.teacher.caps.cost=1.0", "caps.cost needs price"),
        ("stage.traces.teacher.extra={temperature=1}", "'temperature' is filled by motet"),
        ("stage.traces.teacher.extra={api_key='x'}", "'api_key' would be written to files"),
        ("stage.traces.teacher.api_key_env=sk-123", "must be the name of an environment variable"),
        ("stage.traces.teacher.url=https://me:pass@host/v1", "url holds a user or a password"),
        ("stage.traces.teacher.omit=['messages']", "a request without 'messages' is none"),
        ("stage.traces.teacher.kind=transformers", 'price is a setting of kind = "endpoint"'),
        ("stage.traces.ask=Think.", "must hold {prompt} once"),
        ("stage.traces.teachers.a.kind=transformers", "give teacher (one) or teachers (several, by name), not both"),
        ("stage.traces.assign=all", "has no effect without teachers"),
    ],
)
def test_a_setting_of_a_teacher_that_makes_no_sense_is_refused_without_quoting_secrets(
    tmp_path: Path, override: str, message: str
) -> None:
    recipe = write(tmp_path, "http://localhost:1/v1", ONE)
    if "caps" in override:
        recipe.write_text(recipe.read_text().replace("price", "# price"))
    with pytest.raises(UserError) as raised:
        load(recipe, [override])
    assert message in str(raised.value)
    assert "sk-123" not in str(raised.value) and "pass@" not in str(raised.value)
