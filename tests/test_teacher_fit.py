"""Which teacher fits: ranks in chunks, the measures by hand, and the experiment from traces to advice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import micro
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Chat, Model
from motet.base.statistics import Tally
from motet.data.chat import ChatFormat
from motet.data.pack import Sample
from motet.experiments import teachers, teachers_results
from motet.experiments.teachers_view import summary
from motet.fit import traces
from motet.fit.tokens import Ranked, Student, rank
from motet.fit.traces import Trace, distance, measures, problem_key, steps
from motet.train.logprobs import score_plainly

# ---- tokens


def test_rank_counts_the_tokens_that_are_more_probable() -> None:
    """Logits 3, 1, 2, 1: the third token is second, and the second and fourth share rank 3."""
    hidden, weight = torch.eye(1), torch.tensor([[3.0], [1.0], [2.0], [1.0]])
    said = rank(hidden.expand(4, 1), weight, torch.arange(4))
    assert said.rank_N.tolist() == [1, 3, 2, 3]
    z = math.log(math.exp(3) + 2 * math.exp(1) + math.exp(2))
    assert said.surprisal_N.tolist() == pytest.approx([z - 3, z - 1, z - 2, z - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing_and_agree_with_whole_logits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 5, generator=generator).to(dtype)
    weight, targets = torch.randn(11, 5, generator=generator), torch.arange(7)
    whole = score_plainly(hidden, weight.to(dtype), targets)
    logits = hidden.float() @ weight.to(dtype).float().T
    order = logits.argsort(-1, descending=True)
    for chunk in (1, 3, 100):
        said = rank(hidden, weight, targets, chunk)
        torch.testing.assert_close(said.surprisal_N, -whole.logprobs_N)
        assert [order[i].tolist().index(i) + 1 for i in range(7)] == said.rank_N.tolist()
    assert rank(hidden[:0], weight, targets[:0]).rank_N.shape == (0,)


def test_a_packed_text_is_read_like_one_alone(model_folder: Path) -> None:
    student = Student(model_folder, Model(path=str(model_folder), device="cpu"))
    samples = [Sample((*(8, 9, 10, 11)[:n], 12, 13), (False,) * n + (True, True)) for n in (2, 4, 3)]
    together = dict(student.read(samples, 64))
    alone = [dict(student.read([sample], 64))[0] for sample in samples]
    assert sorted(together) == [0, 1, 2]
    for index, one in enumerate(alone):
        torch.testing.assert_close(together[index].surprisal_N, one.surprisal_N, rtol=1e-4, atol=1e-4)
        assert together[index].rank_N.tolist() == one.rank_N.tolist()
        assert one.surprisal_N.shape == (2,)


# ---- one trace


def ranked(surprisal: Sequence[float], ranks: Sequence[int]) -> Ranked:
    return Ranked(torch.tensor(surprisal), torch.tensor(ranks))


def test_measures_of_four_tokens() -> None:
    """Rank 500 counts as 100; e^-5 is below 1 %."""
    found = measures(ranked([0.0, 1.0, 2.0, 5.0], [1, 2, 9, 500]), answer=2)
    assert found["surprisal"] == 2.0
    assert found["rank"] == (1 + 2 + 9 + 100) / 4 == 28.0 and found["passed_over"] == 27.0
    assert (found["top1"], found["top10"], found["improbable"]) == (0.25, 0.75, 0.25)
    assert found["surprisal_p95"] == pytest.approx(2.0 + 0.85 * 3.0)  # 0.95 x 3 steps = 2.85
    assert (found["first"], found["middle"], found["last"], found["answer"]) == (0.0, 1.5, 5.0, 7.0)
    assert found["tokens"] == 4.0
    assert "answer" not in measures(ranked([1.0], [1]), None)


def test_steps_are_lines_and_sentences() -> None:
    assert steps("a = 1\nSo b = 2.5. Then c = 3\n\n") == ["a = 1", "So b = 2.5.", "Then c = 3"]
    assert steps("e.g. this, 3.14 or so") == ["e.g. this, 3.14 or so"]
    assert len(traces.MARKER.findall("Wait, let me check. Hmm! The waiter")) == 3


def test_distance_is_the_largest_gap_between_distribution_functions() -> None:
    assert distance([1, 2, 3], [1, 2, 3]) == 0.0
    assert distance([1, 2], [3, 4]) == 1.0
    assert distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert distance([], [1]) is None


def test_a_question_is_the_same_under_another_system_prompt() -> None:
    user = {"role": "user", "content": "What is  2 + 2?"}
    assert problem_key([user]) == problem_key(
        [{"role": "system", "content": "x"}, {**user, "content": "What is 2 + 2?"}]
    )
    assert problem_key([user]) != problem_key([{**user, "content": "What is 2 + 3?"}])


def test_a_trace_is_read_in_the_students_own_template(tokenizer: Any) -> None:
    """What is scored is the turn and its end, whatever tags or system prompt the teacher had."""
    chat = ChatFormat(tokenizer, Chat())
    turn = {"role": "assistant", "reasoning_content": "3+4=07", "content": "\\boxed{7}"}
    trace = Trace("p", ({"role": "user", "content": "12 + 7 = ?"}, turn))
    sample = traces.sample_of(trace, chat)
    scored = [t for t, on in zip(sample.tokens, sample.loss_mask, strict=True) if on]
    assert chat.decode(scored) == "<think>3+4=07</think>\\boxed{7}" and scored[-1] == chat.end_token
    answer = traces.answer_tokens(trace, chat)
    assert answer is not None and chat.decode(scored[-answer:]) == "\\boxed{7}"
    assert traces.answer_tokens(Trace("p", ({"role": "assistant", "content": "7"},)), chat) is None


# ---- many traces


def row(
    problem: str, nats: float, passed_over: float, tokens: float = 10.0, answer: float | None = 1.0
) -> dict[str, Any]:
    zero = dict.fromkeys(teachers_results.MEANS, 0.0)
    more = {} if answer is None else {"answer": answer}
    return {**{k: v for k, v in zero.items() if k != "answer"}, **more, "problem": problem, "surprisal": nats,
            "rank": passed_over + 1, "passed_over": passed_over, "tokens": tokens, "steps": 2,
            "step_tokens": [5, 5]}  # fmt: skip


def test_fit_picks_the_students_own_style_where_the_published_ratio_does_not() -> None:
    """Close: sure and right, 0.01 nats and no token liked better. Alien: 2 nats, rank 4. RSR 100 against 2."""
    rows = {"close": [row(f"p{i}", 0.01, 0.0) for i in range(8)], "alien": [row(f"p{i}", 2.0, 3.0) for i in range(8)]}
    found = teachers_results.measured(rows, [], seed=1)
    assert (found["close"]["fit"]["mean"], found["alien"]["fit"]["mean"]) == (0.0, 1.5)
    assert (found["close"]["rsr"]["mean"], found["alien"]["rsr"]["mean"]) == (pytest.approx(100.0), 2.0)
    apart = teachers_results.fit_differences(rows, seed=1)["alien"]["close"]
    assert apart == {"mean": 1.5, "low": 1.5, "high": 1.5}


def test_a_ratio_is_of_means_over_problems_and_several_traces_of_a_problem_count_as_one() -> None:
    """(0 + 3) / (1 + 1) = 1.5; a mean of ratios would be the same here only by weights 1:1, so problem b has two."""
    rows = {"t": [row("a", 1.0, 0.0), row("b", 0.5, 2.0), row("b", 1.5, 4.0)]}
    assert teachers_results.measured(rows, [], seed=1)["t"]["fit"]["mean"] == 1.5
    assert teachers_results.measured(rows, [], seed=1)["t"]["surprisal"]["mean"] == 1.0


def test_lengths_are_compared_where_the_student_solved_the_problem() -> None:
    rows = {"t": [row("a", 1.0, 0.0, tokens=30.0), row("b", 1.0, 0.0, tokens=1000.0)]}
    own = [{"problem": "a", "tokens": 20.0, "steps": 4, "step_tokens": [9, 9, 9, 9]}]
    found = teachers_results.measured(rows, own, seed=1)["t"]
    assert (found["length"]["mean"], found["step_count"]["mean"], found["step_distance"]["mean"]) == (1.5, 0.5, 1.0)
    nothing = teachers_results.measured(rows, [], seed=1)["t"]
    assert nothing["length"] is None and nothing["step_distance"] is None


def test_a_measure_that_some_trace_lacks_is_left_out() -> None:
    rows = {"t": [row("a", 1.0, 0.0), row("b", 1.0, 0.0, answer=None)]}
    assert teachers_results.measured(rows, [], seed=1)["t"]["answer"] is None


def test_answers_are_compared_where_every_trace_has_a_reasoning() -> None:
    rows = {name: [row(p, 1.0, 0.0, answer=nats) for p in "ab"] for name, nats in (("t", 3.0), ("u", 1.0), ("v", None))}
    found = teachers_results.answer_differences(rows, seed=1)
    assert found["t"] == {"u": {"mean": 2.0, "low": 2.0, "high": 2.0}} and found["v"] == {}


# ---- advice


def solved(share: float) -> list[Tally]:
    return [Tally("math", str(i), ("correct" if i < 40 * share else "incorrect",), (3,)) for i in range(40)]


def judged(student: float, fits: dict[str, float] | None = None, **shares: float) -> list[str]:
    tallies = {name: solved(share) for name, share in shares.items()}
    probes = teachers_results.probed(solved(student), tallies, seed=1)
    fits = fits or {name: 1 - share for name, share in shares.items()}
    return teachers_results.advice(
        {name: {"probe": probes[name], "measures": {"fit": {"mean": fits[name]}}, "yield": {"tokens_per_kept": 90 - i}}
         for i, name in enumerate(shares)}
    )  # fmt: skip


def test_the_better_teacher_and_the_harmful_one_are_named() -> None:
    lines = judged(0.5, a=0.75, b=0.25)
    assert lines[0].startswith("a helps: +25.0 points") and lines[1].startswith(
        "a is better than b, the next, by +50.0"
    )
    assert lines[2].startswith("b hurts: -25.0 points") and len(lines) == 3


def test_no_significant_difference_is_said_where_it_is_the_truth() -> None:
    lines = judged(0.5, a=0.525, b=0.5)
    assert lines[0].startswith("No significant difference between the untouched student and the best, a: +2.5")
    assert lines[1].startswith("No significant difference between a and b: +2.5")
    assert lines[2] == "Of these b costs least: 89 tokens for a kept trace."
    assert not any("helps" in line or "better" in line for line in lines)


def test_none_helps_is_said() -> None:
    assert judged(0.9, a=0.5, b=0.2)[0].startswith("None helps: against the untouched student even a has -40.0")


def test_a_fit_that_chose_wrongly_is_named() -> None:
    lines = judged(0.2, fits={"a": 2.0, "b": 1.0}, a=0.9, b=0.2)
    assert lines[-1] == "The fit would have chosen b: here it was wrong, and the probe is to be trusted."


def test_too_few_problems_tell_nothing() -> None:
    few = [Tally("math", str(i), ("incorrect",), (3,)) for i in range(5)]
    many = [Tally("math", str(i), ("correct",), (3,)) for i in range(5)]
    row_of = {"probe": teachers_results.probed(few, {"a": many}, 1)["a"], "measures": {"fit": {"mean": 1.0}}}
    (line,) = teachers_results.advice({"a": row_of})
    assert "No significant difference" in line and "5 problems are too few to tell" in line


def test_without_a_probe_the_fit_advises_and_says_what_it_does_not_know() -> None:
    def unprobed(fit: float, apart: tuple[float, float]) -> dict[str, Any]:
        other = {"mean": sum(apart) / 2, "low": apart[0], "high": apart[1]}
        return {"measures": {"fit": {"mean": fit}}, "fit_differences": {"a": other}, "answer_differences": {}}

    (line,) = teachers_results.advice({"a": unprobed(1.0, (0, 0)), "b": unprobed(2.0, (0.5, 1.5))})
    assert line.startswith("By fit a is to be tried first (1 below b") and "no probe was run" in line
    doubted = {"a": {**unprobed(1.0, (0, 0)), "answer_differences": {"b": {"mean": 2.0, "low": 1.5, "high": 2.5}}}}
    lines = teachers_results.advice({**doubted, "b": unprobed(2.0, (0.5, 1.5))})
    assert lines[1].startswith("But the student expects the answer more after the reasoning of b than after a's")
    (line,) = teachers_results.advice({"a": unprobed(1.0, (0, 0)), "b": unprobed(1.1, (-0.1, 0.3))})
    assert line == "By fit no significant difference between a and b; no probe was run."


# ---- the experiment


@pytest.fixture(scope="module")
def given(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of two teachers: the student's own style and another one, with a wrong, a held-out and a foreign row."""
    from motet.tasks import load_problem_set

    recipe = micro.recipe(micro_recipe)
    split = load_problem_set("numbers", recipe.problems["numbers"], recipe.seed)
    folder = tmp_path_factory.mktemp("traces")
    chosen = split.train[:12]

    def line(prompt: str, reasoning: str, answer: str, **system: str) -> str:
        turns = [{"role": "system", "content": text} for text in system.values()]
        turns += [{"role": "user", "content": prompt},
                  {"role": "assistant", "content": f"<think>{reasoning}</think>\\boxed{{{answer}}}"}]  # fmt: skip
        return json.dumps({"messages": turns}) + "\n"

    def numbers(text: str) -> str:
        return " ".join(text)

    rows = [(str(p.messages[-1]["content"]), str(p.reference)) for p in chosen]
    held = str(split.heldout[0].messages[-1]["content"]), str(split.heldout[0].reference)
    own = "".join(line(q, numbers(a), a) for q, a in rows)
    alien = "".join(line(q, f"{a[1]}{a[0]}{a[1]}{a[0]}", a, system="Think hard.") for q, a in rows[:10])
    alien += line(rows[10][0], "5 5", "55" if rows[10][1] != "55" else "44") + line(held[0], numbers(held[1]), held[1])
    files = {"own": folder / "own.jsonl", "alien": folder / "alien.jsonl"}
    files["own"].write_text(own)
    files["alien"].write_text(alien)
    return files


