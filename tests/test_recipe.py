from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from motet.base.errors import UserError
from motet.base.load_recipe import check, describe, load
from motet.base.recipe import FilterStage, Recipe, RlStage, SftStage

RECIPE = """
name = "r"
stages = ["sft", "filter", "rl"]
[model.tiny]
hidden = 32
heads = 2
[problems.sums]
task = "addition"
count = 10
[stage.sft]
kind = "sft"
data = [{ problems = "sums" }]
[stage.filter]
kind = "filter"
problems = [{ problems = "sums" }]
[stage.rl]
kind = "rl"
problems = [{ stage = "filter" }]
"""
ROOT = Path(__file__).parent.parent


def loaded(folder: Path, text: str = RECIPE, *overrides: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return load(path, list(overrides))


def trouble(folder: Path, *overrides: str, text: str = RECIPE) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, text, *overrides)
    return str(caught.value)


def rl_of(recipe: Recipe) -> RlStage:
    stage = recipe.stage["rl"]
    assert isinstance(stage, RlStage)
    return stage


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.sft.optimizer.momentum=0.9", 'momentum = 0.9 is Muon\'s, and nothing reads it with kind = "adamw"'),
        (
            "stage.sft.optimizer={kind='muon',offload='on'}",
            'offload = "on" is for AdamW\'s moments, this is kind = "muon"',
        ),
        ("stage.sft.optimizer={schedule='constant',final_ratio=0.0}", "final_ratio = 0 is where a cosine ends"),
        ("model={tiny={},recompute='offload',compile='on'}", 'compile = "on" has no effect with recompute = "offload"'),
        ("stage.filter.optimizer={}", "stage.filter.optimizer: unknown key"),
        ("stage.filter.checkpoint_every=5", "stage.filter.checkpoint_every: unknown key"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in trouble(tmp_path, override)


def test_a_head_of_sft_is_refused_in_a_recipe_without_an_sft_stage(tmp_path: Path) -> None:
    head = "model={tiny={},head='liger'}"
    assert loaded(tmp_path, RECIPE, head, "stages=['rl']", "stage.rl.problems=[{problems='sums'}]").stages == ("rl",)
    alone = (
        RECIPE[: RECIPE.index("stages")]
        + """
stages = ["rl"]
model = { tiny = {}, head = "liger" }
[problems.sums]
task = "addition"
count = 10
[stage.rl]
kind = "rl"
problems = [{ problems = "sums" }]
"""
    )
    assert 'model.head = "liger" is a head of sft stages, and the recipe has none' in trouble(tmp_path, text=alone)


def test_settings_of_muon_and_of_a_cosine_are_read_there(tmp_path: Path) -> None:
    found = loaded(tmp_path, RECIPE, "stage.sft.optimizer={kind='muon',momentum=0.9,final_ratio=0.0}").stage["sft"]
    assert isinstance(found, SftStage) and (found.optimizer.momentum, found.optimizer.final_ratio) == (0.9, 0.0)


@pytest.mark.parametrize("name", ["quickstart", "smollm2", "smollm2-gpu"])
def test_the_recipes_that_come_with_motet_are_valid(name: str) -> None:
    assert load(ROOT / "recipes" / f"{name}.toml").name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", "sead: unknown key; did you mean 'seed'?"),
        ("model.tiny.widht=3", "model.tiny.widht: unknown key; known are"),
        ("model.dtyp='float32'", "model.dtyp: unknown key; did you mean 'dtype'?"),
        ("chat.thinks=1", "chat.thinks: unknown key; did you mean 'think'?"),
        ("engine.batch=1", "engine.batch: unknown key; did you mean 'batch_size'?"),
        ("verification.worker=1", "verification.worker: unknown key; did you mean 'workers'?"),
        ("problems.sums.cuont=1", "problems.sums.cuont: unknown key; did you mean 'count'?"),
        ("evaluation.sample=1", "evaluation.sample: unknown key; did you mean 'samples'?"),
        ("evaluation.sampling.top_k=1", "evaluation.sampling.top_k: unknown key; did you mean 'top_p'?"),
        ("evaluation.sets=[{suit='x'}]", "evaluation.sets.0.suit: unknown key; did you mean 'suite'?"),
        ("stage.sft.step=1", "stage.sft.step: unknown key; did you mean 'steps'?"),
        ("stage.sft.optimizer.lr=1", "stage.sft.optimizer.lr: unknown key; known are"),
        ("stage.sft.data=[{problem='sums'}]", "stage.sft.data.0.problem: unknown key; did you mean 'problems'?"),
        ("stage.filter.bands.math.gamma=1", "stage.filter.bands.math.gamma: unknown key; known are 'alpha', 'beta'"),
        ("stage.filter.problems=[{wieght=1}]", "stage.filter.problems.0.wieght: unknown key; did you mean 'weight'?"),
        ("stage.rl.rewards.corect=1", "stage.rl.rewards.corect: unknown key; did you mean 'correct'?"),
        ("stage.rl.algorithm.clip=1", "stage.rl.algorithm.clip: unknown key; did you mean 'clip_low'?"),
        ("stage.s.kind='synthesize' stage.s.problems=[{problems='sums'}] stage.s.rules.dedup=1",
         "stage.s.rules.dedup: unknown key; did you mean 'deduplicate'?"),
        ("stage.s.kind='synthesize' stage.s.problems=[{problems='sums'}] stage.s.teacher.ulr=1",
         "stage.s.teacher.ulr: unknown key; did you mean 'url'?"),
        ("stage.e.kind='evaluate' stage.e.steps=1", "stage.e.steps: unknown key; known are"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_path_and_the_nearest_one(tmp_path: Path, override: str, message: str) -> None:
    assert message in trouble(tmp_path, *override.split(" "))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=one", 'seed: Input should be a valid integer, unable to parse string as an integer, got "one"'),
        ("threads=0", "threads: Input should be greater than 0, got 0"),
        ("stages=[]", "stages: Tuple should have at least 1 item"),
        ("model.dtype=int8", "model.dtype: Input should be 'float32' or 'bfloat16', got \"int8\""),
        ("chat.open_think=maybe", "chat.open_think: Input should be a valid boolean"),
        ("problems.sums.heldout=1.5", "problems.sums.heldout: Input should be less than or equal to 1, got 1.5"),
        ("stage.sft.optimizer.betas=[0.9]", "stage.sft.optimizer.betas.1: Field required"),
        ("stage.sft.kind=sfd", "stage.sft: there is no kind 'sfd'; did you mean 'sft'?"),
        ("stage.x.steps=3", "stage.x: kind is missing (sft, synthesize, clean, filter, rl, evaluate); or is the name"),
        ("extends=paper", "override 'extends=paper': extends belongs in"),
        ("stage.rl.clip_high=0.4", "stage.rl.clip_high: unknown key; there is stage.rl.algorithm.clip_high"),
        ("stage.rl.group_size=1", "stage.rl.group_size: Input should be greater than or equal to 2, got 1"),
        ("stage=3", "stage: Input should be a valid dictionary, got 3"),
        ("stage.sft=3", "stage.sft: Input should be a valid dictionary"),
        ("defaults=3", "defaults: tables [defaults.KIND] were expected, got 3"),
        ("defaults.slf.steps=3", "[defaults.slf] names no kind of stage: sft, synthesize"),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_what_was_given(tmp_path: Path, override: str, message: str) -> None:
    assert message in trouble(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=x", "model: give exactly one of path (a checkpoint) and tiny (a random model)"),
        ("model.tiny.hidden=30", "model.tiny: hidden (30) must be a multiple of 2 x heads (4)"),
        ("chat.think=off chat.open_think=true", 'chat: open_think = true needs think = "required"'),
        ("engine.kind=endpoint", 'engine: an "endpoint" engine needs url and model'),
        ("engine.kind=endpoint engine.url=http://x/v1 engine.model=m",
         "an endpoint cannot sample from the weights that stage.sft makes"),
        ("engine.kind=scripted", 'engine: a "scripted" engine needs script'),
        ("engine.model=m", "engine.model: the model in training is sampled from"),
        ("problems.sums.path=x", "problems.sums: give exactly one of task (a built-in set) and path"),
        ("stage.filter.problems=[{}]", "stage.filter.problems.0: give exactly one of problems (a problem set) and"),
        ("stage.sft.data=[{problems='sums',path='x'}]", "stage.sft.data.0: give exactly one of problems, stage and"),
        ("stage.filter.band.alpha=0.9", "stage.filter.band: alpha (0.9) must not exceed beta (0.8)"),
        ("stage.rl.sampling.top_p=0.9", "stage.rl: sampling.top_p = 0.9 is refused in RL"),
        ("stage.rl.rewards.correct=nan", "stage.rl.rewards.correct: Input should be a finite number, got NaN"),
        ("stage.rl.optimizer.learning_rate=inf", "stage.rl.optimizer.learning_rate: Input should be a finite number"),
        ("stage.rl.sampling.min_p=0.1", "stage.rl.sampling.min_p: unknown key; known are"),
        ("stage.rl.probe=8", "stage.rl: probe = 8 has no effect without probe_every: set it, or leave probe out"),
        ("stage.rl.return_after=8", "stage.rl: return_after = 8 has no effect without retire_at"),
        ("stage.rl.sampling.temperature=0", "stage.rl: sampling.temperature = 0 is refused in RL"),
        ("stage.rl.prompts_per_step=6", "stage.rl: prompts_per_step (6) must be a multiple of algorithm.minib"),
        ("evaluation.sets=[{suite='a'},{suite='a'}]", "evaluation: sets[1]: 'a' is named twice"),
        ("evaluation.sets=[{}]", "evaluation.sets.0: give exactly one of problems"),
        ("evaluation.sets=[{problems='sum'}]", "evaluation.sets[0].problems: there is no 'sum'; did you mean 'sums'?"),
        ("evaluation.sets=[{problems='sums'}] problems.sums.heldout=0",
         "evaluation.sets[0]: problems.sums.heldout = 0 leaves it nothing to measure"),
        ("stages=['sft','rll']", "stages[1]: there is no 'rll'; did you mean 'rl'?"),
        ("stages=['sft','sft']", "stages[1]: 'sft' is named twice"),
        ("stages=['rl','filter']", "stage.rl.problems[0].stage: there is no 'filter'; it must be a filter stage that"),
        ("stage.rl.problems=[{stage='sft'}]", "stage.rl.problems[0].stage: there is no 'sft'; known are 'filter'"),
        ("stage.sft.data=[{stage='x'}]", "stage.sft.data[0].stage: there is no 'x'; it must be a synthesize or clean"),
        ("stage.sft.data=[{problems='sum'}]", "stage.sft.data[0].problems: there is no 'sum'; did you mean 'sums'?"),
        ("stage.rl.init=filter", "stage.rl.init: there is no 'filter'; known are 'sft'; it must be \"previous\", "),
        ("name=../x", "name: '../x' cannot name a folder"),
        ("stage.a/b.kind=evaluate", "stage: 'a/b' cannot name a folder"),
        ("stage.base-model.kind=evaluate", "stage: the name 'base-model' stands for other weights already"),
        ("problems.a/b.task=addition", "problems: 'a/b' cannot name a folder"),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_is_refused_with_its_path_and_the_reason(
    tmp_path: Path, override: str, message: str
) -> None:
    assert message in trouble(tmp_path, *override.split(" "))


def test_all_troubles_are_told_at_once(tmp_path: Path) -> None:
    message = trouble(tmp_path, "sead=1", "threads=0", "stage.rl.steps=0")
    assert message.startswith(f"{tmp_path / 'recipe.toml'}: 3 problem(s) in the recipe\n  ")
    assert len(message.splitlines()) == 4


def test_overrides_are_toml_values_and_a_bare_word_is_a_string(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path, RECIPE, "name=other", "seed=7", "stage.rl.optimizer.learning_rate=1e-4", 'stages=["sft"]',
        "stage.sft.evaluate=false", "stage.filter.band={alpha = 0.4, beta = 0.6}", "chat.system=Add = sum.",
    )  # fmt: skip
    assert (recipe.name, recipe.seed, recipe.stages) == ("other", 7, ("sft",))
    assert rl_of(recipe).optimizer.learning_rate == 1e-4
    filtering = recipe.stage["filter"]
    assert isinstance(filtering, FilterStage) and (filtering.band.alpha, filtering.band.beta) == (0.4, 0.6)
    assert recipe.stage["sft"].evaluate is False and recipe.chat.system == "Add = sum."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': write it as a.b=value"),
        ("=3", "override '=3': write it as a.b=value"),
        ("seed.x=3", "override 'seed.x=3': 'seed' is a value, not a table"),
    ],
)
def test_an_override_of_another_shape_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert trouble(tmp_path, override, text="seed = 1" + RECIPE) == message


def test_a_recipe_goes_over_its_parents_and_a_later_parent_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(RECIPE.replace('name = "r"', 'name = "first"\nseed = 5'))
    (tmp_path / "second.toml").write_text("seed = 6\n[stage.rl]\nsteps = 11\n[stage.rl.algorithm]\npasses = 3")
    recipe = loaded(tmp_path, 'extends = ["first.toml", "second.toml"]\n[stage.rl.algorithm]\nminibatches = 2')
    assert (recipe.name, recipe.seed) == ("first", 6)
    stage = rl_of(recipe)
    assert (stage.steps, stage.algorithm.passes, stage.algorithm.minibatches) == (11, 3, 2)


def test_presets_set_defaults_of_a_kind_and_a_stage_goes_over_them(tmp_path: Path) -> None:
    paper = loaded(tmp_path, 'extends = "paper"' + RECIPE)
    given = {"advantage": "group", "advantage_std": "population", "objective": "clip", "aggregation": "tokens",
             "clip_low": 0.2, "clip_high": 0.4, "passes": 4, "minibatches": 1, "kl": 0.0}  # fmt: skip
    assert given.items() <= rl_of(paper).algorithm.model_dump().items()
    filtering = paper.stage["filter"]
    assert isinstance(filtering, FilterStage) and filtering.n == 5 and filtering.bands["instruction"].beta == 0.4
    stable = loaded(tmp_path, 'extends = "stable"' + RECIPE, "stage.rl.algorithm.minibatches=2")
    assert (rl_of(stable).algorithm.passes, rl_of(stable).algorithm.minibatches) == (1, 2)
    assert (rl_of(stable).algorithm.clip_high, rl_of(stable).algorithm.advantage) == (0.28, "domain")


def test_defaults_of_a_kind_hold_for_every_stage_of_that_kind_alone(tmp_path: Path) -> None:
    more = (
        '[stage.more]\nkind = "sft"\nsteps = 9\ndata = [{ problems = "sums" }]\n[defaults.sft]\nsteps = 4\ncontext = 8'
    )
    recipe = loaded(tmp_path, RECIPE + more, "defaults.sft.batch_size=2")
    first, second = recipe.stage["sft"], recipe.stage["more"]
    assert isinstance(first, SftStage) and isinstance(second, SftStage)
    assert (first.steps, first.context, first.batch_size) == (4, 8, 2)
    assert (second.steps, second.context) == (9, 8)
    assert rl_of(recipe).steps == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "recipe.toml"', "extends itself through recipe.toml"),
        ('extends = "back.toml"', "extends itself through recipe.toml -> back.toml"),
        ('extends = "papr"', "no such preset; did you mean 'paper'?"),
        ('extends = "gone.toml"', "gone.toml: cannot be read (No such file or directory)"),
        ("extends = 3", "extends = 3: give the name of a preset"),
        ("x = ", "recipe.toml: not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_put_together_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "back.toml").write_text('extends = "recipe.toml"')
    assert message in trouble(tmp_path, text=text)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UserError, match="not valid TOML"):
        load(tmp_path / "r.toml")


def test_the_stages_need_a_table_and_the_model_a_source() -> None:
    with pytest.raises(UserError, match=r"tree: 3 problem\(s\).*\n  stages: Field required\n  model: Field required"):
        check({}, "tree")
    tree: dict[str, Any] = {"stages": ["e"], "model": {}, "stage": {"e": {"kind": "evaluate"}}}
    with pytest.raises(UserError, match="model: give exactly one of path"):
        check(tree, "tree")


def test_explain_says_what_a_key_means_and_what_it_defaults_to() -> None:
    assert describe("clip_high") == (
        "stage.rl.algorithm.clip_high  default 0.28\n"
        "    The ratio to the anchor is clipped at 1 + clip_high when the advantage is positive (paper: 0.28 to 0.40)."
    )
    assert describe("stage.sft.context").startswith("stage.sft.context  default 16384\n    Longest conversation")
    assert describe("model.tiny.heads").startswith("model.tiny.heads  default 4\n")
    assert "stage.sft.data  required" not in describe("context") and "stage.sft.data" in describe("stage.sft")
    assert "problems.NAME.heldout  default 0.1" in describe("heldout")
    assert describe("extends").startswith("extends\n") and describe("defaults").startswith("defaults.KIND\n")


def test_every_key_has_an_explanation() -> None:
    for key in ("model", "chat", "engine", "verification", "problems", "evaluation", "stage", "seed", "threads"):
        lines = describe(key).splitlines()
        assert lines and all(text.strip() for text in lines[1::2]), key


def test_explain_names_the_nearest_key_for_an_unknown_one() -> None:
    with pytest.raises(UserError, match="no key 'clip_hihg'; did you mean 'clip_high'"):
        describe("clip_hihg")


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("stage.warm-up.prompts_per_step", "stage.rl.prompts_per_step"),
        ("problems.school.path", "problems.NAME.path"),
        ("problems.path", "problems.NAME.path"),
        ("problems.school", "problems.NAME.task"),
    ],
)
def test_a_key_with_the_users_own_name_in_it_is_explained(key: str, first: str) -> None:
    assert describe(key).startswith(first)
