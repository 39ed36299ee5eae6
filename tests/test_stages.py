"""The stages on a micro model: what each writes, counts, drops and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import micro
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import (
    Band,
    Chat,
    EvaluateStage,
    FilterStage,
    Recipe,
    Rewards,
    RlStage,
    SynthesizeStage,
    TraceRules,
)
from motet.base.records import Completion, Group, Problem, Rollout, Verdict, VerdictKind, decode_group, encode
from motet.base.run import Run
from motet.base.statistics import pass_at_k
from motet.funnel.contamination import Index
from motet.funnel.scan import Settings
from motet.funnel.sift import sift
from motet.rl.difficulty import learn_priors
from motet.stages import evaluate, filter, rl, sft, sieve, synthesize
from motet.stages.context import Context
from motet.stages.filter import Aim, counts, describe, in_band, judge, measured

MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(tmp_path: Path) -> Iterator[MakeContext]:
    """A context in a run folder of its own, on the model given."""
    opened: list[Any] = []

    def make(recipe: Recipe, model: Path) -> Context:
        run = Run(tmp_path / f"run-{len(opened)}", console=False)
        context = Context(recipe, run, model)
        opened.extend([context, run])
        return context

    yield make
    for item in opened:
        item.close()


def groups_of(path: Path) -> list[Group]:
    return [decode_group(row) for _, row in jsonl.read(path)]


def texts(groups: list[Group]) -> list[str]:
    return [rollout.completion.text for group in groups for rollout in group.rollouts]


# ---- supervised fine-tuning


def test_sft_learns_and_reports_every_step(finished_run: Path) -> None:
    rows = micro.metrics(finished_run, "sft")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] / 5
    assert all(row["optim/grad_norm"] > 0 and row["tokens/trained"] < row["tokens/packed"] for row in rows)
    data = jsonl.read_json(finished_run / "sft" / "data.json")
    assert (data["conversations"], data["sources"][0]["rows"], data["sources"][0]["dropped"]) == (70, 70, {})


def test_a_finished_stage_keeps_its_model_and_not_its_checkpoints(finished_run: Path) -> None:
    for stage in ("sft", "sft-2", "rl"):
        assert (finished_run / stage / "model" / "config.json").exists()
        assert not (finished_run / stage / "checkpoints").exists()


def test_held_out_problems_are_in_no_training_data_and_nothing_else_is_evaluated(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    context = make_context(micro.recipe(micro_recipe), finished_run / "base-model")
    split = context.split("numbers")
    held, train = {p.id for p in split.heldout}, {p.id for p in split.train}
    assert (len(held), len(train), held & train) == (20, 70, set())
    evaluated = {
        g.problem.id for stage in ("base", "sft", "rl") for g in groups_of(finished_run / stage / "evaluation.jsonl")
    }
    assert evaluated == held
    files = [finished_run / "synthesize" / "groups.jsonl", finished_run / "filter" / "groups.jsonl"]
    files += sorted((finished_run / "rl" / "rollouts").glob("*.jsonl"))
    asked = {g.problem.id for file in files for g in groups_of(file)}
    taught = {row["problem_id"] for _, row in jsonl.read(finished_run / "synthesize" / "data.jsonl")}
    assert asked | taught <= train


def test_conversations_longer_than_the_context_are_dropped_and_counted(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe, "stage.sft.context=15", "stage.sft.steps=1")
    context = make_context(recipe, finished_run / "base-model")
    stage = recipe.stage["sft"]
    # <|user|> Say _ 3 7 <|assistant|> <think> 3 _ 7 </think> \\boxed{ 3 7 } <|end|>: 16 tokens each
    with pytest.raises(
        UserError, match=r"stage\.sft: no conversation is left.*'longer than the context': 70.*15 tokens"
    ):
        sft.run("sft", stage, context, context.base)  # type: ignore[arg-type]


def test_a_conversation_without_reasoning_is_refused_by_its_name(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext, tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text('{"id": "row-7", "prompt": "Say 37", "completion": "37"}\n')
    recipe = micro.recipe(micro_recipe, f"stage.sft.data=[{{path = '{file}'}}]")
    context = make_context(recipe, finished_run / "base-model")
    with pytest.raises(UserError, match=r"talk\.jsonl, line 1, conversation row-7, field 'completion': check 'think'"):
        sft.run("sft", recipe.stage["sft"], context, context.base)  # type: ignore[arg-type]


# ---- synthetic traces


def test_the_funnel_adds_up_from_asked_to_kept(finished_run: Path) -> None:
    funnel = jsonl.read_json(finished_run / "synthesize" / "funnel.json")
    assert (funnel["asked"], funnel["problems"]) == (72, 24)
    left = funnel["asked"]
    for rule in funnel["rules"]:
        left -= rule["dropped"]
        assert rule["left"] == left
        assert len(rule["examples"]) == min(3, rule["dropped"]) or not rule["on"]
    rows = [row for _, row in jsonl.read(finished_run / "synthesize" / "data.jsonl")]
    assert funnel["kept"] == left == len(rows) > 0
    assert funnel["domains"] == {"math": {"asked": 72, "kept": left}}
    for row in rows:
        question, answer = row["messages"]
        assert answer["reasoning_content"] and answer["content"] == f"\\boxed{{{question['content'].split()[1]}}}"


SENT = "<think>3 7</think>\\boxed{37}"


def trace(
    text: str = SENT, kind: VerdictKind = "correct", stop: str = "end", prompt_tokens: tuple[int, ...] = (1, 2)
) -> Rollout:
    completion = Completion(text, (), (), stop, 0)  # type: ignore[arg-type]
    return Rollout(prompt_tokens, completion, Verdict(kind, None if kind == "truncated" else float(kind == "correct")))


def sieved(group: Group, rules: TraceRules, context: Context) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that pass, and the funnel."""
    folder, chat = context.folder("sieved"), context.recipe.chat
    settings = Settings(rules, Index({}), chat.think, chat.open_think)
    funnel = sift(sieve.of_groups([group], rules, context.chat), settings, folder, folder / "out.jsonl")
    return [row for _, row in jsonl.read(folder / "out.jsonl")], funnel


