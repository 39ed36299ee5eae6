"""What is done about an alarm: noted, paused for, rolled back from; killed in between, the same command goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alarm_runs
import micro
from alarm_runs import recipe_of, run
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import Paused, UserError
from motet.base.identity import stage_part
from motet.base.load_recipe import check
from motet.base.recipe import Alarms, Recipe
from motet.base.records import Completion, Group, Problem, Rollout, Verdict, VerdictKind, encode
from motet.base.run import Timers
from motet.rl.alarms import Alarm, Cause, History, alarm_of
from motet.rl.alarms.heldout import not_generalising
from motet.rl.alarms.monitor import Monitor
from motet.rl.alarms.record import ranked, toml, written
from motet.rl.alarms.system import starved
from motet.rl.rollouts import Sampler
from motet.rl.telltales import holds, repeated, repetition, speeds, telltales
from motet.stages import alarmed
from motet.stages.probe import evaluated_before


@pytest.fixture(scope="module")
def model(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "run"
    recipe = micro.recipe(micro_recipe, "stages=['sft']", "stage.sft.evaluate=false")
    pipeline.run(recipe, folder, console=False)
    return folder / "sft" / "model"


@pytest.fixture
def recipe(micro_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(micro_recipe.read_text())
    return path


OTHERS = ("unparsable", "length", "entropy_blowup", "entropy_collapse", "repetition", "stale", "truncated")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The verifier is dead while the third batch is judged, so often as the list that is returned says: once."""
    groups, left = Sampler.groups, [1]

    def judged(self: Any, problems: Any, n: int, sampling: Any, stream: Any, file: Path, title: str) -> Any:
        found = groups(self, problems, n, sampling, stream, file, title)
        if file.stem != "step-00003" or not left[0]:
            return found
        left[0] -= 1
        self.settle()
        dead = Verdict("incorrect", 0.0)
        wrong = [replace(g, rollouts=tuple(replace(r, verdict=dead) for r in g.rollouts)) for g in found]
        jsonl.write(file, map(encode, wrong))
        return wrong

    monkeypatch.setattr(Sampler, "groups", judged)
    return left


def rows(folder: Path) -> list[int]:
    return [row["step"] for row in micro.metrics(folder, "rl")]


def calm(recipe: Path, model: Path, **alarms: Any) -> Recipe:
    """Five steps of eight problems, a checkpoint after each, every alarm off but no_signal."""
    off = dict.fromkeys((*OTHERS, "drift", "importance", "slow_engine", "starved", "slow_verifiers"), "off")
    actions = {**off, **alarms.pop("actions", {})}
    return recipe_of(
        recipe, model, steps=5, prompts_per_step=8, checkpoint_every=1,
        alarms={"window": 1, "live_share": 0.0, "actions": actions, **alarms},
    )  # fmt: skip


def test_a_pause_saves_a_checkpoint_and_ends_the_run_and_an_acknowledgement_goes_on(
    recipe: Path, model: Path, tmp_path: Path, dying: list[int]
) -> None:
    paused = calm(recipe, model, actions={"no_signal": "pause"})
    with pytest.raises(Paused) as caught:
        run(paused, tmp_path / "run")
    assert caught.value.exit_code == 3 and isinstance(caught.value, UserError)
    assert "paused at rl step 3 by the alarm no_signal; a checkpoint was saved" in str(caught.value)
    assert "'stage.rl.alarms.acknowledged=no_signal@3'" in str(caught.value)
    assert (tmp_path / "run" / "rl" / "checkpoints" / "step-000003").exists() and rows(tmp_path / "run") == [1, 2, 3]
    with pytest.raises(Paused, match="no_signal@3"):
        run(paused, tmp_path / "run")
    assert rows(tmp_path / "run") == [1, 2, 3]
    ran = run(calm(recipe, model, actions={"no_signal": "pause"}, acknowledged="no_signal@3"), tmp_path / "run")
    assert rows(ran.folder) == [1, 2, 3, 4, 5]
    assert [event["event"] for event in ran.events] == ["alarm", "pause"]
    # the pause changes nothing of what is trained
    dying[0] = 1
    run(calm(recipe, model), tmp_path / "other")
    assert micro.same_weights(micro.weights(ran.folder, "rl"), micro.weights(tmp_path / "other", "rl"))


