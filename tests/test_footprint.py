"""Memory of a training step: worked by hand, counted on a CPU, and measured on an H100."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import mesh_worker
from motet.base import jsonl
from motet.base.recipe import Lora, Mesh, Model, Optimizer
from motet.model import footprint, offload, tiles
from motet.model.blocks import blocks_of
from motet.model.footprint import (
    LADDER,
    Compute,
    Row,
    Sizes,
    Training,
    adapter_parameters,
    block_bytes,
    choose,
    forecast,
    peak_of,
    row_of,
    state_of,
)
from motet.plan.live import Live
from motet.plan.probe import probe, sample_rows
from motet.plan.sizing import from_config
from motet.train.learner import Learner
from motet.train.losses import cross_entropy
from motet.train.world import World

RESULTS = Path(__file__).parent.parent / "bench" / "results" / "plan_probe_h100.json"
SHAPES = {"0.6B": (1024, 3072, 28, 16), "1.7B": (2048, 6144, 28, 16), "4B": (2560, 9728, 36, 32)}
"""Width, MLP, layers, query heads; 8 key heads of 128."""
TOKENS = {"8K": 8192, "32K": 32768, "64K": 65536, "128K": 131072, "256K": 262144,
          "8x8K": 65536, "64x1K": 65536, "2r16K": 16384}  # fmt: skip


def qwen(width: int, mlp: int, layers: int, heads: int, keys: int = 8, head: int = 128, vocab: int = 151_936) -> Any:
    return Qwen3Config(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=keys, head_dim=head, vocab_size=vocab, tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip


def sizes_of(shape: str) -> Sizes:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(qwen(*SHAPES[shape]))
    return Sizes.of(model, blocks_of(model))


def test_sizes_are_read_off_a_model() -> None:
    sizes = sizes_of("0.6B")
    assert (sizes.layers, sizes.width, sizes.heads, sizes.key_heads, sizes.head, sizes.mlp) == (
        28,
        1024,
        16,
        8,
        128,
        3072,
    )
    assert sizes.tied and sizes.head_norms and sizes.gated
    # q 2048, k and v 1024, o 2048, three of the MLP, two norms of the width, two of a head
    assert sizes.block == 1024 * (2048 + 2 * 1024 + 2048 + 3 * 3072 + 2) + 2 * 128
    assert sizes.rest == 1024 and sizes.parameters == 28 * sizes.block + 1024 + 151_936 * 1024


def test_bytes_that_a_compiled_block_keeps_of_a_token() -> None:
    """Two bytes a value: input 1024; attention's result 2048 and 16 sums of four bytes; products q 2048, k 1024,
    v 1024, o 1024, gate and up 6144."""
    kept = block_bytes(sizes_of("0.6B"), Compute(2, compiled=True)).kept
    assert kept["full"] == 2 * 1024
    assert kept["attention"] == kept["full"] + 2 * 2048 + 16 * 4
    assert kept["matmul"] == kept["attention"] + 2 * (2048 + 1024 + 1024 + 1024 + 6144)
    assert kept["offload"] == 0


def test_state_of_adamw_with_float32_weights_and_its_shards() -> None:
    sizes = sizes_of("0.6B")
    alone = state_of(sizes, Training(2, 4))
    n = sizes.parameters
    assert (alone.weights, alone.optimizer, alone.gradients) == (6 * n, 8 * n, 4 * n)
    cut = state_of(sizes, Training(2, 4, parallel=True, shards=8, rounds=1))
    assert (cut.weights, cut.optimizer, cut.gradients) == (-(-4 * n // 8), -(-8 * n // 8), -(-4 * n // 8))
    assert cut.gathered >= 2 * sizes.root and cut.summed == 0
    assert adapter_parameters(sizes, 16) == 28 * 16 * (3072 + 2 * 2048 + 3072 + 3 * 4096)


def test_moments_that_wait_on_the_host_come_back_as_gradients_are_made() -> None:
    """0.6B: 596 M parameters. Before a row 4 bytes of weights and 2 of their copies, at its end 2 of gradients (one
    row) and 8 of moments on top; the optimizer then has as much as ever."""
    sizes = sizes_of("0.6B")
    stays, away = (Training(2, 4, rounds=1, offload=offload) for offload in (False, True))
    row = row_of(sizes, away, 1024, known=True)
    assert state_of(sizes, away).held(row) == 6 * sizes.parameters
    assert state_of(sizes, stays).held(row_of(sizes, stays, 1024, known=True)) == 14 * sizes.parameters
    assert state_of(sizes, away).total == state_of(sizes, stays).total == 16 * sizes.parameters
    last = peak_of(sizes, Compute(2, True), row, ["none"] * 28)
    assert last.at == "end" and last.gradients == 10 * (28 * sizes.block + sizes.root)
    assert footprint.at_rest(sizes, away) == 4 * sizes.parameters


def test_moments_of_a_head_of_its_own_are_back_before_the_blocks_go_backward() -> None:
    """151,936 x 1,024 parameters, 8 bytes each beside the 2 of their gradient."""
    sizes = replace(sizes_of("0.6B"), tied=False)
    row = row_of(sizes, Training(2, 4, rounds=1, offload=True), 65536, known=True)
    highest = peak_of(sizes, Compute(2, True), row, ["attention"] * 28)
    assert (highest.at, highest.head) == ("backward", 2 * sizes.embedding)
    assert highest.gradients == 8 * sizes.embedding


def test_more_room_keeps_more_and_the_later_blocks_first() -> None:
    sizes, compute, row = sizes_of("0.6B"), Compute(2, compiled=True), Row(65536, 65536)
    needs = {p: peak_of(sizes, compute, row, [p] * 28).total for p in LADDER}
    assert needs["none"] > needs["matmul"] > needs["attention"] > needs["full"]
    assert choose(sizes, compute, row, needs["none"]) == ["none"] * 28
    assert choose(sizes, compute, row, needs["none"] - 1) == ["matmul", *["none"] * 27]
    assert "offload" not in choose(sizes, compute, row, needs["full"])
    assert choose(sizes, compute, row, 0) == ["offload"] * 28
    between = choose(sizes, compute, row, (needs["attention"] + needs["matmul"]) // 2)
    assert set(between) == {"attention", "matmul"} and between == sorted(between)


@pytest.mark.parametrize("case", [c["case"] for c in jsonl.read_json(RESULTS)["cases"]])
def test_the_prediction_is_within_ten_percent_of_what_an_h100_took(case: str) -> None:
    measured = next(c for c in jsonl.read_json(RESULTS)["cases"] if c["case"] == case)
    shape, length, words = case.split(":")
    options = words.split("+")
    sizes, lora = sizes_of(shape), "lora" in options
    counts = measured["policies"]  # blocks that keep less come first
    policies = [p for p in ("offload", *reversed(LADDER)) for _ in range(counts.get(p, 0))]
    compiled = "eager" not in options and "offload" not in options
    compute = Compute(2, compiled, rank=16 if lora else 0)
    adapters = adapter_parameters(sizes, 16) if lora else 0
    rounds = 2 if length == "2r16K" else 1
    training = Training(2, 2 if "bf16" in options else 4, adapters=adapters, rounds=rounds)
    row = row_of(sizes, training, TOKENS[length], known="rl" not in options)
    predicted = forecast(sizes, compute, training, row, policies).total
    assert predicted == pytest.approx(measured["allocated"], rel=0.10)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    Qwen3ForCausalLM(qwen(64, 192, 3, 8, 4, 16, 96)).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("policy", "reinforced", "lora"),
    [("none", False, False), ("none", True, False), ("matmul", False, False), ("attention", False, False),
     ("full", True, False), ("offload", False, False), ("attention", False, True)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
def test_the_prediction_is_near_the_tensors_counted_on_a_cpu(
    small: Path, policy: Any, reinforced: bool, lora: bool
) -> None:
    model = Model(path=str(small), dtype="bfloat16", recompute=policy, compile="off", device="cpu")
    found = probe(small, model, [[256]], reinforced=reinforced, lora=Lora(rank=16) if lora else None)
    assert found.policies == {policy: 3}
    assert abs(found.error) < 0.10, f"{found.forecast.total} predicted, {found.allocated} counted"


def test_a_row_that_is_cut_into_tiles_is_predicted_too(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (footprint, offload, tiles):
        monkeypatch.setattr(module, "TILE", 128)
    monkeypatch.setattr(footprint, "HEAD_ROWS", 128)  # the head is not to be the highest
    model = Model(path=str(small), dtype="bfloat16", recompute="offload", compile="off", device="cpu")
    found = probe(small, model, [[2048]])
    assert found.forecast.peak.at == "backward"
    assert abs(found.error) < 0.10, f"{found.forecast.total} predicted, {found.allocated} counted"


Case = tuple[tuple[int, int, int], int, int, str, bool]
"""Mesh, tokens of a row, rows of each process, policy, reduce_once."""
MESHES: list[Case] = [
    ((1, 2, 1), 64, 1, "full", True),
    ((1, 2, 1), 64, 3, "full", True),
    ((1, 2, 1), 64, 3, "full", False),
    ((2, 1, 1), 64, 1, "full", True),
    ((1, 1, 2), 512, 1, "attention", True),
    ((1, 1, 2), 512, 1, "none", True),
]


def on_a_mesh(case: Case, world: World, folder: Path) -> tuple[int, int]:
    """Bytes predicted and counted of the second step's tensors in this process."""
    (replicate, shard, sp), tokens, rounds, policy, once = case
    mesh = Mesh(dp_replicate=replicate, dp_shard=shard, sp=sp, reduce_once=once)
    model = Model(path=str(folder / "m"), device="cpu", dtype="bfloat16", recompute=policy)  # type: ignore[arg-type]
    own = Learner(folder / "m", model, Optimizer(learning_rate=1e-6), 10, mesh=mesh, world=world)
    batches = sample_rows([[tokens]] * own.rows * rounds, 512, own.device)
    for _ in range(2):
        with Live([*own.model.parameters(), *own.model.buffers(), *own.state().values()]) as live:
            own.accumulate(batches, cross_entropy)
            own.update()
    sizes = from_config(own.model.config)
    training = Training(2, 4, parallel=True, shards=shard * sp, reduce_once=once, rounds=rounds)
    compute = Compute(2, compiled=False, sp=sp, kernel=False, host=False)
    row = row_of(sizes, training, tokens // sp, known=True)
    return forecast(sizes, compute, training, row, [policy] * sizes.layers).total, live.peak  # type: ignore[list-item]


def test_two_processes_take_no_more_than_predicted(tmp_path: Path) -> None:
    """At most: on a CPU nothing overlaps, and one buffer of a block's gradients fewer is on its way."""
    torch.manual_seed(0)
    Qwen3ForCausalLM(qwen(128, 384, 6, 8, 4, 16, 512)).save_pretrained(tmp_path / "m")
    for case, everyone in zip(
        MESHES, mesh_worker.run(2, [(2, partial(on_a_mesh, case)) for case in MESHES], tmp_path), strict=True
    ):
        for predicted, counted in everyone:
            assert counted <= predicted <= 1.25 * counted, case