def problem(name: str = "p", domain: str = "math") -> Problem:
    return Problem(name, ({"role": "user", "content": "Say 37"},), "math", "37", domain)


@pytest.mark.parametrize(
    ("rules", "traces", "dropped"),
    [
        ({}, [trace(), trace(kind="incorrect"), trace(kind="malformed"), trace(kind="incorrect")],
         {"answer": 3}),
        ({"correct": False, "deduplicate": False}, [trace(), trace(stop="length")], {"finished": 1}),
        ({"min_reasoning_tokens": 4}, [trace("<think>3 7 </think>1"), trace()], {"reasoning_length": 1}),
        ({"correct": False, "min_reasoning_tokens": 0}, [trace(), trace("37")], {"think_balanced": 1}),
        ({"max_tokens": 16}, [trace(), trace("<think>3  7</think>\\boxed{37}")], {"max_tokens": 1}),
        ({"max_repetition": 0.2}, [trace("<think>a b c d a b c d</think>x"), trace("<think>" + "a " * 9 + "</think>x")],
         {"repetition": 1}),
        ({}, [trace(), trace(SENT.upper().replace("THINK", "think").replace("3 7", "3  7"))], {"exact_duplicate": 1}),
        ({"deduplicate": False}, [trace()] * 6, {"max_per_problem": 2}),
    ],
    ids=["verdict", "finished", "too short", "malformed", "too long", "repetitive", "duplicate", "quota"],
)  # fmt: skip
def test_each_rule_drops_what_it_names_and_counts_it(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext, rules: dict[str, Any], traces: list[Rollout],
    dropped: dict[str, int],
) -> None:  # fmt: skip
    context = make_context(micro.recipe(micro_recipe), finished_run / "base-model")
    kept, funnel = sieved(Group(problem(), tuple(traces)), TraceRules(**rules), context)
    assert {rule["rule"]: rule["dropped"] for rule in funnel["rules"] if rule["dropped"]} == dropped
    assert len(kept) == funnel["kept"] == len(traces) - sum(dropped.values())


