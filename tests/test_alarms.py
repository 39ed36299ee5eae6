"""Each rule is provoked in a real run of a micro model; a healthy run is silent."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import alarm_runs
import micro
from alarm_runs import Ran, recipe_of, run
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import RlStage
from motet.engine import transformers
from motet.engine.transformers import TransformersEngine
from motet.insight.report import terminal_summary
from motet.rl.alarms import RULES
from motet.stages.context import Context
from motet.stages.probe import Probe
from motet.train import learner, memory
from motet.train.learner import Learner

HOT: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def taught(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an SFT stage that was evaluated: what RL starts from."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    pipeline.run(micro.recipe(micro_recipe, "stages=['sft']"), folder, console=False)
    return folder


@pytest.fixture
def recipe(micro_recipe: Path, tmp_path: Path) -> Path:
    """In a folder of its own: verifiers and their state are written beside it."""
    path = tmp_path / "micro.toml"
    path.write_text(micro_recipe.read_text())
    return path


@pytest.fixture
def model(taught: Path) -> Path:
    return taught / "sft" / "model"


def changed(ran: Ran, rule: str) -> str:
    """The lines to change of the likeliest cause."""
    return "\n".join(ran.of(rule).causes[0].change)


# ---- a healthy run


def test_a_healthy_run_is_silent(micro_recipe: Path, model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(micro_recipe, model, steps=14, prompts_per_step=8, probe_every=7, alarms={"window": 5})
    ran = run(recipe, tmp_path / "run")
    by_the_clock = {"slow_engine", "slow_verifiers"}  # of a machine that others use too
    assert [alarm for alarm in ran.alarms if alarm.rule not in by_the_clock] == []
    row = micro.metrics(ran.folder, "rl")[-1]
    assert 0.0 <= row["rollout/repetition_share"] < 0.3 and row["rollout/entropy"] > 0.0
    assert row["tokens/sampled"] == pytest.approx(row["rollout/tokens_mean"] * row["rollout/count"])
    assert {"time/generate", "time/judge", "time/anchor", "time/train", "time/load"} <= row.keys()
    assert row["tokens/sampled_per_second"] > row["tokens/second"] > 0.0


def test_a_healthy_run_whose_batches_overlap_is_silent_too(micro_recipe: Path, model: Path, tmp_path: Path) -> None:
    """Each batch is of older weights: that is no drift between engine and learner."""
    settings = {"steps": 8, "prompts_per_step": 8, "overlap": True, "alarms": {"drift": 1e-3}}
    ran = run(recipe_of(micro_recipe, model, **settings), tmp_path / "run")
    rows = micro.metrics(ran.folder, "rl")
    assert all(row["staleness"] == 1.0 for row in rows[1:])
    assert all(row["engine/logprob_diff_mean"] < 1e-5 for row in rows)
    by_the_clock = {"slow_engine", "slow_verifiers"}
    assert [alarm for alarm in ran.alarms if alarm.rule not in by_the_clock] == []


# ---- vanishing gradient: too easy, too hard, a dead verifier, a destroyed policy


def test_problems_that_are_too_easy_are_told_by_groups_that_are_all_correct(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    rows = [{"id": f"e{n}", "prompt": f"Say {n}", "answer": {"any": n}, "reasoning": "x"} for n in range(10, 60)]
    ran = run(
        _problems(recipe_of(recipe, model, "digits", "off", steps=3, sampling={"max_tokens": 30}), tmp_path, rows),
        tmp_path / "run",
    )
    alarm = ran.of("no_signal")
    assert "0 % of the groups had a signal" in alarm.seen and "100 % of the rollouts passed" in alarm.seen
    assert "too easy" in alarm.causes[0].text
    assert "stage.rl.retire_at = 0.9   # now unset" in changed(ran, "no_signal")


def test_problems_that_are_too_hard_are_told_by_groups_that_are_all_wrong(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    rows = [{"id": f"h{n}", "prompt": f"Say {n}", "answer": n + 1000, "reasoning": "x"} for n in range(10, 60)]
    ran = run(_problems(recipe_of(recipe, model, steps=2), tmp_path, rows), tmp_path / "run")
    assert "too hard" in ran.of("no_signal").causes[0].text
    assert "stage.rl.group_size = 8   # now 4" in changed(ran, "no_signal")
    assert all("verifier" not in cause.text for cause in ran.of("no_signal").causes)


def test_a_verifier_that_dies_is_told_from_problems_that_are_too_hard(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    ran = run(recipe_of(recipe, model, "dies", steps=5), tmp_path / "run")
    cause = ran.of("no_signal").causes[0]
    assert "the verifier is dead or wrong" in cause.text and "motet check RECIPE" in cause.change[0]
    assert "hold the reference in their answer" in cause.evidence
    assert "none in the last 2 steps, though the completions are as they were" in cause.evidence


def test_a_verifier_that_always_fails_is_dead_though_it_was_never_alive(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    ran = run(recipe_of(recipe, model, "impossible", steps=2), tmp_path / "run")
    assert "the verifier is dead or wrong" in ran.of("no_signal").causes[0].text


def test_groups_with_a_signal_whose_sequences_are_all_left_out_are_no_signal_though_nothing_else_is_wrong(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine tells log-probabilities that are 0.2 too low: a weight of e^0.2 = 1.22 a token, beyond 1.1."""
    drawn = transformers.draw

    def lower(*given: Any) -> Any:
        tokens, logprobs = drawn(*given)
        return tokens, logprobs - 0.2

    monkeypatch.setattr(transformers, "draw", lower)
    ran = run(recipe_of(recipe, model, "coin", steps=2), tmp_path / "run")
    assert [row["inner_steps"] for row in micro.metrics(ran.folder, "rl")] == [0, 0]
    alarm = ran.of("no_signal")
    assert "no gradient step was taken (median), with" in alarm.seen
    assert "sequences are left out of the loss" in alarm.causes[0].text
    assert alarm.causes[0].evidence == "100 % of the sequences are out"
    assert changed(ran, "no_signal") == "stage.rl.algorithm.correction.sequence_bound = 1.2   # now 1.1"


