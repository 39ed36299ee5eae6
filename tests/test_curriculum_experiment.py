"""`motet experiment curriculum`: arms that share everything but the lengths of their phases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.load_recipe import built
from motet.base.recipe import Recipe, SftStage
from motet.experiments import curriculum
from motet.experiments.curriculum_results import MEANS, judge, means, over_seeds, spikes, verdict
from motet.experiments.curriculum_view import advice, summary


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 conversations of about 15 to 60 tokens."""
    path = tmp_path_factory.mktemp("rows") / "talk.jsonl"
    with path.open("w") as file:
        for n in range(120):
            answer = {"role": "assistant", "reasoning_content": "3+4" * (1 + n % 16), "content": "7"}
            file.write(json.dumps({"messages": [{"role": "user", "content": f"What is {n}"}, answer]}) + "\n")
    return path


def recipe(rows: Path, model: Path, *overrides: str) -> Recipe:
    stage = {"kind": "sft", "context": 64, "steps": 12, "batch_size": 8, "evaluate": False, "heldout": 0.15,
             "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1}, "data": [{"path": str(rows)}]}  # fmt: skip
    tree = {"name": "lengths", "seed": 3, "stages": ["sft"], "model": {"path": str(model), "device": "cpu"}}
    return built({**tree, "threads": 1, "stage": {"sft": stage}}, list(overrides), "test")


def test_arms_step_jump_or_have_the_longest_at_once() -> None:
    assert curriculum.arms_of([24, 48, 96]) == [("stepped", (24, 48, 96)), ("jump", (24, 96, 96)),
                                                ("direct", (96, 96, 96))]  # fmt: skip
    assert [arm.name for arm in curriculum.arms_of([48, 96])] == ["stepped", "direct"]
    with pytest.raises(UserError, match="give at least two rising lengths"):
        curriculum.arms_of([96, 48])


def test_lengths_are_scaled_to_the_stages_context_or_by_a_factor() -> None:
    assert curriculum.scaled((16384, 32768, 65536), None, 256) == ([64, 128, 256], 256.0)
    assert curriculum.scaled((16384, 32768), 128, 99) == ([128, 256], 128)


def test_an_arm_differs_from_another_in_the_lengths_of_its_phases_alone(rows: Path, model_folder: Path) -> None:
    given = recipe(rows, model_folder)
    ladder = [16, 32, 64]
    start = curriculum.Start(str(model_folder), Path("run"))
    stepped, jump, _ = [
        curriculum.variant(given, "sft", a, ladder, start, 500, 2, 3) for a in curriculum.arms_of(ladder)
    ]
    assert stepped.stages == ("phase-1", "phase-2", "phase-3") == jump.stages
    assert stepped.stage["phase-3"] == jump.stage["phase-3"] and stepped.stage["phase-1"] == jump.stage["phase-1"]
    own, other = stepped.stage["phase-2"], jump.stage["phase-2"]
    assert isinstance(own, SftStage) and isinstance(other, SftStage)
    assert [band.up_to for band in own.lengths] == [16, 32]
    assert [(band.up_to, band.weight) for band in other.lengths] == [(16, 1.0), (32, 1.0), (64, 2.0)]
    assert own.model_copy(update={"lengths": other.lengths}) == other
    assert (own.steps, own.batch_tokens, own.context, own.heldout, own.probe_every) == (4, 500, 64, 0.15, 2)
    with pytest.raises(UserError, match="too few for 3 phases"):
        arm = curriculum.Arm("stepped", (16, 32, 64))
        curriculum.variant(recipe(rows, model_folder, "stage.sft.steps=5"), "sft", arm, ladder, start, 500, 2, 3)


def test_the_arms_run_resume_and_report(rows: Path, model_folder: Path, tmp_path: Path) -> None:
    given = recipe(rows, model_folder)
    report = curriculum.run(given, tmp_path, batch_tokens=500, probes=2, console=False)
    target = tmp_path / "lengths" / "experiments" / "curriculum"
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert list(arms) == ["stepped", "jump", "direct"] and report["scale"] == 1024.0
    assert arms["stepped"]["lengths"] == (16, 32, 64)
    most, least = max(a["tokens"] for a in arms.values()), min(a["tokens"] for a in arms.values())
    assert most / least < 1.06
    for arm in arms.values():
        assert [point["phase"] for point in arm["points"][::4]] == ["phase-1", "phase-2", "phase-3"]
        assert arm["points"][-1]["tokens"] == arm["tokens"]
        assert [p["heldout"] is not None for p in arm["points"]] == [False, True] * 6
        assert set(arm["by_position"]) == {"8", "16", "32", "64"} and len(arm["steps_up"]) == 2
        assert arm["heldout_mean"]["low"] <= arm["heldout_mean"]["mean"] <= arm["heldout_mean"]["high"]
    trained = arms["stepped"]["by_length_trained"]
    assert max(map(int, trained["phase-1"])) == 16 and max(map(int, trained["phase-3"])) == 64
    assert arms["direct"]["difference"] is None and arms["stepped"]["difference"]["n"] > 6
    for name in ("heldout", "by_position"):  # equal phases on equal weights would be equal: the arms do differ
        assert arms["stepped"][name] != arms["direct"][name] != arms["jump"][name]
    assert jsonl.read_json(target / "curriculum.json") == json.loads(json.dumps(report))
    page = (target / "curriculum.html").read_text()
    assert page.count("<svg") == 3 and "against direct at equal tokens" in page and "<script" not in page
    text = summary(report)
    assert max(map(len, text.splitlines())) <= 110 and "stepped: 16 to 32" in " ".join(text.split())

    done = {p: p.stat().st_mtime_ns for p in target.rglob("metrics.jsonl")}
    shutil.rmtree(target / "seed-3" / "jump" / "phase-3")
    again = curriculum.run(given, tmp_path, batch_tokens=500, probes=2, console=False)
    assert [p.parent.name for p in done if p.stat().st_mtime_ns != done[p]] == ["jump"]
    for one, other in zip(again["arms"], report["arms"], strict=True):
        assert (one["heldout"], one["by_position"], one["norm_max"]) == (
            other["heldout"], other["by_position"], other["norm_max"])  # fmt: skip


def test_data_without_the_longest_conversations_is_refused_before_an_arm_is_trained(
    rows: Path, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no conversation has 41 to 80 tokens"):
        short = rows.with_name("short.jsonl")
        short.write_text("".join(rows.read_text().splitlines(keepends=True)[:6]))
        curriculum.run(recipe(short, model_folder), tmp_path, lengths=[20, 40, 80], scale=1, console=False)
    assert not list((tmp_path / "lengths").rglob("model"))


def test_a_recipe_with_several_sft_stages_asks_for_one(rows: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--stage other: the recipe's sft stages are sft; name one"):
        curriculum.run(recipe(rows, model_folder), tmp_path, stage="other", console=False)


def test_seeds_train_every_arm_again_on_other_draws_and_measure_it_on_the_same_conversations(
    rows: Path, model_folder: Path, tmp_path: Path
) -> None:
    given = recipe(rows, model_folder, "stage.sft.steps=4")
    report = curriculum.run(given, tmp_path, lengths=[32, 64], scale=1, batch_tokens=300, probes=1, seeds=[3, 4],
                            console=False)  # fmt: skip
    target = tmp_path / "lengths" / "experiments" / "curriculum"
    stepped, direct = report["arms"]
    assert report["seeds"] == [3, 4] and len({*stepped["by_seed"], *direct["by_seed"]}) == 4
    held = [{row["key"] for _, row in jsonl.read(target / f"seed-{seed}" / "direct" / "phase-2" / "heldout.jsonl")}
            for seed in (3, 4)]  # fmt: skip
    assert held[0] == held[1] and len(held[0]) > 6
    each = [a - b for a, b in zip(stepped["by_seed"], direct["by_seed"], strict=True)]
    assert stepped["differences"] == pytest.approx(each)
    # Student's t with one degree of freedom: half of the gap x 12.706
    mean, half = sum(each) / 2, 12.706 * abs(each[0] - each[1]) / 2
    assert (stepped["difference"]["low"], stepped["difference"]["high"]) == pytest.approx((mean - half, mean + half))
    one = curriculum.run(given, tmp_path, lengths=[32, 64], scale=1, batch_tokens=300, probes=1, console=False)
    assert one["seeds"] == [3] and one["arms"][0]["by_seed"] == stepped["by_seed"][:1]
    text = summary(report)
    flat = " ".join(text.split())  # where lines are broken depends on how long the figures are
    assert all(
        words in flat for words in ("means over the seeds 3, 4", "stepped, against direct", "interval over seeds")
    )
    assert max(map(len, text.splitlines())) <= 110
    with pytest.raises(UserError, match="give each seed once"):
        curriculum.run(given, tmp_path, seeds=[3, 3], console=False)


def test_the_arms_begin_with_the_weights_before_the_stage_and_read_the_rows_of_earlier_stages_as_files(
    rows: Path, model_folder: Path
) -> None:
    first = {"kind": "sft", "context": 64, "steps": 1, "evaluate": False, "data": [{"path": str(rows)}]}
    traces = {"kind": "clean", "data": [{"path": str(rows)}]}
    given = recipe(rows, model_folder, "stage.sft.data=[{stage='clean', weight=2.0}]", "stages=['first','clean','sft']",
                   f"stage.first={json.dumps(first).replace(': ', '=').replace('false', 'false')}",
                   f"stage.clean={json.dumps(traces).replace(': ', '=')}")  # fmt: skip
    start = curriculum._start(given, "sft", Path("/runs/lengths"))
    own = curriculum.variant(given, "sft", curriculum.arms_of([32, 64])[0], [32, 64], start, 500, 2, 7)
    assert own.model.path == "/runs/lengths/first/model" and own.seed == 7 and own.stages == ("phase-1", "phase-2")
    phase = own.stage["phase-1"]
    assert isinstance(phase, SftStage) and phase.init == "base"
    assert [(source.path, source.weight) for source in phase.data] == [("/runs/lengths/clean/data.jsonl", 2.0)]


# ---- what is made of the numbers


MEASURED = {"points": [], "steps_up": [], "by_position": {}, "by_length": {}, "by_length_trained": {}, "spikes": 0,
            "final": None, **dict.fromkeys(MEANS, 1.0)}  # fmt: skip


def arm(name: str, *nats: float, count: int = 12) -> tuple[str, dict[str, Any]]:
    """`count` conversations whose loss is `nats` in turn."""
    return name, {**MEASURED, "conversations": {str(i): nats[i % len(nats)] for i in range(count)}}


def judged(*arms: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return judge([({"name": name}, [found]) for name, found in arms], 1)


def test_over_seeds_the_interval_is_students_t_of_the_seeds_own_differences() -> None:
    stepped = [arm("stepped", nats)[1] for nats in (1.0, 1.1, 1.2)]
    direct = [arm("direct", nats)[1] for nats in (1.1, 1.3, 1.5)]
    one, other = judge([({"name": "stepped"}, stepped), ({"name": "direct"}, direct)], 1)
    # differences -0.1, -0.2, -0.3: standard deviation 0.1, t(2) = 4.303
    half = 4.303 * 0.1 / 3**0.5
    assert one["differences"] == pytest.approx([-0.1, -0.2, -0.3])
    assert one["difference"] == pytest.approx(
        {"mean": -0.2, "low": -0.2 - half, "high": -0.2 + half, "n": 12, "seeds": 3})  # fmt: skip
    assert one["verdict"] == "no significant difference" and other["by_seed"] == pytest.approx([1.1, 1.3, 1.5])
    assert over_seeds([1.0] * 20)["high"] == 1.0
    # t with 19 degrees of freedom is 2.093; standard deviation of ten 0 and ten 1: sqrt(5 / 19)
    assert over_seeds([0.0, 1.0] * 10)["high"] == pytest.approx(0.5 + 2.093 * (5 / 19) ** 0.5 / 20**0.5, abs=2e-3)


def test_figures_of_several_seeds_are_means_and_a_point_without_a_measurement_has_none() -> None:
    points = [
        [{"phase": "phase-1", "tokens": 10 * s, "loss": 1.0 * s, "grad_norm": 2.0, "heldout": None}] for s in (1, 3)
    ]
    found = means([{**MEASURED, "points": p, "spikes": 2, "final": {"mean": m}, "by_length": {"8": m}}
                   for p, m in zip(points, (0.5, 1.0), strict=True)])  # fmt: skip
    assert found["points"] == [{"phase": "phase-1", "tokens": 20, "loss": 2.0, "grad_norm": 2.0, "heldout": None}]
    assert (found["spikes"], found["final"], found["by_length"]) == (4, {"mean": 0.75}, {"8": 0.75})


def test_arms_are_compared_conversation_by_conversation() -> None:
    better, same, direct = judged(arm("stepped", 1.0, 2.0), arm("jump", 1.5, 2.1), arm("direct", 1.1, 2.5))
    assert better["difference"]["mean"] == pytest.approx(-0.3) and better["verdict"] == "better"
    assert same["difference"]["mean"] == pytest.approx(0.0) and same["verdict"] == "no significant difference"
    assert direct["difference"] is None and direct["heldout_mean"]["mean"] == pytest.approx(1.8)
    (said, *_, spiked) = advice({"arms": [better, same, direct], "seeds": [1]})
    assert said.startswith("stepped against direct at equal tokens: better (-0.3000 nats a token on 12 conversations")
    assert spiked.endswith("stepped 0, jump 0, direct 0")
    few, _ = judged(arm("stepped", 1.0, count=3), arm("direct", 2.0, count=3))
    assert few["verdict"] == "too few conversations" and verdict(None) == ""


def test_a_spike_is_three_times_the_median_before_it() -> None:
    assert spikes([1, 1, 1, 9, 1, 2.9, 1]) == 1 and spikes([9, 1, 1, 1]) == 0
