"""`motet plan`: what fits where, and what to change where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.cli import cli
from motet.plan.report import plan_of, planner_of
from motet.plan.view import text

PAPER = Path(__file__).parent.parent / "recipes" / "motif-2-12.7b.toml"
GIB = 2**30


def test_the_papers_recipe_fits_on_one_node_of_eight_and_says_how() -> None:
    recipe = load(PAPER)
    plan = plan_of(recipe, planner_of(recipe))
    assert plan.sizes.parameters == pytest.approx(12.7e9, rel=0.02)
    assert plan.fits and {stage.work.name for stage in plan.stages if stage.need} >= {"rl"}
    long = next(stage for stage in plan.stages if stage.work.longest == 65536)
    assert long.need is not None and long.need.total <= plan.usable
    # float32 weights, AdamW and gradients over eight: 16 bytes a parameter
    state = long.need.forecast.state
    assert state.weights + state.optimizer + state.gradients == pytest.approx(16 * plan.sizes.parameters / 8, rel=1e-3)
    shown = text(plan)
    assert "fits" in shown and max(map(len, shown.splitlines())) <= 112


def test_two_nodes_hold_less_on_each_gpu_when_they_cut_the_state_further() -> None:
    recipe = load(PAPER)
    one = plan_of(recipe, planner_of(recipe), tables=False)
    two = plan_of(recipe, planner_of(recipe, nodes=2), tables=False)
    needs = [next(s.need for s in plan.stages if s.need is not None) for plan in (one, two)]
    assert needs[1].setup.shape.size == 16 and needs[0].setup.shape.size == 8


def test_a_recipe_that_does_not_fit_gets_the_smallest_change_that_does() -> None:
    result = CliRunner().invoke(cli, ["plan", str(PAPER), "model.recompute=none"])
    assert result.exit_code == 1
    assert "does NOT fit" in result.output and "smallest change: model.recompute =" in result.output


def test_nothing_helps_on_a_card_that_is_far_too_small() -> None:
    result = CliRunner().invoke(cli, ["plan", str(PAPER), "--memory", "6", "--json"])
    found = json.loads(result.output)
    trained = [stage for stage in found["stages"] if "total" in stage]
    assert result.exit_code == 1 and not found["fits"]
    assert all(stage["change"] is None and stage["spare"] < 0 for stage in trained)
    assert found["usable"] == pytest.approx(0.92 * 6 * GIB, rel=1e-6)


def test_a_model_that_is_not_here_and_has_no_sizes_is_refused_with_what_to_give(tmp_path: Path) -> None:
    recipe = load(PAPER)
    nameless = recipe.model_copy(update={"model": recipe.model.model_copy(update={"sizes": None})})
    with pytest.raises(UserError, match=r"give model\.sizes"):
        planner_of(nameless)


def test_a_mesh_that_does_not_fit_the_machine_is_refused() -> None:
    recipe = load(PAPER, ["mesh.sp=3"])
    message = r"1 x 8 GPUs of the learner.*--gpus.*: mesh: .*its product is 6 and 8 .*The nearest that fits: dp_replicate = 1, dp_shard = 2, sp = 4"
    with pytest.raises(UserError, match=message):
        plan_of(recipe, planner_of(recipe))


def test_a_probe_on_a_cpu_is_near_its_prediction_and_corrects_the_plan() -> None:
    quick = PAPER.parent / "quickstart.toml"
    result = CliRunner().invoke(cli, ["plan", str(quick), "model.device=cpu", "--probe", "--memory", "8"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "probe of" in line]
    assert lines and all("predicted" in line and "measured" in line for line in lines)
    errors = [abs(float(line.rpartition("(")[2].split(" %")[0])) for line in lines]
    assert max(errors) < 15.0
