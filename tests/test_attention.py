from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from motet.base.errors import UserError
from motet.base.recipe import Model, Optimizer
from motet.data.pack import Sample, pack
from motet.model.attention import packed_attention
from motet.model.kernels import Documents
from motet.model.load import load_model
from motet.model.skeleton import fill, skeleton
from motet.train.learner import Learner

LENGTHS = {
    "one document": [9],
    "one token": [1],
    "a lone long one among short ones": [4, 100, 5],
    "many of equal length": [7] * 9,
    "many of different lengths": [1, 64, 2, 3, 2, 50, 49, 1, 33],
}
WIDTH = 8


def document_by_document(
    query_1HTD: torch.Tensor, key_1KTD: torch.Tensor, value_1KTD: torch.Tensor, lengths: list[int], scale: float | None
) -> torch.Tensor:
    """The slow obvious twin: one call a document, key and value heads repeated by hand. [1, T, H, D]"""
    repeats = query_1HTD.shape[1] // key_1KTD.shape[1]
    key_1HTD, value_1HTD = (x.repeat_interleave(repeats, 1) for x in (key_1KTD, value_1KTD))
    documents = zip(*(x.split(lengths, 2) for x in (query_1HTD, key_1HTD, value_1HTD)), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in documents], 2
    ).transpose(1, 2)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_packed_attention_is_attention_document_by_document_forward_and_backward(
    lengths: list[int], key_heads: int
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    inputs = [
        torch.randn(1, heads, sum(lengths), WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (4, key_heads, key_heads)
    ]
    weights = torch.randn(1, sum(lengths), 4, WIDTH, dtype=torch.float64, generator=generator)
    expected = document_by_document(*inputs, lengths, 0.3)
    out, _ = packed_attention(torch.nn.Module(), *inputs, None, scaling=0.3, documents=Documents.plan(lengths))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, other in zip(torch.autograd.grad((out * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-12, rtol=0)


def test_documents_of_like_length_share_a_bucket_and_a_lone_one_is_sliced() -> None:
    long, short = Documents.plan([4, 100, 5]).buckets
    assert long.gather_SL is None and (long.start, long.stop) == (4, 104)
    assert short.gather_SL is not None and short.target_N is not None
    assert short.gather_SL.tolist() == [[104, 105, 106, 107, 108], [0, 1, 2, 3, 0]]  # padding points at token 0
    assert short.target_N.tolist() == [104, 105, 106, 107, 108, 0, 1, 2, 3]


@pytest.mark.parametrize("name", ["sliding_window", "softcap", "s_aux"])
def test_a_model_that_asks_attention_for_more_is_refused_by_name(name: str) -> None:
    x = torch.zeros(1, 1, 2, WIDTH)
    more: dict[str, Any] = {name: 4}
    with pytest.raises(ValueError, match=f"Module asks for {name}=4"):
        packed_attention(torch.nn.Module(), x, x, x, None, documents=Documents.plan([2]), **more)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def small(kind: Any, **more: Any) -> Any:
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    return kind(**shape, num_attention_heads=4, num_key_value_heads=2, **more)


def test_a_model_with_a_sliding_window_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = saved(MistralForCausalLM(small(MistralConfig, sliding_window=8)), tmp_path)
    with pytest.raises(UserError, match="sliding_window = 8, which motet does not support"):
        load_model(folder, "motet", torch.device("cpu"), torch.float32)


def test_a_folder_that_lacks_a_weight_is_refused_and_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(LlamaForCausalLM(small(LlamaConfig)), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing from it: model\.layers\.1\.mlp\.up_proj"):
        load_model(folder, "motet", torch.device("cpu"), torch.float32)


def test_a_torn_weights_file_is_the_users_to_see(tmp_path: Path) -> None:
    folder = saved(LlamaForCausalLM(small(LlamaConfig)), tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"its weights cannot be loaded .*; copy or export the model again"):
        load_model(folder, "motet", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("read", ["whole", "in parts"])
def test_a_weight_of_another_shape_than_the_configuration_says_is_refused_with_both_shapes(
    tmp_path: Path, read: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(LlamaForCausalLM(small(LlamaConfig)), tmp_path)
    weights, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    M, D = weights[name].shape
    weights[name] = torch.zeros(M - 4, D)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    told = rf"{name} is of shape \({M - 4}, {D}\) there and \({M}, {D}\) by its config\.json"
    with pytest.raises(UserError, match=told):
        if read == "whole":
            load_model(folder, "motet", torch.device("cpu"), torch.float32)
        else:
            fill(skeleton(folder, "motet", torch.float32), folder, torch.device("cpu"), {})


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which two query heads share each key head."""
    torch.manual_seed(1)
    return saved(LlamaForCausalLM(small(LlamaConfig)), tmp_path_factory.mktemp("grouped"))


@pytest.fixture(scope="module")
def grouped_learner(grouped: Path) -> Learner:
    return Learner(grouped, Model(path=str(grouped), device="cpu"), Optimizer(), 1)


def document(*tokens: int) -> Sample:
    return Sample(tokens, (False,) + (True,) * (len(tokens) - 1))


def test_what_one_document_says_leaves_the_loss_of_another_bit_for_bit_alone(grouped_learner: Learner) -> None:
    fixed = document(5, 6, 7, 8, 9)

    def logprobs(other: Sample) -> torch.Tensor:
        (batch,) = pack([other, fixed], 64)
        assert batch.order == (0, 1)
        (found,) = grouped_learner.logprobs([batch])
        return found[-4:]

    before, after = logprobs(document(1, 2, 3, 4, 5, 6)), logprobs(document(15, 14, 13, 12, 11, 10))
    assert torch.equal(before, after)


def test_the_packed_model_says_what_the_plain_one_says_of_each_document(
    grouped: Path, grouped_learner: Learner
) -> None:
    samples = [document(1, 2, 3, 4, 5, 6, 7, 8), document(9, 3), document(4, 4, 1), document(2, 12, 2)]
    (batch,) = pack(samples, 64)
    (packed,) = grouped_learner.logprobs([batch])
    plain = load_model(grouped, "sdpa", torch.device("cpu"), torch.float32)
    expected = []
    for index in batch.order:
        tokens = torch.tensor(samples[index].tokens)
        logprobs = plain(tokens[None, :-1]).logits[0].log_softmax(-1)
        expected.append(logprobs.gather(1, tokens[1:, None])[:, 0])
    torch.testing.assert_close(packed, torch.cat(expected), atol=1e-6, rtol=0)
