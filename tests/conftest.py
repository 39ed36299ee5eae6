"""A model small enough that a whole recipe takes seconds: 32 wide, 2 blocks, one token a character."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# a shell that starts a command in the background has it ignore Ctrl-C, and its children inherit that: tests send it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# a machine that others use too is slow at times
settings.register_profile("anywhere", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anywhere")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from motet.model.tokenizer import make_tokenizer

    return make_tokenizer(["What is 12 + 7 = ?", "ab cd 0345689"], ["3+4=07 \\boxed{12}", "x"])


@pytest.fixture(scope="session")
def model_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; tests read it and do not write it."""
    from motet.base.recipe import TinyModel
    from motet.model.load import make_tiny

    folder = tmp_path_factory.mktemp("micro") / "model"
    make_tiny(TinyModel(hidden=32, layers=2, heads=2, mlp=48, context=96), tokenizer, 1, folder)
    return folder


@pytest.fixture(scope="session")
def micro_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import micro

    return micro.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def finished_run(micro_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of micro.RECIPE, all stages done; tests read it, and copy it before they change it."""
    import micro
    from motet import pipeline

    folder = tmp_path_factory.mktemp("runs") / "micro"
    pipeline.run(micro.recipe(micro_recipe), folder, micro_recipe, console=False)
    return folder