@pytest.fixture(scope="module")
def runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("teachers")
    shutil.copytree(finished_run, folder / "micro")
    return folder


@pytest.fixture(scope="module")
def report(micro_recipe: Path, runs: Path, given: dict[str, Path]) -> dict[str, Any]:
    return teachers.run(micro.recipe(micro_recipe), runs, micro_recipe, files=given, steps=3, own=2, console=False)


def test_the_experiment_reads_probes_and_ranks(report: dict[str, Any], runs: Path) -> None:
    assert report["student"]["stage"] == "sft" and report["problems"] == 10
    own, alien = report["teachers"]["own"], report["teachers"]["alien"]
    assert (own["yield"]["asked"], own["yield"]["kept"], own["traces"]) == (12, 12, 10)
    assert alien["yield"]["dropped"] == {"incorrect": 1, "held out": 1} and alien["yield"]["kept"] == 10
    assert own["measures"]["fit"]["mean"] < alien["measures"]["fit"]["mean"]
    assert own["measures"]["surprisal"]["high"] < alien["measures"]["surprisal"]["low"]
    assert own["probe"]["examples"] == alien["probe"]["examples"] == 48
    assert own["probe"]["others"]["alien"]["n"] == own["probe"]["student"]["n"] == report["heldout"] > 10
    assert report["ranking"]["fit"] == ["own", "alien"] and set(report["ranking"]["probe"]) == {"own", "alien"}
    assert report["student"]["own"]["traces"] > 0 and own["measures"]["length"]["mean"] == pytest.approx(1.0, abs=0.5)
    target = runs / "micro" / "experiments" / "teachers"
    assert jsonl.read_json(target / "teachers.json") == json.loads(json.dumps(report))
    page = (target / "teachers.html").read_text()
    assert "<svg" in page and "nats, rank" in page and "<script" not in page
    rows = [row for _, row in jsonl.read(target / "student" / "traces" / "alien.jsonl")]
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)  # no system prompt


