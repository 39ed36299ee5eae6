"""What RL is given and cannot use: each a clear error or a counted fallback, and nothing written is lost."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alarm_runs
import micro
from alarm_runs import recipe_of, run
from fake_vllm import FakeVllm
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Recipe, RlStage
from motet.base.records import Group, decode_group
from motet.base.run import Run
from motet.engine.transformers import TransformersEngine
from motet.rl import rollouts
from motet.stages.context import Context
from motet.train.learner import Learner


@pytest.fixture(scope="module")
def model(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "run"
    pipeline.run(micro.recipe(micro_recipe, "stages=['sft']", "stage.sft.evaluate=false"), folder, console=False)
    return folder / "sft" / "model"


@pytest.fixture
def recipe(micro_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(micro_recipe.read_text())
    return path


@pytest.fixture(scope="module")
def whole(micro_recipe: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of four uninterrupted steps."""
    return run(recipe_of(micro_recipe, model, steps=4), tmp_path_factory.mktemp("whole") / "run").folder


def groups_of(folder: Path) -> list[Group]:
    files = sorted((folder / "rl" / "rollouts").glob("step-*.jsonl"))
    return [decode_group(row) for file in files for _, row in jsonl.read(file)]


def same_as(whole: Path, folder: Path) -> bool:
    same = groups_of(whole) == groups_of(folder)
    return same and micro.same_weights(micro.weights(whole, "rl"), micro.weights(folder, "rl"))


# ---- the record


def test_every_group_is_written_with_text_verdict_and_reason_whether_anything_is_learnt_from_it(whole: Path) -> None:
    groups, rows = groups_of(whole), micro.metrics(whole, "rl")
    assert len(groups) == 4 * 4 and all(len(group.rollouts) == 4 for group in groups)
    assert any(row["groups/in_loss"] < 4 for row in rows)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert all(rollout.completion.text and rollout.completion.tokens for rollout in rollouts)
    assert all(r.verdict.detail for r in rollouts if r.verdict.kind in ("malformed", "truncated", "no_answer"))
    assert not list((whole / "rl" / "rollouts").glob("*.part.jsonl"))


# ---- engine