def test_a_trace_becomes_a_conversation_with_its_reasoning_apart(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    context = make_context(micro.recipe(micro_recipe), finished_run / "base-model")
    ((row,), _) = sieved(Group(problem("p7"), (trace(),)), TraceRules(), context)
    answer = {"role": "assistant", "content": "\\boxed{37}", "reasoning_content": "3 7"}
    assert row == {"messages": [*problem().messages, answer], "problem_id": "p7", "domain": "math"}
    (rendered,) = context.chat.render(row["messages"])
    assert context.chat.decode(rendered.tokens).endswith(SENT)


def test_when_no_trace_passes_the_rules_are_named_with_their_counts(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe)
    stage = recipe.stage["synthesize"]
    assert isinstance(stage, SynthesizeStage)
    context = make_context(recipe, finished_run / "base-model")
    with pytest.raises(UserError, match=r"stage\.synthesize: no trace of 72 passed: \w+ took \d+"):
        synthesize.run("synthesize", stage, context, context.base)
    assert jsonl.read_json(context.folder("synthesize") / "funnel.json")["kept"] == 0


# ---- the difficulty filter


@pytest.mark.parametrize(
    ("alpha", "beta", "n", "expected"),
    [
        (0.2, 0.8, 5, (1, 4)),
        (0.4, 0.4, 5, (2, 2)),
        (0.2, 0.4, 5, (1, 2)),
        (0.6, 0.6, 5, (3, 3)),
        (0.1, 0.3, 10, (1, 3)),
        (0.0, 1.0, 7, (0, 7)),
        (0.3, 0.9, 3, (1, 2)),
    ],
)
def test_a_band_is_counted_in_whole_rollouts_with_both_ends_kept(
    alpha: float, beta: float, n: int, expected: tuple[int, int]
) -> None:
    assert counts(Band(alpha=alpha, beta=beta), n) == expected


def judged(*kinds: VerdictKind, name: str = "p", domain: str = "math") -> Group:
    scores = {"correct": 1.0, "incorrect": 0.0, "malformed": 0.0}
    completion = Completion("x", (1,), (-1.0,), "end", 0)
    rollouts = tuple(Rollout((1,), completion, Verdict(kind, scores.get(kind))) for kind in kinds)
    return Group(problem(name, domain), rollouts)


def filter_stage(**more: Any) -> FilterStage:
    problems: Any = [{"problems": "numbers"}]
    return FilterStage(kind="filter", problems=problems, **more)


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        (["correct"] * 4 + ["incorrect"], True),
        (["correct"] * 5, False),
        (["incorrect"] * 5, False),
        (["correct", "incorrect", "malformed", "incorrect", "incorrect"], True),
        # of two judged ones the band is one correct: truncated and unjudged rollouts are no evidence either way
        (["correct", "incorrect", "truncated", "truncated", "infra_error"], True),
        (["correct", "correct", "truncated", "truncated", "truncated"], False),
        (["truncated"] * 5, False),
    ],
)
def test_a_problem_is_kept_when_its_judged_rollouts_lie_in_the_band(kinds: list[VerdictKind], kept: bool) -> None:
    assert in_band(judged(*kinds), filter_stage()) is kept


def test_a_domain_may_have_a_band_of_its_own() -> None:
    stage = filter_stage(bands={"instruction": {"alpha": 0.2, "beta": 0.4}})
    kinds: list[VerdictKind] = ["correct"] * 3 + ["incorrect"] * 2
    assert in_band(judged(*kinds), stage) and not in_band(judged(*kinds, domain="instruction"), stage)