def test_a_pause_is_answered_by_an_action_that_no_longer_pauses(
    recipe: Path, model: Path, tmp_path: Path, dying: list[int]
) -> None:
    with pytest.raises(Paused):
        run(calm(recipe, model, action="pause"), tmp_path / "run")
    ran = run(calm(recipe, model, action="note"), tmp_path / "run")
    assert rows(ran.folder) == [1, 2, 3, 4, 5] and not list(ran.folder.glob("rl.stale*"))


def test_a_rollback_goes_on_from_the_last_healthy_checkpoint_with_other_random_numbers(
    recipe: Path, model: Path, tmp_path: Path, dying: list[int]
) -> None:
    ran = run(calm(recipe, model, actions={"no_signal": "rollback"}), tmp_path / "run")
    events = [event["event"] for event in ran.events]
    assert events == ["alarm", "rollback", "rolled back"] and ran.events[-1]["to"] == 2
    assert rows(ran.folder) == [1, 2, 3, 4, 5]
    aside = ran.folder / "rl" / "rolled-back-1"
    assert [row["step"] for _, row in jsonl.read(aside / "metrics.jsonl")] == [3]
    before, after = (file.read_text() for file in (aside / "rollouts" / "step-00003.jsonl",
                                                   ran.folder / "rl" / "rollouts" / "step-00003.jsonl"))  # fmt: skip
    assert before != after and "rolled back from step 3 to step 2 because of no_signal" in ran.text
    assert (ran.folder / "rl" / "model").exists()


def test_a_rollback_may_go_to_the_start_and_the_time_after_the_last_one_is_a_pause(
    recipe: Path, model: Path, tmp_path: Path, dying: list[int]
) -> None:
    dying[0] = 9
    chosen = calm(recipe, model, actions={"no_signal": "rollback"})
    stage = chosen.stage["rl"].model_copy(update={"checkpoint_every": 50})
    chosen = chosen.model_copy(update={"stage": {**chosen.stage, "rl": stage}})
    with pytest.raises(Paused, match="paused at rl step 3"):
        run(chosen, tmp_path / "run")
    events = alarm_runs.read(tmp_path / "run").events
    assert [event["event"] for event in events] == ["alarm", "rollback", "rolled back", "alarm", "pause"]
    assert events[2]["to"] == 0


