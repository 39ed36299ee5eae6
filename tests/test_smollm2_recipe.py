"""The real-input recipes: they load, and the longer one only changes sizes."""

from pathlib import Path

import pytest

from motet.base.load_recipe import load
from motet.base.recipe import ProblemSet, RlStage, SftStage

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("name", ["smollm2", "smollm2-gpu"])
def test_the_recipe_goes_through_all_six_stages_with_growing_context(name: str) -> None:
    recipe = load(RECIPES / f"{name}.toml")
    assert recipe.name == name
    assert [recipe.stage[s].kind for s in recipe.stages] == ["evaluate", "sft", "synthesize", "sft", "filter", "rl"]
    first, second, rl = (recipe.stage[s] for s in ("sft-1", "sft-2", "rl"))
    assert isinstance(first, SftStage) and isinstance(second, SftStage) and isinstance(rl, RlStage)
    assert first.context < second.context <= second.micro_batch_tokens
    assert rl.group_size >= 8 and rl.algorithm.minibatches == 4


def test_the_gpu_recipe_has_the_same_problem_sets_and_more_of_each() -> None:
    small, large = (load(RECIPES / f"{name}.toml") for name in ("smollm2", "smollm2-gpu"))
    assert list(small.problems) == list(large.problems)

    def size(config: ProblemSet) -> int:
        return config.count or config.args["instances"]

    assert all(size(large.problems[name]) > size(small.problems[name]) for name in small.problems)
    assert large.model.dtype == "bfloat16" and small.model.path == large.model.path
