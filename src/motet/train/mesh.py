"""The mesh (dp_replicate, dp_shard, sp): how the processes of a run share rows, tokens and state.

Rank = (replica * dp_shard + shard) * sp + part. The processes of one sp group share each packed row; parameters are cut
over dp_shard x sp, so the processes that share a row also share the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from motet.base.errors import UserError
from motet.base.recipe import Mesh as MeshConfig
from motet.model.ulysses import SequenceGroup


class Shape(NamedTuple):
    dp_replicate: int
    dp_shard: int
    sp: int

    @property
    def size(self) -> int:
        return self.dp_replicate * self.dp_shard * self.sp

    @property
    def rows(self) -> int:
        """How many packed rows are worked on at the same time."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        return f"dp_replicate = {self.dp_replicate}, dp_shard = {self.dp_shard}, sp = {self.sp}"


def resolve(config: MeshConfig, size: int, per_node: int, heads: int) -> Shape:
    """The mesh of `size` processes, `per_node` on each node, for a model of `heads` attention heads.

    Raises UserError for one that does not fit, and names the nearest that does.
    """
    shard = config.dp_shard or max(1, (size // config.dp_replicate if config.dp_replicate else per_node) // config.sp)
    replicate = config.dp_replicate or max(1, size // (shard * config.sp))
    asked = Shape(replicate, shard, config.sp)
    wrong = list(_problems(asked, size, per_node, heads))
    if not wrong:
        return asked
    nearest = min(fitting(size, per_node, heads), key=lambda shape: _distance(shape, asked))
    raise UserError(f"mesh: {asked} does not fit: {'; '.join(wrong)}. The nearest that fits: {nearest}")


def fitting(size: int, per_node: int, heads: int) -> list[Shape]:
    """All meshes of `size` processes that fit a model of `heads` attention heads."""
    return [shape for shape in _shapes(size) if not any(_problems(shape, size, per_node, heads))]


def _problems(shape: Shape, size: int, per_node: int, heads: int) -> Iterator[str]:
    if shape.size != size:
        yield (
            f"its product is {shape.size} and {size} {'process was' if size == 1 else 'processes were'} started "
            f"({_torchrun(shape, size, per_node)} starts as many as it asks for)"
        )
    if heads % shape.sp:
        yield f"sp = {shape.sp} does not divide the model's {heads} attention heads"
    if size > per_node and per_node % (shape.dp_shard * shape.sp):
        yield f"dp_shard x sp = {shape.dp_shard * shape.sp} does not stay inside a node of {per_node} processes"


def _torchrun(shape: Shape, size: int, per_node: int) -> str:
    """Nodes as full as they are now, where there are several and a whole number of them is enough."""
    if size > per_node and shape.size % per_node == 0:
        return f"torchrun --nnodes {shape.size // per_node} --nproc-per-node {per_node}"
    return f"torchrun --nproc-per-node {shape.size}"


def _shapes(size: int) -> Iterator[Shape]:
    for sp in _divisors(size):
        for shard in _divisors(size // sp):
            yield Shape(size // sp // shard, shard, sp)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _distance(shape: Shape, asked: Shape) -> tuple[float, ...]:
    """sp first: it decides the memory of activations."""
    apart = [max(a, b) / min(a, b) for a, b in zip(shape, asked, strict=True)]
    return apart[2], apart[1], apart[0]


class Mesh:
    """The device meshes of one process and its place in them."""

    def __init__(self, shape: Shape, device: torch.device, rank: int) -> None:
        self.shape = shape
        self.row = rank // shape.sp
        """Which of the rows of a round is this process's."""
        self.part = rank % shape.sp
        """Which slice of its row's tokens."""
        names = ("dp_replicate", "shard")
        states = init_device_mesh(device.type, (shape.dp_replicate, shape.dp_shard * shape.sp), mesh_dim_names=names)
        self.states: DeviceMesh = states if shape.dp_replicate > 1 else states["shard"]
        """What parameters are laid out over: cut over its last axis, repeated over the one before it."""
        self.sequence: SequenceGroup | None = None
        if shape.sp > 1:
            rows = init_device_mesh(device.type, (shape.rows, shape.sp), mesh_dim_names=("row", "sp"))
            self.sequence = SequenceGroup.of(rows.get_group("sp"))


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Which rows (of `sizes` tokens) each of `hands` groups of processes works on: longest first to whom has least,
    nobody with more rows than needed, since all wait for each other in every round.

    Example: sizes 5, 4, 3, 3 for two: [0, 3] and [1, 2], eight tokens and seven.
    """
    most = -(-len(sizes) // hands)
    held: list[list[int]] = [[] for _ in range(hands)]
    tokens = [0] * hands
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        hand = min((h for h in range(hands) if len(held[h]) < most), key=lambda h: tokens[h])
        held[hand].append(index)
        tokens[hand] += sizes[index]
    return held
