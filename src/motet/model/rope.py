"""Rotary positions of a stage: a model folder with another configuration and the same weights.

Whoever reads the folder, learner, engine or export, has the same positions.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils.hub import cached_file

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.places import check_folder, check_positions
from motet.base.recipe import Rope


def positions_of(path: str | Path) -> int | None:
    """How many positions a model has; None where its configuration does not say."""
    positions: int | None = getattr(_config(path), "max_position_embeddings", None)
    return positions


def rotary_of(path: str | Path) -> tuple[int | None, Any]:
    """What a model's configuration says of its positions: where two models of a run agree, they differ in weights
    alone."""
    config = _config(path)
    return getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None)


def require_positions(stage: str, key: str, tokens: int, path: str | Path) -> None:
    """Raises UserError where stage.STAGE.KEY, so many tokens, is more than the model at `path` has positions for."""
    positions = positions_of(path)
    if positions is not None:
        check_positions(stage, key, tokens, positions)


def with_rope(path: str | Path, rope: Rope, folder: Path) -> Path:
    """Makes `folder` a model with the weights of `path` (links to them) and the positions of `rope`. Returns it."""
    source = _local(path)
    config = jsonl.read_json(source / "config.json")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "config.json" and file.is_file():
            (folder / file.name).symlink_to(os.path.relpath(file.resolve(), folder.resolve()))
    jsonl.write_json(folder / "config.json", changed(config, rope, str(path)))
    return folder


def changed(config: dict[str, Any], rope: Rope, name: str) -> dict[str, Any]:
    """A model's configuration with the positions of `rope`.

    Example: 8,192 positions and yarn to 32,768: factor 4. A second stage to 65,536 has factor 8, of the same original.
    """
    before = config.get("rope_parameters") or config.get("rope_scaling") or {}
    positions = config.get("max_position_embeddings")
    if positions is None:
        raise UserError(f"{name}: rope is set for a model whose configuration has no max_position_embeddings")
    if any(isinstance(value, dict) for value in before.values()):
        raise UserError(f"{name}: the model has positions of several kinds, which rope does not support yet")
    kind = before.get("rope_type", before.get("type", "default"))
    original = before.get("original_max_position_embeddings")
    if original is None:
        original = round(positions / before["factor"]) if kind == "linear" else positions
    theta = rope.theta or before.get("rope_theta") or config.get("rope_theta") or 10_000.0
    if rope.kind != "theta" and rope.positions <= original:
        raise UserError(
            f"rope.positions = {rope.positions} is no more than the {original} positions that {name} was made with; "
            "leave rope out"
        )
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if rope.kind != "theta":
        factor = rope.positions / original
        parameters |= {"rope_type": rope.kind, "factor": factor}
        if rope.kind == "yarn":
            parameters["original_max_position_embeddings"] = original
    if "partial_rotary_factor" in before:
        parameters["partial_rotary_factor"] = before["partial_rotary_factor"]
    kept = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    return {**kept, "rope_parameters": parameters, "max_position_embeddings": rope.positions}


def _config(path: str | Path) -> Any:
    check_folder(path)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a model ({str(error).splitlines()[0]})") from error


def _local(path: str | Path) -> Path:
    """The folder of a model; one of the hub is fetched whole."""
    check_folder(path)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    cached_file(str(path), "config.json")  # whose error names the model, where there is none
    return Path(snapshot_download(str(path)))
