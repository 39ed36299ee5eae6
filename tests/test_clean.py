"""A clean stage in a recipe: conversations of files through the funnel, and an sft stage that trains on what passed."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.recipe import Recipe
from motet.base.records import content_id
from motet.funnel.judge import question

RECIPE = """
name = "open"
threads = 1
stages = ["clean", "sft"]
[model]
device = "cpu"
tiny = { hidden = 32, layers = 1, heads = 2, mlp = 32, context = 64 }
[verification]
workers = 1
deadline_seconds = 60.0
[problems.numbers]
path = "PROBLEMS"
heldout = 0.2
[evaluation]
samples = 1
bootstrap = 20
sampling = { max_tokens = 8 }
[stage.clean]
kind = "clean"
data = [{ path = "ROWS", on_bad_row = "drop" }]
[stage.sft]
kind = "sft"
evaluate = false
steps = 1
batch_size = 2
data = [{ stage = "clean" }]
"""


def turns(prompt: str, reasoning: str, content: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "reasoning_content": reasoning, "content": content},
    ]


def recipe(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Recipe:
    micro.write_recipe(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RECIPE.replace("PROBLEMS", str(folder / "problems.jsonl")).replace("ROWS", str(folder / "rows.jsonl"))
    (folder / "open.toml").write_text(text)
    return load(folder / "open.toml", list(overrides))


GOOD = [
    {"messages": turns("Say one", "1", "one"), "domain": "talk"},
    {"prompt": "Say two", "completion": "<think>2</think>two"},
    {"messages": turns("What is 5 + 7?", "5 + 7 = 12", r"\boxed{12}"), "answer": "12"},
    {"messages": turns("What is 1 / 2?", "a half", r"\boxed{0.5}"), "answer": "no value at all (("},
]
BAD = {
    "answer": {"messages": turns("What is 5 + 8?", "5 + 8 = 13", r"\boxed{12}"), "answer": "13"},
    "think_balanced": {"prompt": "Say three", "completion": "three"},
    "exact_duplicate": {"messages": turns("say  ONE", "1", "one"), "domain": "talk"},
    "leak_template": {"messages": turns("Say four", "4", "four<|im_end|>")},
}


def test_open_rows_are_sieved_and_trained_on(tmp_path: Path) -> None:
    rows = [*GOOD, *BAD.values(), {"messages": "none"}]
    run = tmp_path / "run"
    report = pipeline.run(recipe(tmp_path, rows), run, tmp_path / "open.toml", console=False)
    funnel = jsonl.read_json(run / "clean" / "funnel.json")
    assert (funnel["asked"], funnel["kept"]) == (8, 4)
    assert {r["rule"]: r["dropped"] for r in funnel["rules"] if r["dropped"]} == dict.fromkeys(BAD, 1)
    assert funnel["sources"] == [{"name": str(tmp_path / "rows.jsonl"), "rows": 8, "bad": 1}]
    assert funnel["against"] == {"numbers": 20} and funnel["verdicts"] == {"correct": 1, "incorrect": 1}
    kept = [row for _, row in jsonl.read(run / "clean" / "data.jsonl")]
    assert [row["messages"][0]["content"] for row in kept] == ["Say one", "Say two", "What is 5 + 7?", "What is 1 / 2?"]
    assert kept[1]["messages"][1] == {"role": "assistant", "reasoning_content": "2", "content": "two"}
    assert (kept[0]["problem_id"], kept[0]["domain"]) == (content_id("Say one"), "talk")
    assert [row["domain"] for row in kept[1:]] == ["general", "math", "math"]
    assert jsonl.read_json(run / "sft" / "data.json")["conversations"] == 4
    assert sorted(p.name for p in (run / "clean").iterdir()) == ["data.jsonl", "funnel.json", "manifest.json"]
    assert report["funnel"]["clean"]["kept"] == 4 and report["missing"] == []
    page = (run / "report.html").read_text()
    assert "8 rows read" in page and "leak_template" in page and "Compared with the evaluation questions" in page


def test_the_page_of_a_run_has_every_rule_with_its_threshold_whether_it_is_on_its_count_and_three_examples(
    tmp_path: Path,
) -> None:
    wrong = [{"messages": turns(f"What is 5 + {n}?", "?", rf"\boxed{{{n}}}"), "answer": f"{n + 5}"} for n in range(5)]
    wordy = [{"messages": turns(f"Say {word}", "no", f"{word} (or not)<|im_end|>")} for word in ("a", "b", "c", "d")]
    run = tmp_path / "run"
    off = "stage.clean.rules.off=['leak_template', 'repetition']"
    pipeline.run(recipe(tmp_path, [*GOOD, *wrong, *wordy], "stages=['clean']", off), run, console=False)
    rules = jsonl.read_json(run / "clean" / "funnel.json")["rules"]
    page = unescape((run / "report.html").read_text())
    assert len(rules) == 26 and {rule["rule"] for rule in rules if rule["examples"]} == {"answer", "leak_template"}
    for rule in rules:
        row = page.partition(f"<th>{rule['rule']}</th>")[2].partition("</tr>")[0]
        state, threshold, dropped, *_ = re.findall(r"<td[^>]*>(.*?)</td>", row)
        count = str(rule["dropped"]) if rule["on"] else f"would: {rule['would_drop']}" if "would_drop" in rule else ""
        assert (state, threshold, dropped) == ("on" if rule["on"] else "off", rule["threshold"], count)
        shown = page.partition(f"by <b>{rule['rule']}</b>: {len(rule['examples'])} examples")[2].partition(
            "</details>"
        )[0]
        assert shown.count('<p class="why">') == len(rule["examples"])
        assert all(example["detail"] in shown and example["prompt"] in shown for example in rule["examples"])
    counts = {rule["rule"]: (rule["dropped"], rule.get("would_drop"), len(rule["examples"])) for rule in rules}
    assert counts["answer"] == (5, None, 3) and counts["leak_template"] == (0, 4, 3)


def test_the_page_shows_what_is_learned_token_by_token_and_the_loss_by_length(tmp_path: Path) -> None:
    bands = "stage.sft.lengths=[{ up_to = 16 }, { up_to = 64 }]"
    run = tmp_path / "run"
    pipeline.run(recipe(tmp_path, GOOD, bands, "stage.sft.batch_size=4"), run, console=False)
    page = (run / "report.html").read_text()
    learned = "".join(f"<b>{token}</b>" for token in ("&lt;think&gt;", "1", "&lt;/think&gt;", "o", "&lt;|unknown|&gt;"))
    assert f"<span>&lt;|assistant|&gt;</span>{learned}<b>e</b><b>&lt;|end|&gt;</b></pre>" in page
    figure = page.partition("<figcaption><b>sft: loss by length</b>")[2].partition("</figure>")[0]
    assert re.findall(r"\d+ to \d+", figure)[:3] == ["1 to 16", "17 to 32", "33 to 64"]
    assert "<b>sft: loss by position</b>" in page and "<b>sft: gradient norm</b>" in page


def test_a_wrong_row_or_column_names_the_recipes_key(tmp_path: Path) -> None:
    rows = str(tmp_path / "rows.jsonl")
    strict = recipe(tmp_path, [*GOOD, {"messages": "none"}], f"stage.clean.data=[{{ path = '{rows}' }}]")
    with pytest.raises(
        UserError, match=r'^stage\.clean\.data\[0\]: .*rows\.jsonl, line 5: field .*\n.*on_bad_row = "drop"'
    ):
        pipeline.run(strict, tmp_path / "run", console=False)
    columns = f"stage.clean.data=[{{ path = '{rows}' }}, {{ path = '{rows}', columns = {{ anwser = 'gold' }} }}]"
    with pytest.raises(
        UserError, match=r"^stage\.clean\.data\[1\]: columns: there is no field 'anwser'; known are .*answer"
    ):
        pipeline.run(recipe(tmp_path, GOOD, columns), tmp_path / "other", console=False)


def test_programs_of_open_rows_are_run_on_the_tests_that_come_with_them(tmp_path: Path) -> None:
    tests = [{"stdin": "3 4\n", "stdout": "7\n"}]
    program = "```python\na, b = map(int, input().split())\nprint(a {} b)\n```"
    rows = [{"messages": turns("Print a + b.", f"with {sign}", program.format(sign)), "tests": tests} for sign in "+-"]
    loaded = recipe(tmp_path, rows, "stages=['clean']", "verification.sandbox=unsafe-rlimits")
    pipeline.run(loaded, tmp_path / "run", console=False)
    funnel = jsonl.read_json(tmp_path / "run" / "clean" / "funnel.json")
    assert {r["rule"]: r["dropped"] for r in funnel["rules"] if r["dropped"]} == {"code_tests": 1}
    assert funnel["domains"] == {"code": {"asked": 2, "kept": 1}}


def test_held_out_problems_are_found_in_open_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [{"messages": turns(f"Say {n}", "x", "y")} for n in range(10, 100)]
    pipeline.run(recipe(tmp_path, rows, "stages=['clean']", "stage.clean.rules.max_per_problem=90"), run, console=False)
    funnel = jsonl.read_json(run / "clean" / "funnel.json")
    assert {r["rule"]: r["dropped"] for r in funnel["rules"] if r["dropped"]} == {"contamination_13": 20}


def test_the_students_tokens_are_counted_where_a_rule_asks_for_them(tmp_path: Path) -> None:
    rows = [{"messages": turns("Say 12", "1 2", "12")}, {"messages": turns("Say 12", "1 2 1 2 1 2", "12")}]
    loaded = recipe(tmp_path, rows, "stages=['clean']", "stage.clean.rules.min_reasoning_tokens=5",
                    "stage.clean.rules.off=['contamination_13']")  # fmt: skip
    pipeline.run(loaded, tmp_path / "run", console=False)
    funnel = jsonl.read_json(tmp_path / "run" / "clean" / "funnel.json")
    assert {r["rule"]: r["dropped"] for r in funnel["rules"] if r["dropped"]} == {"reasoning_length": 1}


def test_a_judge_of_the_recipe_is_asked_in_both_orders(tmp_path: Path) -> None:
    rows = [{"messages": turns("Say one", "1", "one")}, {"messages": turns("Say two", "2", "cheese")}]
    script = [
        {"prompt": question(prompt, trace, swapped), "replies": [reply]}
        for prompt, trace, reply in [
            ("Say one", "<think>1</think>one", "VERDICT: SOUND"),
            ("Say two", "<think>2</think>cheese", "VERDICT: FALSE cheese"),
        ]
        for swapped in (False, True)
    ]
    jsonl.write(tmp_path / "script.jsonl", script)
    judge = f"stage.clean.rules.judge={{kind='scripted', script='{tmp_path / 'script.jsonl'}'}}"
    pipeline.run(recipe(tmp_path, rows, "stages=['clean']", judge), tmp_path / "run", console=False)
    funnel = jsonl.read_json(tmp_path / "run" / "clean" / "funnel.json")
    assert {r["rule"]: r["dropped"] for r in funnel["rules"] if r["dropped"]} == {"judge": 1}
    assert (funnel["judge"]["asked"], funnel["judge"]["complaints"]) == (2, 1)
    audit = [row for _, row in jsonl.read(tmp_path / "run" / "clean" / "audit.jsonl")]
    assert [(row["judge"], row["human"]) for row in audit] == [("sound", None), ("false", None)]


def test_a_stage_that_keeps_nothing_says_which_rules_took_what(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, [BAD["think_balanced"], BAD["answer"]], "stages=['clean']")
    with pytest.raises(UserError, match=r"stage\.clean: no row of 2 passed: answer took 1, think_balanced took 1"):
        pipeline.run(loaded, tmp_path / "run", console=False)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stage.clean.data=[{path='x', weight=2.0}]", "data[0].weight has no effect here"),
        ("stage.clean.rules.off=['langage']", "'judge' or 'max_per_problem', got \"langage\""),
        ("stage.sft.data=[{stage='sft'}]", "it must be a synthesize or clean or filter stage that runs before it"),
        ("stage.clean.rules.judge={kind='transformers'}", "judge: name its model"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe(tmp_path, GOOD, override)
    assert problem in str(caught.value)
