"""What a case is given, and learners for it: on a mesh, in one process, or by force on a mesh of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, Qwen3Config

from motet.base.recipe import Lora, Mesh, Model, Optimizer
from motet.model import attention, skeleton
from motet.model.ulysses import SequenceGroup
from motet.train import mesh as meshes
from motet.train.learner import Learner
from motet.train.mesh import Shape
from motet.train.world import World

QWEN = {"head_dim": 128, "vocab_size": 151_936, "num_key_value_heads": 8, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": QWEN | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": QWEN | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": QWEN | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    # recipes/motif-2-12.7b.toml, of Llama's kind: no norms of heads
    "12.7B": {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 40, "num_attention_heads": 48,
              "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 219_520, "tie_word_embeddings": False},
    # no number of processes divides the vocabulary; 2, 3, 4, 6 and 8 divide the query heads, and 2 the key heads
    "parity": {"hidden_size": 256, "intermediate_size": 392, "num_hidden_layers": 3, "num_attention_heads": 24,
               "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1009, "tie_word_embeddings": True},
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
              "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 4096, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 50, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 24,
             "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 61, "tie_word_embeddings": True},
}  # fmt: skip
"""Qwen3's, but for 12.7B."""
Axes = tuple[int, int, int]
ALONE: Axes = (0, 0, 0)
"""In place of a mesh: one process, and nothing cut."""
FORCED: Axes = (1, 1, 1)
"""A mesh of one process: FSDP, its collectives and Ulysses' with nobody else in their groups."""


@dataclass(frozen=True)
class Place:
    world: World
    cpu: bool
    scratch: Path
    """A folder that outlives the group."""
    partial: Path
    """What is known of a case that goes on."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.cpu else "cuda"

    @property
    def name(self) -> str:
        return "cpu" if self.cpu else torch.cuda.get_device_name()

    def write(self, file: Path, found: Any) -> None:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(found))
        temporary.rename(file)

    def keep(self, found: Any) -> None:
        """Part of a result, in case that the rest fails."""
        if self.world.rank == 0:
            self.write(self.partial, found)

    def folder(self, shape: str) -> Path:
        """config.json alone, or with weights where other processes made them."""
        folder = self.scratch / shape

        def make() -> None:
            if not (folder / "config.json").exists():
                config_of(shape).save_pretrained(folder)

        self.world.first(make)
        return folder

    def learner(
        self, folder: Path, axes: Axes, model: dict[str, Any], optimizer: Optimizer, mesh: dict[str, Any] | None = None,
        lora: Lora | None = None, random: bool = False,
    ) -> Learner:  # fmt: skip
        """`random`: weights are drawn where they are kept, each process its own part, and no file is read."""
        settings = {"path": str(folder), "device": self.device} | model
        config = Mesh(**(mesh or {})) if axes in (ALONE, FORCED) else _mesh(axes, mesh or {})
        kind = Forced if axes == FORCED else Learner
        drawn: AbstractContextManager[Any] = nullcontext()
        if random:
            drawn = patch.object(skeleton, "_reader", lambda path, wanted: drawn_rows(path, self.device))
        with drawn:
            # a learner of one process joins nobody
            world = World() if axes == ALONE else self.world
            return kind(folder, Model(**settings), optimizer, 100, lora=lora, mesh=config, world=world)

    def slowest(self, seconds: float) -> float:
        return max(self.world.gather(seconds))


def _mesh(axes: Axes, more: dict[str, Any]) -> Mesh:
    return Mesh(dp_replicate=axes[0], dp_shard=axes[1], sp=axes[2], **more)


class Forced(Learner):
    """A learner of one process that is built as one of many are."""

    def _build_whole(self, model: Model) -> None:
        self._mesh = OnItsOwn(self.device)
        self._build_in_parts(model, self._mesh)


class OnItsOwn(meshes.Mesh):
    def __init__(self, device: torch.device) -> None:
        self.shape, self.row, self.part = Shape(1, 1, 1), 0, 0
        self.states = init_device_mesh(device.type, (1, 1), mesh_dim_names=("dp_replicate", "shard"))
        assert dist.group.WORLD is not None
        self.sequence = SequenceGroup.of(dist.group.WORLD)


def config_of(shape: str) -> Any:
    kind = LlamaConfig if shape == "12.7B" else Qwen3Config
    return kind(
        **SHAPES[shape], max_position_embeddings=1_048_576, initializer_range=0.02,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def drawn_rows(path: str | Path, device: str) -> Callable[[str, slice], torch.Tensor]:
    """(name, rows) -> values: gains are one, matrices normal with deviation 0.02. Another cut draws other numbers."""
    parameters = dict(skeleton.skeleton(path, attention.NAME, torch.float32).named_parameters(remove_duplicate=False))
    sizes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}

    def rows(name: str, part: slice) -> torch.Tensor:
        first, *rest = sizes[name]
        count = len(range(*part.indices(first)))
        if not rest:
            return torch.ones(count, device=device)
        seed = torch.Generator(device).manual_seed(hash((sum(map(ord, name)), part.start or 0)) % 2**31)
        return torch.empty(count, *rest, device=device).normal_(0.0, 0.02, generator=seed)

    return rows
