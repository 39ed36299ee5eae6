"""The filter stage end to end, with replies whose pass rates are known: fixed and sequential, killed and resumed, its
rollouts in RL and in SFT, and the choice of open rows without rollouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.recipe import FilterStage, OpenRows, Recipe, RlStage
from motet.base.records import Group, decode_group
from motet.engine.scripted import ScriptedEngine
from motet.stages import open_rows
from motet.stages.filter import aim_of
from motet.stages.selection import Selection

RIGHT, WRONG = "<think>{0} {1}</think>\\boxed{{{0}{1}}}", "<think>{0} {1}</think>\\boxed{{0}}"
LONG = "<think>" + "1 2 3 4 5 6 7 8 9 " * 4 + "</think>1"

RECIPE = """
extends = ["stable"]
name = "scripted"
seed = 3
threads = 1
stages = ["filter", "rl"]
model = { device = "cpu", tiny = { hidden = 32, layers = 1, heads = 2, mlp = 32, context = 64 } }
verification = { workers = 1, deadline_seconds = 60.0 }
engine = { kind = "scripted", script = "SCRIPT" }
chat = { think = "required" }

[problems.numbers]
path = "PROBLEMS"
heldout = 0.0

[stage.filter]
kind = "filter"
problems = [{ problems = "numbers" }]
count = 80
sampling = { max_tokens = 24 }
probe = 10

[stage.rl]
kind = "rl"
evaluate = false
problems = [{ stage = "filter" }]
steps = 3
prompts_per_step = 8
group_size = 4
checkpoint_every = 1
sampling = { max_tokens = 24 }
optimizer = { learning_rate = 1e-4, warmup_steps = 1 }
algorithm = { guard = { on = false }, correction = { on = true, sequence_bound = 1e9 } }
"""
RATES = {0: 0, 1: 3, 2: 6, 3: 9, 4: 12}
"""Of twelve replies, how many are right, by the last digit modulo 5."""


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scripted.toml: numbers of two digits. Those that end in 9 have as many replies that are too long."""
    folder = tmp_path_factory.mktemp("scripted")
    problems, script = [], []
    for n in range(10, 90):
        a, b = n // 10, n % 10
        right = RATES[n % 5]
        replies = [RIGHT.format(a, b)] * right + [WRONG.format(a, b)] * (12 - right)
        replies += [LONG] * 12 if n % 10 == 9 else []
        problems.append({"id": f"n{n}", "prompt": f"Say {n}", "answer": n, "reasoning": f"{a} {b}"})
        script.append({"prompt": f"Say {n}", "replies": replies})
    for name, rows in (("problems", problems), ("script", script)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RECIPE.replace("SCRIPT", str(folder / "script.jsonl")).replace("PROBLEMS", str(folder / "problems.jsonl"))
    path = folder / "scripted.toml"
    path.write_text(text)
    return path


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in jsonl.read(file)]


def groups_of(file: Path) -> list[Group]:
    return [decode_group(row) for row in rows_of(file)]