def test_the_table_fits_the_terminal_and_names_everything(report: dict[str, Any]) -> None:
    text = summary(report)
    assert max(map(len, text.splitlines())) <= 110
    for word in (
        "own",
        "alien",
        "fit",
        "RSR",
        "p95",
        "top10",
        "kept",
        "10/12",
        "(untouched)",
        report["advice"][0][:30],
    ):
        assert word in text


def test_what_was_done_is_not_done_again(
    report: dict[str, Any], micro_recipe: Path, runs: Path, given: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn line at the end of the scores and a missing probe: the traces that were read are not read again."""
    target = runs / "micro" / "experiments" / "teachers"
    scores = target / "student" / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:-3]) + lines[-3][:20])
    import shutil

    shutil.rmtree(target / "own" / "probe")
    stamp = (target / "alien" / "metrics.jsonl").stat().st_mtime_ns
    seen: list[int] = []
    whole = Student.read

    def counting(self: Student, samples: Sequence[Sample], most: int) -> Any:
        seen.append(len(samples))
        return whole(self, samples, most)

    monkeypatch.setattr(Student, "read", counting)
    again = teachers.run(micro.recipe(micro_recipe), runs, micro_recipe, files=given, steps=3, own=2, console=False)
    assert seen == [3, 2]  # the torn ones, and the two examples of the page
    assert (target / "alien" / "metrics.jsonl").stat().st_mtime_ns == stamp
    kept = ("measures", "yield", "fit_differences")
    for name, given_row in report["teachers"].items():
        assert {k: again["teachers"][name][k] for k in kept} == {k: given_row[k] for k in kept}
        assert again["teachers"][name]["probe"]["student"] == given_row["probe"]["student"]


def test_a_synthesize_stage_is_a_teacher_and_equal_tokens_shrink_the_longer_ones_batch(
    micro_recipe: Path, runs: Path, given: dict[str, Path]
) -> None:
    """The run's own stage is done and is not asked again; `own` stands for a teacher with the same problems."""
    before = {p: p.stat().st_mtime_ns for p in (runs / "micro" / "synthesize").iterdir()}
    recipe = micro.recipe(micro_recipe, "name=micro")
    rows = [row for _, row in jsonl.read(runs / "micro" / "synthesize" / "data.jsonl")]
    long = given["own"].with_name("long.jsonl")
    turns = [[*r["messages"][:-1], {**r["messages"][-1], "reasoning_content": "3 7 3 7 3 7"}] for r in rows]
    long.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    found = teachers.run(recipe, runs, micro_recipe, ["synthesize"], {"long": long}, steps=1, equal="tokens", own=0,
                         console=False)  # fmt: skip
    assert {p: p.stat().st_mtime_ns for p in before} == before
    self, other = found["teachers"]["synthesize"], found["teachers"]["long"]
    assert self["yield"]["verified"] == self["yield"]["asked"] == 72 and self["yield"]["tokens"] > 0
    assert other["probe"]["batch_size"] < self["probe"]["batch_size"] == 16
    assert found["student"]["own"]["measures"] is None and self["measures"]["length"] is None


def test_the_teachers_of_one_stage_are_told_apart(micro_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    """The student itself and a script, asked the same 24 problems, in a stage that the order does not have."""
    import shutil

    shutil.copytree(finished_run, tmp_path / "micro")
    script = tmp_path / "script.jsonl"
    replies = [{"prompt": f"Say {n}", "replies": [f"<think>{n}{n}</think>\\boxed{{{n}}}"]} for n in range(10, 100)]
    script.write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    stage = (f"stage.ask={{kind='synthesize', problems=[{{problems='numbers'}}], count=24, samples=2, assign='all', "
             f"sampling={{max_tokens=16}}, rules={{deduplicate=false}}, teachers={{itself={{kind='transformers'}}, "
             f"script={{kind='scripted', script='{script}'}}}}}}")  # fmt: skip
    recipe = micro.recipe(micro_recipe, stage)
    found = teachers.run(recipe, tmp_path, micro_recipe, ["ask"], steps=0, own=0, console=False)
    itself, other = found["teachers"]["itself"], found["teachers"]["script"]
    assert found["ranking"]["fit"] == ["itself", "script"]
    assert (itself["yield"]["asked"], other["yield"]["asked"], other["yield"]["kept"]) == (48, 48, 48)
    assert 6 <= found["problems"] == other["traces"] / 2 < 24  # those that the student solved
    assert not (tmp_path / "micro" / "ask").exists()  # the run's own order does not have it

    shared = micro.recipe(micro_recipe, stage, "stage.ask.assign='share'")
    with pytest.raises(UserError, match='set assign = "all"'):
        teachers.run(shared, tmp_path, stages=["ask"], console=False)
    with pytest.raises(UserError, match=r"2 teachers write 6 traces of a problem, and rules\.max_per_problem = 4"):
        teachers.run(micro.recipe(micro_recipe, stage, "stage.ask.samples=3"), tmp_path, stages=["ask"], console=False)


def test_reading_alone_trains_nothing(micro_recipe: Path, tmp_path: Path, given: dict[str, Path]) -> None:
    """From random weights, without a stage before and without probes."""
    recipe = micro.recipe(micro_recipe)
    found = teachers.run(recipe, tmp_path, micro_recipe, files=given, student="base", steps=0, own=0, console=False)
    assert found["ranking"].keys() == {"fit", "rsr", "surprisal"} and "probe" not in found["teachers"]["own"]
    assert "no probe was run" in found["advice"][0]
    assert not list(tmp_path.rglob("model.safetensors.index.json")) and not list(tmp_path.rglob("evaluation.json"))
    assert max(map(len, summary(found).splitlines())) <= 110


def test_what_cannot_be_compared_is_refused(micro_recipe: Path, tmp_path: Path, given: dict[str, Path]) -> None:
    recipe = micro.recipe(micro_recipe)
    with pytest.raises(UserError, match="it must be a synthesize stage"):
        teachers.run(recipe, tmp_path, stages=["sft"])
    with pytest.raises(UserError, match='must be "base" or a stage that trains'):
        teachers.run(recipe, tmp_path, student="filter")
    with pytest.raises(UserError, match="no teacher"):
        teachers.run(micro.recipe(micro_recipe, "stages=['base']", "stage={ base = { kind = 'evaluate' } }"), tmp_path)
    with pytest.raises(UserError, match="cannot name a folder"):
        teachers.run(recipe, tmp_path, files={"../up": given["own"]})
    with pytest.raises(UserError, match="called 'student'"):
        teachers.run(recipe, tmp_path, files={"student": given["own"]})
    few = tmp_path / "few.jsonl"
    few.write_text("".join(given["own"].read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match="3 problems in common, and 6 are needed"):
        teachers.run(recipe, tmp_path, files={"few": few, "own": given["own"]}, student="base", console=False)
    few.write_text('{"prompt": "Say 37"}\n')
    with pytest.raises(UserError, match=r"^--traces few: .*few\.jsonl, line 1: field 'completion'"):
        teachers.run(recipe, tmp_path, files={"few": few, "own": given["own"]}, student="base", console=False)


def test_the_command_says_how_traces_are_given(micro_recipe: Path) -> None:
    from click.testing import CliRunner

    from motet.cli import cli

    found = CliRunner().invoke(cli, ["experiment", "teachers", str(micro_recipe), "--traces", "big"])
    assert isinstance(found.exception, UserError) and "--traces big: write it as NAME=FILE" in str(found.exception)
