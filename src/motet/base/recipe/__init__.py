"""The recipe: what every key means, its type, its default. `motet explain KEY` prints the docstrings of this package.

A recipe is TOML. `stages` names the order; `[stage.NAME]` says what each does; `[problems.NAME]` names problem sets::

    extends = "stable"
    name = "quickstart"
    stages = ["base", "sft-1", "rl"]
    [problems.addition]
    task = "addition"
    [stage.base]
    kind = "evaluate"
    [stage.sft-1]
    kind = "sft"
    data = [{ problems = "addition" }]

Defaults marked (ours) are not given by arXiv 2512.11463; see `presets/paper.toml` for what it says.
"""

from motet.base.recipe.engine import (
    ENDPOINT_ONLY,
    ENGINE_IDENTITY,
    OWN_FIELDS,
    VLLM_NEEDS,
    VLLM_ONLY,
    Caps,
    Engine,
    Price,
    Sampling,
)
from motet.base.recipe.evaluation import EvaluateStage, Evaluation, EvaluationSet, Tracking
from motet.base.recipe.filter import Band, FilterStage, OpenRows, Sequential
from motet.base.recipe.model import Chat, Lora, Machine, Mesh, Model, ModelSizes, Rope, TinyModel
from motet.base.recipe.names import nearest, unknown_name
from motet.base.recipe.objective import Algorithm, Correction, Guard
from motet.base.recipe.parts import Fraction, Part, Weight
from motet.base.recipe.problems import Mix, ProblemSet, Rewards, ScoredKind, Verification
from motet.base.recipe.rl import AlarmAction, Alarms, RlStage, RuleName
from motet.base.recipe.sft import LengthBand, SftSource, SftStage
from motet.base.recipe.traces import LEAKED_NAMES, CleanStage, RuleId, SynthesizeStage, Teacher, TraceRules
from motet.base.recipe.training import Optimizer, StageBase, TrainingStage
from motet.base.recipe.whole import TRAINING, Recipe, Stage, weights_of

__all__ = [
    "ENDPOINT_ONLY",
    "ENGINE_IDENTITY",
    "LEAKED_NAMES",
    "OWN_FIELDS",
    "TRAINING",
    "VLLM_NEEDS",
    "VLLM_ONLY",
    "AlarmAction",
    "Alarms",
    "Algorithm",
    "Band",
    "Caps",
    "Chat",
    "CleanStage",
    "Correction",
    "Engine",
    "EvaluateStage",
    "Evaluation",
    "EvaluationSet",
    "FilterStage",
    "Fraction",
    "Guard",
    "LengthBand",
    "Lora",
    "Machine",
    "Mesh",
    "Mix",
    "Model",
    "ModelSizes",
    "OpenRows",
    "Optimizer",
    "Part",
    "Price",
    "ProblemSet",
    "Recipe",
    "Rewards",
    "RlStage",
    "Rope",
    "RuleId",
    "RuleName",
    "Sampling",
    "ScoredKind",
    "Sequential",
    "SftSource",
    "SftStage",
    "Stage",
    "StageBase",
    "SynthesizeStage",
    "Teacher",
    "TinyModel",
    "TraceRules",
    "Tracking",
    "TrainingStage",
    "Verification",
    "Weight",
    "nearest",
    "unknown_name",
    "weights_of",
]