def test_the_filters_table_counts_problems_by_correct_rollouts() -> None:
    groups = [
        judged("correct", "incorrect"),
        judged("incorrect", "truncated"),
        judged("correct", "correct", domain="code"),
        judged("correct", "infra_error", domain="code"),
    ]
    config = filter_stage(n=2, band={"alpha": 0.5, "beta": 0.5})
    table = describe(groups, judge(groups, learn_priors(groups, Rewards(), {}), config, 8), config)
    assert table["histogram"] == {"code": [0, 1, 1], "math": [1, 1, 0]}
    assert table["kept"] == {"code": 0, "math": 1, "all": 1} and table["of"] == {"code": 2, "math": 2, "all": 4}
    assert table["bands"]["math"] == {"alpha": 0.5, "beta": 0.5, "low": 1, "high": 1}
    assert (table["unscored"], table["truncated"]) == (2, 1)


def test_a_group_is_alive_with_both_right_and_wrong_rollouts() -> None:
    aim = Aim(2, Rewards(), {})
    assert aim.is_live(judged("correct", "incorrect")) and not aim.is_live(judged("correct", "truncated"))
    assert Aim(2, Rewards(truncated=0.0), {}).is_live(judged("correct", "truncated"))  # as RL rewards it
    shares = measured([judged("correct", "incorrect"), judged("correct", "correct")], aim, 1)
    assert shares["live_share_after"] == {"all": 0.5, "math": 0.5} and shares["probe_rollouts"] == 4


def test_the_kept_problems_are_those_in_the_band_and_fresh_rollouts_measure_them(finished_run: Path) -> None:
    folder = finished_run / "filter"
    groups = groups_of(folder / "groups.jsonl")
    assert len(groups) == 30 and {len(group.rollouts) for group in groups} == {5}
    expected = [group.problem.id for group in groups if in_band(group, filter_stage())]
    assert [row["id"] for _, row in jsonl.read(folder / "problems.jsonl")] == expected
    probe = groups_of(folder / "probe.jsonl")
    assert [group.problem.id for group in probe] == expected[:8]
    chosen_by = {group.problem.id: group for group in groups}
    assert any(texts([group]) != texts([chosen_by[group.problem.id]]) for group in probe)
    table = jsonl.read_json(folder / "filter.json")
    assert table["kept"]["all"] == len(expected) and sum(table["histogram"]["math"]) == 30
    assert table["live_share_after"]["all"] == sum(map(Aim(4, Rewards(), {}).is_live, probe)) / len(probe)
    assert {len(group.rollouts) for group in probe} == {4}  # the group size of RL, not n


