"""`motet plan`: what fits where, and what to change where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import LlamaConfig

from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.cli import cli
from motet.plan.report import StagePlan, plan_of, planner_of
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


def test_the_tables_in_the_docs_are_what_the_command_prints() -> None:
    recipe = load(PAPER)
    blocks = (PAPER.parent.parent / "docs" / "scale.md").read_text(encoding="utf-8").split("```")[1::2]
    assert len(blocks) == 2
    for nodes, block in enumerate(blocks, 1):
        printed = text(plan_of(recipe, planner_of(recipe, nodes=nodes))).split("\n\n")
        for part in block.strip().split("\n\n"):
            assert part in printed


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
    message = (
        r"1 x 8 GPUs of the learner.*--gpus.*: mesh: .*its product is 6 and 8 .*"
        "The nearest that fits: dp_replicate = 1, dp_shard = 2, sp = 4"
    )
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


# ---- who samples

SAMPLED = """
extends = "stable"
stages = ["sft", "filter", "rl"]
[model]
path = "nowhere/4b"
dtype = "bfloat16"
device = "cuda"
recompute = "offload"
[model.sizes]
hidden = 2560
layers = 36
heads = 32
key_heads = 8
head = 128
mlp = 9728
vocabulary = 151936
tied = true
[machine]
memory_gib = 79.2
[engine]
kind = "vllm"
sleep = 1
[problems.math]
path = "a/b"
verifier = "math"
domain = "math"
[stage.sft]
kind = "sft"
data = [{ path = "a/b" }]
[stage.filter]
kind = "filter"
problems = [{ problems = "math" }]
[stage.rl]
kind = "rl"
problems = [{ stage = "filter" }]
"""


def stages_of(folder: Path, *overrides: str) -> dict[str, StagePlan]:
    (folder / "sampled.toml").write_text(SAMPLED)
    recipe = load(folder / "sampled.toml", list(overrides))
    plan = plan_of(recipe, planner_of(recipe), tables=False)
    assert max(map(len, text(plan).splitlines())) <= 120
    return {stage.work.name: stage for stage in plan.stages}


def test_an_engine_that_wakes_beside_the_learners_state_has_to_fit_there(tmp_path: Path) -> None:
    """4.02 B parameters: float32 weights and AdamW's two moments are 12 bytes each, 48.3 GB = 45.0 GiB. Of 79.2 GiB,
    92 % are 72.9: 27.9 are left for the engine, 0.352 of the memory."""
    rl = stages_of(tmp_path, "engine.memory_share=0.36")["rl"]
    assert rl.need is not None and rl.need.sampling is not None
    assert rl.need.total <= rl.need.usable  # a step alone would do
    assert rl.need.sampling.learner == pytest.approx(12 * 4.022e9, rel=1e-3)
    assert rl.need.sampling.total == pytest.approx(rl.need.sampling.learner + 0.36 * 79.2 * GIB, rel=1e-6)
    assert not rl.fits and rl.change == "engine.memory_share = 0.27"
    assert stages_of(tmp_path, "engine.memory_share=0.35")["rl"].fits


def test_moments_may_make_room_for_an_engine(tmp_path: Path) -> None:
    """8 bytes a parameter are 30.0 GiB of the learner's 45.0; the host has to hold them."""
    rl = stages_of(tmp_path, "engine.memory_share=0.36", "stage.rl.optimizer.offload=on")["rl"]
    assert rl.fits and rl.need is not None and rl.need.sampling is not None
    assert rl.need.sampling.learner == pytest.approx(4 * 4.022e9, rel=1e-3)
    stays = stages_of(tmp_path, "engine.memory_share=0.36")["rl"].need
    assert stays is not None
    assert rl.need.host.offloaded - stays.host.offloaded == pytest.approx(8 * 4.022e9, rel=1e-3)


def test_an_engine_that_shares_the_gpu_all_along_is_told_to_sleep(tmp_path: Path) -> None:
    rl = stages_of(tmp_path, "engine.memory_share=0.3", "engine.sleep=0")["rl"]
    assert not rl.fits and rl.change == "engine.sleep = 2"


def test_a_share_that_does_not_hold_the_engines_weights_does_not_fit_however_much_is_free(tmp_path: Path) -> None:
    """Weights of 8.04 GB = 7.49 GiB; a token's keys and values 36 x 2 x 8 x 128 x 2 bytes = 147,456, of 1,280 tokens
    0.18 GiB."""
    found = stages_of(tmp_path, "engine.memory_share=0.08")
    assert found["filter"].alone is not None
    assert found["filter"].alone.engine.least == pytest.approx(7.667 * GIB, rel=1e-3)
    assert not any(stage.fits for stage in found.values())  # that of sft does not hold its evaluation
    assert {stage.change for stage in found.values()} == {"engine.memory_share = 0.1"}