def test_an_engine_that_dies_is_a_clear_error_and_the_same_command_loses_no_rollout(
    recipe: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = TransformersEngine._decode, list[int]()

    def dies(self: Any, members: list[int], requests: Any, sampling: Any) -> Iterator[Any]:
        calls.append(1)
        for place, found in enumerate(decode(self, members, requests, sampling)):
            if len(calls) == 3 and place == 5:
                raise UserError("the engine is gone")
            yield found

    monkeypatch.setattr(TransformersEngine, "_decode", dies)
    chosen = recipe_of(recipe, model, steps=4, checkpoint_every=1)
    with pytest.raises(UserError, match="the engine is gone"):
        run(chosen, tmp_path / "run")
    journal = tmp_path / "run" / "rl" / "rollouts" / "step-00003.part.jsonl"
    assert len(list(jsonl.read(journal))) > 0
    run(chosen, tmp_path / "run")
    assert same_as(whole, tmp_path / "run")


def test_a_log_probability_that_is_no_number_stops_the_run_and_loses_no_rollout(
    recipe: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = TransformersEngine._decode, list[int]()

    def breaks(self: Any, members: list[int], requests: Any, sampling: Any) -> Iterator[Any]:
        calls.append(1)
        for place, (index, found) in enumerate(decode(self, members, requests, sampling)):
            if len(calls) == 2 and place == 6:
                found = replace(found, logprobs=(found.logprobs[0], math.nan, *found.logprobs[2:]))
            yield index, found

    monkeypatch.setattr(TransformersEngine, "_decode", breaks)
    chosen = recipe_of(recipe, model, steps=4, checkpoint_every=1)
    told = r"the engine told nan as the log-probability of token 2 of \d+, for the problem 'n\d+', with weights of "
    with pytest.raises(UserError, match=told + "version 4: its weights or kernels are broken"):
        run(chosen, tmp_path / "run")
    run(chosen, tmp_path / "run")
    assert same_as(whole, tmp_path / "run")


def test_an_engine_that_computes_something_else_from_the_same_weights_is_refused_before_a_batch_is_sampled(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    """A server that took the weights and tells -0.5 of every token."""
    server = FakeVllm(light=True)
    try:
        tree = recipe_of(recipe, model, steps=1).model_dump(mode="json")
        tree["engine"] |= {"kind": "vllm", "urls": [server.url]}
        told = r"engine and learner disagree about the same weights \(version 0\): .* where 0.002 is allowed"
        with pytest.raises(UserError, match=told):
            run(alarm_runs.check(tree, "test"), tmp_path / "run")
        assert len(server.bodies) == 4 and not list((tmp_path / "run" / "rl").glob("rollouts/*"))
        tree["engine"] |= {"largest_drift": 100.0}
        assert "engine and learner differ by" in run(alarm_runs.check(tree, "test"), tmp_path / "run").text
    finally:
        server.close()


# ---- verifiers


FAILING = """
import time
from motet.base.records import Verdict


def raises(problem, text):
    raise RuntimeError("no such thing")


def hangs(problem, text):
    time.sleep(60.0)
"""


def failing(recipe: Path, model: Path, name: str, **rl: Any) -> Recipe:
    file = recipe.with_name("failing.py")
    file.write_text(FAILING)
    tree = recipe_of(recipe, model, **rl).model_dump(mode="json")
    tree["problems"]["numbers"] |= {"verifier": f"{file}:{name}", "domain": "numbers"}
    tree["chat"]["think"] = "off"
    return alarm_runs.check(tree, "test")


def test_a_verifier_that_always_fails_masks_its_rollouts_and_is_named(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    ran = run(failing(recipe, model, "raises", steps=2), tmp_path / "run")
    rows = micro.metrics(ran.folder, "rl")
    judged = [rollout.verdict for group in groups_of(ran.folder) for rollout in group.rollouts]
    assert {verdict.kind for verdict in judged} == {"infra_error"}
    assert all("no such thing" in verdict.detail for verdict in judged)
    assert [row["rollout/unjudged"] for row in rows] == [16, 16] and all(row["groups/in_loss"] == 0 for row in rows)
    cause = ran.of("no_signal").causes[0]
    assert "the verifier is dead or wrong" in cause.text
    assert cause.evidence == "100 % of the rollouts were not judged: log.txt says why"
    assert len(cause.change) == 1 and cause.change[0].startswith("motet check RECIPE")  # no deadline was met
    assert "all 4 groups are without a signal (16 infra_error); nothing was learnt" in ran.text


def test_a_verifier_that_hangs_is_cut_at_its_deadline_and_counted(recipe: Path, model: Path, tmp_path: Path) -> None:
    chosen = failing(recipe, model, "hangs", steps=1, group_size=2, prompts_per_step=4)
    verification = chosen.verification.model_copy(update={"deadline_seconds": 0.3, "workers": 4})
    ran = run(chosen.model_copy(update={"verification": verification}), tmp_path / "run")
    (row,) = micro.metrics(ran.folder, "rl")
    assert row["verdict/timeout"] == 8 and row["time/judge"] > 0.2
    assert "all 4 groups are without a signal (8 timeout); nothing was learnt" in ran.text
    (told,) = [text for text in jsonl.read_json(ran.folder / "report.json")["alerts"] if "deadline" in text]
    assert told.startswith("rl: 8 rollouts of 8 ran into the deadline of their verdict (timeout)")


# ---- problems


def test_a_batch_of_equal_rewards_is_counted_learnt_from_by_nobody_and_changes_no_weight(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    ran = run(recipe_of(recipe, model, "impossible", steps=3), tmp_path / "run")
    rows = micro.metrics(ran.folder, "rl")
    assert [row["groups/live_share"] for row in rows] == [0.0] * 3
    assert [row["groups/all_wrong_share"] for row in rows] == [1.0] * 3
    told = [line for line in ran.text.splitlines() if "all 4 groups are without a signal (1" in line]
    assert len(told) == 3 and all(" incorrect" in line and line.endswith("; nothing was learnt") for line in told)
    before = micro.weights(model.parent.parent, "sft")
    assert micro.same_weights(before, micro.weights(ran.folder, "rl"))
    assert ran.of("no_signal").step == 2


def test_a_domain_without_a_problem_is_refused_by_name(recipe: Path, model: Path, tmp_path: Path) -> None:
    tree = recipe_of(recipe, model).model_dump(mode="json")
    tree["stage"]["rl"]["problems"] = [{"problems": "numbers"}, {"problems": "numbers", "domain": "poetry"}]
    told = r"stage.rl.problems\[1\]: 'numbers' has no training problem in the domain 'poetry': known are 'math'; take "
    with pytest.raises(UserError, match=told):
        run(alarm_runs.check(tree, "test"), tmp_path / "run")


def test_a_set_of_which_all_is_held_out_is_refused_with_the_share_that_is(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    tree = recipe_of(recipe, model).model_dump(mode="json")
    tree["problems"]["numbers"]["heldout"] = 1.0
    told = r"'numbers' has no training problem: all 90 are held out \(problems.numbers.heldout = 1\); lower it"
    with pytest.raises(UserError, match=told):
        run(alarm_runs.check(tree, "test"), tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            {"domain_rewards": {"maths": {"incorrect": -1.0}}},
            r"stage\.rl\.domain_rewards: there is no 'maths'; did you",
        ),
        (
            {"algorithm": {"domain_weights": {"code": 2.0}}},
            r"stage\.rl\.algorithm\.domain_weights: there is no 'code'; kn",
        ),
    ],
)
def test_a_setting_of_a_domain_that_no_problem_has_is_refused_by_name(
    recipe: Path, model: Path, tmp_path: Path, setting: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem + ".* it must be a domain of the stage's problems"):
        run(recipe_of(recipe, model, **setting), tmp_path / "run")


def of_two_domains(recipe: Path, *mixes: dict[str, str], **rl: Any) -> dict[str, Any]:
    """A recipe whose problems are of the domains even and odd, `mixes` its rl stage's."""
    file = recipe.with_name("both.jsonl")
    rows = [{"id": f"n{n}", "prompt": f"Say {n}", "answer": n, "domain": ("even", "odd")[n % 2]} for n in range(10, 40)]
    jsonl.write(file, rows)
    tree = recipe_of(recipe, recipe, **rl).model_dump(mode="json")
    tree["problems"]["numbers"] |= {"path": str(file)}
    tree["stages"] = ["filter", "rl"]
    tree["stage"]["rl"]["problems"] = list(mixes)
    return tree


@pytest.mark.parametrize(
    ("filtered", "mix", "where"),
    [
        ({}, {"problems": "numbers", "domain": "even"}, r"stage\.rl\.problems\[0\]"),
        ({}, {"stage": "filter", "domain": "even"}, r"stage\.rl\.problems\[0\]"),
        ({"domain": "even"}, {"stage": "filter"}, r"stage\.filter\.problems\[0\]"),
    ],
    ids=["by the mixture", "after the filter", "before the filter"],
)
def test_a_setting_of_a_domain_that_the_mixture_leaves_out_is_refused_with_what_leaves_it_out(
    recipe: Path, filtered: dict[str, str], mix: dict[str, str], where: str
) -> None:
    tree = of_two_domains(recipe, mix, domain_rewards={"odd": {"incorrect": -1.0}})
    tree["stage"]["filter"]["problems"] = [{"problems": "numbers", **filtered}]
    told = rf"stage\.rl\.domain_rewards: 'odd' is set here and none of its problems is used: {where}\.domain = "
    with pytest.raises(UserError, match=told + "\"even\" leaves them out. Take 'odd' out of domain_rewards, or"):
        refused(tree)


def test_a_setting_of_a_domain_that_is_left_out_is_refused_before_the_stages_before_it(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    chosen = of_two_domains(recipe, {"stage": "filter", "domain": "even"}, domain_rewards={"odd": {"incorrect": -1.0}})
    chosen["model"]["path"] = str(model)
    with pytest.raises(UserError, match=r"stage\.rl\.domain_rewards: 'odd' is set here"):
        run(alarm_runs.check(chosen, "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "filter").exists()


def test_a_setting_of_a_domain_that_another_share_of_the_mixture_has_is_taken(recipe: Path) -> None:
    both = [{"problems": "numbers", "domain": "even"}, {"problems": "numbers", "domain": "odd"}]
    refused(of_two_domains(recipe, *both, domain_rewards={"odd": {"incorrect": -1.0}}))


def refused(tree: dict[str, Any]) -> None:
    """What an rl stage asks about its domains before anything else."""
    chosen = alarm_runs.check(tree, "test")
    stage = chosen.stage["rl"]
    assert isinstance(stage, RlStage)
    with Run(Path(chosen.problems["numbers"].path or "").with_name("run"), console=False) as opened:
        context = Context(chosen, opened, "")
        context.refuse_domain_settings("rl", stage)


def test_a_filters_band_for_a_domain_that_no_problem_has_is_refused_before_anything_is_sampled(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    changes = (f"model={{path='{model}', device='cpu'}}", "stages=['filter']")
    chosen = micro.recipe(recipe, *changes, "stage.filter.bands={maths={alpha=0.2, beta=0.4}}")
    with pytest.raises(UserError, match=r"stage\.filter\.bands: there is no 'maths'; did you mean 'math'\?"):
        pipeline.run(chosen, tmp_path / "run", console=False)
    assert not list((tmp_path / "run" / "filter").glob("*.jsonl"))


def test_a_prompt_longer_than_the_window_is_refused_by_name_before_anything_is_sampled(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    """Two of 30, which four problems of the first step need not hold."""
    long = {20: "9 " * 25, 30: "9 " * 30}
    rows = [{"id": f"n{n}", "prompt": f"Say {long.get(n, '')}{n}", "answer": n} for n in range(10, 40)]
    file = tmp_path / "long.jsonl"
    jsonl.write(file, rows)
    tree = recipe_of(recipe, model).model_dump(mode="json")
    tree["problems"]["numbers"] |= {"path": str(file), "heldout": 0.0}
    told = (
        r"stage.rl.problems: 'n30' is too long: a prompt of 66 tokens and sampling.max_tokens = 16 are 82 positions, "
    )
    with pytest.raises(UserError, match=told + "over the model's 64. It is the longest of 2 such problems of 30."):
        run(alarm_runs.check(tree, "test"), tmp_path / "run")
    assert not list((tmp_path / "run" / "rl").glob("rollouts/*"))


def test_a_run_that_ends_with_an_error_leaves_no_file_half_written(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a step's rollouts are finished while the learner steps: here that takes longer than the step."""
    finish = rollouts._finish

    def slowly(*given: Any) -> None:
        time.sleep(1.0)
        finish(*given)

    monkeypatch.setattr(rollouts, "_finish", slowly)
    with pytest.raises(UserError, match="longer than micro_batch_tokens = 13"):
        run(recipe_of(recipe, model, micro_batch_tokens=13, steps=2, sampling={"max_tokens": 12}), tmp_path / "run")
    assert len(groups_of(tmp_path / "run")) == 4
    assert not list((tmp_path / "run" / "rl" / "rollouts").glob("*.part.jsonl"))


def test_a_rollout_longer_than_one_pass_is_refused_and_a_longer_pass_goes_on_with_it(
    recipe: Path, model: Path, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"steps": 2, "sampling": {"max_tokens": 12}}
    message = (
        r"stage.rl: a rollout of \d+ tokens, prompt and completion, is longer than micro_batch_tokens = 13, .*"
        r"\(sampling.max_tokens = 12\). Raise it: the same command goes on"
    )
    with pytest.raises(UserError, match=message):
        run(recipe_of(recipe, model, micro_batch_tokens=13, **short), tmp_path / "run")
    sampled = groups_of(tmp_path / "run")
    ran = run(recipe_of(recipe, model, **short), tmp_path / "run")
    assert sampled and groups_of(ran.folder)[: len(sampled)] == sampled
    assert [row["step"] for row in micro.metrics(ran.folder, "rl")] == [1, 2]


# ---- numbers, disk, recipe


def test_a_loss_that_is_not_finite_stops_or_is_skipped_and_counted(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = Learner.accumulate

    def breaks(self: Learner, *given: Any) -> dict[str, float]:
        found = accumulate(self, *given)
        if self.version == 2:
            self._broken = "the loss is nan"
        return found

    monkeypatch.setattr(Learner, "accumulate", breaks)
    with pytest.raises(UserError, match="optimizer step 3: the loss is nan; the weights were left as they were"):
        run(recipe_of(recipe, model, steps=2), tmp_path / "stopped")
    assert (tmp_path / "stopped" / "rl" / "nonfinite-3.jsonl").exists()
    skipping = recipe_of(recipe, model, steps=1, optimizer={"on_nonfinite": "skip"})
    ran = run(skipping, tmp_path / "skipped")
    (row,) = micro.metrics(ran.folder, "rl")
    assert row["optim/skipped"] > 0.0 and "optimizer step 3: the loss is nan; skipped" in ran.text


def test_on_a_full_disk_nothing_that_was_written_is_lost_and_the_same_command_goes_on(
    recipe: Path, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, left = jsonl.Journal.append, [40]

    def full(self: jsonl.Journal, row: Any) -> None:
        if "rollout" in row:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        append(self, row)

    monkeypatch.setattr(jsonl.Journal, "append", full)
    chosen = recipe_of(recipe, model, steps=4)
    with pytest.raises(OSError, match="No space left"):
        run(chosen, tmp_path / "run")
    kept = list(jsonl.read(tmp_path / "run" / "rl" / "rollouts" / "step-00003.part.jsonl"))
    assert len(kept) == 39 - 32
    run(chosen, tmp_path / "run")
    assert same_as(whole, tmp_path / "run")


def test_resumed_with_another_recipe_the_stage_begins_anew_and_the_old_one_is_kept(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = Learner.update, list[int]()

    def killed(self: Learner) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Learner, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(recipe, model, steps=4), tmp_path / "run")
    old = {file.name: file.read_bytes() for file in (tmp_path / "run" / "rl" / "rollouts").iterdir()}
    ran = run(recipe_of(recipe, model, steps=2, optimizer={"learning_rate": 5e-4}), tmp_path / "run")
    kept = {file.name: file.read_bytes() for file in (ran.folder / "rl.stale-1" / "rollouts").iterdir()}
    assert kept == old and len(kept) > 0
    told = "stage.rl.optimizer.learning_rate was 0.001 and is 0.0005; stage.rl.steps was 4 and is 2\n"
    assert f"rl: was made from something else; set aside as rl.stale-1: {told}" in ran.text
    assert [row["step"] for _, row in jsonl.read(ran.folder / "rl.stale-1" / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in micro.metrics(ran.folder, "rl")] == [1, 2]
