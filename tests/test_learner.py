from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from motet.base.errors import UserError
from motet.base.recipe import Model, Optimizer
from motet.data.pack import Batch, Sample, pack
from motet.model import blocks
from motet.model.load import export, load_tokenizer
from motet.train import checkpoint
from motet.train.learner import Learner, learning_rate
from motet.train.logprobs import Scored
from motet.train.losses import Sums, cross_entropy
from motet.train.told import Told


def learner(folder: Path, optimizer: Optimizer | None = None, steps: int = 6, **model: Any) -> Learner:
    return Learner(folder, Model(path=str(folder), device="cpu", **model), optimizer or Optimizer(), steps)


def samples(step: int = 0, lengths: Sequence[int] = (9, 4, 30, 4, 17)) -> list[Sample]:
    """Random tokens, the last two thirds of each trained on."""
    stream = random.Random(step)
    return [
        Sample(tuple(stream.randrange(5, 30) for _ in range(n)), tuple(3 * i >= n for i in range(n))) for n in lengths
    ]


def train(learner: Learner, steps: range) -> None:
    for step in steps:
        learner.accumulate(pack(samples(step), 40), cross_entropy)
        learner.update()


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    return found


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.weights()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_how_samples_fall_into_batches_moves_neither_loss_nor_gradients(model_folder: Path) -> None:
    own = learner(model_folder)
    found = []
    for most in (1, 25, 1000):  # each sample alone; several batches of several samples; one batch
        batches = pack(samples(), most)
        metrics = own.accumulate(batches, cross_entropy)
        found.append((len(batches), metrics, gradients(own)))
    assert [count for count, _, _ in found] == [5, 3, 1]
    (_, metrics, expected), *others = found
    for _, other_metrics, other in others:
        assert other_metrics == pytest.approx(metrics, abs=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "offload"), [("adamw", "off"), ("muon", "off"), ("adamw", "on")])
