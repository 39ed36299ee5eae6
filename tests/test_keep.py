from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from motet.model import attention, keep, recompute
from motet.model.footprint import MARGIN, Compute, peak_of
from motet.model.keep import SEEN_MARGIN, Keeping, _usable
from motet.model.kernels import Documents

GIB = 2**30


def qwen(hidden: int, mlp: int, layers: int = 28, device: str = "meta", heads: int = 16, head: int = 128) -> Any:
    config = Qwen3Config(
        vocab_size=151_936 if device == "meta" else 64,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=head,
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention.NAME
    with torch.device(device):
        return Qwen3ForCausalLM(config)


def keeping(model: Any) -> Keeping:
    return Keeping(list(model.model.layers), model, torch.device("cpu"), torch.bfloat16, compiled=True)


def test_a_peak_that_was_seen_corrects_the_next_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    own = keeping(qwen(1024, 3072))
    now = {"allocated": 12 * GIB, "peak": 12 * GIB}
    monkeypatch.setattr(keep, "_in_use", lambda _: (now["allocated"], now["peak"], 12 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (68 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    own.pending = lambda: (0, 2 * GIB)
    room = 80 * GIB - int(MARGIN * 80 * GIB) - 12 * GIB - 2 * GIB

    def needs(policies: list[recompute.Policy]) -> int:
        return peak_of(own.sizes, Compute(2, compiled=True), own.row(65536), policies).total

    first = own(65536)
    assert needs(first) * own.correction <= room < needs(["none"] * 28) * own.correction
    now["peak"] = 12 * GIB + needs(first) // 2
    own.observe()
    room += int(MARGIN * 80 * GIB) - int(SEEN_MARGIN * 80 * GIB)  # less is left alone
    second = own(65536)  # half of what was predicted: believed down to 0.8
    assert own.correction == pytest.approx(0.8 * 1.02) and needs(first) < needs(second) <= room / own.correction
    now["peak"] = 12 * GIB + needs(second) * 3 // 2
    own.observe()
    assert needs(own(65536)) < needs(first)


def test_each_row_has_policies_of_its_own_and_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = qwen(32, 48, 2, "cpu", 4, 8).train()
    own = qwen(32, 48, 2, "cpu", 4, 8).train()
    own.load_state_dict(plain.state_dict())
    asked: list[int] = []

    def chooser(tokens: int, _: Any) -> list[recompute.Policy]:
        asked.append(tokens)
        return ["full", "attention"] if tokens > 9 else ["none", "matmul"]

    recompute.apply(list(own.model.layers), chooser)
    for lengths in ([4, 5], [7, 6]):
        for model in (plain, own):
            model.zero_grad()
            ids = torch.arange(sum(lengths))[None]
            inputs = {"input_ids": ids, "position_ids": ids, "documents": Documents.plan(lengths)}
            model.base_model(**inputs, use_cache=False).last_hidden_state.square().sum().backward()
        for expected, found in zip(plain.model.parameters(), own.model.parameters(), strict=True):
            assert torch.equal(expected.grad, found.grad)
    with torch.no_grad():
        own.base_model(**inputs, use_cache=False)
    assert asked == [9, 13]


@pytest.mark.parametrize(
    ("free", "share", "usable"),
    [
        (130, 1.0, 130 + 10 - MARGIN * 140),  # nobody else there: what is free and what is held
        (130, 0.5, 70 - MARGIN * 70),  # half of the card is this process's, however much is free
        (20, 0.5, 20 + 10 - MARGIN * 70),  # another process leaves less than that
    ],
)
def test_room_is_what_others_leave_or_the_share_that_was_set(
    monkeypatch: pytest.MonkeyPatch, free: int, share: float, usable: float
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    assert _usable(torch.device("cpu"), 10 * GIB) == pytest.approx(usable * GIB)


def test_hosted_blocks_take_half_of_what_checkpoints_leave() -> None:
    memory = keep.SPARED + 100 * GIB
    assert keep.host_room(memory, 1) == 50 * GIB and keep.host_room(memory, 2) == 25 * GIB
    assert keep.host_room(memory, 2, copies=20 * GIB) == 15 * GIB
    assert keep.host_room(memory, 2, copies=60 * GIB) == 0


def test_a_row_hosts_blocks_in_what_the_learners_checkpoints_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1.7B a block keeps 45,120 bytes a token: 2.75 GiB at 64K. Half of 100 GiB would hold 18 of them."""
    monkeypatch.setattr(keep, "_in_use", lambda _: (0, 0, 0))
    monkeypatch.setattr(keep, "host_memory", lambda: keep.SPARED + 100 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    found = []
    for copies in (0, 94, 95):  # half of 6 GiB holds one, of 5 none
        own = keeping(qwen(2048, 6144))
        own.copies = copies * GIB
        found.append(own(65536).count("hosted"))
    assert found[0] > 1 and found[1:] == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
def test_the_link_to_host_memory_is_as_fast_as_a_bus_can_be() -> None:
    assert 1e9 < keep.link(torch.device("cuda")) < 1e12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
def test_what_is_in_use_is_what_torch_says() -> None:
    device = torch.device("cuda")
    one, _ = torch.empty(2**24, device=device), torch.empty(2**26, device=device)
    del _
    cuda = torch.cuda
    expected = cuda.memory_allocated(device), cuda.max_memory_allocated(device), cuda.memory_reserved(device)
    assert keep._in_use(device) == expected and expected[0] >= one.nbytes
