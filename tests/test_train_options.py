"""What a recipe may choose about training in one process: adapters, positions, Muon, types, what is not finite."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import micro
from motet import pipeline
from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.recipe import Lora, Model, Optimizer, Rope, SftSource, SftStage
from motet.data.pack import Batch, Sample, idle, pack, sliced
from motet.model.load import load_model
from motet.model.rope import changed, positions_of, with_rope
from motet.model.skeleton import _places
from motet.stages.sft import _longest
from motet.train.checkpoint import Checkpoints
from motet.train.export import _files, write_model
from motet.train.learner import Learner
from motet.train.logprobs import Scored
from motet.train.losses import Sums, cross_entropy

FAST = Optimizer(learning_rate=1e-2, warmup_steps=0, schedule="constant")


def learner(folder: Path, optimizer: Optimizer = FAST, model: dict[str, Any] | None = None, **more: Any) -> Learner:
    return Learner(folder, Model(path=str(folder), device="cpu", **(model or {})), optimizer, 6, **more)


def batches(step: int = 0, lengths: Sequence[int] = (9, 4, 30, 17)) -> list[Batch]:
    stream = random.Random(step)
    samples = [Sample(tuple(stream.randrange(5, 30) for _ in range(n)), tuple(3 * i >= n for i in range(n)))
               for n in lengths]  # fmt: skip
    return pack(samples, 40)


def train(own: Learner, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(own.accumulate(batches(step % 2), cross_entropy)["loss/nll"])
        own.update()
    return losses


def broken(scored: Scored, batch: Batch, _: torch.Tensor | None) -> tuple[torch.Tensor, Sums]:
    return scored.logprobs_N.sum() * float("nan"), {}


# ---- adapters


def test_adapters_begin_as_the_model_itself_and_only_they_are_trained(model_folder: Path) -> None:
    plain, own = learner(model_folder), learner(model_folder, lora=Lora(rank=2))
    for a, b in zip(plain.logprobs(batches()), own.logprobs(batches()), strict=True):
        assert torch.equal(a, b)
    losses = train(own, range(6))
    assert losses[-1] < losses[0]
    assert {key.split(".")[-2] for key in own.state() if key.startswith("weights/")} == {"default"}
    assert {n.split(".")[-3] for n, p in own.model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
def test_merged_adapters_are_an_ordinary_model_and_the_adapter_alone_loads_in_peft(
    model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from peft import PeftModel

    own = learner(model_folder, lora=Lora(rank=2, targets=("q_proj", "down_proj")))
    train(own, range(3))
    own.export(tmp_path / "model", tokenizer)
    (expected,) = own.logprobs(batches(lengths=(12,)))
    merged = learner(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    assert {name for name, _ in own.weights()} == set(base.state_dict())
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    (batch,) = batches(lengths=(12,))
    logits_TV = adapted(batch.tokens_T[None]).logits[0]
    by_peft = logits_TV.log_softmax(-1)[batch.scored_N].gather(1, batch.targets_N[:, None])[:, 0]
    for found in (merged.logprobs([batch])[0], by_peft):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert jsonl.read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"] == ["down_proj", "q_proj"]


def test_adapters_are_saved_and_go_on_bit_for_bit(model_folder: Path, tmp_path: Path) -> None:
    whole = learner(model_folder, lora=Lora(rank=2))
    train(whole, range(4))
    first = learner(model_folder, lora=Lora(rank=2))
    train(first, range(2))
    Checkpoints(tmp_path, first).save(2)
    second = learner(model_folder, lora=Lora(rank=2), seed=5)
    assert Checkpoints(tmp_path, second).restore() == 2
    train(second, range(2, 4))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole.weights(), second.weights(), strict=True))


def test_adapters_on_layers_that_the_model_does_not_have_are_refused(model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"lora.targets = \('query',\): no such layers; the model has .*q_proj"):
        learner(model_folder, lora=Lora(targets=("query",)))


# ---- optimizers and types


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest(model_folder: Path) -> None:
    own = learner(model_folder, FAST.model_copy(update={"kind": "muon"}))
    losses = train(own, range(6))
    assert losses[-1] < losses[0]
    slots = {key.rpartition("/")[0]: key.rpartition("/")[2] for key in own.state() if key.startswith("optimizer/")}
    muon = {name for name, slot in slots.items() if slot == "momentum_buffer"}
    assert "optimizer/model.layers.0.mlp.down_proj.weight" in muon
    assert slots["optimizer/model.embed_tokens.weight"] == slots["optimizer/model.norm.weight"] == "exp_avg_sq"


def test_muon_is_refused_by_a_torch_that_has_none(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=f'torch {torch.__version__.split("+")[0]}.* has no Muon; use kind = "adamw"'):
        learner(model_folder, FAST.model_copy(update={"kind": "muon"}))


def test_in_bfloat16_small_updates_reach_float32_weights_and_are_lost_in_bfloat16_ones(model_folder: Path) -> None:
    gentle = FAST.model_copy(update={"learning_rate": 1e-5})
    moved = {}
    for weights in ("float32", "bfloat16"):
        own = learner(model_folder, gentle, {"dtype": "bfloat16", "weights": weights})
        before = {name: tensor.clone() for name, tensor in own.weights()}
        train(own, range(1))
        changes = [float((tensor != before[name]).float().mean()) for name, tensor in own.weights()]
        moved[weights] = sum(changes) / len(changes)
        assert {tensor.dtype for _, tensor in own.weights()} == {getattr(torch, weights)}
        assert {p.dtype for p in own.model.parameters()} == {torch.bfloat16}
        assert own.model.base_model.rotary_emb.inv_freq.dtype == torch.float32
    assert moved["float32"] > 0.8 and moved["bfloat16"] < 0.2


# ---- what is not finite


def test_a_step_that_is_not_finite_is_skipped_where_the_recipe_says_so_and_ten_in_a_row_end_the_run(
    model_folder: Path, tmp_path: Path
) -> None:
    own = learner(model_folder, FAST.model_copy(update={"on_nonfinite": "skip"}), notes=tmp_path)
    before = {name: tensor.clone() for name, tensor in own.weights()}
    for _ in range(10):
        own.accumulate(batches(), broken)
        assert own.update() == {"optim/skipped": 1.0, "optim/learning_rate": 1e-2}
    assert own.version == 0 and all(torch.equal(tensor, before[name]) for name, tensor in own.weights())
    own.accumulate(batches(), broken)
    with pytest.raises(
        UserError, match=r"step 1: the loss is nan; .*the 11th step in a row. The batch is in .*nonfinite-1"
    ):
        own.update()
    train(own, range(1))
    assert own.version == 1
    rows = [row for _, row in jsonl.read(tmp_path / "nonfinite-1.jsonl")]
    assert [row["lengths"] for row in rows] == [[30, 9], [17, 4]] and len(rows[0]["tokens"]) == 39


@pytest.mark.parametrize(
    ("version", "told"),
    [(0, "as they are in .*: copy or export that model again"), (3, "an earlier step was too large")],
)
def test_weights_that_are_not_finite_themselves_are_named_in_place_of_the_learning_rate(
    model_folder: Path, version: int, told: str
) -> None:
    own = learner(model_folder)
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        own.model.get_parameter(name)[0, 0] = float("nan")
    own.version = version
    own.accumulate(batches(), cross_entropy)
    with pytest.raises(UserError, match=rf"the loss is nan; .*\(1 of them, {name} for one\).*{told}"):
        own.update()


# ---- checkpoints of something else, or cut short


def test_a_checkpoint_of_another_model_is_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    Checkpoints(tmp_path, learner(model_folder)).save(1)
    with pytest.raises(
        UserError, match=r"step-000001: a checkpoint of another model \(.*lora_A.* is missing from it\)"
    ):
        Checkpoints(tmp_path, learner(model_folder, lora=Lora())).restore()


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_checkpoint_cut_short_is_refused_and_without_it_the_one_before_is_used(
    model_folder: Path, tmp_path: Path, file: str
) -> None:
    checkpoints = Checkpoints(tmp_path, learner(model_folder))
    for step in (1, 2):
        checkpoints.save(step)
    newest = tmp_path / "step-000002"
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    message = r"step-000002: the checkpoint is damaged .*Remove this folder: step-000001 is used then"
    with pytest.raises(UserError, match=message):
        checkpoints.restore()
    shutil.rmtree(newest)
    assert checkpoints.restore() == 1
    (tmp_path / "step-000001" / file).write_bytes(b"")
    with pytest.raises(UserError, match=r"step-000001: .*Remove this folder: the stage begins afresh then"):
        checkpoints.restore()


# ---- positions


LLAMA = {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}


@pytest.mark.parametrize(
    ("before", "rope", "expected"),
    [
        (LLAMA, Rope(kind="yarn", positions=32768),
         {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8192}),
        (LLAMA, Rope(kind="linear", positions=16384), {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
        (LLAMA, Rope(kind="theta", positions=16384, theta=1e6), {"rope_type": "default", "rope_theta": 1e6}),
        ({"max_position_embeddings": 8192, "rope_theta": 7.0}, Rope(kind="linear", positions=16384),
         {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}),
    ],
)  # fmt: skip
def test_positions_of_a_stage_are_written_as_transformers_reads_them(
    before: dict[str, Any], rope: Rope, expected: dict[str, Any]
) -> None:
    after = changed(before, rope, "m")
    assert after == {"max_position_embeddings": rope.positions, "rope_parameters": expected}


def test_a_second_extension_counts_from_the_original_positions() -> None:
    once = changed(LLAMA, Rope(positions=32768), "m")
    assert changed(once, Rope(positions=65536), "m")["rope_parameters"]["factor"] == 8.0
    stretched = changed(LLAMA, Rope(kind="linear", positions=16384), "m")
    assert changed(stretched, Rope(kind="linear", positions=65536), "m")["rope_parameters"]["factor"] == 8.0


def test_positions_that_are_no_more_than_the_original_ones_are_refused() -> None:
    with pytest.raises(UserError, match=r"rope.positions = 8192 is no more than the 8192 positions .*leave rope out"):
        changed(LLAMA, Rope(positions=8192), "m")


def test_a_model_with_other_positions_has_the_same_weights_and_another_result(
    model_folder: Path, tmp_path: Path
) -> None:
    assert positions_of(model_folder) == 96
    start = with_rope(model_folder, Rope(kind="linear", positions=192), tmp_path / "start")
    assert positions_of(start) == 192
    plain = load_model(model_folder, "sdpa", torch.device("cpu"), torch.float32)
    other = load_model(start, "sdpa", torch.device("cpu"), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    tokens_1T = torch.arange(5, 25)[None]
    halved = plain(tokens_1T, position_ids=torch.arange(20)[None] / 2).logits
    torch.testing.assert_close(other(tokens_1T).logits, halved, atol=1e-5, rtol=0)


def stage(**more: Any) -> SftStage:
    return SftStage(kind="sft", data=(SftSource(problems="p"),), **more)


def test_a_context_beyond_the_models_positions_is_an_error_with_the_line_to_add(model_folder: Path) -> None:
    message = (
        r"stage.sft.context = 97, and the model has 96 positions. Shorten it, or add under \[stage.sft\]: "
        r'rope = { kind = "yarn", positions = 97 }'
    )
    with pytest.raises(UserError, match=message):
        _longest("sft", stage(context=97), model_folder)
    assert _longest("sft", stage(context=96), model_folder) == 96
    assert _longest("sft", stage(), model_folder) == 96  # the recipe says nothing: what fits


def test_what_one_pass_cannot_hold_is_refused_before_anything_is_trained(micro_recipe: Path, tmp_path: Path) -> None:
    short = micro.recipe(micro_recipe, "stages=['sft']", "stage.sft.micro_batch_tokens=9")
    with pytest.raises(
        UserError, match=r"stage.sft: a conversation of \d+ tokens is longer than micro_batch_tokens = 9"
    ):
        pipeline.run(short, tmp_path, None, console=False)
    with pytest.raises(UserError, match=r"sampling.max_tokens \(16\) must be less than micro_batch_tokens \(16\)"):
        micro.recipe(micro_recipe, "stage.rl.micro_batch_tokens=16")


def test_completions_beyond_the_models_positions_are_an_error_with_the_line_to_add(
    micro_recipe: Path, tmp_path: Path
) -> None:
    long = micro.recipe(micro_recipe, "stages=['rl']", "stage.rl.problems=[{problems='numbers'}]",
                        "stage.rl.sampling.max_tokens=65")  # fmt: skip
    with pytest.raises(UserError, match=r"stage.rl.sampling.max_tokens = 65, and the model has 64 positions.*rope = "):
        pipeline.run(long, tmp_path, None, console=False)


@pytest.mark.slow
def test_a_stage_with_positions_and_adapters_hands_both_on(micro_recipe: Path, tmp_path: Path) -> None:
    recipe = micro.recipe(
        micro_recipe,
        "stages=['sft','rl']",
        *("stage.sft.steps=3", "stage.sft.context=90", "stage.sft.rope={kind='yarn',positions=128}"),
        *("stage.sft.lora={rank=4}", "stage.sft.evaluate=false", "stage.rl.evaluate=false"),
        *("stage.rl.steps=2", "stage.rl.problems=[{problems='numbers'}]", "stage.rl.lora={rank=2}"),
    )
    pipeline.run(recipe, tmp_path, None, console=False)
    for name in ("sft", "rl"):
        config = AutoConfig.from_pretrained(tmp_path / name / "model")
        assert (config.max_position_embeddings, config.rope_parameters["factor"]) == (128, 2.0)
        assert (tmp_path / name / "adapter" / "adapter_model.safetensors").exists()
        assert not (tmp_path / name / "start").exists()


# ---- export


def test_an_export_in_several_files_reloads_equal(model_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    own = learner(model_folder)
    train(own, range(1))
    tensors = dict(own.weights())
    del tensors["lm_head.weight"]  # tied
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    write_model(tmp_path / "m", own.model, tokenizer, tensors.items(), sizes, torch.float32, file_bytes=30_000)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in own.weights())


@pytest.mark.parametrize("fault", ["a missing file", "an index cut short", "an index of something else"])
def test_a_model_in_several_files_that_lacks_one_is_refused_where_processes_read_their_parts(
    model_folder: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "m"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(folder, max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    if fault == "a missing file":
        min(folder.glob("model-*.safetensors")).unlink()
    else:
        index.write_text(index.read_text()[:50] if "short" in fault else "{}")
    with pytest.raises(UserError, match=f"{folder}: its weights cannot be loaded .*copy or export the model again"):
        _places(folder)


def test_files_are_filled_in_order_and_a_large_weight_has_one_of_its_own() -> None:
    assert _files({"a": 2, "b": 1, "c": 9, "d": 1}, 4, 12) == [["a", "b"], ["c"], ["d"]]


# ---- rows that processes share


def test_a_row_is_padded_by_a_document_that_is_not_scored_and_cut_into_slices() -> None:
    (row,) = pack([Sample((5, 6, 7, 8), (False, True, True, True)), Sample((9, 3, 4), (False, True, True))], 9)
    slices = [sliced(row, part, 2) for part in range(2)]
    assert [s.tokens_t.tolist() for s in slices] == [[5, 6, 7, 8], [9, 3, 4, 0]]
    assert [s.positions_t.tolist() for s in slices] == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert [s.documents.lengths for s in slices] == [(4, 3, 1)] * 2
    assert [(s.scored_n.tolist(), s.targets_n.tolist(), s.start) for s in slices] == [
        ([0, 1, 2], [6, 7, 8], 0),
        ([0, 1], [3, 4], 3),
    ]


def test_rows_worked_on_at_the_same_time_have_about_the_same_number_of_tokens() -> None:
    samples = [Sample((5,) * n, (True,) * n) for n in (7, 5, 4, 2, 2)]
    assert [len(b.tokens_T) for b in pack(samples, 100)] == [20]
    assert [len(b.tokens_T) for b in pack(samples, 100, rows=2)] == [11, 9]
    assert [len(b.tokens_T) for b in pack(samples, 8, rows=2)] == [7, 5, 4, 4]
    assert len(pack(samples[:1], 100, rows=4)) == 1


def test_a_row_for_a_process_that_has_none_is_one_document_with_one_scored_token() -> None:
    row = idle(4, "cpu")
    assert row.documents.lengths == (4,) and row.scored_N.tolist() == [2]
