from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from motet.model import attention, offload, recompute
from motet.model.attention import of_row
from motet.model.halves import Halves
from motet.model.kernels import Documents

MLP = 56
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": MLP, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "attn_implementation": attention.NAME}  # fmt: skip
LENGTHS = [17, 3, 9]


def qwen(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE)).train().to(dtype)


def llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, mlp_bias=True, attention_bias=True)).train().to(dtype)


def hidden(own: Any, lengths: list[int]) -> torch.Tensor:
    tokens_1T = (torch.arange(sum(lengths)) * 7 % 64)[None]
    positions_1T = torch.cat([torch.arange(n) for n in lengths])[None]
    inputs = {"input_ids": tokens_1T, "position_ids": positions_1T, "documents": Documents.plan(lengths)}
    found: torch.Tensor = own.base_model(**inputs, use_cache=False).last_hidden_state
    return found


def step(own: Any, lengths: list[int]) -> list[torch.Tensor]:
    own.zero_grad()
    out = hidden(own, lengths)
    weights = torch.arange(out.numel()).view(out.shape) % 5 - 2.0
    (out * weights).sum().backward()
    return [out.detach(), *(p.grad for p in own.parameters() if p.grad is not None)]


@pytest.mark.parametrize("make", [qwen, llama])
@pytest.mark.parametrize("size", [1, 8, 28])
def test_a_block_in_halves_is_the_block(make: Any, size: int) -> None:
    """29 tokens, in tiles that end inside documents and one that leaves a single token over."""
    expected = step(make(), LENGTHS)
    own = make()
    recompute.apply(list(own.model.layers), "offload", tile=size)
    found = step(own, LENGTHS)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    with torch.no_grad():
        assert torch.equal(hidden(own, LENGTHS), found[0])


def test_a_frozen_matrix_has_no_gradient_and_hooks_on_the_others_run_once() -> None:
    own = qwen()
    recompute.apply(list(own.model.layers), "offload", tile=8)
    block = own.model.layers[1]
    block.self_attn.q_proj.weight.requires_grad_(False)
    ran: list[int] = []
    for parameter in (block.self_attn.k_proj.weight, block.mlp.up_proj.weight, block.input_layernorm.weight):
        parameter.register_post_accumulate_grad_hook(lambda p: ran.append(id(p)))
    step(own, LENGTHS)
    assert block.self_attn.q_proj.weight.grad is None and len(ran) == len(set(ran)) == 3


def test_gradients_of_tiles_are_summed_in_float32() -> None:
    """In bfloat16 a sum of 512 parts, each rounded, would be off by percents."""
    exact, own = qwen().double(), qwen(torch.bfloat16)
    found = []
    for model in (exact, own):
        block = model.model.layers[0]
        dtype = block.mlp.up_proj.weight.dtype
        x = torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
        rope = model.model.rotary_emb(x, torch.arange(512)[None])
        kwargs = {"position_embeddings": rope, "attention_mask": None}
        attend = of_row(Documents.plan([512]), None)
        Halves(block, attend, (), kwargs, 1 if model is own else 512).backward(x, torch.ones_like(x))
        found.append([p.grad.double() for p in block.parameters()])
    for other, one in zip(*found, strict=True):
        assert (one - other).norm() / other.norm() < 0.03


class Widest(TorchDispatchMode):
    """The most tokens of anything that is as wide as the MLP."""

    tokens = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 3 and result.shape[-1] == MLP:
            self.tokens = max(self.tokens, result.shape[1])
        return result


def test_what_is_as_wide_as_the_mlp_exists_for_one_tile_only() -> None:
    own, seen = qwen(), []
    for size in (99, 8):
        recompute.apply(list(own.model.layers), "offload", tile=size)
        with Widest() as widest:
            step(own, LENGTHS)
        seen.append(widest.tokens)
    assert seen == [sum(LENGTHS), 8]


def test_a_block_without_attention_is_not_taken() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return x

    with pytest.raises(AssertionError, match="Nothing did not call attention"):
        Halves(Nothing(), lambda q, k, v, scale: q, (), {}, 4).forward(torch.zeros(1, 8, 4))


def test_host_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    assert offload.host_memory(tmp_path) == 1 << 62  # nobody says
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert offload.host_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5000\n")
    assert offload.host_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("7000\n")
    (group / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    assert offload.host_memory(tmp_path) == 3000  # 7000 - 5000, and files that can be dropped
