"""What a path in a recipe stands for, as far as can be told without reading it."""

from __future__ import annotations

import os
from pathlib import Path

from motet.base.errors import UserError, how_to_install
from motet.base.tables import is_hub_id


def check_folder(path: str | Path) -> None:
    """A local folder must look like a model; anything that is no folder is taken for a hub id."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
            raise UserError(f"{folder}: no model folder, config.json is missing (it holds {held})")
    elif folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1 or folder.suffix:
        raise UserError(f"{folder}: no such model folder. Give a Hugging Face folder or a hub id like owner/name.")


def check_positions(stage: str, key: str, tokens: int, positions: int) -> None:
    """stage.STAGE.KEY is so many tokens, on weights that have so many positions."""
    if tokens > positions:
        raise UserError(
            f"stage.{stage}.{key} = {tokens}, and the model has {positions} positions. Shorten it, or add under "
            f'[stage.{stage}]: rope = {{ kind = "yarn", positions = {tokens} }}'
        )


def check_sampled(key: str, stage: str, tokens: int, positions: int) -> None:
    """Setting KEY is so many tokens of a completion, sampled by `stage` from weights that have so many positions."""
    if tokens > positions:
        raise UserError(
            f"{key} = {tokens}, and the model that stage.{stage} samples from has {positions} positions. Shorten it, "
            f'or stretch them in an sft or rl stage before: rope = {{ kind = "yarn", positions = {tokens} }}'
        )


def check_data(path: str) -> None:
    """Data must be here, or have the form of a hub id."""
    if not Path(path).exists() and not is_hub_id(path):
        raise UserError(f"{path}: no such file or folder (a hub data set is owner/name){_beside(path)}")


def check_peft() -> None:
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise UserError(f"adapters need the package peft: {how_to_install('lora')}")


def check_file(path: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file{_beside(path)}")


def check_python(python: str) -> None:
    if not os.access(python, os.X_OK):
        raise UserError(
            f"engine.python: {python!r} is no program. Make an environment with vLLM (make vllm) and give its Python, "
            "e.g. .venv-vllm/bin/python."
        )


def _beside(path: str) -> str:
    """What lies where it should be; paths are relative to the current folder."""
    folder = Path(path).parent
    if not folder.is_dir():
        return f"; there is no folder {folder} in {Path.cwd()}"
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    return f"; {folder.resolve()} holds {', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"
