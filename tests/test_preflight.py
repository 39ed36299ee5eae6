"""What would stop a run is said before anything is started."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import micro
from motet import pipeline, preflight
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.cli import cli
from motet.train.world import World

RECIPE = """
extends = "stable"
name = "faults"
stages = ["base", "sft", "rl"]
model.path = "./no-model"
[engine]
kind = "scripted"
script = "replies.jsonl"
[problems.typed]
path = "{folder}/problem.jsonl"
domain = "math"
verifier = "maths"
[problems.elsewhere]
path = "{folder}/problem.jsonl"
domain = "math"
verifier = "math"
[problems.unknown]
task = "additon"
count = 10
[problems.unused]
path = "not-looked-for.jsonl"
domain = "math"
verifier = "math"
[evaluation]
sets = [{{ problems = "unknown" }}, {{ suite = "math50" }}]
[stage.base]
kind = "evaluate"
[stage.sft]
kind = "sft"
data = [{{ path = "{folder}/missing/rows.jsonl" }}, {{ problems = "typed" }}]
[stage.rl]
kind = "rl"
problems = [{{ problems = "elsewhere" }}]
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    (tmp_path / "problems.jsonl").write_text("")
    path = tmp_path / "faults.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_all_that_is_missing_is_named_at_once_with_its_key(faulty: Path) -> None:
    recipe = load(faulty)
    lines = preflight.missing(recipe, recipe.stages)
    assert sorted(line.split(": ")[0] for line in lines) == [
        "engine.script", "evaluation.sets[1].suite", "model.path", "problems.elsewhere", "problems.typed.verifier",
        "problems.unknown.task", "stage.sft.data[0].path",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert "did you mean 'math500'" in text and "did you mean 'addition'" in text and "did you mean 'math'" in text
    assert "holds faults.toml, problems.jsonl" in text and "there is no folder" in text
    assert "not-looked-for" not in text


def test_a_run_with_something_missing_makes_no_folder_and_says_how_many(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"7 of what the recipe names cannot be used; nothing was started"):
        pipeline.run(load(faulty), tmp_path / "run", console=False)
    assert not (tmp_path / "run").exists()


def test_only_the_stages_that_are_to_do_are_looked_at(faulty: Path) -> None:
    recipe = load(faulty, ["stage.rl.evaluate=false", "engine={}", "model={tiny={}}"])
    assert [line.split(": ")[0] for line in preflight.missing(recipe, ["rl"])] == ["problems.elsewhere"]
    assert preflight.missing(recipe, []) == []


def test_a_python_that_is_none_is_named_before_a_server_would_start_with_it(faulty: Path) -> None:
    recipe = load(faulty, ["model={tiny={}}", "engine={kind='vllm',python='no/python'}"])
    lines = preflight.missing(recipe, [])
    assert lines == []  # nothing is to do, so nothing is started
    (line,) = [line for line in preflight.missing(recipe, ["base"]) if "python" in line]
    assert line.startswith("engine.python: 'no/python' is no program")


def test_adapters_without_their_package_are_told_before_the_first_stage(
    micro_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = micro.recipe(micro_recipe, "stage.sft.lora.rank=4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = preflight.missing(recipe, ["sft"])
    assert line.startswith("stage.sft.lora: adapters need the package peft: python3 tools/install.py --extras lora")
    assert preflight.missing(recipe, ["base"]) == []


def test_a_dry_run_tells_it_and_ends_well(faulty: Path) -> None:
    done = CliRunner().invoke(cli, ["run", str(faulty), "--dry-run"])
    assert done.exit_code == 0 and "not here, and a run would stop at once:" in done.output
    assert "problems.unknown.task" in done.output


def test_a_mesh_that_does_not_fit_is_refused_before_the_first_stage(micro_recipe: Path, tmp_path: Path) -> None:
    recipe = micro.recipe(micro_recipe, "mesh.sp=3")
    with pytest.raises(UserError, match=r"mesh: .* does not fit"):
        pipeline.run(recipe, tmp_path / "run", console=False)
    assert not (tmp_path / "run" / "base").exists()


def test_a_sound_recipe_lacks_nothing(micro_recipe: Path) -> None:
    recipe = micro.recipe(micro_recipe)
    assert preflight.missing(recipe, recipe.stages) == []
    preflight.refuse_mesh(recipe, World())


LONG = """
stages = ["first", "second", "rl"]
evaluation.sampling.max_tokens = 64
{model}
[problems.sums]
task = "addition"
count = 10
[stage.first]
kind = "sft"
data = [{{ problems = "sums" }}]
context = 96
[stage.second]
kind = "sft"
data = [{{ problems = "sums" }}]
context = 192
rope = {{ kind = "linear", positions = 256 }}
[stage.rl]
kind = "rl"
problems = [{{ problems = "sums" }}]
sampling = {{ max_tokens = 257 }}
"""


@pytest.mark.parametrize("given", ["a tiny model", "a folder"])
def test_a_context_beyond_the_positions_is_said_before_anything_is_trained(
    tmp_path: Path, model_folder: Path, given: str
) -> None:
    """96 positions; the second stage stretches them to 256, which the third starts from."""
    model = "[model.tiny]\ncontext = 96" if given == "a tiny model" else f'[model]\npath = "{model_folder}"'
    (tmp_path / "long.toml").write_text(LONG.format(model=model))
    recipe = load(tmp_path / "long.toml")
    told = "stage.{} = {}, and the model has {} positions. Shorten it, or add under [stage.{}]: rope = "
    (line,) = preflight.missing(recipe, recipe.stages)
    assert line.startswith(told.format("rl.sampling.max_tokens", 257, 256, "rl"))
    short = load(tmp_path / "long.toml", ["stage.first.context=97", "stage.rl.sampling.max_tokens=256"])
    (line,) = preflight.missing(short, short.stages)
    assert line.startswith(told.format("first.context", 97, 96, "first"))
    assert preflight.missing(short, ["second", "rl"]) == []
    from_first = load(tmp_path / "long.toml", ["stage.rl.init='first'"])
    (line,) = preflight.missing(from_first, ["rl"])
    assert line.startswith(told.format("rl.sampling.max_tokens", 257, 96, "rl"))
    unsaid = load(tmp_path / "long.toml", ["stages=['rl']", "stage.rl.sampling.max_tokens=96"])
    assert preflight.missing(unsaid, ["rl"]) == []


def test_completions_beyond_the_positions_of_what_samples_them_are_said_before_anything_is_trained(
    micro_recipe: Path,
) -> None:
    """64 positions, of the base model and of all that is made from it; a rope of sft's stretches those after it."""
    told = "stage.filter.sampling.max_tokens = 65, and the model that stage.filter samples from has 64 positions."
    (line,) = preflight.missing(micro.recipe(micro_recipe, "stage.filter.sampling.max_tokens=65"), ["filter"])
    assert line.startswith(told)
    evaluated = micro.recipe(micro_recipe, "evaluation.sampling.max_tokens=65")
    (line,) = preflight.missing(evaluated, evaluated.stages)
    assert line.startswith("evaluation.sampling.max_tokens = 65, and the model that stage.base samples from has 64")
    (line,) = preflight.missing(micro.recipe(micro_recipe, "stage.synthesize.sampling.max_tokens=65"), ["synthesize"])
    assert line.startswith("stage.synthesize.sampling.max_tokens = 65")
    teacher = "stage.synthesize.teacher={kind='endpoint',url='http://host/v1',model='big'}"
    asked = micro.recipe(micro_recipe, "stage.synthesize.sampling.max_tokens=65", teacher)
    assert preflight.missing(asked, ["synthesize"]) == []
    stretched = micro.recipe(micro_recipe, "evaluation.sampling.max_tokens=65", "stage.sft.rope={positions=128}")
    assert preflight.missing(stretched, ["sft", "filter"]) == []


def test_a_reply_may_not_be_waited_for_longer_than_the_other_processes_wait_for_a_sign_of_life(faulty: Path) -> None:
    slow = "engine={kind='vllm', urls=['http://host:8000'], timeout_seconds=4000.0}"
    recipe = load(faulty, [slow])
    preflight.refuse_silence(recipe, recipe.stages, World())
    with pytest.raises(UserError, match=r"engine\.timeout_seconds = 4000: .*3600\); set mesh\.silence_seconds"):
        preflight.refuse_silence(recipe, recipe.stages, World(0, 2))
    longer = load(faulty, [slow, "mesh.silence_seconds=5000"])
    preflight.refuse_silence(longer, recipe.stages, World(0, 2))
