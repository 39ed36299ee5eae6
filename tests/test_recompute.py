from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from motet.base.recipe import Model, Optimizer
from motet.data.pack import Sample, pack
from motet.model import attention, packed, recompute
from motet.model.kernels import Documents
from motet.train.learner import Learner
from motet.train.losses import cross_entropy

ROWS = ([20], [7, 5, 11], [30, 2], [9, 9, 9, 3])


def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation=attention.NAME,
    )
    return Qwen3ForCausalLM(config).train()


def hidden(own: Any, lengths: list[int]) -> torch.Tensor:
    tokens_1T = (torch.arange(sum(lengths)) * 7 % 64)[None]
    positions_1T = torch.cat([torch.arange(n) for n in lengths])[None]
    inputs = {"input_ids": tokens_1T, "position_ids": positions_1T, "documents": Documents.plan(lengths)}
    found: torch.Tensor = own.base_model(**inputs, use_cache=False).last_hidden_state
    return found


def gradients(own: Any, lengths: list[int]) -> list[torch.Tensor]:
    own.zero_grad()
    hidden(own, lengths).square().sum().backward()
    return [p.grad.clone() for p in own.parameters() if p.grad is not None]


@pytest.fixture
def through_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as a GPU runs it."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, d: Documents, scale: float) -> torch.Tensor:
        return packed.attend(q, k, v, d.starts, d.starts_host, scale)

    monkeypatch.setattr(attention, "attend", attend)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[function] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", [*recompute.POLICIES, ("full", "attention")])
def test_what_is_computed_again_changes_no_gradient_by_a_bit(policy: Any) -> None:
    plain, own = model(), model()
    recompute.apply(list(own.model.layers), policy)
    for lengths in ROWS:
        for expected, found in zip(gradients(plain, lengths), gradients(own, lengths), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("policy", "attentions", "products"),
    [("none", 2, 14), ("matmul", 2, 14), ("attention", 2, 26), ("full", 4, 26), ("offload", 4, 28)],
)
def test_a_policy_computes_again_what_it_says_and_nothing_else(
    policy: Any, attentions: int, products: int, through_the_operation: None
) -> None:
    """2 blocks of 7 products each. The last of a checkpointed block, down_proj, is not needed for its own gradient;
    an offloaded block is run again as a whole."""
    own = model()
    recompute.apply(list(own.model.layers), policy)
    loss = hidden(own, [9, 4]).square().sum()
    with Calls() as backward:
        loss.backward()
    attends = torch.ops.motet.attend.default
    with Calls() as forward:
        hidden(own, [9, 4])
    assert forward.of[attends] + backward.of[attends] == attentions
    transposed = 2 * forward.of[torch.ops.aten.mm.default]  # each product has two in the backward pass
    assert forward.of[torch.ops.aten.mm.default] + backward.of[torch.ops.aten.mm.default] - transposed == products


@pytest.mark.parametrize("policy", ["attention", "offload"])
def test_parameters_of_blocks_have_gradients_although_the_embedding_is_frozen(policy: Any) -> None:
    plain, own = model(), model()
    recompute.apply(list(own.model.layers), policy)
    found = []
    for one in (plain, own):
        one.get_input_embeddings().weight.requires_grad_(False)
        found.append(gradients(one, [6, 3]))
    assert len(found[0]) == len(found[1]) == 23  # 2 blocks of 7 matrices and 4 norms, and the last norm
    for expected, other in zip(*found, strict=True):
        assert torch.equal(other, expected)


def test_parameters_keep_their_names() -> None:
    own = model()
    names = [name for name, _ in own.named_parameters()]
    recompute.apply(list(own.model.layers), "attention")
    assert [name for name, _ in own.named_parameters()] == names and list(own.state_dict()) == list(
        model().state_dict()
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # dynamo looks at every attribute of what it traces
@pytest.mark.parametrize("policy", ["none", "attention"])
def test_compiled_blocks_give_the_same_gradients_and_a_new_length_compiles_nothing(
    policy: Any, through_the_operation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile(run, backend="aot_eager", **options))
    torch._dynamo.reset()
    plain, own = model(), model()
    recompute.apply(list(own.model.layers), policy, compiled=True)
    counts = []
    for lengths in ROWS:
        for expected, found in zip(gradients(plain, lengths), gradients(own, lengths), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1] == counts[2] == counts[3]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize(("any_length", "compilations"), [(True, [1, 2, 2, 2]), (False, [1, 2, 2, 3])])
def test_where_lengths_of_rows_differ_the_first_compilation_is_for_all_of_them(
    any_length: bool, compilations: list[int], through_the_operation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once without and once with gradients; else the first row with another number of tokens is one more. One with
    another number of documents never is."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile(run, backend="aot_eager", **options))
    torch._dynamo.reset()
    plain, own = model(), model()
    recompute.apply(list(own.model.layers), "attention", compiled=True, any_length=any_length)
    begin = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    counts = []
    for lengths in ([20], [20], [7, 13], [7, 5, 11]):
        if not counts:
            with torch.no_grad():
                assert torch.equal(hidden(own, lengths), hidden(plain, lengths))
        else:
            for expected, found in zip(gradients(plain, lengths), gradients(own, lengths), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - begin)
    assert counts == compilations
    torch._dynamo.reset()


def test_on_a_gpu_rows_of_any_length_are_compiled_without_a_choice_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda run, **options: asked.append(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for any_length in (False, True):
        recompute.compile_row(len, any_length)
    strict = {"triton.mix_order_reduction_non_strict_mode": True}
    assert asked == [{"fullgraph": True}, {"fullgraph": True, "options": strict}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_learner_of_rows_of_any_length_compiles_block_and_norm_once_with_and_once_without_gradients(
    model_folder: Path, through_the_operation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile(run, backend="aot_eager", **options))
    torch._dynamo.reset()
    settings = {"path": str(model_folder), "device": "cpu", "recompute": "matmul"}
    compiled = Learner(model_folder, Model(**settings, compile="on"), Optimizer(), 6, any_length=True)  # type: ignore[arg-type]
    plain = Learner(model_folder, Model(**settings, compile="off"), Optimizer(), 6)  # type: ignore[arg-type]
    begin = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for lengths in ([9, 8, 7], [12], [5, 6]):
        batches = pack([Sample((7,) * n, (False,) + (True,) * (n - 1)) for n in lengths], 20)
        for found, expected in zip(compiled.logprobs(batches), plain.logprobs(batches), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        for learner in (compiled, plain):
            learner.accumulate(batches, cross_entropy)
        norms = [learner.update()["optim/grad_norm"] for learner in (compiled, plain)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - begin == 4
    torch._dynamo.reset()