def test_a_filter_that_keeps_nothing_says_how_many_problems_were_where(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    context = make_context(micro.recipe(micro_recipe), finished_run / "base-model")
    with pytest.raises(UserError, match=r"no problem of 6 lies in its band.*\{'math': \[6, 0, 0\]\}.*Widen the band"):
        filter.run("filter", filter_stage(count=6, n=2, sampling={"max_tokens": 4}), context, context.base)


# ---- reinforcement learning


def test_every_rl_step_changes_the_weights_and_says_what_it_took(finished_run: Path) -> None:
    rows = micro.metrics(finished_run, "rl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    version = 0
    for row in rows:
        groups = groups_of(finished_run / "rl" / "rollouts" / f"step-{row['step']:05d}.jsonl")
        assert {r.completion.version for g in groups for r in g.rollouts} == {version}
        assert (len(groups), {len(g.rollouts) for g in groups}) == (8, {4})
        live = sum(
            len({r.verdict.kind == "correct" for r in g.rollouts if r.verdict.score is not None}) == 2 for g in groups
        )
        assert row["groups/in_loss"] == live > 0 and row["groups/live_share"] == live / 8
        # S = passes x minibatches = 1 x 4, and never more than there are groups with a signal
        assert row["inner_steps"] == min(4, live)
        assert row["policy/ratio_mean/1"] == 1.0 and row["engine/logprob_diff_max"] < 1e-3
        version += row["inner_steps"]
    assert not micro.same_weights(micro.weights(finished_run, "rl"), micro.weights(finished_run, "sft-2"))


def test_a_batch_without_a_signal_is_counted_and_leaves_the_weights_alone(
    micro_recipe: Path, make_context: MakeContext, model_folder: Path
) -> None:
    """Addition and wording, on a random model that solves neither."""
    mixes = "[{problems='sums'},{problems='words'}]"
    recipe = micro.recipe(
        micro_recipe, "problems.sums={task='addition',count=6}", "problems.words={task='wording',count=6}",
        "stages=['rl']", f"stage.rl.problems={mixes}", "stage.rl.steps=1", f"model={{path='{model_folder}'}}",
        "stage.rl.sampling.max_tokens=5",
    )  # fmt: skip
    stage = recipe.stage["rl"]
    assert isinstance(stage, RlStage)
    context = make_context(recipe, model_folder)
    rl.run("rl", stage, context, model_folder)
    (row,) = micro.metrics(context.run.folder, "rl")
    assert row["groups/in_loss"] == row["groups/live_share"] == 0 and "inner_steps" not in row
    assert (row["groups/live_share/math"], row["groups/live_share/instruction"]) == (0, 0)
    groups = groups_of(context.folder("rl") / "rollouts" / "step-00001.jsonl")
    assert sorted(g.problem.domain for g in groups) == ["instruction"] * 4 + ["math"] * 4
    before = micro.weights(model_folder.parent.parent, model_folder.parent.name)
    assert micro.same_weights(before, micro.weights(context.run.folder, "rl"))


def test_an_engine_that_takes_no_weights_is_refused_in_rl(
    micro_recipe: Path, make_context: MakeContext, model_folder: Path
) -> None:
    recipe = micro.recipe(micro_recipe, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]")
    stage = recipe.stage["rl"]
    assert isinstance(stage, RlStage)
    endpoint = recipe.engine.model_copy(update={"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m"})
    context = make_context(recipe.model_copy(update={"engine": endpoint}), model_folder)
    with pytest.raises(UserError, match="cannot take new weights"):
        rl.run("rl", stage, context, model_folder)


# ---- evaluation


def test_an_evaluation_writes_every_completion_and_the_figures(finished_run: Path) -> None:
    groups = groups_of(finished_run / "rl" / "evaluation.jsonl")
    summary = jsonl.read_json(finished_run / "rl" / "evaluation.json")
    row = summary["domains"]["math"]
    assert (row["n"], row["k"], row["rollouts"]) == (20, 2, 40) == (len(groups), len(groups[0].rollouts), 40)
    passed = [sum(r.verdict.kind == "correct" for r in group.rollouts) for group in groups]
    assert row["pass_at_1"]["mean"] == pytest.approx(sum(passed) / 40)
    assert row["pass_at_k"]["2"] == pytest.approx(sum(pass_at_k(2, c, 2) for c in passed) / 20)
    (settings,) = summary["settings"]
    assert settings | {"max_tokens": 16} == settings and settings["samples"] == 2 and settings["set"] == "numbers"
    assert sorted(p.name for p in (finished_run / "base").iterdir()) == [
        "evaluation.json", "evaluation.jsonl", "manifest.json",
    ]  # fmt: skip


def test_a_stage_that_is_not_to_be_evaluated_is_not(finished_run: Path) -> None:
    assert not (finished_run / "sft-2" / "evaluation.json").exists()


def test_without_anything_held_out_an_evaluation_says_so_and_measures_nothing(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe, "problems.numbers.heldout=0")
    assert isinstance(recipe.stage["base"], EvaluateStage)
    context = make_context(recipe, finished_run / "base-model")
    assert evaluate.run("base", context, context.base) == {}
    assert "nothing is held out" in (context.run.folder / "log.txt").read_text()


def test_a_set_may_be_evaluated_in_part_and_an_interrupted_evaluation_goes_on(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe, "evaluation.sets=[{problems='numbers',count=3}]")
    context = make_context(recipe, finished_run / "base-model")
    summary = evaluate.run("base", context, context.base)
    assert (summary["domains"]["all"]["n"], summary["domains"]["all"]["rollouts"]) == (3, 6)
    folder = context.folder("base")
    (folder / "evaluation.json").unlink()  # as if killed just before the figures
    (folder / "evaluation.jsonl").rename(folder / "evaluation-numbers.jsonl")
    again = evaluate.run("base", context, context.base)
    assert again["domains"] == summary["domains"]
    assert sorted(p.name for p in folder.iterdir()) == ["evaluation.json", "evaluation.jsonl"]


def test_a_set_may_have_fewer_samples_and_tokens_than_its_suite_states(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext, tmp_path: Path
) -> None:
    jsonl.write(tmp_path / "aime.jsonl", iter([{"id": 60, "problem": "ab", "answer": "204"}]))
    entry = f"{{suite='aime24',path='{tmp_path / 'aime.jsonl'}',samples=2,max_tokens=5}}"
    recipe = micro.recipe(micro_recipe, f"evaluation.sets=[{entry},{{problems='numbers',count=1}}]")
    context = make_context(recipe, finished_run / "base-model")
    suite, numbers = evaluate.sets(context)
    assert (suite[2], suite[3].max_tokens, suite[3].temperature) == (2, 5, 0.6)
    assert (numbers[2], numbers[3].max_tokens) == (2, 16)  # those of [evaluation]


def test_a_wrong_row_of_a_suite_names_the_recipes_key(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext, tmp_path: Path
) -> None:
    jsonl.write(tmp_path / "aime.jsonl", iter([{"id": 60, "problem": "ab"}]))
    entry = f"{{suite='aime24',path='{tmp_path / 'aime.jsonl'}'}}"
    recipe = micro.recipe(micro_recipe, f"evaluation.sets=[{{problems='numbers',count=1}},{entry}]")
    context = make_context(recipe, finished_run / "base-model")
    told = r"^evaluation\.sets\[1\]: .*aime\.jsonl, line 1: no column 'answer'"
    with pytest.raises(UserError, match=told):
        evaluate.sets(context)
    with pytest.raises(UserError, match=told):
        sieve.evaluation_questions(context)


# ---- the context


def test_the_domains_of_a_filter_stage_share_its_weight_evenly(
    finished_run: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe)
    context = make_context(recipe, finished_run / "base-model")
    rows = [problem("a", "math"), problem("b", "code"), problem("c", "code")]
    jsonl.write(context.folder("filter") / "problems.jsonl", [encode(row) for row in rows])
    stage = recipe.stage["rl"]
    assert isinstance(stage, RlStage)
    mixture = context.mixture(stage.problems, "rl")
    assert sorted(p.domain for p in mixture.draw(0, 4)) == ["code", "code", "math", "math"]
    only = stage.problems[0].model_copy(update={"domain": "code"})
    assert {p.id for p in context.mixture([only], "rl").draw(0, 2)} == {"b", "c"}
    none = stage.problems[0].model_copy(update={"domain": "logic"})
    with pytest.raises(
        UserError, match=r"stage\.rl\.problems\[0\]: 'filter' has no training problem in the domain 'logic'"
    ):
        context.mixture([none], "rl")


def test_a_local_teacher_reads_and_ends_its_turns_in_its_own_tokens(
    finished_run: Path, model_folder: Path, micro_recipe: Path, make_context: MakeContext
) -> None:
    recipe = micro.recipe(micro_recipe)
    context = make_context(recipe, finished_run / "base-model")
    teacher = recipe.engine.model_copy(update={"model": str(model_folder)})
    own, others = context.sampler(context.base), context.sampler(context.base, teacher)
    messages = problem().messages
    assert own.chat.prompt(messages) == context.chat.prompt(messages) != others.chat.prompt(messages)
    # of "Say" the teacher knows the a alone
    assert others.chat.decode(others.chat.prompt(messages)) == "<|user|><|unknown|>a<|unknown|> 37<|assistant|>"
    assert others.engine.model.config.vocab_size == len(others.chat.tokenizer)  # type: ignore[attr-defined]
    assert others.chat.config == Chat()