@pytest.fixture(scope="module")
def filtered(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a filter stage that was run with the overrides given; each once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("run") / "scripted"
            pipeline.run(load(scripted, list(overrides)), folder, only=["filter"], console=False)
            made[overrides] = folder
        return made[overrides] / "filter"

    return make


def extending(scripted: Path, *presets: str) -> Recipe:
    path = scripted.with_name("-".join(presets) + ".toml")
    path.write_text(scripted.read_text().replace('["stable"]', json.dumps(presets)))
    return load(path)


# ---- fixed


def test_five_rollouts_and_counts_are_the_papers_way(filtered: Callable[..., Path]) -> None:
    folder = filtered()
    table, rows = jsonl.read_json(folder / "filter.json"), rows_of(folder / "difficulty.jsonl")
    assert (table["method"], table["n"], table["group_size"], len(rows)) == ("fixed", 5, 4, 80)
    for row in rows:
        assert row["rollouts"] == 5 and 0 <= row["low"] <= row["rate"] <= row["high"] <= 1
        whole = row["correct"] + row["wrong"]
        assert row["kept"] == (0.2 * whole <= row["correct"] <= 0.8 * whole and whole > 0)
    assert [row["id"] for row in rows_of(folder / "problems.jsonl")] == [row["id"] for row in rows if row["kept"]]
    assert sum(row["truncated"] for row in rows) == table["truncated"] > 10
    assert all(row["truncated"] == 0 for row in rows if not row["id"].endswith("9"))


def test_the_paper_preset_compares_integer_counts_by_domain(scripted: Path) -> None:
    config = extending(scripted, "paper").stage["filter"]
    assert isinstance(config, FilterStage) and (config.method, config.n) == ("fixed", 5)
    from motet.stages.filter import counts

    assert counts(config.band, 5) == (1, 4) and counts(config.bands["instruction"], 5) == (1, 2)


def test_every_problem_tells_how_likely_its_group_is_live(filtered: Callable[..., Path]) -> None:
    """Rates of 0, 1/4, 1/2, 3/4 and 1: groups of four are live with 0, 0.68, 0.875, 0.68 and 0."""
    folder = filtered("stage.filter.n=16", "stage.rl.group_size=4")
    table = jsonl.read_json(folder / "filter.json")
    plain = [row for row in rows_of(folder / "difficulty.jsonl") if not row["id"].endswith("9")]
    truth = {"0": 0.0, "1": 0.6797, "2": 0.875, "3": 0.6797, "4": 0.0}
    expected = sum(truth[str(int(row["id"][1:]) % 5)] for row in plain) / len(plain)
    assert sum(row["live"] for row in plain) / len(plain) == pytest.approx(expected, abs=0.05)
    after, forecast = table["live_share_after"]["all"], table["live_share_forecast_interval"]["all"]
    assert table["live_share_before"]["all"] < forecast["mean"] - 0.15
    assert after == pytest.approx(forecast["mean"], abs=0.3)  # ten groups only


def test_the_forecast_is_for_the_rl_stage_that_reads_the_filter(scripted: Path) -> None:
    recipe = load(scripted, ["stage.rl.group_size=6", "stage.rl.rewards.malformed=-0.5"])
    aim = aim_of(recipe, "filter")
    assert (aim.size, aim.rewards.malformed) == (6, -0.5)
    assert aim_of(load(scripted, ["stage.filter.group_size=2"]), "filter").size == 2
    assert aim_of(load(scripted, ['stages=["filter"]']), "filter").size == 8


def test_a_pilot_step_without_two_rewards_stops_the_run_before_rl(scripted: Path, tmp_path: Path) -> None:
    overrides = ["stage.filter.band={alpha=0.0, beta=0.0}", "stage.filter.n=12", "stage.filter.probe=4"]
    for _ in range(2):  # nor does the same command pass the second time
        with pytest.raises(UserError, match="of 4 fresh groups of 4 rollouts of kept problems none has two different"):
            pipeline.run(load(scripted, overrides), tmp_path / "run", console=False)
    assert not (tmp_path / "run" / "filter" / "filter.json").exists() and not (tmp_path / "run" / "rl").exists()


# ---- sequential

SEQUENTIAL = ('stage.filter.method="sequential"', "stage.filter.sequential.pilot=20")


def test_sequential_rollouts_stop_where_the_verdict_stands(filtered: Callable[..., Path]) -> None:
    folder = filtered(*SEQUENTIAL)
    table, rows = jsonl.read_json(folder / "filter.json"), rows_of(folder / "difficulty.jsonl")
    asked = [row["rollouts"] for row in rows]
    assert set(asked) <= set(range(2, 17, 2)) and 4 in asked and 16 in asked
    assert table["rollouts"] == sum(asked) < 0.7 * 16 * 80
    assert [len(group.rollouts) for group in groups_of(folder / "groups.jsonl")] == asked
    inside = [row["kept"] == (int(row["id"][1:]) % 5 in (1, 2, 3)) for row in rows if not row["id"].endswith("9")]
    assert sum(inside) / len(inside) > 0.8
    assert sum(table["histogram"]["math"]) == 80 and len(table["histogram"]["math"]) == 10
    assert (table["bands"]["math"]["low"], table["bands"]["math"]["high"]) == (2, 7)
    assert not list(folder.glob("round-*"))


def test_the_sequential_preset_is_that_method(scripted: Path) -> None:
    config = extending(scripted, "paper", "sequential").stage["filter"]
    assert isinstance(config, FilterStage) and config.method == "sequential"
    assert (config.sequential.least, config.sequential.most, config.bands["instruction"].beta) == (2, 16, 0.4)


class Counting(ScriptedEngine):
    """Notes what it is asked, and is killed after `allowed` completions."""

    asked: ClassVar[list[tuple[str, int]]] = []
    allowed = 10**9

    def generate(self, requests: Sequence[Any], sampling: Any) -> Iterator[tuple[int, Any]]:
        for index, completion in super().generate(requests, sampling):
            time.sleep(0.001)  # so that some are judged before the kill
            if len(Counting.asked) >= Counting.allowed:
                raise KeyboardInterrupt
            Counting.asked.append((requests[index].messages[-1]["content"], requests[index].seed))
            yield index, completion


@pytest.mark.parametrize("overrides", [("stage.filter.n=5",), SEQUENTIAL])
def test_a_killed_filter_goes_on_and_ends_as_the_uninterrupted_one(
    overrides: tuple[str, ...], scripted: Path, filtered: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("motet.engine.scripted.ScriptedEngine", Counting)
    monkeypatch.setattr(Counting, "asked", [])
    recipe = load(scripted, list(overrides))
    kills = 0
    for allowed in (40, 170, 333, 350, 420, 10**9):
        monkeypatch.setattr(Counting, "allowed", allowed)
        try:
            pipeline.run(recipe, tmp_path / "run", only=["filter"], console=False)
        except KeyboardInterrupt:
            kills += 1
    folder, whole = tmp_path / "run" / "filter", filtered(*overrides)
    table = jsonl.read_json(folder / "filter.json")
    assert kills >= 4 and len(set(Counting.asked)) == table["rollouts"] + table["probe_rollouts"]
    for name in ("difficulty.jsonl", "problems.jsonl", "data.jsonl", "groups.jsonl"):
        assert (folder / name).read_text() == (whole / name).read_text()


# ---- what RL makes of it


@pytest.fixture(scope="module")
def reused(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reused") / "scripted"
    pipeline.run(load(scripted, ["stage.rl.reuse_filter=2"]), folder, console=False)
    return folder


def test_the_filters_rollouts_are_the_first_of_rls_groups(reused: Path) -> None:
    calibration = {group.problem.id: group.rollouts for group in groups_of(reused / "filter" / "groups.jsonl")}
    pilot = {group.problem.id: group.rollouts for group in groups_of(reused / "filter" / "probe.jsonl")}
    metrics, files = micro.metrics(reused, "rl"), sorted((reused / "rl" / "rollouts").glob("step-*.jsonl"))
    for row, file in zip(metrics[:2], files, strict=False):
        groups = groups_of(file)
        assert len(groups) == 8 and {len(group.rollouts) for group in groups} == {4}
        for group in groups:
            given = (*pilot.get(group.problem.id, ()), *calibration[group.problem.id])[:4]
            assert group.rollouts == given  # five or more are there: nothing is sampled
        assert row["rollout/reused"] == 32
    assert "rollout/reused" not in metrics[2]
    later = [group for group in groups_of(files[2]) if group.rollouts[0].completion.version > 0]
    assert len(later) == 8 and metrics[1]["inner_steps"] > 0


def test_what_is_missing_of_a_group_is_sampled(scripted: Path, tmp_path: Path) -> None:
    recipe = load(
        scripted, ["stage.rl.reuse_filter=1", "stage.rl.group_size=8", "stage.rl.steps=1", "stage.filter.probe=1"]
    )
    pipeline.run(recipe, tmp_path / "run", console=False)
    groups = groups_of(tmp_path / "run" / "rl" / "rollouts" / "step-00001.jsonl")
    calibration = {g.problem.id: g.rollouts for g in groups_of(tmp_path / "run" / "filter" / "groups.jsonl")}
    whole = {group.problem.id for group in groups_of(tmp_path / "run" / "filter" / "probe.jsonl")}
    assert {len(group.rollouts) for group in groups} == {8}
    assert all(g.rollouts[:5] == calibration[g.problem.id] for g in groups if g.problem.id not in whole)
    row = micro.metrics(tmp_path / "run", "rl")[0]
    assert row["rollout/reused"] == sum(8 if g.problem.id in whole else 5 for g in groups)


def test_a_killed_rl_stage_takes_the_same_rollouts_of_the_filter(
    reused: Path, scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from motet.train import checkpoint

    recipe, saves = load(scripted, ["stage.rl.reuse_filter=2"]), [0]
    plain = checkpoint.Checkpoints.save

    def save(self: Any, step: int, *more: Any) -> None:
        plain(self, step, *more)
        saves[0] += 1
        if saves[0] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, tmp_path / "run", console=False)
    pipeline.run(recipe, tmp_path / "run", console=False)
    for name in ("step-00001", "step-00002", "step-00003"):
        files = [run / "rl" / "rollouts" / f"{name}.jsonl" for run in (reused, tmp_path / "run")]
        assert files[0].read_text() == files[1].read_text()
    assert (tmp_path / "run" / "rl" / "problems-state.jsonl").read_text() == (
        reused / "rl" / "problems-state.jsonl"
    ).read_text()
    assert micro.same_weights(micro.weights(reused, "rl"), micro.weights(tmp_path / "run", "rl"))


def test_the_posterior_counts_a_rollout_of_the_filter_once(reused: Path) -> None:
    table = {row["id"]: row for row in rows_of(reused / "rl" / "problems-state.jsonl")}
    difficulty = {row["id"]: row for row in rows_of(reused / "filter" / "difficulty.jsonl")}
    first = groups_of(reused / "rl" / "rollouts" / "step-00001.jsonl")
    later = {g.problem.id for n in (2, 3) for g in groups_of(reused / "rl" / "rollouts" / f"step-0000{n}.jsonl")}
    checked = [group.problem.id for group in first if group.problem.id not in later]
    assert checked
    for name in checked:  # half of what the filter saw, as an old group's evidence, and nothing new
        assert table[name]["correct"] == 0.5 * difficulty[name]["correct"] and table[name]["seen"] == 1


def test_each_step_says_what_was_forecast_and_what_was_seen(reused: Path) -> None:
    live = {row["id"]: row["live"] for row in rows_of(reused / "filter" / "difficulty.jsonl")}
    for row in micro.metrics(reused, "rl"):
        groups = groups_of(reused / "rl" / "rollouts" / f"step-{row['step']:05d}.jsonl")
        assert row["forecast/live"] == pytest.approx(sum(live[g.problem.id] for g in groups) / 8)
        assert row["forecast/seen"] == row["groups/live_share"] and row["forecast/groups"] == 8
        assert row["forecast/live/math"] == row["forecast/live"]


def test_a_forecast_for_groups_of_another_size_is_not_held_against_rl(scripted: Path, tmp_path: Path) -> None:
    recipe = load(scripted, ["stage.filter.group_size=2", "stage.rl.steps=1"])
    pipeline.run(recipe, tmp_path / "run", console=False)
    assert "forecast/live" not in micro.metrics(tmp_path / "run", "rl")[0]
    assert "a forecast for groups of 2, not of 4" in (tmp_path / "run" / "log.txt").read_text()


SFT = """
[stage.sft]
kind = "sft"
steps = 1
batch_size = 2
evaluate = false
data = [{ problems = "numbers" }]
context = 60
"""


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (['stages=["filter", "sft", "rl"]'],
         "stage.filter sampled from the weights of base, and this stage starts from those of sft"),
        (["stage.rl.sampling.temperature=0.9"], "stage.filter samples with temperature=1.0"),
        (['stage.rl.problems=[{problems="numbers"}]'], "its problems come from no filter stage"),
        (['stage.rl.rope={kind="linear", positions=128}'], "rope gives this stage other positions"),
        (["stage.rl.algorithm.correction.on=false"], r"in step 2 the rollouts are of older weights: set algorithm"),
    ],
)  # fmt: skip
def test_rollouts_of_other_weights_or_sampling_are_refused_with_the_reason(
    overrides: list[str], reason: str, scripted: Path
) -> None:
    path = scripted.with_name("with-sft.toml")
    path.write_text(scripted.read_text() + SFT)
    with pytest.raises(UserError, match=f"stage.rl.reuse_filter: {reason}"):
        load(path, ["stage.rl.reuse_filter=2", *overrides])
    back = ['stages=["filter", "sft", "rl"]', 'stage.rl.init="base"', "stage.rl.reuse_filter=2"]
    assert load(path, back).stages == ("filter", "sft", "rl")  # the weights count, not the order


def test_a_rollback_reuses_nothing(scripted: Path, reused: Path) -> None:
    from motet.base.run import Run
    from motet.stages.context import Context

    recipe = load(scripted, ["stage.rl.reuse_filter=2"])
    config = recipe.stage["rl"]
    assert isinstance(config, RlStage)
    with Run(reused, console=False) as run:
        context = Context(recipe, run, reused / "base-model")
        again = Selection("rl", config, context, attempt=1)
        assert again._calibration.metrics(0, []) == {}
        context.close()


# ---- what SFT makes of it


def sft_recipe(scripted: Path, data: str, *overrides: str) -> Recipe:
    path = scripted.with_name("sft.toml")
    path.write_text(scripted.read_text() + SFT.replace('data = [{ problems = "numbers" }]', f"data = [{data}]"))
    return load(path, ['stages=["filter", "sft"]', *overrides])


def test_correct_rollouts_of_kept_problems_are_rows_for_sft(scripted: Path, tmp_path: Path) -> None:
    recipe = sft_recipe(scripted, '{ stage = "filter" }')
    pipeline.run(recipe, tmp_path / "run", console=False)
    rows = rows_of(tmp_path / "run" / "filter" / "data.jsonl")
    kept = {row["id"]: row for row in rows_of(tmp_path / "run" / "filter" / "difficulty.jsonl") if row["kept"]}
    assert {row["problem_id"] for row in rows} == set(kept) and len(rows) == len(kept)  # equal texts count once
    assert rows[0]["messages"][-1]["reasoning_content"] and "boxed" in rows[0]["messages"][-1]["content"]
    assert jsonl.read_json(tmp_path / "run" / "sft" / "data.json")["conversations"] == len(rows)


def test_worked_solutions_of_kept_problems_are_open_rows_by_pass_rate(scripted: Path, tmp_path: Path) -> None:
    recipe = sft_recipe(scripted, '{ stage = "filter", rows = "solutions" }')
    pipeline.run(recipe, tmp_path / "run", console=False)
    kept = rows_of(tmp_path / "run" / "filter" / "problems.jsonl")
    data = jsonl.read_json(tmp_path / "run" / "sft" / "data.json")
    assert data["conversations"] == len(kept) > 10


def test_quantiles_keep_the_middle_of_each_domain() -> None:
    rows = [{"domain": "math", "tokens": 10, "surprisal": float(s)} for s in (1, 2, 3, 4, 5)]
    rows += [{"domain": "code", "tokens": t, "surprisal": 9.0} for t in (1, 2, 3, 100)]
    bounds = open_rows.keep(rows, OpenRows(length=(0.0, 0.75), surprisal=(0.25, 0.75)))
    assert [row["reason"] for row in rows[:5]] == ["known to the model", "", "", "", "too surprising"]
    assert [row["reason"] for row in rows[5:]] == ["", "", "", "long"]
    assert [*bounds["code"]["tokens"]] == pytest.approx([1, 3 + 0.25 * 97]) and bounds["math"]["surprisal"] == (2, 4)


def test_open_rows_are_chosen_by_length_and_the_students_surprisal(scripted: Path, tmp_path: Path) -> None:
    """No rollouts: a forward pass. The mean negative log-probability of the worked solutions, token by token."""
    import torch
    from transformers import AutoModelForCausalLM

    overrides = ['stage.filter={kind="filter", by="surprisal", data=[{problems="numbers"}], count=30}']
    recipe = sft_recipe(scripted, '{ stage = "filter" }', *overrides)
    run = tmp_path / "run"
    pipeline.run(recipe, run, console=False)
    rows, data = rows_of(run / "filter" / "difficulty.jsonl"), rows_of(run / "filter" / "data.jsonl")
    table = jsonl.read_json(run / "filter" / "filter.json")
    assert len(rows) == 30 and table["of"]["all"] == 30 and table["kept"]["all"] == len(data)
    assert len(data) == 24 and table["dropped"] == {"known to the model": 3, "too surprising": 3}
    assert [row["problem_id"] for row in data] == [row["id"] for row in rows if row["kept"]]
    assert jsonl.read_json(run / "sft" / "data.json")["conversations"] == 24

    from motet.base.run import Run
    from motet.stages.context import Context

    model = AutoModelForCausalLM.from_pretrained(run / "base-model")
    with Run(run, console=False) as opened:
        rendered = Context(recipe, opened, run / "base-model").chat.render(data[0]["messages"])[0]
    tokens = torch.tensor(rendered.tokens)
    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    scored = torch.tensor(rendered.loss_mask)[1:]
    own = next(row for row in rows if row["id"] == data[0]["problem_id"])
    assert own["surprisal"] == pytest.approx(-logprobs[scored].mean().item(), abs=1e-4)
    assert own["tokens"] == int(scored.sum())


def test_a_wrong_open_row_names_the_recipes_key(scripted: Path, tmp_path: Path) -> None:
    (tmp_path / "open.jsonl").write_text('{"prompt": "Say 1"}\n')
    data = f'[{{problems="numbers"}}, {{path="{tmp_path / "open.jsonl"}"}}]'
    recipe = sft_recipe(scripted, '{ stage = "filter" }',
                        f'stage.filter={{kind="filter", by="surprisal", data={data}, count=30}}')  # fmt: skip
    with pytest.raises(UserError, match=r"^stage\.filter\.data\[1\]: .*open\.jsonl, line 1: field 'completion'"):
        pipeline.run(recipe, tmp_path / "run", console=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.filter.by=surprisal", 'by = "surprisal" needs data, the conversations'),
        ('stage.filter.data=[{problems="numbers"}]', 'by = "pass_rate" needs problems, and reads no data'),
        ("stage.filter.sequential.most=8", 'sequential has no effect with method = "fixed"'),
        ("stage.filter={kind='filter', method='sequential', n=8, problems=[{problems='numbers'}]}",
         'n has no effect with method = "sequential"'),
        ("stage.filter.rows.length=[0.1, 0.9]", "rows has no effect with"),
        ("stage.filter.sequential.most=15", r"most \(15\) must be least \(2\) plus a multiple of batch \(2\)"),
        ("stage.filter={kind='filter', by='surprisal', data=[{problems='numbers'}]}",
         r'stage.filter is by = "surprisal": it keeps conversations, for an sft stage, and no problems'),
        ("stage.rl.problems=[{stage='rl'}]", "it must be a filter stage that runs before it"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_each_other_are_refused(override: str, message: str, scripted: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(scripted, [override])


# ---- what the report makes of it


def test_the_report_holds_the_forecast_against_what_rl_saw(reused: Path) -> None:
    from motet.insight.report import terminal_summary, write_report

    report = write_report(reused)
    rows = micro.metrics(reused, "rl")
    first = report["rl"]["stages"]["rl"]["forecast"]["first"]
    assert first["groups"] == 24 and first["live"] == pytest.approx(sum(r["forecast/live"] for r in rows) / 3)
    assert first["seen"] == pytest.approx(sum(r["groups/live_share"] for r in rows) / 3)
    filtered = report["filter"]["stages"]["filter"]
    assert (filtered["group_size"], filtered["rollouts_mean"]) == (4, 5.0)
    assert filtered["live_share_before"] < filtered["live_share_forecast"]
    page = (reused / "report.html").read_text()
    assert "of the first 24 groups were live, where the filter had forecast" in page and "Live groups, forecast" in page
    assert "of RL's first 24 groups" in terminal_summary(report)


def test_a_forecast_that_missed_is_an_alert(tmp_path: Path) -> None:
    from motet.insight.alerts import alerts
    from motet.insight.folder import RunFolder, StageFolder

    metrics = [{"step": i, "forecast/groups": 64, "forecast/live": 0.8, "forecast/seen": 0.6} for i in (1, 2, 3)]
    stage = StageFolder("rl", "rl", "done", tmp_path, metrics=metrics)
    found = alerts(RunFolder(tmp_path, "r", "", {}, {}, (stage,), []), [])
    assert len(found) == 1 and "60.0 % of the first 192 groups were live" in found[0]
    close = [{**row, "forecast/seen": 0.75} for row in metrics]
    stage = StageFolder("rl", "rl", "done", tmp_path, metrics=close)
    assert alerts(RunFolder(tmp_path, "r", "", {}, {}, (stage,), []), []) == []


def test_the_report_of_a_filter_without_rollouts_is_written(scripted: Path, tmp_path: Path) -> None:
    from motet.insight.report import write_report

    overrides = ['stage.filter={kind="filter", by="surprisal", data=[{problems="numbers"}], count=20}']
    run = tmp_path / "run"
    pipeline.run(sft_recipe(scripted, '{ stage = "filter" }', *overrides), run, only=["filter"], console=False)
    report = write_report(run)
    assert report["filter"]["kept"] == 16 and report["filter"]["live_share_before"] is None
    assert "16 of 20 problems kept" in (run / "report.html").read_text()
