"""What a block keeps for the backward pass, tensor by tensor, against model/footprint.py: to the byte."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from motet.model import attention, packed, recompute
from motet.model.blocks import blocks_of
from motet.model.footprint import LADDER, Compute, Sizes, block_bytes
from motet.model.kernels import Documents
from motet.plan.live import Live

T = 256
KINDS = {"norms of heads": (Qwen3Config, Qwen3ForCausalLM), "none": (LlamaConfig, LlamaForCausalLM)}


@pytest.fixture(autouse=True)
def through_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as a GPU runs it."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, d: Documents, scale: float) -> torch.Tensor:
        return packed.attend(q, k, v, d.starts, d.starts_host, scale)

    monkeypatch.setattr(attention, "attend", attend)


def model(kind: str) -> Any:
    config, build = KINDS[kind]
    made = build(
        config(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=2, head_dim=16, attn_implementation=attention.NAME,
        )
    )  # fmt: skip
    return made.bfloat16().train()


def inputs(own: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    hidden = torch.zeros(1, T, 64, dtype=torch.bfloat16, requires_grad=True)
    places = torch.arange(T)[None]
    more = {"attention_mask": None, "position_ids": places, "position_embeddings": own.model.rotary_emb(hidden, places)}
    return hidden, {**more, "documents": Documents.plan([T]), "sequence": None, "use_cache": False}


def predicted(own: Any, compiled: bool) -> dict[Any, int]:
    return block_bytes(Sizes.of(own, blocks_of(own)), Compute(2, compiled)).kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", LADDER)
def test_a_block_that_runs_operation_by_operation_keeps_what_is_counted(policy: Any, kind: str) -> None:
    own = model(kind)
    recompute.apply(blocks_of(own), policy)
    hidden, more = inputs(own)
    documents = more["documents"]
    with Live(
        [*own.parameters(), hidden, *more["position_embeddings"], documents.starts, documents.starts_host]
    ) as live:
        for block in blocks_of(own)[:2]:
            before = live.now()
            hidden = block(hidden, **more)
    assert live.now() - before == T * predicted(own, compiled=False)[policy]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", LADDER)
def test_a_compiled_block_keeps_what_is_counted(policy: Any, kind: str) -> None:
    """By the partitioner of torch.compile's default backend: activations among the inputs of the backward graph."""
    own = model(kind)
    kept: list[torch.Tensor] = []

    def forward(graph: Any, given: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backward(graph: Any, given: Any) -> Any:
        placed = {node.name: node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"}
        kept.extend(value for name, value in placed.items() if not name.startswith(("primals", "tangents")))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=forward, bw_compiler=backward, decompositions=select_decomp_table(),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
    )  # fmt: skip
    hidden, more = inputs(own)
    run = torch.compile(recompute._RUNS[policy], fullgraph=True, backend=backend)
    run(blocks_of(own)[0], hidden, **more).sum().backward()
    torch._dynamo.reset()
    counted = sum(value.numel() * value.element_size() for value in kept)
    if policy == "none":  # attention's result, as [T, H, D] and as [T, H D]: one storage
        counted -= T * 8 * 16 * 2
    assert counted + T * 64 * 2 == T * predicted(own, compiled=True)[policy]  # and the block's input