def test_blocks_know_how_much_of_host_memory_checkpoints_and_moments_take(
    kind: Any, offload: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what an optimizer's first step is about to allocate."""
    keeping = SimpleNamespace(copies=0, begin=lambda *_: None, observe=lambda: None)
    monkeypatch.setattr(blocks, "prepare", lambda *_: keeping)
    own = learner(model_folder, Optimizer(kind=kind, offload=offload))
    trained = sum(p.nbytes for p in own._trained.values())
    _, to_come = own._pending()
    train(own, range(1))
    held = sum(t.nbytes for name, t in own.state().items() if not name.startswith("random/") and t.ndim)
    assert (to_come, own._pending()[1]) == (held - trained, 0)
    assert keeping.copies == held + (to_come if offload == "on" else 0)


def test_a_state_from_before_the_first_step_takes_the_moments_of_later_steps_back(model_folder: Path) -> None:
    fresh, own = learner(model_folder), learner(model_folder)
    train(own, range(2))
    own.load_state(fresh.state())
    for each in (fresh, own):
        train(each, range(2))
    assert same(weights(own), weights(fresh))


def test_the_loss_is_the_mean_over_all_scored_tokens_not_over_batches(model_folder: Path) -> None:
    own = learner(model_folder)
    batches = pack(samples(lengths=(30, 3)), 1)
    long, short = own.logprobs(batches)
    assert (long.numel(), short.numel()) == (20, 2)
    loss = own.accumulate(batches, cross_entropy)["loss/nll"]
    assert loss == pytest.approx(-float(long.sum() + short.sum()) / 22, rel=1e-6)


def test_log_probabilities_are_taken_at_the_temperature_asked_for(model_folder: Path) -> None:
    tokens = torch.tensor(samples(lengths=(9,))[0].tokens)
    logits = AutoModelForCausalLM.from_pretrained(model_folder).eval()(tokens[None]).logits[0, 2:-1]
    expected = (logits / 0.3).log_softmax(-1).gather(1, tokens[3:, None])[:, 0]
    (found,) = learner(model_folder).logprobs(pack(samples(lengths=(9,)), 99), temperature=0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_recomputing_blocks_in_the_backward_pass_leaves_the_gradients_alone(model_folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        own = learner(model_folder, recompute="full" if checkpointing else "none")
        own.accumulate(pack(samples(), 1000), cross_entropy)
        found.append(gradients(own))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=0)


def test_a_model_that_trained_with_dropout_is_trained_without(tmp_path: Path) -> None:
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, attention_dropout=0.5)).save_pretrained(tmp_path)
    own = learner(tmp_path)
    batches = pack(samples(), 1000)
    (first,), (second,) = own.logprobs(batches), own.logprobs(batches)
    assert torch.equal(first, second)


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    PhiForCausalLM(PhiConfig(**shape, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the head has a bias"):
        learner(tmp_path)


def test_the_learning_rate_warms_up_and_falls_as_the_docstring_says() -> None:
    config = Optimizer(learning_rate=1.0, warmup_steps=2, final_ratio=0.0)
    rates = [learning_rate(config, step, 6) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    floor = config.model_copy(update={"final_ratio": 0.1})
    assert [learning_rate(floor, step, 6) for step in (4, 6, 99)] == pytest.approx([0.55, 0.1, 0.1])
    flat = config.model_copy(update={"schedule": "constant"})
    assert [learning_rate(flat, step, 6) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_weight_decay_shrinks_matrices_and_leaves_gains_alone(model_folder: Path) -> None:
    own = learner(model_folder, Optimizer(learning_rate=0.5, warmup_steps=0, weight_decay=0.2, schedule="constant"))
    before = weights(own)
    for parameter in own.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    own.update()
    for name, tensor in own.weights():
        share = 0.9 if tensor.ndim == 2 else 1.0  # 1 - 0.5 x 0.2
        torch.testing.assert_close(tensor, share * before[name])


def test_large_gradients_are_scaled_down_to_the_norm_asked_for(model_folder: Path) -> None:
    own = learner(model_folder, Optimizer(max_grad_norm=0.5))
    own.accumulate(pack(samples(), 1000), lambda s, b, _: (-100 * s.logprobs_N.sum(), {}))
    parameters = [p for p in own.model.parameters() if p.grad is not None]
    norm = float(torch.sqrt(sum(p.grad.square().sum() for p in parameters)))
    clipped: list[torch.Tensor] = []
    own._optimizers.parts[0].register_step_pre_hook(lambda *_: clipped.extend(p.grad.clone() for p in parameters))
    assert norm > 0.5 and own.update()["optim/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert float(torch.sqrt(sum(g.square().sum() for g in clipped))) == pytest.approx(0.5, rel=1e-4)


def test_gradients_that_are_not_finite_raise_and_leave_the_weights_as_they_are(model_folder: Path) -> None:
    def broken(scored: Scored, batch: Batch, _: torch.Tensor | None) -> tuple[torch.Tensor, Sums]:
        return scored.logprobs_N.sum() * float("inf"), {}

    own = learner(model_folder)
    before = weights(own)
    own.accumulate(pack(samples(), 1000), broken)
    with pytest.raises(
        UserError, match=r"optimizer step 1: the loss is -?inf; the weights were left.*smaller optimizer"
    ):
        own.update()
    assert same(weights(own), before) and own.version == 0


def test_a_step_without_a_token_to_score_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="every loss mask is empty"):
        learner(model_folder).accumulate(pack([Sample((5, 6), (False, False))], 9), cross_entropy)


def test_three_steps_a_restart_and_three_steps_are_six_steps_bit_for_bit(model_folder: Path, tmp_path: Path) -> None:
    config = Optimizer(learning_rate=1e-2, warmup_steps=1, weight_decay=0.1)
    whole = learner(model_folder, config)
    train(whole, range(6))
    first = learner(model_folder, config)
    train(first, range(3))
    checkpoint.Checkpoints(tmp_path, first).save(3)
    second = learner(model_folder, config)
    assert checkpoint.Checkpoints(tmp_path, second).restore() == 3 and second.version == 3
    train(second, range(3, 6))
    assert same(weights(second), weights(whole)) and not same(weights(first), weights(whole))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_checkpoint_written_behind_holds_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    value = torch.arange(4.0)
    written = checkpoint._behind({"weights/a": value}, dcp.FileSystemWriter(tmp_path / "c"), None, "cpu")
    value.add_(1.0)  # training goes on
    written.result()
    found = {"weights/a": torch.zeros(4)}
    dcp.load(found, storage_reader=dcp.FileSystemReader(tmp_path / "c"), no_dist=True)
    assert found["weights/a"].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_the_thread_that_writes_a_checkpoint_is_on_the_gpu_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on: dict[str, int] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: on.update({threading.current_thread().name: device}))
    monkeypatch.setattr(checkpoint.dcp, "save", lambda *_, **__: None)
    checkpoint._behind({"weights/a": torch.zeros(1)}, dcp.FileSystemWriter(tmp_path / "c"), None, "cpu").result()
    (name,) = on
    assert on[name] == 3 and name.startswith("checkpoint")


def test_the_newest_two_checkpoints_are_kept_and_a_half_written_one_is_ignored(
    model_folder: Path, tmp_path: Path
) -> None:
    own = learner(model_folder)
    checkpoints = checkpoint.Checkpoints(tmp_path, own)
    assert checkpoints.restore() == 0
    for step in (9, 10, 11):
        own.version = step
        checkpoints.save(step)
    (tmp_path / "step-000012.tmp").mkdir()
    (tmp_path / "step-000012.tmp" / "__0_0.distcp").write_bytes(b"half")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000011", "step-000012.tmp"]
    assert checkpoints.restore() == 11
    checkpoints.save(12)  # over the half-written one
    assert checkpoints.restore() == 12
    checkpoints.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("where", "name", "expected"),
    [
        (os, "fsync", 1),  # a file of weights has its content, and what describes it is not there
        (Path, "rename", 1),  # all is written, and the folder has not its name
        (shutil, "rmtree", 2),  # the second time: the folder has its name, and what is too old is there too
    ],
)
def test_a_kill_during_a_save_costs_that_save_alone(
    model_folder: Path, tmp_path: Path, where: Any, name: str, expected: int
) -> None:
    own = learner(model_folder)
    checkpoints = checkpoint.Checkpoints(tmp_path, own)
    for step in (0, 1):
        own.version = step
        checkpoints.save(step)
    before = {name: tensor.clone() for name, tensor in own.weights()}
    child = os.fork()
    if not child:
        real, calls = getattr(where, name), []

        def dies(*arguments: Any, **more: Any) -> Any:
            calls.append(arguments)
            if name != "rmtree" or Path(arguments[0]).name == "step-000000":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        setattr(where, name, dies)
        try:
            own.version = 2
            checkpoints.save(2)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = learner(model_folder)
    assert checkpoint.Checkpoints(tmp_path, again).restore() == expected == again.version
    assert all(torch.equal(before[name], tensor) for name, tensor in again.weights())


def test_a_checkpoint_that_cannot_be_written_is_the_systems_error_and_the_older_one_stays(
    model_folder: Path, tmp_path: Path
) -> None:
    checkpoints = checkpoint.Checkpoints(tmp_path, learner(model_folder))
    checkpoints.save(1)
    (size,) = (file.stat().st_size for file in (tmp_path / "step-000001").glob("*.distcp"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.1, 0.6, 0.99):  # torch meets the end of the room in different places
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
        try:
            with pytest.raises(OSError) as caught:
                checkpoints.save(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert checkpoints.restore() == 1


def test_an_interrupt_while_a_checkpoint_is_written_is_an_interrupt(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    checkpoints = checkpoint.Checkpoints(tmp_path, learner(model_folder))
    checkpoints.save(1)
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", interrupted)  # torch wraps what it raises
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2)
    assert checkpoints.restore() == 1


def test_a_model_that_does_not_fit_on_the_disk_is_the_systems_error_and_the_older_one_stays(
    tmp_path: Path, tokenizer: Any
) -> None:
    class Model:
        def save_pretrained(self, folder: Path) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    (tmp_path / "model").mkdir()
    with pytest.raises(OSError, match="No space left") as caught:
        export(Model(), tokenizer, tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC and (tmp_path / "model").exists()


def test_an_exported_model_loads_in_transformers_and_gives_the_same_logits(
    model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    own = learner(model_folder, Optimizer(learning_rate=1e-2, warmup_steps=0))
    train(own, range(2))
    own.export(tmp_path / "model", tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.tensor(samples(lengths=(12,))[0].tokens)
    logprobs = plain(tokens[None]).logits[0].log_softmax(-1)[3:-1].gather(1, tokens[4:, None])[:, 0]
    (expected,) = own.logprobs(pack(samples(lengths=(12,)), 99))
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert plain.config.dtype == torch.float32 and not list(tmp_path.glob("*.tmp"))


def test_a_model_computed_in_bfloat16_keeps_float32_weights_and_is_exported_in_bfloat16(
    model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    own = learner(model_folder, dtype="bfloat16")
    exact = learner(model_folder)
    batches = pack(samples(), 1000)
    metrics = own.accumulate(batches, cross_entropy)
    assert metrics["loss/nll"] == pytest.approx(exact.accumulate(batches, cross_entropy)["loss/nll"], abs=0.02)
    assert {tensor.dtype for _, tensor in own.weights()} == {torch.float32}
    own.export(tmp_path / "model", tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.dtype == torch.bfloat16
    for name, tensor in own.weights():
        assert torch.equal(plain.state_dict()[name], tensor.bfloat16())


def test_what_a_step_publishes_stays_where_it_was_in_memory(model_folder: Path) -> None:
    own = learner(model_folder, dtype="bfloat16")
    before = [p.data_ptr() for p in own.model.parameters()]
    train(own, range(1))
    assert [p.data_ptr() for p in own.model.parameters()] == before


def test_a_learner_that_gave_its_memory_back_between_steps_trains_to_the_same_bits(
    model_folder: Path, tmp_path: Path
) -> None:
    resting, other = (learner(model_folder, dtype="bfloat16") for _ in range(2))
    for step in range(3):
        for own in (resting, other):
            train(own, range(step, step + 1))
        resting.rest()
        assert {p.untyped_storage().nbytes() for p in resting.model.parameters()} == {0}
    assert same(weights(resting), weights(other))  # from the copies that the optimizer steps on
    resting.export(tmp_path / "rested", load_tokenizer(model_folder))
    rows = pack(samples(3), 40)
    for a, b in zip(resting.logprobs(rows), other.logprobs(rows), strict=True):
        assert torch.equal(a, b)
    other.export(tmp_path / "other", load_tokenizer(model_folder))
    rested, never = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("rested", "other")
    )
    for a, b in zip(rested.parameters(), never.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_read_before_it_is_taken_is_the_step_that_is(model_folder: Path) -> None:
    """The device's way, on a CPU: the optimizer's kernel clips and divides by numbers that nobody has looked at."""
    read, unread = learner(model_folder), learner(model_folder)
    unread._optimizers.unread = True
    for step in range(4):
        for own in (read, unread):
            own._config = own._config.model_copy(update={"max_grad_norm": 0.3 if step % 2 else 1e6})
        told = [dict(own.accumulate(pack(samples(step), 40), cross_entropy)) | own.update() for own in (read, unread)]
        assert told[0] == pytest.approx(told[1], rel=1e-5)
    for own, other in zip(read.model.parameters(), unread.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("where", ["the loss", "the gradient norm"])
def test_a_step_that_turns_out_not_to_be_finite_has_changed_nothing(model_folder: Path, where: str) -> None:
    plain, own = learner(model_folder), learner(model_folder)
    own._config = plain._config.model_copy(update={"on_nonfinite": "skip"})
    own._optimizers.unread = plain._optimizers.unread = True
    for one in (plain, own):
        one.accumulate(pack(samples(0), 40), cross_entropy)
        one.update()
    own.accumulate(pack(samples(1), 40), cross_entropy)
    if where == "the loss":
        assert own._unread is not None
        own._unread = own._unread + torch.nan
    else:
        (gradient,) = (p.grad for p in [next(own.model.parameters())])
        assert gradient is not None
        gradient[0] = torch.inf
    assert own.update()["optim/skipped"] == 1.0 and own.version == 1
    for one in (plain, own):
        one.accumulate(pack(samples(2), 40), cross_entropy)
        one.update()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), own.model.parameters(), strict=True))


def test_what_a_step_told_is_fetched_when_it_is_read() -> None:
    told = Told({"loss/nll": torch.tensor(6.0, dtype=torch.float64), "tokens": torch.tensor(3.0)}, 4)
    assert "_read" not in vars(told) and list(told) == ["loss/nll", "tokens"]
    assert dict(told) == {"loss/nll": 1.5, "tokens": 0.75}