def test_killed_within_a_rollback_the_same_command_ends_as_the_uninterrupted_one(
    recipe: Path, model: Path, tmp_path: Path, dying: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = calm(recipe, model, actions={"no_signal": "rollback"})
    finish, calls = alarmed.finish_rollback, list[int]()

    def killed(name: str, context: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish(name, context)

    monkeypatch.setattr(alarmed, "finish_rollback", killed)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path / "run")
    assert alarm_runs.read(tmp_path / "run").events[-1]["event"] == "rollback"
    ran = run(chosen, tmp_path / "run")
    dying[0] = 1
    run(chosen, tmp_path / "other")
    assert micro.same_weights(micro.weights(ran.folder, "rl"), micro.weights(tmp_path / "other", "rl"))


def test_the_command_ends_with_exit_code_3_when_it_pauses(
    recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from motet import cli

    def pauses(*_: Any, **__: Any) -> None:
        raise Paused("paused at rl step 3 by the alarm drift")

    monkeypatch.setattr(pipeline, "run", pauses)
    monkeypatch.setattr(sys, "argv", ["motet", "run", str(recipe), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3 and "paused at rl step 3" in capsys.readouterr().err


# ---- over time, by hand


@pytest.fixture
def history(micro_recipe: Path) -> Recipe:
    return micro.recipe(micro_recipe, "stage.rl.alarms.window=2", "stage.rl.checkpoint_every=2")


def row(step: int, live: float) -> dict[str, Any]:
    return {"step": step, "groups/live_share": live, "pass/mean": 0.5, "rollout/count": 32.0}


def test_an_alarm_is_raised_once_lasts_while_it_is_seen_and_may_be_raised_again_after_a_quiet_window(
    history: Recipe,
) -> None:
    monitor = Monitor(history, "rl")
    lives = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    raised = [[alarm.id for alarm in monitor.see(row(i + 1, live)).raised] for i, live in enumerate(lives)]
    # the median of 1 and 0 is above the bound; quiet from step 5 on, ended with step 6
    assert [ids for ids in raised if ids] == [["no_signal@3"], ["no_signal@10"]]
    # checkpoints after steps 4 (on) and 10 (on) are not healthy ones
    assert monitor.healthy == [0, 2, 6, 8]
    other = Monitor(history, "rl")
    other.replay(row(i + 1, live) for i, live in enumerate(lives))
    assert (other.healthy, [a.id for a in other.active]) == (monitor.healthy, [a.id for a in monitor.active])


def test_one_noisy_step_raises_nothing(history: Recipe) -> None:
    monitor = Monitor(history, "rl")
    assert all(not monitor.see(row(step, 0.0 if step % 2 else 0.9)).raised for step in range(1, 12))


def test_a_trained_domain_that_falls_is_seen_where_nothing_is_held_out(history: Recipe) -> None:
    monitor = Monitor(history, "rl")
    raised = []
    for step in range(1, 9):
        falls = 0.8 if step < 5 else 0.3
        raised += monitor.see({**row(step, 0.9), "pass/code": falls, "pass/math": 0.5, "loss/share/code": 0.1}).raised
    (alarm,) = raised
    # 32 rollouts of two domains in windows of two steps: 0.8 to 0.3 is 5 standard errors
    assert (alarm.rule, alarm.step) == ("forgetting", 6)
    assert "training pass rate of code fell by 50.0 points since RL began, to 30 %." in alarm.seen
    assert "small share of the gradient" in alarm.causes[0].text and "10 %" in alarm.causes[0].evidence
    assert alarm.causes[0].change == ("stage.rl.algorithm.domain_weights = { code = 2.0 }   # now {}",)


@pytest.mark.parametrize(("count", "ids"), [(64.0, ["no_signal@2"]), (56.0, [])])
def test_one_of_two_domains_without_a_signal_is_seen_where_its_groups_are_enough(
    history: Recipe, count: float, ids: list[str]
) -> None:
    """Half of all groups are live. In two steps 64 rollouts in groups of 4 are 32 groups, and 56 are 28: too few."""
    given = {
        **row(1, 0.45), "groups/live_share/math": 0.9, "groups/live_share/code": 0.0, "pass/math": 1.0,
        "pass/code": 0.0, "rollout/count": 2 * count, "rollout/count/math": count, "rollout/count/code": count,
        "groups/all_wrong_share": 0.5, "groups/all_wrong_share/math": 0.0, "groups/all_wrong_share/code": 1.0,
    }  # fmt: skip
    monitor = Monitor(history, "rl")
    raised = [alarm for step in (1, 2, 3) for alarm in monitor.see({**given, "step": step}).raised]
    assert [alarm.id for alarm in raised] == ids
    for alarm in raised:
        told = "of code alone: in steps 1 to 2 0 % of the groups had a signal (median); 0 % of the rollouts passed."
        assert alarm.seen == told and "too hard" in alarm.causes[0].text
        line = "stage.filter.bands.code.alpha = 0.3   # and filter again: motet run RECIPE --from filter"
        assert alarm.causes[0].change[0] == line


def test_truncated_rollouts_of_one_domain_are_seen_though_they_are_few_in_the_whole(history: Recipe) -> None:
    monitor, raised = Monitor(history, "rl"), list[Any]()
    for step in range(1, 5):
        cut = 0.5 if step > 2 else 0.0
        shares = {"": cut / 4, "/code": cut, "/math": 0.0}
        given = {**row(step, 0.9), "pass/math": 0.5, "pass/code": 0.5, "rollout/count": 256.0}
        given |= {"rollout/count/code": 64.0, "rollout/count/math": 192.0}
        given |= {f"rollout/truncated_share{where}": share for where, share in shares.items()}
        raised += monitor.see(given).raised
    (alarm,) = raised
    assert alarm.id == "truncated@4"
    assert alarm.seen == "of code alone: cut at 16 tokens: 0 % of the rollouts at first, 50 % in steps 3 to 4."


@pytest.mark.parametrize(
    ("now", "cause", "evidence"),
    [
        ({}, "the verifier is dead or wrong",
         "50 % passed before, and none in the last 3 steps, though the completions are as they were"),
        ({"rollout/truncated_share": 0.8},
         "the last steps destroyed the policy", "the pass rate went from 50 % to 0; "),
        ({"rollout/wrong_with_reference_share": 0.4, "rollout/truncated_share": 0.8},
         "the last steps destroyed the policy", "the pass rate went from 50 % to 0; "),
    ],
    ids=["verifier", "policy", "policy that still copies"],
)  # fmt: skip
def test_when_nothing_passes_any_more_the_cause_is_known_as_soon_as_the_alarm_speaks(
    history: Recipe, now: dict[str, float], cause: str, evidence: str
) -> None:
    """In windows of five steps it speaks after three without a signal: 3 x 32 x 0.5 = 48 passes were to be expected."""
    tree = history.model_dump(mode="json")
    tree["stage"]["rl"]["alarms"]["window"] = 5
    monitor, raised = Monitor(check(tree, "test"), "rl"), list[Any]()
    for step in range(1, 10):
        shares = dict.fromkeys(("rollout/truncated_share", "rollout/wrong_with_reference_share"), 0.0)
        given = {**row(step, 0.9), "rollout/tokens_mean": 60.0, **shares}
        if step > 4:
            given |= {"groups/live_share": 0.0, "groups/all_wrong_share": 1.0, "pass/mean": 0.0, **now}
        raised += monitor.see(given).raised
    (alarm,) = [alarm for alarm in raised if alarm.rule == "no_signal"]
    assert alarm.step == 7 and cause in alarm.causes[0].text and alarm.causes[0].evidence.startswith(evidence)


def test_a_verifier_that_calls_the_reference_wrong_is_dead_before_its_problems_are_too_hard(history: Recipe) -> None:
    """All groups wrong: of what is called wrong two fifths hold the reference, or a quarter, as chance may have it."""
    for share, cause in ((0.4, "the verifier is dead or wrong"), (0.25, "the problems are too hard")):
        monitor = Monitor(history, "rl")
        given = {"groups/all_wrong_share": 1.0, "pass/mean": 0.0, "rollout/wrong_with_reference_share": share}
        raised = [alarm for step in (1, 2) for alarm in monitor.see({**row(step, 0.0), **given}).raised]
        assert cause in raised[0].causes[0].text


def test_a_slow_engine_that_failed_and_was_brought_back_is_told_by_it(history: Recipe) -> None:
    monitor, raised = Monitor(history, "rl"), list[Any]()
    for step in range(1, 5):
        slow = step > 2
        given = {**row(step, 0.9), "time/generate": 8.0, "time/step": 10.0, "engine/failures": float(slow)}
        raised += monitor.see({**given, "tokens/sampled_per_second": 40.0 if slow else 100.0}).raised
    (alarm,) = raised
    assert alarm.id == "slow_engine@4" and "the engine was restarted" in alarm.causes[0].text
    assert alarm.causes[0].evidence == "it failed and was brought back 2 times in steps 3 to 4"
    assert alarm.causes[0].change == ("engine.timeout_seconds = 1200.0   # now 600.0",)


@pytest.mark.parametrize(
    ("engine", "figures", "cause", "evidence", "line"),
    [
        ({"kind": "vllm", "eager": True}, {}, "without CUDA graphs", "engine.eager is true",
         "engine.eager = false   # now true"),
        ({"kind": "vllm", "python": "p", "arguments": ["--no-enable-prefix-caching", "-tp", "2"]}, {},
         "the prefix cache is off", "engine.arguments has --no-enable-prefix-caching",
         'engine.arguments = ["-tp", "2"]   # now ["--no-enable-prefix-caching", "-tp", "2"]'),
        ({"kind": "vllm"}, {"rollout/tokens_mean": 100.0, "rollout/tokens_max": 1000.0}, "a few long completions",
         "the longest is 1,000 tokens long, the mean 100", "stage.rl.sampling.max_tokens = 750   # now 16"),
        ({"kind": "vllm", "batch_size": 64}, {}, "less to do at once", "32 completions a step, engine.batch_size is 64",
         "stage.rl.prompts_per_step = 16   # now 8"),
        # four in flight of the two servers together, 32 to do: eight turns
        ({"kind": "vllm", "batch_size": 2, "urls": ["a", "b"]}, {}, "wait for their turn",
         "32 completions a step, 4 side by side", "engine.batch_size = 4   # now 2"),
        # the longest of 36 tokens took 9 seconds
        ({"kind": "vllm"}, {"rollout/tokens_mean": 30.0, "rollout/tokens_max": 36.0}, "slow, or shared with others",
         "the longest completion grew by 4 tokens a second", 'model.device = "cuda"   # now "cpu"'),
        ({"kind": "vllm"}, {"groups/refilled": 3.0}, "sampled again, round after round",
         "3 groups a step beside 8", "stage.rl.refill = 0.5   # now 1.0"),
        ({"kind": "vllm"}, {"groups/live_share": 0.25, "groups/all_correct_share": 0.7}, "the learner has little to do",
         "25 % of the groups have one", "stage.rl.retire_at = 0.9   # now unset"),
        ({"kind": "vllm"}, {"engine/failures": 2.0}, "fails and is brought back", "4 times in steps 2 to 3",
         "engine.timeout_seconds = 1200.0   # now 600.0"),
    ],
    ids=["eager", "prefix cache", "tail", "idle", "turns", "crawling", "refill", "no signal", "failures"],
)  # fmt: skip
def test_an_engine_that_is_slow_from_the_start_is_seen_by_its_share_of_the_step_and_told_by_this_runs_evidence(
    history: Recipe, engine: dict[str, Any], figures: dict[str, float], cause: str, evidence: str, line: str
) -> None:
    """Nine seconds of ten are waited for completions, at 100 tokens a second from the first step on."""
    tree = history.model_dump(mode="json")
    tree["engine"] |= {"batch_size": 32, **engine}
    tree["stage"]["rl"] |= {"refill": 1.0}
    tree["stage"]["rl"]["alarms"] |= {"starving": 0.85}
    given = {"time/generate": 9.0, "time/step": 10.0, "tokens/sampled_per_second": 100.0, "rollout/count": 32.0}
    given |= {"rollout/tokens_mean": 60.0, "rollout/tokens_max": 90.0, "inner_steps": 4.0, **figures}
    monitor = Monitor(check(tree, "test"), "rl")
    raised = [alarm for step in (1, 2, 3, 4) for alarm in monitor.see({**row(step, 0.9), **given}).raised]
    (alarm,) = raised
    assert alarm.id == "starved@3" and "90 % of a step (median); 100 tokens were sampled a second" in alarm.seen
    assert cause in alarm.causes[0].text and alarm.causes[0].evidence == evidence
    assert alarm.causes[0].change == (line,)


def test_a_learner_that_waits_for_less_than_its_bound_or_for_moments_is_not_starved(history: Recipe) -> None:
    """80 % of ten seconds, 95 % of half a second, and 95 % of ten where no group has a signal and no step is taken."""
    for wait, whole, steps in ((8.0, 10.0, 4.0), (0.475, 0.5, 4.0), (9.5, 10.0, 0.0)):
        monitor = Monitor(history, "rl")
        given = {"time/generate": wait, "time/step": whole, "tokens/sampled_per_second": 100.0, "inner_steps": steps}
        raised = [alarm.rule for step in (1, 2, 3, 4) for alarm in monitor.see({**row(step, 0.9), **given}).raised]
        assert "starved" not in raised


def test_taking_turns_is_told_by_what_overlap_would_save(history: Recipe) -> None:
    """The learner's 40 % of a step could go on beside the sampling, on servers that do not share its memory."""
    tree = history.model_dump(mode="json")
    tree["engine"] |= {"kind": "vllm", "urls": ["http://a"], "batch_size": 32}
    tree["stage"]["rl"]["alarms"] |= {"starving": 0.5}
    found = History(check(tree, "test"), "rl")
    for step in (1, 2, 3):
        given = {"time/generate": 6.0, "time/step": 10.0, "rollout/count": 32.0, "rollout/tokens_max": 90.0}
        given["inner_steps"] = 4.0
        found.add({**row(step, 0.9), **given, "rollout/tokens_mean": 60.0})
    alarm = starved(found)
    assert alarm is not None and alarm.causes[0].text == "engine and learner take turns"
    assert alarm.causes[0].evidence == "overlap is false; the rest of a step is 40 %"
    assert alarm.causes[0].change == ("stage.rl.overlap = true   # now false",)


def test_rollouts_that_are_batches_old_are_stale_and_one_batch_of_overlap_is_not(history: Recipe) -> None:
    for age, ids in ((4.0, []), (12.0, ["stale@2"])):  # in versions: a batch is for four steps
        monitor = Monitor(history, "rl")
        raised = [a.id for s in (1, 2, 3) for a in monitor.see({**row(s, 0.9), "rollout/staleness_max": age}).raised]
        assert raised == ids


def test_a_policy_that_only_became_surer_is_told_from_a_gamed_verifier(history: Recipe) -> None:
    """The figures of a real run: SmolLM2-135M, whose rewards rose while its held-out rate stood still."""
    tree = history.model_dump(mode="json")
    tree["evaluation"]["sampling"]["temperature"] = 0.6
    found = History(check(tree, "test"), "rl")
    for step, reward, entropy in ((1, 0.46, 0.086), (2, 0.50, 0.079), (59, 0.6, 0.024), (60, 0.66, 0.020)):
        known = {"problems/known": 400, "rollout/right_without_reference_share": 0.0}
        found.add({"step": step, "reward/mean": reward, "policy/entropy": entropy, **known})
    found.add({"step": 60, "heldout/pass": 0.508, "heldout/before/pass": 0.496, "heldout/change": 0.012})
    alarm = not_generalising(found)
    assert alarm is not None
    texts = [cause.text for cause in alarm.causes]
    assert "temperature 0.6" in texts[0] and "asked again" in texts[1]
    assert not any("gamed" in text for text in texts)  # every rollout judged correct holds the reference
    # 0.0825 to 0.022 nats on average over windows of two steps; 60 steps of so many prompts, from 400 problems
    assert alarm.causes[0].evidence == "entropy 0.0825 to 0.022 nats a token, at temperature 1"
    assert alarm.causes[1].evidence.endswith("were drawn from 400")
    assert alarm.causes[0].change[0] == "evaluation.sampling.temperature = 1.0   # now 0.6"


def test_the_window_and_the_first_steps_must_not_overlap_for_a_rise_or_a_fall(history: Recipe) -> None:
    found = History(history, "rl")
    for step in range(1, 4):
        found.add({"step": step, "x": float(step), "y": "NaN"})
    assert found.ends("x") is None and found.recent("x") == [2.0, 3.0] and found.values("y") == []
    found.add({"step": 4, "x": 4.0})
    assert found.ends("x") == (1.5, 3.5) and found.steps == "steps 3 to 4"
    found.add({"step": 5})
    assert found.recent("x") == [] and found.now("x") is None and found.last("x") == 4.0


def test_causes_are_told_by_weight_and_lines_that_change_nothing_are_left_out() -> None:
    a, b, c = Cause("a", "", 0.2, ("x", "")), Cause("b", "why", 0.9), Cause("c", "", 0.0)
    told = ranked([a, b, c])
    assert [cause.text for cause in told] == ["b", "a"] and told[1].change == ("x",)
    assert [cause.text for cause in ranked([c])] == ["c"]
    assert written("a.b", 0.5, 1.0) == "a.b = 0.5   # now 1.0" and written("a.b", 1.0, 1.0) == ""
    assert toml({"problems": "p", "weight": 2.0}) == '{ problems = "p", weight = 2.0 }' and toml(1e-5) == "1e-05"


def test_an_alarm_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    alarm = Alarm("drift", "rl", 7, "seen.", "why.", (Cause("c", "e", 0.5, ("line",)),))
    jsonl.write(tmp_path / "a.jsonl", [alarm.row()])
    ((_, read),) = jsonl.read(tmp_path / "a.jsonl")
    assert alarm_of(read) == alarm and alarm.id == "drift@7"
    assert alarm.sentence() == "rl, step 7: seen. why. Likely: c (e). Change: line"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"acknowledged": ["drift"]}, "is not RULE@STEP"),
        ({"acknowledged": ["nonsense@3"]}, "is not RULE@STEP"),
        ({"importance_low": 3.0}, "must be below importance_high"),
        ({"actions": {"nonsense": "note"}}, "no_signal"),
        ({"actions": {"memory": "off"}}, "out of memory always ends the run"),
        ({"acknowledged": ["memory@3"]}, "it takes no action and no acknowledgement"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Alarms(**given)


@pytest.mark.parametrize(
    ("override", "is_part"),
    [
        ("alarms.action=pause", False), ("checkpoint_every=1", False), ("micro_batch_tokens=96", False),
        ("optimizer.offload=on", False), ("optimizer.learning_rate=0.5", True), ("group_size=3", True),
    ],
)  # fmt: skip
def test_what_moves_no_number_is_no_part_of_what_a_stage_is_made_from(
    micro_recipe: Path, override: str, is_part: bool
) -> None:
    plain, other = (micro.recipe(micro_recipe, *more) for more in ((), (f"stage.rl.{override}",)))
    assert plain.stage["rl"] != other.stage["rl"]
    assert (stage_part(plain, plain.stage["rl"]) != stage_part(other, other.stage["rl"])) == is_part


# ---- what completions give away


def completion_of(text: str, tokens: tuple[int, ...], kind: VerdictKind, logprobs: tuple[float, ...] = ()) -> Rollout:
    score = {"correct": 1.0, "incorrect": 0.0}.get(kind)
    return Rollout((1,), Completion(text, tokens, logprobs, "end", 0), Verdict(kind, score))


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition((1, 2, 3, 1, 2, 3), 2) == pytest.approx(0.4)
    assert repetition(tuple(range(20))) == 0.0 and repetition((1, 2)) == 0.0
    assert repetition((7,) * 16) == pytest.approx(8 / 9)


@pytest.mark.parametrize(
    ("text", "reference", "held"),
    [
        ("<think>37</think> so 38", "37", False),
        ("so it is \\boxed{37}.", 37, True),
        ("137 or 370 or 3.7 or 37.5", "37", False),
        ("37", "37", True),
    ],
)
def test_an_answer_holds_its_reference_as_a_word_after_the_reasoning(text: str, reference: object, held: bool) -> None:
    assert holds(completion_of(text, (1,), "incorrect"), reference) is held


def test_the_telltales_of_a_batch_by_hand() -> None:
    problem = Problem("p", ({"role": "user", "content": "Say 37"},), "math", "37", "math")
    rollouts = (
        completion_of("37", (1, 2), "incorrect", (-1.0, -2.0)),
        completion_of("38", (1, 2), "incorrect", (-3.0, -2.0)),
        completion_of("39", (1, 2), "correct"),
    )
    assert repeated([Group(problem, rollouts)]) == {"rollout/repetition_share": 0.0}
    assert telltales([Group(problem, rollouts)]) == {
        "rollout/count": 3.0, "rollout/entropy": 2.0,
        "rollout/wrong_with_reference_share": 0.5, "rollout/right_without_reference_share": 1.0,
    }  # fmt: skip
    other = replace(problem, reference={"n": 37})
    assert set(telltales([Group(other, rollouts[2:])])) == {"rollout/count"}


def test_tokens_a_second_are_of_the_sampling_and_of_the_whole_step() -> None:
    found = speeds({"tokens/sampled": 100.0}, {"generate": 2.0, "step": 5.0})
    assert found == {"tokens/sampled_per_second": 50.0, "tokens/second": 20.0}


def test_time_that_is_part_of_another_is_counted_once() -> None:
    timers = Timers()
    timers.seconds = {"generate": 3.0}
    timers.part("generate", "judge", 1.0)
    assert timers.seconds == {"generate": 2.0, "judge": 1.0}


def test_an_error_knows_the_innermost_phase_in_which_it_was_raised() -> None:
    timers = Timers()
    with pytest.raises(ValueError, match="x") as caught, timers("step"), timers("anchor"):
        raise ValueError("x")
    assert caught.value.phase == "anchor"  # type: ignore[attr-defined]


def test_the_weights_that_rl_starts_from_are_compared_with_where_they_were_evaluated(micro_recipe: Path) -> None:
    assert evaluated_before("rl", micro.recipe(micro_recipe, "stage.sft-2.evaluate=true")) == "sft-2"
    assert evaluated_before("rl", micro.recipe(micro_recipe)) is None  # sft-2 is not evaluated
    assert evaluated_before("rl", micro.recipe(micro_recipe, "stage.rl.init=sft")) == "sft"
    assert evaluated_before("rl", micro.recipe(micro_recipe, "stage.rl.init=base")) == "base"