def test_a_gradient_near_zero_is_no_signal_though_the_groups_are_live(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    algorithm = {"correction": {"on": True, "token_cap": 1e-8}}
    ran = run(recipe_of(recipe, model, "coin", steps=2, algorithm=algorithm), tmp_path / "run")
    assert all(0.0 < row["optim/grad_norm"] < 1e-5 for row in micro.metrics(ran.folder, "rl"))
    alarm = ran.of("no_signal")
    assert "the gradient norm was" in alarm.seen and "of the groups live" in alarm.seen
    assert "truncated to next to nothing" in alarm.causes[0].text
    assert changed(ran, "no_signal") == "stage.rl.algorithm.correction.token_cap = 2.0   # now 1e-08"


def test_a_verifier_that_is_dead_in_one_of_two_domains_is_named_with_its_domain(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    tree = recipe_of(recipe, model, "impossible", steps=2, prompts_per_step=32, group_size=4).model_dump(mode="json")
    numbers = tree["problems"]["numbers"]
    tree["problems"] = {"dead": {**numbers, "domain": "dead"}, "numbers": {**numbers, "verifier": None, "domain": None}}
    tree["stage"]["rl"]["problems"] = [{"problems": "dead"}, {"problems": "numbers"}]
    ran = run(alarm_runs.check(tree, "test"), tmp_path / "run")
    row = micro.metrics(ran.folder, "rl")[-1]
    assert row["groups/live_share/dead"] == 0.0 and row["groups/live_share"] > 0.1 and row["rollout/count/dead"] == 64
    alarm = ran.of("no_signal")
    assert alarm.seen.startswith("of dead alone: in steps 1 to 2 0 % of the groups had a signal")
    assert "the verifier is dead or wrong" in alarm.causes[0].text


# ---- a learning rate of 0.3: everything breaks at once


@pytest.fixture(scope="module")
def broken(micro_recipe: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    settings = {"optimizer": {"learning_rate": 0.3, **HOT}, "alarms": {"window": 1, "repetition": 0.2}, "steps": 3}
    recipe = recipe_of(micro_recipe, taught / "sft" / "model", **settings)
    return run(recipe, tmp_path_factory.mktemp("broken") / "run")


def test_entropy_that_collapses_is_seen_on_batches_that_nothing_is_learnt_from(broken: Ran) -> None:
    alarm = broken.of("entropy_collapse")
    assert "entropy fell from 0.4" in alarm.seen
    assert "the learning rate is too high" in alarm.causes[0].text
    assert "stage.rl.optimizer.learning_rate = 0.1   # now 0.3" in changed(broken, "entropy_collapse")


def test_completions_that_no_longer_end_are_seen(broken: Ran) -> None:
    alarm = broken.of("truncated")
    assert "cut at 16 tokens: 0 % of the rollouts at first, 100 % in step 2" in alarm.seen
    assert "undone" in alarm.causes[0].text


def test_completions_that_repeat_themselves_are_seen(broken: Ran) -> None:
    alarm = broken.of("repetition")
    assert "runs of 8 tokens were there before" in alarm.seen and "undone" in alarm.causes[0].text


def test_a_policy_that_was_destroyed_is_no_dead_verifier(broken: Ran) -> None:
    causes = broken.of("no_signal").causes
    assert "destroyed the policy" in causes[0].text and "68.8 %" in causes[0].evidence
    assert all("verifier" not in cause.text for cause in causes)


def test_an_alarm_is_written_where_it_is_raised_and_the_run_goes_on(broken: Ran) -> None:
    assert len(micro.metrics(broken.folder, "rl")) == 3
    alarm = broken.of("truncated")
    assert all(line in broken.text for line in alarm.lines())
    assert [e["event"] for e in broken.events] == ["alarm"] * len(broken.events)
    report = jsonl.read_json(broken.folder / "report.json")
    assert alarm.sentence() in report["alerts"]


# ---- policy


def test_entropy_that_blows_up_is_traced_to_the_bonus(recipe: Path, model: Path, tmp_path: Path) -> None:
    settings = {"algorithm": {"entropy_bonus": 1.0}, "optimizer": {"learning_rate": 2e-3, **HOT}, "steps": 5}
    settings |= {"sampling": {"max_tokens": 24}, "rewards": {"truncated": 0.0}, "alarms": {"entropy_high": 2.0}}
    recipe_ = recipe_of(recipe, model, "coin", "off", **settings)
    ran = run(recipe_, tmp_path / "run")
    assert "the entropy bonus outweighs the rewards" in ran.of("entropy_blowup").causes[0].text
    assert changed(ran, "entropy_blowup") == "stage.rl.algorithm.entropy_bonus = 0.0   # now 1.0"


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that says it has new weights and goes on with the old ones."""
    load = TransformersEngine.load

    def once(self: Any, weights: Any, version: int) -> None:
        if version == 0:
            load(self, weights, version)
        self._version = version

    monkeypatch.setattr(TransformersEngine, "load", once)


def test_an_engine_that_keeps_its_old_weights_drifts_and_its_weights_leave_their_bounds(
    recipe: Path, model: Path, tmp_path: Path, deaf: None
) -> None:
    settings = {"optimizer": {"learning_rate": 3e-3, **HOT}, "alarms": {"importance_ess": 0.9}, "steps": 5}
    ran = run(recipe_of(recipe, model, "coin", **settings), tmp_path / "run")
    drift = ran.of("drift")
    assert "the first step: 0" in drift.seen or "e-" in drift.seen
    assert "does not have the learner's weights" in drift.causes[0].text
    alarm = ran.of("importance")
    assert "the engine is another policy: see the alarm drift" in alarm.causes[0].text


def test_an_engine_that_keeps_its_old_weights_drifts_though_every_batch_is_of_older_ones(
    recipe: Path, model: Path, tmp_path: Path, deaf: None
) -> None:
    settings = {"optimizer": {"learning_rate": 3e-3, **HOT}, "overlap": True, "steps": 4}
    ran = run(recipe_of(recipe, model, "coin", **settings), tmp_path / "run")
    differences = [row["engine/logprob_diff_mean"] for row in micro.metrics(ran.folder, "rl")]
    assert differences[0] < 1e-5 < differences[1] and differences[3] > 0.02
    assert "does not have the learner's weights" in ran.of("drift").causes[0].text


def test_a_batch_that_is_spent_long_before_it_is_used_up_is_stale(recipe: Path, model: Path, tmp_path: Path) -> None:
    algorithm = {"passes": 6, "minibatches": 1, "guard": {"on": True}}
    recipe_ = recipe_of(recipe, model, algorithm=algorithm, optimizer={"learning_rate": 5e-3, **HOT}, steps=2)
    ran = run(recipe_, tmp_path / "run")
    assert "1 of 6 gradient steps were taken" in ran.of("stale").seen
    assert changed(ran, "stale") == "stage.rl.algorithm.passes = 1   # now 6"


def test_rollouts_of_a_filter_that_are_used_for_many_steps_are_stale_by_their_age(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    """They are of version 0: after four updates a step one batch old in the second step, and two in the third."""
    tree = recipe_of(recipe, model, steps=4, alarms={"staleness": 1}).model_dump(mode="json")
    tree["stages"] = ["filter", "rl"]
    tree["stage"]["rl"] |= {"problems": [{"stage": "filter"}], "reuse_filter": 4}
    ran = run(alarm_runs.check(tree, "test"), tmp_path / "run")
    rows = micro.metrics(ran.folder, "rl")
    steps = [int(row["inner_steps"]) for row in rows]
    assert [row["rollout/staleness_max"] for row in rows] == [0, steps[0], sum(steps[:2]), sum(steps[:3])]
    assert all(row["rollout/reused"] > 0 for row in rows)
    alarm = ran.of("stale")
    assert "rollouts were up to 1.5 batches old (mean)." in alarm.seen and "gradient steps" not in alarm.seen
    assert "the filter's rollouts are used for too many steps" in alarm.causes[0].text
    assert changed(ran, "stale") == "stage.rl.reuse_filter = 1   # now 4"


# ---- texts


def test_completions_that_lose_their_form_are_seen(recipe: Path, model: Path, tmp_path: Path) -> None:
    hot = {"learning_rate": 1e-3, **HOT}
    settings = {"optimizer": hot, "algorithm": {"entropy_bonus": 1.0}, "group_size": 8, "steps": 6}
    ran = run(recipe_of(recipe, model, **settings), tmp_path / "run")
    alarm = ran.of("unparsable")
    assert "malformed or without an answer" in alarm.seen
    texts = [cause.text for cause in alarm.causes]
    assert any("undone" in text for text in texts)
    assert any("costs no more than a wrong one" in text for text in texts)


def test_length_that_earns_nothing_is_seen(recipe: Path, model: Path, tmp_path: Path) -> None:
    settings = {"optimizer": {"learning_rate": 2e-3, **HOT}, "group_size": 8, "steps": 6, "alarms": {"length": 1.5}}
    ran = run(recipe_of(recipe, model, "long", "off", sampling={"max_tokens": 40}, **settings), tmp_path / "run")
    assert "the pass rate moved by +0.0 points" in ran.of("length").seen


# ---- held-out problems


@pytest.fixture(scope="module")
def gamed(micro_recipe: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """RL on a domain whose verifier likes every one, the first two problem sets of the evaluation being others."""
    folder = tmp_path_factory.mktemp("gamed")
    path = folder / "micro.toml"
    path.write_text(micro_recipe.read_text())
    recipe = recipe_of(
        path, taught / "sft" / "model", steps=10, group_size=16, probe_every=5, evaluate=True,
        optimizer={"learning_rate": 1.5e-3, **HOT},
    )  # fmt: skip
    tree = recipe.model_dump(mode="json")
    tree["stages"] = ["base", "rl"]
    file = folder / "verifiers.py"
    file.write_text(alarm_runs.VERIFIERS)
    gamed = {**tree["problems"]["numbers"], "verifier": f"{file}:has_a_one", "domain": "gamed", "heldout": 0.0}
    tree["problems"]["gamed"] = gamed
    tree["stage"]["rl"]["problems"] = [{"problems": "gamed"}]
    ran = run(alarm_runs.check(tree, "test"), folder / "run")
    return ran


def test_a_reward_that_rises_while_the_held_out_rate_does_not_is_gamed(gamed: Ran) -> None:
    alarm = gamed.of("not_generalising")
    assert "the training reward rose from 0." in alarm.seen
    assert (
        "the verifier can be gamed" in alarm.causes[0].text and "do not hold the reference" in alarm.causes[0].evidence
    )


def test_a_domain_that_is_not_trained_and_falls_is_named_with_the_line_that_mixes_it_in(gamed: Ran) -> None:
    alarm = gamed.of("forgetting")
    assert "held-out pass@1 of math fell by" in alarm.seen and "RL does not train on it" in alarm.seen
    assert alarm.causes[0].change == (
        'stage.rl.problems = [{ problems = "gamed" }, { problems = "numbers", domain = "math", weight = 0.2 }]',
    )


def test_below_the_start_the_shares_and_their_rewards_are_shown_before_the_rates(gamed: Ran) -> None:
    alarm = gamed.of("below_start")
    seen = alarm.seen
    assert seen.index("unparsable") < seen.index("truncated") < seen.index("held-out pass@1")
    assert "(reward 0)" in seen and "(no reward)" in seen and "mean training reward" in seen
    probed = micro.metrics(gamed.folder, "rl")[-1]
    before = jsonl.read_json(gamed.folder / "base" / "evaluation.json")["domains"]["all"]
    assert probed["heldout/before/pass"] == pytest.approx(before["pass_at_1"]["mean"])
    assert probed["heldout/change"] == pytest.approx(probed["heldout/after/pass"] - probed["heldout/before/pass"])
    assert probed["heldout/before/malformed"] == before["malformed"]


def test_a_trained_domain_that_falls_is_seen_where_nothing_is_held_out(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    """The steps are so large that the number that was asked for is no longer said."""
    settings = {"steps": 4, "prompts_per_step": 8, "group_size": 8, "optimizer": {"learning_rate": 3e-3, **HOT}}
    tree = recipe_of(recipe, model, "has_a_one", **settings).model_dump(mode="json")
    gamed = {**tree["problems"]["numbers"], "domain": "gamed"}
    tree["problems"] = {"gamed": gamed, "numbers": {**gamed, "verifier": None, "domain": None}}
    tree["stage"]["rl"]["problems"] = [{"problems": "gamed"}, {"problems": "numbers"}]
    ran = run(alarm_runs.check(tree, "test"), tmp_path / "run")
    assert not any(key.startswith("heldout/") for row in micro.metrics(ran.folder, "rl") for key in row)
    alarm = ran.of("forgetting")
    assert "training pass rate of math fell by" in alarm.seen and "does not train on it" not in alarm.seen
    assert "the learning rate is too high" in alarm.causes[0].text
    assert changed(ran, "forgetting") == "stage.rl.optimizer.learning_rate = 0.001   # now 0.003"


# ---- guessed


@pytest.fixture(scope="module")
def guessing(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """SFT and RL on answers that follow from nothing, half of them 7: all that can be learnt is to guess."""
    folder, draw = tmp_path_factory.mktemp("guessing"), random.Random(1)
    rows = [
        {"id": f"g{n}", "prompt": f"Say {n}", "answer": draw.choice("7777733449"), "reasoning": "so"}
        for n in range(10, 100)
    ]
    path = folder / "micro.toml"
    path.write_text(micro_recipe.read_text())
    settings: dict[str, Any] = {"steps": 10, "prompts_per_step": 8, "group_size": 8, "evaluate": True}
    settings |= {"optimizer": {"learning_rate": 5e-3, **HOT}, "alarms": {"same_answer": 0.8}}
    recipe = recipe_of(path, folder, **settings)
    tree = recipe.model_dump(mode="json")
    tree["model"] |= {"path": None, "tiny": micro.recipe(path).model_dump(mode="json")["model"]["tiny"]}
    tree["stages"], tree["stage"]["sft"]["steps"] = ["sft", "rl"], 40
    file = folder / "guess.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree["problems"]["numbers"] |= {"path": str(file), "domain": "letters"}
    return run(alarm_runs.check(tree, "test"), folder / "run")


def test_one_answer_to_all_problems_is_guessed_and_not_solved(guessing: Ran) -> None:
    rows = micro.metrics(guessing.folder, "rl")
    alarm = guessing.of("guessed")
    first, last = rows[0], rows[-1]
    assert first["rollout/same_answer_share/letters"] < 0.6 and last["rollout/same_answer_share/letters"] >= 0.8
    assert first["rollout/same_reference_share/letters"] < 0.8  # 8 problems, half of them with the answer 7
    assert "of the rollouts of letters gave one and the same answer" in alarm.seen and "not solved" in alarm.seen
    assert "could not do these problems when RL began" in alarm.causes[0].text
    assert "stage.sft.steps = 80   # now 40" in changed(guessing, "guessed")
    assert any("RL made the policy sure of one answer" in cause.text for cause in alarm.causes)


def test_an_evaluation_says_what_the_most_frequent_answer_would_earn(guessing: Ran) -> None:
    row = jsonl.read_json(guessing.folder / "rl" / "evaluation.json")["domains"]["letters"]
    held = [row["problem"]["reference"] for _, row in jsonl.read(guessing.folder / "rl" / "evaluation.jsonl")]
    guess = row["guess"]
    assert guess["answer"] == "7" and guess["share"] == held.count("7") / len(held)
    assert guess["no_better"] is True and row["pass_at_1"]["low"] <= guess["share"] and guess["given"] > 0.6
    assert "letters      no better than always answering 7: 0." in guessing.text
    report = jsonl.read_json(guessing.folder / "report.json")
    assert report["evaluation"]["rl"]["letters"]["guess"] == guess
    assert any("is no better than always answering 7" in text for text in report["alerts"])
    assert "no better than always answering 7" in (guessing.folder / "report.html").read_text()
    assert "no better than always answering 7" in " ".join(terminal_summary(report).split())


# ---- who waits for whom


def test_an_engine_that_has_become_slow_and_verifiers_that_hold_the_step_up_are_seen(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = TransformersEngine._decode

    def slower(self: Any, *given: Any) -> Iterator[Any]:
        yield from decode(self, *given)
        if len(list((tmp_path / "run" / "rl" / "rollouts").glob("step-?????.jsonl"))) >= 3:
            time.sleep(1.5)

    monkeypatch.setattr(TransformersEngine, "_decode", slower)
    alarms = {"waiting": 0.2, "slowdown": 0.7}
    ran = run(recipe_of(recipe, model, "slow", steps=5, group_size=2, alarms=alarms), tmp_path / "run")
    assert "a step was spent waiting for verdicts" in ran.of("slow_verifiers").seen
    assert changed(ran, "slow_verifiers") == "verification.workers = 2   # now 1"
    alarm = ran.of("slow_engine")
    assert "tokens were sampled a second" in alarm.seen
    assert any("less to do at once than it could" in cause.text for cause in alarm.causes)


def test_an_engine_that_was_slow_from_the_first_step_on_is_seen_though_it_was_never_any_faster(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = TransformersEngine._decode

    def slow(self: Any, *given: Any) -> Iterator[Any]:
        time.sleep(3.5)
        yield from decode(self, *given)

    monkeypatch.setattr(TransformersEngine, "_decode", slow)
    ran = run(recipe_of(recipe, model, steps=2, alarms={"window": 1, "starving": 0.7}), tmp_path / "run")
    alarm = ran.of("starved")
    assert alarm.step == 2 and "the learner waited for completions for" in alarm.seen
    assert "the engine's machine is slow, or shared with others" in alarm.causes[0].text
    assert any("16 completions a step, engine.batch_size is 128" in cause.evidence for cause in alarm.causes)
    assert all(other.rule != "slow_engine" for other in ran.alarms)


# ---- memory


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity ...")


@pytest.mark.parametrize(
    ("phase", "owner", "name", "line"),
    [
        ("sample", TransformersEngine, "_decode", "engine.batch_size = 64   # now 128"),
        ("anchor", Learner, "logprobs", "stage.rl.micro_batch_tokens = "),
        ("steps", Learner, "_score", "stage.rl.micro_batch_tokens = "),
        ("optimizer step", torch.optim.AdamW, "step", 'model.dtype = "bfloat16"   # now "float32"'),
        ("load", TransformersEngine, "load", "engine.bucket_mebibytes = 256   # now 512"),
        ("probe", Probe, "_measure", "engine.batch_size = 64   # now 128"),
        ("reference", Learner, "logprobs", "stage.rl.micro_batch_tokens = "),
        ("export", learner, "write_model", "stage.rl.lora = { rank = 16 }   # now unset"),
    ],
)
def test_out_of_memory_names_the_phase_what_was_largest_and_the_line_to_change(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    phase: str, owner: Any, name: str, line: str,
) -> None:  # fmt: skip
    real, calls = getattr(owner, name), []

    def fails(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(1)
        # the first load is of the start; _score is the anchor's before it is a step's
        due = {"load": 2, "steps": 5}.get(phase, 1)
        if len(calls) >= due and (phase != "steps" or torch.is_grad_enabled()):
            lost = torch.zeros(64_000_000)
            return out_of_memory(lost)
        return real(self, *given, **named)

    monkeypatch.setattr(owner, name, fails)
    chosen = recipe_of(recipe, model, steps=2)
    if phase in ("probe", "reference"):
        chosen = recipe_of(recipe, model, steps=2, probe_every=1, algorithm={"kl": 0.1})
    if phase == "anchor":  # in float32 the embedded engine's log-probabilities are the anchor's
        chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"dtype": "bfloat16"})})
    with pytest.raises(UserError) as caught:
        run(chosen, tmp_path / "run")
    text = str(caught.value)
    assert f"out of memory in the phase {phase}" in text and "2.00 GiB were asked for" in text
    assert "The largest live tensor: lost in tests/test_alarms.py [64000000] float32, 0.24 GiB" in text
    assert line in text
    if phase in ("steps", "anchor", "reference"):
        assert "on a row of" in text and "chunks of" in text
    if phase == "sample":
        assert "sampling 16 completions after prompts of up to" in text
    (event,) = alarm_runs.read(tmp_path / "run").events
    assert event["alarm"]["rule"] == "memory"


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (
            "Free memory on device cuda:0 (20.1/79.2 GiB) on startup is less than desired GPU memory utilization (0.5, "
            "39.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
            ("engine.sleep = 1   # now 0", "engine.memory_share = 0.35   # now 0.5"),
        ),
        (
            "To serve at least one request with the models's max seq len (65536), (7.00 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (3.11 GiB). Try increasing `gpu_memory_utilization` ...",
            ("engine.memory_share = 0.7   # now 0.5", "engine.context = 32   # now unset"),
        ),
        (
            "the vLLM server ended while it started. Its last lines, in /tmp/server.log:\n  loading\n  torch."
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 96.00 MiB.\n  exit",
            ("engine.sleep = 1   # now 0", "engine.memory_share = 0.35   # now 0.5"),
        ),
    ],
    ids=["beside the learner", "no cache", "in a server"],
)  # fmt: skip
def test_memory_that_vllm_lacks_is_told_as_vllm_said_it_with_the_line_to_change(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, lines: tuple[str, ...]
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError(said)

    monkeypatch.setattr(Context, "_engine", fails)
    chosen = recipe_of(recipe, model, steps=2)
    chosen = chosen.model_copy(update={"engine": chosen.engine.model_copy(update={"kind": "vllm"})})
    with pytest.raises(UserError, match="out of memory in the phase start of the engine") as caught:
        run(chosen, tmp_path / "run")
    told = next(line.strip() for line in said.splitlines() if "memory" in line)
    assert f'The engine said: "{told[:300]}"' in str(caught.value)
    assert all(line in str(caught.value) for line in lines)
    (event,) = alarm_runs.read(tmp_path / "run").events
    assert event["alarm"]["rule"] == "memory"


def test_after_memory_ran_out_the_same_command_goes_on(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = Learner.update, []

    def fails(self: Learner) -> dict[str, float]:
        calls.append(1)
        return out_of_memory() if len(calls) == 11 else update(self)  # type: ignore[no-any-return]

    monkeypatch.setattr(Learner, "update", fails)
    chosen = recipe_of(recipe, model, steps=4)
    with pytest.raises(UserError, match=r"out of memory .*The plan: \d"):
        run(chosen, tmp_path / "run")
    ran = run(recipe_of(recipe, model, steps=4, micro_batch_tokens=chosen.stage["rl"].micro_batch_tokens // 2),
              tmp_path / "run")  # fmt: skip
    assert not list(ran.folder.glob("rl.stale*")) and "rl: rl (goes on)" in ran.text
    monkeypatch.setattr(Learner, "update", update)
    run(chosen, tmp_path / "other")
    assert micro.same_weights(micro.weights(tmp_path / "run", "rl"), micro.weights(tmp_path / "other", "rl"))


def test_errors_of_the_hosts_memory_count_and_others_do_not() -> None:
    assert memory.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert memory.is_out_of_memory(MemoryError()) and not memory.is_out_of_memory(RuntimeError("shape mismatch"))
    assert memory.is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."))
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."))
    assert not memory.is_out_of_memory(UserError("stage.rl: no memory of it"))


# ---- the table


def test_every_rule_has_an_action_of_its_own_in_the_recipe() -> None:
    from typing import get_args

    from motet.base.recipe import RuleName

    assert {*RULES, "memory"} == set(get_args(RuleName))


def _problems(recipe: Any, folder: Path, rows: list[dict[str, Any]]) -> Any:
    """The same recipe on other problems, which are all trained on."""
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = recipe.model_dump(mode="json")
    tree["problems"]["numbers"] |= {"path": str(file), "heldout": 0.0}
    return alarm_runs.check(tree, "test")


def test_an_alarm_that_is_off_is_not_looked_for(recipe: Path, model: Path, tmp_path: Path) -> None:
    chosen = recipe_of(recipe, model, "impossible", steps=2, alarms={"actions": {"no_signal": "off"}})
    assert isinstance(chosen.stage["rl"], RlStage)
    assert run(chosen, tmp_path / "run").alarms == []