def test_a_stage_that_only_samples_fits_or_says_how_many_completions_side_by_side_do(tmp_path: Path) -> None:
    """1,024 completions of 32K + 1K tokens: 147,456 bytes x 33,792 = 4.64 GiB each; (72.9 - 7.5) / 4.64 = 14."""
    own = ("engine.kind='transformers'", "engine.sleep=0", "engine.batch_size=1024")
    stage = stages_of(tmp_path, *own, "stage.filter.sampling.max_tokens=32768")["filter"]
    assert not stage.fits and stage.change == "engine.batch_size = 8"
    assert stage.alone is not None and stage.alone.total > 4000 * GIB


def test_host_memory_that_a_checkpoint_does_not_find_is_no_fit(tmp_path: Path) -> None:
    """A checkpoint's copy is 44.95 GiB, offloaded inputs 36 x 16,384 x 2,560 x 2 bytes = 2.81, a sleeping engine's
    weights 7.49: together 55.26."""
    enough, short = (stages_of(tmp_path, f"machine.host_gib={gib}", "engine.memory_share=0.3") for gib in (56, 55))
    assert enough["rl"].fits and short["sft"].fits and not short["rl"].fits
    assert short["rl"].need is not None and -short["rl"].need.host_spare == pytest.approx(0.26 * GIB, rel=0.05)


def test_blocks_are_hosted_in_half_of_what_a_checkpoint_leaves(tmp_path: Path) -> None:
    """A block keeps 69,760 bytes a token, 4.26 GiB of 65,536; a checkpoint's copy is 44.95 GiB, and 6 are left alone:
    half of the rest of 60 GiB holds one block, of 59 none."""
    own = ("model.recompute=auto", "machine.memory_gib=140", "stage.sft.context=65536")
    one, none = (stages_of(tmp_path, f"machine.host_gib={gib}", *own)["sft"].need for gib in (60, 59))
    assert one is not None and none is not None
    assert one.policies["hosted"] == 1 and "hosted" not in none.policies


# ---- teachers and judges of their own

TRACES = """
[stage.traces]
kind = "synthesize"
problems = [{ problems = "math" }]
sampling = { max_tokens = 7168 }
"""


def traces_of(folder: Path, *overrides: str) -> tuple[list[StagePlan], str]:
    """The rows of a synthesize stage beside a student of 4.02 B parameters, and the page."""
    (folder / "traces.toml").write_text(SAMPLED + TRACES)
    recipe = load(folder / "traces.toml", ["stages=['traces','sft']", *overrides])
    plan = plan_of(recipe, planner_of(recipe), tables=False)
    return [stage for stage in plan.stages if stage.work.name == "traces"], text(plan)


def small_teacher(folder: Path) -> Path:
    """Width 64, 2 blocks, 4 heads of 16 of which 2 are keys', MLP 128, 1,000 tokens, tied."""
    LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=1000, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_local_teacher_is_planned_with_its_own_sizes(tmp_path: Path) -> None:
    """A block: 64 x (64 + 32 + 32 + 64 + 3 x 128) and two norms are 36,992; twice, with 64,000 of the embedding and 64
    of the last norm, 138,048 parameters of 2 bytes. A token's keys and values: 2 x 2 x 2 x 16 x 2 = 256 bytes, of 4
    completions of 7,168 + 1,024 tokens 8,388,608."""
    teacher = f"stage.traces.teacher={{kind='transformers',model='{small_teacher(tmp_path / 'small')}',batch_size=4}}"
    (traces,), page = traces_of(tmp_path, teacher)
    assert traces.engine.size == 2 * 138_048 + 8_388_608
    assert traces.alone is not None and traces.alone.total == traces.engine.size and traces.fits
    assert "traces (synthesize): trains nothing; teacher 0.0081 GiB" in page


def test_of_a_teacher_whose_configuration_is_not_here_the_plan_says_that_it_cannot_tell(tmp_path: Path) -> None:
    (traces,), page = traces_of(tmp_path, "stage.traces.teacher={kind='transformers',model='nowhere/70b'}")
    assert traces.engine.size == 0 and "nowhere/70b" in traces.engine.unknown
    assert "whether it fits cannot be told: nowhere/70b" in page
    (traces,), page = traces_of(tmp_path, "stage.traces.teacher={kind='vllm',model='nowhere/70b',memory_share=0.5}")
    assert traces.engine.size == int(0.5 * int(79.2 * GIB)) and "cannot be told: nowhere/70b" in page


def test_each_of_several_teachers_and_a_local_judge_has_a_row_of_its_own(tmp_path: Path) -> None:
    small = small_teacher(tmp_path / "small")
    teachers = f"stage.traces.teachers={{small={{kind='vllm',model='{small}'}},own={{kind='transformers'}}}}"
    judge = f"stage.traces.rules.judge={{kind='vllm',model='{small}'}}"
    rows, page = traces_of(tmp_path, teachers, judge)
    assert [row.work.engine_key for row in rows] == [
        "stage.traces.teachers.small", "stage.traces.teachers.own", "stage.traces.rules.judge",
    ]  # fmt: skip
    assert rows[1].engine.size > 8e9 and rows[0].engine.least < 1e7  # the student itself is one of them
    assert "trains nothing; teachers.small" in page and "trains nothing; rules.judge" in page
