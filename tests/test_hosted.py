"""What compiled blocks keep, waiting in host memory: it changes when memory is free, and no number."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from motet.model import attention, hosted, packed, pinned, recompute
from motet.model.footprint import BEHIND, Compute, Row, Sizes, block_bytes, choose, hosted_places, peak_of
from motet.model.kernels import Documents

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")]),
]
LAYERS = 7
POLICIES: list[recompute.Policy] = ["hosted", "matmul", "hosted", "matmul", "matmul", "hosted", "hosted"]
# dynamo looks at every attribute of what it traces
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


@pytest.fixture(autouse=True)
def compiled_without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And attention as a GPU runs it."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, d: Documents, scale: float) -> torch.Tensor:
        return packed.attend(q, k, v, d.starts, d.starts_host, scale)

    compile = torch.compile
    monkeypatch.setattr(attention, "attend", attend)
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile(run, backend="aot_eager", **options))
    monkeypatch.setattr(pinned, "PIECE", 1000)  # so that most tensors lie in several
    monkeypatch.setattr(hosted, "LEAST", 8)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(device: str) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation=attention.NAME,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(device, torch.bfloat16).train()


def loss(own: Any, lengths: list[int]) -> torch.Tensor:
    ids = (torch.arange(sum(lengths), device=own.device) * 7 % 64)[None]
    inputs = {"input_ids": ids, "position_ids": ids, "documents": Documents.plan(lengths, own.device)}
    found: torch.Tensor = own.base_model(**inputs, use_cache=False).last_hidden_state
    return found.float().square().sum()


def gradients(own: Any, lengths: list[int]) -> list[torch.Tensor]:
    own.zero_grad()
    loss(own, lengths).backward()
    return [p.grad.clone() for p in own.model.layers.parameters()]


def prepared(device: str, policies: list[recompute.Policy]) -> tuple[Any, hosted.Hosted]:
    own = model(device)
    recompute.apply(list(own.model.layers), policies, compiled=True)
    return own, own.model.layers[0].forward.func.__self__._hosted


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_the_same_bit_for_bit_on_rows_of_any_length_and_nothing_is_compiled_for_it(device: str) -> None:
    plain, _ = prepared(device, ["matmul"] * LAYERS)
    own, _ = prepared(device, POLICIES)
    for lengths in ([40], [30, 12], [90], [40]):
        expected = gradients(plain, lengths)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert all(torch.equal(found, grad) for found, grad in zip(gradients(own, lengths), expected, strict=True))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("device", DEVICES)
def test_after_some_more_blocks_nothing_of_one_is_left_on_the_device(device: str) -> None:
    own, held = prepared(device, POLICIES)
    value = loss(own, [40])
    there = {index: [one.own is not None for one in block] for index, block in held._blocks.items()}
    assert set(there) == {0, 2, 5, 6} and all(len(found) >= 6 for found in there.values())
    for index, found in there.items():  # input, queries, keys, values, result of attention, gate and up products
        assert all(found) if index >= LAYERS - BEHIND else not any(found)
    value.backward()
    assert not any(held._blocks[index] for index in held._blocks)


@pytest.mark.parametrize("device", DEVICES)
def test_pieces_of_host_memory_are_used_again_also_after_a_row_without_a_backward_pass(device: str) -> None:
    own, held = prepared(device, POLICIES)
    gradients(own, [40])
    pieces = {piece.data_ptr() for piece in held._free}
    loss(own, [40])
    gradients(own, [24])
    assert {piece.data_ptr() for piece in held._free} == pieces


def test_tensors_of_a_block_lie_one_after_the_other() -> None:
    own, held = prepared("cpu", POLICIES)
    value = loss(own, [40])
    for block in held._blocks.values():
        (pieces,) = {one.pieces for one in block}
        assert pieces is not None and len(pieces.own) == -(-sum(one.nbytes for one in block) // 1000)
        begins = sorted((one.start, one.nbytes) for one in block)
        assert [start for start, _ in begins] == [sum(size for _, size in begins[:n]) for n in range(len(begins))]
    value.backward()


def test_memory_of_a_tensor_that_is_dropped_on_its_way_back_waits_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_event=waited.append))
    one: Any = hosted._Away(torch.zeros(4))
    one.left, one.ready = "left", "ready"
    one.let_go()
    assert waited == ["left"]
    del one
    assert waited == ["left", "ready"]


def sizes(layers: int = 28) -> Sizes:
    """Qwen3 of 1.7B."""
    block = 2048 * (4096 + 2048 + 3 * 6144) + 2 * 2048 + 2 * 128
    return Sizes(layers, 2048, 16, 8, 128, 6144, 151_936, True, True, True, block, 2048)


def test_blocks_are_as_far_apart_as_their_copies_take() -> None:
    """1.7B, 64K tokens: a block keeps 2 x (2 x 2,048 + 2 x 2,048 + 2 x 1,024 + 12,288) + 64 = 45,120 bytes a token, in
    whose time on a link of 50 GB/s a device of 600 TFLOP/s does 541e6 operations. A block's forward pass is 2 x 50.3e6
    + 2 x 2,048 x 65,536 = 369e6 of them: every second block may leave. Of documents of 8K it is 134e6: every fifth."""
    compute, row = Compute(2, compiled=True), Row(65536, 65536)
    assert block_bytes(sizes(), compute).kept["matmul"] == 45_120
    assert hosted_places(sizes(), compute, row, 1 << 40) == list(range(0, 25, 2))
    packed = Row(65536, 65536, attended=8192)
    assert hosted_places(sizes(), compute, packed, 1 << 40) == [0, 5, 10, 15, 20]
    assert hosted_places(sizes(), compute, row, 7 * 45_120 * 65536) == [0, 2, 4, 6, 8, 10, 12]
    assert hosted_places(sizes(), Compute(2, compiled=False), row, 1 << 40) == []
    assert hosted_places(sizes(), Compute(2, compiled=True, link=12e9), row, 1 << 40) == [0, 7, 14, 21]


def test_blocks_are_hosted_before_products_are_computed_again() -> None:
    compute, row = Compute(2, compiled=True), Row(65536, 65536)
    everything = peak_of(sizes(), compute, row, ["matmul"] * 28).total
    assert choose(sizes(), compute, row, everything, 1 << 40) == ["matmul"] * 28
    one = choose(sizes(), compute, row, everything - 1, 1 << 40)
    assert one == ["hosted"] + ["matmul"] * 27
    assert everything - peak_of(sizes(), compute, row, one).total == (45_120 - 64) * 65536
    assert set(choose(sizes(), compute, row, everything - 1)) == {"attention", "matmul"}
    few = choose(sizes(), compute, row, everything - 1, 45_120 * 65536)
    assert few == one
    less = choose(sizes(), compute, row, everything * 6 // 10, 3 * 45_120 * 65536)
    assert [index for index, policy in enumerate(less) if policy == "hosted"] == [0, 2, 4]
    assert set(less) == {"hosted", "attention", "matmul"}


@pytest.mark.parametrize("layers", [4, 6, 28])
def test_a_row_that_fits_without_hosted_blocks_is_not_computed_again_because_of_them(layers: int) -> None:
    """Of four blocks, what comes back for one beside what another computes again is more than is saved."""
    compute, row = Compute(2, compiled=True), Row(65536, 65536)
    everything = peak_of(sizes(layers), compute, row, ["none"] * layers).total
    plainly = 0
    for room in (everything * share // 200 for share in range(5, 200)):
        plain = choose(sizes(layers), compute, row, room)
        found = choose(sizes(layers), compute, row, room, 1 << 40)
        if "offload" not in plain:
            assert peak_of(sizes(layers), compute, row, found).total <= room
            assert sum(p in ("full", "offload") for p in found) <= plain.count("full")
        plainly += "hosted" not in found and "attention" in found
    assert (plainly > 0) == (layers < 28)


def test_what_comes_back_for_a_block_counts_beside_it_and_the_one_after_it() -> None:
    compute, row = Compute(2, compiled=True), Row(65536, 65536)
    kept = 45_120 * 65536
    plain = peak_of(sizes(), compute, row, ["full"] * 28)
    own = peak_of(sizes(), compute, row, ["full"] * 24 + ["hosted"] + ["full"] * 3)
    assert own.at in ("forward", "backward") and own.total - plain.total < kept
    last = peak_of(sizes(), compute, row, ["full"] * 27 + ["hosted"])  # it does not leave
    assert last.total >= peak_of(sizes(), compute, row, ["full"] * 27 + ["matmul"]).total
