"""`motet experiment difficulty` and `motet experiment filter-cost`: what they run, and what they make of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.recipe import FilterStage, RlStage
from motet.cli import cli
from motet.experiments import difficulty, filter_cost, side_by_side
from motet.experiments.difficulty_view import summary as difficulty_summary
from motet.experiments.filter_cost_results import break_even, crossing, judge
from motet.experiments.filter_cost_view import advice, summary
from motet.experiments.side_by_side import Task, run_beside

RECIPE = """
extends = "stable"
name = "scripted"
seed = 3
threads = 1
stages = ["filter", "rl"]
model = { device = "cpu", tiny = { hidden = 32, layers = 1, heads = 2, mlp = 32, context = 64 } }
verification = { workers = 1, deadline_seconds = 60.0 }
engine = { kind = "scripted", script = "FOLDER/script.jsonl" }
evaluation = { samples = 2, bootstrap = 50, sampling = { max_tokens = 24 } }

[problems.numbers]
path = "FOLDER/problems.jsonl"
heldout = 0.2

[stage.filter]
kind = "filter"
problems = [{ problems = "numbers" }]
count = 20
sampling = { max_tokens = 24 }
probe = 8

[stage.rl]
kind = "rl"
problems = [{ stage = "filter" }]
steps = 2
prompts_per_step = 4
group_size = 4
sampling = { max_tokens = 24 }
optimizer = { learning_rate = 1e-4, warmup_steps = 1 }
"""


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers of two digits in two domains; of four replies n % 5 are right."""
    folder = tmp_path_factory.mktemp("scripted")
    problems, script = [], []
    for n in range(10, 70):
        a, b = n // 10, n % 10
        replies = [f"<think>{a} {b}</think>\\boxed{{{n if i < n % 5 else 0}}}" for i in range(4)]
        domain = "even" if n % 2 == 0 else "odd"
        problems.append({"id": f"n{n}", "prompt": f"Say {n}", "answer": n, "reasoning": f"{a} {b}", "domain": domain})
        script.append({"prompt": f"Say {n}", "replies": replies})
    for name, rows in (("problems", problems), ("script", script)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "scripted.toml"
    path.write_text(RECIPE.replace("FOLDER", str(folder)))
    return path


# ---- difficulty


def test_one_sample_of_rollouts_answers_for_every_band(scripted: Path, tmp_path: Path) -> None:
    arguments = [
        "experiment",
        "difficulty",
        str(scripted),
        "--runs",
        str(tmp_path),
        "--count",
        "40",
        "stage.filter.n=9",
    ]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    target = tmp_path / "scripted" / "experiments" / "difficulty"
    report = jsonl.read_json(target / "difficulty.json")
    assert (report["problems"], report["rollouts"], report["group_size"], report["refused"]) == (40, 360, 4, "")
    bands = {(row["beta"], row["domain"]): row for row in report["bands"]}
    assert sorted({beta for beta, _ in bands}) == [0.4, 0.6, 0.8] and len(bands) == 9
    for domain in ("all", "even", "odd"):
        kept = [bands[beta, domain]["kept"] for beta in (0.4, 0.6, 0.8)]
        assert kept == sorted(kept) and 0 < kept[0] < kept[2] <= bands[0.8, domain]["of"]
        assert bands[0.8, domain]["own"] and not bands[0.4, domain]["own"]
        for row in (bands[0.4, domain], bands[0.8, domain]):
            assert row["kept_share"]["low"] <= row["kept"] / row["of"] <= row["kept_share"]["high"]
            assert row["live"]["low"] <= row["live"]["mean"] <= row["live"]["high"]
            assert report["before"][domain]["mean"] < row["live"]["mean"] and 0.4 < row["in_band"] <= 1.0
    assert report["pilot"]["groups"] == 8 and report["pilot"]["seen"]["all"]["mean"] > 0.3
    assert max(len(line) for line in shown.splitlines() if "page:" not in line) <= 110
    assert "0.2 to 0.8 *" in shown and "something to learn from" in " ".join(shown.split())
    page = (target / "difficulty.html").read_text()
    assert "0.2 to 0.6" in page and "<script" not in page
    before = {p: p.stat().st_mtime_ns for p in (target / "filter").iterdir()}
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout == shown
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_five_hundred_problems_and_three_bands_are_the_default(scripted: Path) -> None:
    assert (difficulty.COUNT, difficulty.BETAS) == (500, (0.4, 0.6, 0.8))
    filtering = difficulty.variant(load(scripted), "filter", difficulty.COUNT).stage["filter"]
    assert isinstance(filtering, FilterStage) and filtering.count == 500


def test_a_band_that_gives_rl_nothing_is_told_and_not_hidden(scripted: Path, tmp_path: Path) -> None:
    recipe = load(scripted, ["stage.filter.band={alpha=0.0, beta=0.0}", "stage.filter.n=30"])
    report = difficulty.run(recipe, tmp_path, count=20, console=False)
    assert report["pilot"] is None and "none has two different rewards" in report["refused"]
    text = difficulty_summary(report)
    assert "The pilot step found nothing for RL to learn from" in " ".join(text.split()) and "0 to 0.8" in " ".join(
        text.split()
    )


def test_a_recipe_without_a_filter_gets_one_before_its_rl_stage(scripted: Path, tmp_path: Path) -> None:
    overrides = ['stages=["rl"]', 'stage.rl.problems=[{problems="numbers", domain="odd"}]', "stage.rl.group_size=6"]
    report = difficulty.run(load(scripted, overrides), tmp_path, count=12, betas=(0.8,), console=False)
    assert (report["stage"], report["group_size"], report["problems"]) == ("difficulty", 6, 12)
    assert [row["domain"] for row in report["bands"]] == ["odd"]


def test_a_question_that_has_no_answer_is_refused(scripted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--betas: pass rates above 0"):
        difficulty.run(load(scripted), tmp_path, betas=(0.0,))
    with pytest.raises(UserError, match="--stage rl: the recipe's filter stages are filter; name one"):
        difficulty.run(load(scripted), tmp_path, stage="rl")
    with pytest.raises(UserError, match="needs all of them from one filter stage"):
        filter_cost.run(load(scripted, ['stage.rl.problems=[{problems="numbers"}]']), tmp_path)
    with pytest.raises(UserError, match="--seeds: give each seed once"):
        filter_cost.run(load(scripted), tmp_path, seeds=(1, 1))
    assert not list(tmp_path.iterdir())


# ---- filter-cost


def test_the_arms_differ_in_how_they_choose_problems_alone(scripted: Path) -> None:
    recipe = load(scripted, ["stage.rl.reuse_filter=1"])
    arms = {arm: filter_cost.variant(recipe, "rl", "filter", arm, 7, "model", None, 2) for arm in filter_cost.ARMS}
    stages = {arm: own.stage["rl"] for arm, own in arms.items()}
    filtering = arms["filter"].stage["filter"]
    assert isinstance(filtering, FilterStage) and filtering.count > 10**6  # every problem that the others draw from
    assert {arm: own.stages for arm, own in arms.items()} == {
        "filter": ("filter", "rl"),
        "refill": ("rl",),
        "neither": ("rl",),
    }
    for arm, stage in stages.items():
        assert isinstance(stage, RlStage) and (stage.steps, stage.probe_every, stage.init) == (2, 1, "base")
        assert stage.refill == (3.0 if arm == "refill" else 0.0) and stage.reuse_filter == (arm == "filter")
        assert (arms[arm].seed, arms[arm].model.path, arms[arm].model.tiny) == (7, "model", None)
        assert stage.problems[0].stage == ("filter" if arm == "filter" else None)


TARGET = Path("scripted", "experiments", "filter-cost")


@pytest.fixture(scope="module")
def one_after_the_other(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder of runs, what was printed)"""
    runs = tmp_path_factory.mktemp("alone")
    return runs, CliRunner().invoke(cli, arguments(scripted, runs), catch_exceptions=False).stdout


def arguments(scripted: Path, runs: Path) -> list[str]:
    return ["experiment", "filter-cost", str(scripted), "--runs", str(runs), "--probes", "2", "--seeds", "1,2"]


def test_the_experiment_runs_resumes_and_counts_what_each_arm_spent(
    scripted: Path, one_after_the_other: tuple[Path, str]
) -> None:
    runs, shown = one_after_the_other
    target = runs / TARGET
    report = jsonl.read_json(target / "filter-cost.json")
    points = {name: arm["points"] for name, arm in report["arms"].items()}
    assert [p["step"] for p in points["neither"]] == [0, 1, 2]
    assert [p["rollouts"] for p in points["neither"]] == [0, 16, 32]
    tables = [jsonl.read_json(target / f"seed-{s}" / "filter" / "filter" / "filter.json") for s in (1, 2)]
    first = sum(t["rollouts"] + t["probe_rollouts"] for t in tables) / 2
    assert [p["rollouts"] for p in points["filter"]] == [first, first + 16, first + 32]
    assert points["refill"][-1]["rollouts"] >= 32 and points["filter"][0]["seconds"] > 0
    tokens = [p["tokens"] for p in points["neither"]]
    assert tokens[0] == 0 < tokens[1] < tokens[2]
    assert report["arms"]["filter"]["live_share"] > report["arms"]["neither"]["live_share"]
    assert ("Not every arm gained on the start" in shown) == (report["levels"] == []) and "seeds 1, 2" in shown
    assert max(len(line) for line in shown.splitlines() if "page:" not in line) <= 110
    page = (target / "filter-cost.html").read_text()
    assert page.count("<svg") == 3 and "<script" not in page
    before = {p: p.stat().st_mtime_ns for p in target.rglob("metrics.jsonl")}
    assert (
        len(before) == 8 and CliRunner().invoke(cli, arguments(scripted, runs), catch_exceptions=False).stdout == shown
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_arms_beside_each_other_end_as_one_after_the_other_and_are_not_done_again(
    scripted: Path, one_after_the_other: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = filter_cost.run(load(scripted), tmp_path, scripted, probes=2, console=False, jobs=4)
    place, other = (folder / TARGET / "seed-1" for folder in (tmp_path, one_after_the_other[0]))
    assert sorted(path.name for path in place.iterdir()) == ["filter", "neither", "refill", "start"]
    files = sorted(
        path.relative_to(place) for path in place.rglob("*.jsonl") if path.parent.name in ("rollouts", "probes")
    )
    assert len(files) >= 12 and all((place / file).read_bytes() == (other / file).read_bytes() for file in files)
    monkeypatch.setattr(side_by_side.subprocess, "Popen", lambda *_, **__: pytest.fail("all of it was done"))
    again = filter_cost.run(load(scripted), tmp_path, scripted, probes=2, console=False, jobs=4)
    assert again == report


def test_a_run_that_fails_beside_others_ends_them_and_says_why(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"good": "echo $$ > {}.pid; exec sleep 100", "bad": "while [ ! -s {}/good.pid ]; do sleep 0.1; done; "
             "echo the script is missing >&2; exit 2"}  # fmt: skip
    places = {"good": tmp_path / "good", "bad": tmp_path}
    monkeypatch.setattr(
        side_by_side, "_command", lambda _, folder: ["sh", "-c", words[folder.name].format(places[folder.name])]
    )
    tasks = [Task(load(scripted), tmp_path / name) for name in ("good", "bad", "never")]
    with pytest.raises(UserError, match=r"bad failed \(exit status 2\): the script is missing"):
        run_beside(tasks, 2)
    assert not (tmp_path / "never.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "good.pid").read_text()), 0)


def test_a_recipe_that_cannot_run_ends_its_process_with_the_reason(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(side_by_side, "_end_with", lambda parent: None)
    bad = load(scripted, ["engine.script='no-such-file.jsonl'"])
    jsonl.write_json(tmp_path / "bad.json", bad.model_dump(mode="json"))
    with pytest.raises(SystemExit, match="2"):
        side_by_side.main(str(tmp_path / "bad.json"), str(tmp_path / "bad"), "1")
    assert "no-such-file.jsonl" in capsys.readouterr().err


def test_a_level_is_crossed_between_two_looks() -> None:
    assert crossing([0.2, 0.4, 0.3], [100, 300, 400], 0.3) == pytest.approx(200)
    assert crossing([0.2, 0.2, 0.4], [0, 10, 20], 0.2) == 0
    assert crossing([0.2, 0.3], [0, 10], 0.31) is None


def seed(accuracies: Sequence[float], rollouts: Sequence[float], problems: int = 100) -> dict[str, Any]:
    """A share of the problems is solved at each look: the same first ones."""
    costs = [{"step": i, "rollouts": r, "tokens": 10 * r, "seconds": r / 2} for i, r in enumerate(rollouts)]
    rates = [{("math", f"{i:03}"): float(i < problems * a) for i in range(problems)} for a in accuracies]
    return {"points": costs, "rates": rates, "live_share": 0.5, "groups": 10, "live": 5.0, "filter": None}


def test_arms_are_compared_at_a_share_of_the_gain_that_all_reached() -> None:
    results = {
        "filter": [seed([0.2, 0.6, 0.9], [50, 100, 150])],
        "refill": [seed([0.2, 0.5, 0.7], [0, 100, 200])],
        "neither": [seed([0.2, 0.3, 0.4], [0, 100, 200])],
    }
    report = judge(results)
    assert (report["start"], report["reached"]) == pytest.approx((0.2, 0.4))
    half, most = report["levels"]
    assert (half["accuracy"], most["accuracy"]) == pytest.approx((0.3, 0.38))
    costs = {arm: row["rollouts"]["mean"] for arm, row in half["arms"].items()}
    assert costs == pytest.approx({"filter": 62.5, "refill": 100 / 3, "neither": 100.0})
    ratio = half["arms"]["neither"]["rollouts"]["ratio"]
    assert ratio["mean"] == pytest.approx(1.6) and ratio["low"] < 1.6 < ratio["high"]
    assert half["arms"]["filter"]["tokens"]["ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    final = report["arms"]["filter"]["final"]
    assert final["mean"] == pytest.approx(0.9) and 0.8 < final["low"] < 0.9 < final["high"] < 0.97
    assert report["arms"]["refill"]["rollouts_per_live_group"] == 40.0


def test_an_arm_that_never_arrives_is_said_to() -> None:
    results = {"filter": [seed([0.1, 0.9], [50, 100])], "refill": [seed([0.1, 0.9], [0, 400])],
               "neither": [seed([0.1, 0.1], [0, 40])]}  # fmt: skip
    report = judge(results)
    assert report["reached"] == pytest.approx(0.1) and report["levels"] == []  # there is no gain that all reached
    results["neither"] = [seed([0.1, 0.15], [0, 40])]
    report = {"name": "r", "steps": 1, "prompts_per_step": 1, "group_size": 2, "seeds": [1], "method": "fixed", "n": 5,
              "refill": 3.0, **judge(results)}  # fmt: skip
    assert report["levels"][1]["arms"]["neither"]["rollouts"]["high"] is None  # some resamples never get there
    assert "never" in summary(report) and len(advice(report)) == 6


def test_a_gain_within_chance_is_not_compared() -> None:
    results = {arm: [seed([0.5, 0.51], [50 * (arm == "filter"), 100])] for arm in filter_cost.ARMS}
    report = judge(results)
    assert report["gain"]["mean"] == pytest.approx(0.01) and report["gain"]["low"] == 0.0
    assert len(advice(report)) == 1 and "is within chance" in advice(report)[0]


def test_a_filter_pays_for_itself_after_so_many_passes() -> None:
    """1,000 rollouts, groups of 8, 0.8 live against 0.5: 1000 / (8 x 0.6) = 208.3 groups, 2.08 passes over 100."""
    filtered = {"points": [{"rollouts": 1000}, {"rollouts": 1000 + 8 * 500}], "groups": 500, "live": 400.0,
                "filter": {"rollouts": 1000.0, "kept": 100}}  # fmt: skip
    found = break_even([filtered], [{"live": 250.0, "groups": 500}])
    assert found is not None and found["groups"]["mean"] == pytest.approx(1000 / 4.8)
    low, mean, high = (found["passes"][key] or 0.0 for key in ("low", "mean", "high"))
    assert mean == pytest.approx(2.083, abs=1e-3) and 1.5 < low < mean < high < 3.0
    never = break_even([filtered], [{"live": 450.0, "groups": 500}])
    assert never is not None and never["passes"] == {"mean": None, "low": None, "high": None}
