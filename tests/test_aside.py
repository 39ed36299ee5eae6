"""Moments that wait in host memory: they change when memory is free, and no number."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.base.errors import UserError
from motet.base.recipe import Model, Optimizer
from motet.data.pack import Sample, pack
from motet.model import offload, pinned
from motet.train import aside
from motet.train.checkpoint import Checkpoints
from motet.train.learner import Learner
from motet.train.losses import cross_entropy
from motet.train.memory import let_go

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")]),
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that most moments lie in several."""
    monkeypatch.setattr(pinned, "PIECE", 1000)


def make(folder: Path, device: str, offload: Any, **more: Any) -> Learner:
    optimizer = Optimizer(learning_rate=0.01, warmup_steps=0, offload=offload, **more)
    dtype: Any = "bfloat16" if device == "cuda" else "float32"
    return Learner(folder, Model(path=str(folder), device=device, dtype=dtype, compile="off"), optimizer, 6)  # type: ignore[arg-type]


def train(own: Learner, steps: range) -> None:
    for step in steps:
        stream = random.Random(step)
        rows = [Sample(tuple(stream.randrange(5, 30) for _ in range(n)), (True,) * n) for n in (9, 30, 17)]
        own.accumulate(pack(rows, 40, own.device), cross_entropy)
        own.update()


def moments(own: Learner) -> list[torch.Tensor]:
    slots = [part.state[p] for part in own._optimizers.parts for p in own._trained.values()]
    return [slot[name] for slot in slots for name in aside.SLOTS]


@pytest.mark.parametrize("device", DEVICES)
def test_training_is_the_same_bit_for_bit_and_the_moments_are_away_between_steps(
    model_folder: Path, device: str
) -> None:
    plain, away = make(model_folder, device, "off"), make(model_folder, device, "on")
    for step in range(3):
        for own in (plain, away):
            train(own, range(step, step + 1))
        assert all(tensor.numel() == 0 for tensor in moments(away))
    expected, found = plain.state(), away.state()
    assert all(tensor.numel() == 0 for tensor in moments(away))  # a state has copies of them
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key].cpu(), value.cpu()) for key, value in expected.items())
    for own in (plain, away):
        train(own, range(3, 4))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain.weights(), away.weights(), strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_is_continued_with_moments_away(model_folder: Path, tmp_path: Path, device: str) -> None:
    whole = make(model_folder, device, "on")
    train(whole, range(2))
    checkpoints = Checkpoints(tmp_path / "checkpoints", whole)
    checkpoints.save(2)
    assert all(tensor.numel() == 0 for tensor in moments(whole))  # an engine may have their memory by now
    checkpoints.wait()
    train(whole, range(2, 4))
    second = make(model_folder, device, "on")
    assert Checkpoints(tmp_path / "checkpoints", second).restore() == 2
    second.rest()
    assert all(tensor.numel() == 0 for tensor in moments(second))
    train(second, range(2, 4))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole.weights(), second.weights(), strict=True))


def test_they_come_back_with_the_last_row_and_not_before(model_folder: Path) -> None:
    own = make(model_folder, "cpu", "on")
    train(own, range(1))
    there: list[int] = []
    name = "model.layers.0.mlp.down_proj.weight"
    parameter = dict(own.model.named_parameters())[name]
    moment = own._optimizers.parts[0].state[own._trained[name]]
    parameter.register_post_accumulate_grad_hook(lambda _: there.append(moment["exp_avg"].numel()))  # type: ignore[no-untyped-call]
    train(own, range(1, 2))  # three samples in two rows
    assert there == [0, parameter.numel()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
def test_after_a_stage_host_memory_has_room_for_the_next_ones_moments() -> None:
    pinned = torch.empty(2**31, dtype=torch.uint8, pin_memory=True)
    before = offload.host_memory()
    del pinned
    let_go()
    assert offload.host_memory() - before > 2**30


def test_where_they_cannot_go_it_is_said(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "host_memory", lambda: offload.SPARED)
    with pytest.raises(UserError, match=r'offload = "on": host memory has no room for the moments, 0.0 GiB'):
        make(model_folder, "cpu", "on")
    monkeypatch.setattr(aside, "DTensor", torch.Tensor)  # as if each were a part of one
    with pytest.raises(UserError, match=r'offload = "on": moments are put aside where one process has all of them'):
        make(model_folder, "cpu", "on")
