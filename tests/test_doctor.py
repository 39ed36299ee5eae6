"""`motet doctor` finds nothing where all is well, and finds what is broken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import CliRunner

import mesh_worker
from motet.base.errors import UserError
from motet.cli import cli
from motet.data.pack import Batch, pack
from motet.doctor import checks, examine, view, worker
from motet.doctor.finding import TOLERANCE, Finding, Step, apart, compare, no_farther
from motet.model import recompute
from motet.model.kernels import Documents
from motet.train import learner
from motet.train.checkpoint import Checkpoints
from motet.train.logprobs import Scored, score
from motet.train.losses import Sums, cross_entropy
from motet.train.optimizers import Optimizers
from motet.train.world import World


@pytest.fixture
def patient(tmp_path: Path) -> checks.Patient:
    case = examine.case_of("tiny", "cpu", None, tmp_path)
    return checks.Patient(case.path, "cpu", "float32", (1, 1, 1), str(tmp_path))


def test_a_sound_model_passes_in_processes_of_its_own() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--only", "packing", "--only", "resume"])
    assert result.exit_code == 0, result.output
    assert "0 failed, 0 not run" in result.output and result.output.count("  ok") == 5
    assert max(map(len, result.output.splitlines())) <= 120


def test_in_bfloat16_rows_and_processes_are_held_against_float32(patient: checks.Patient, tmp_path: Path) -> None:
    low = replace(patient, dtype="bfloat16")
    found = list(checks.rows(low))
    assert {f.measure for f in found} == {"loss, from float32", "gradients, from float32"}
    assert list(checks.spread_alone(low)) == []
    (spread,) = mesh_worker.run(2, [(2, partial(all_of, replace(low, mesh=(1, 2, 1))))], tmp_path)
    assert {f.status for f in (*found, *spread[0])} == {"ok"} and len(spread[0]) == 8


def all_of(patient: checks.Patient, world: World, folder: Path) -> list[Finding]:
    return list(checks.spread(patient, world))


def test_a_check_that_dies_costs_the_others_nothing(patient: checks.Patient, tmp_path: Path) -> None:
    found = list(examine._one_by_one(["packing", "nothing", "head"], patient, tmp_path, 60.0))
    assert [{f.status for f in one.findings} for one in found] == [{"ok"}, {"failed"}, {"ok"}]
    assert "KeyError" in found[1].findings[0].reason


def test_no_ratio_lies_so_near_a_clip_that_rounding_takes_it_across() -> None:
    """ln 0.8 = -0.223 and ln 1.28 = 0.247."""
    moves = (-0.6, -0.1, 0.1, 0.6)
    assert moves == checks.REWEIGHTED
    assert min(abs(move - bound) for move in moves for bound in (math.log(0.8), math.log(1.28))) > 0.12


def test_a_mesh_that_was_asked_for_and_cannot_be_run_is_no_success() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--only", "processes", "--mesh", "1,1,5"])
    assert result.exit_code == 2 and "sp = 5 does not divide the model's 12 attention heads" in result.output


def test_two_processes_that_share_rows_are_the_same_as_one() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--only", "processes", "--mesh", "1,1,2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("sp = 2") == result.output.count("  ok") == 8


def test_rows_head_and_recomputation_change_nothing(patient: checks.Patient) -> None:
    found = [f for check in (checks.rows, checks.head, checks.recompute) for f in check(patient)]
    assert len(found) == 6 + 6 + 10 and {f.status for f in found} == {"ok"}


def test_attention_that_sees_across_documents_is_found(
    patient: checks.Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(samples: Sequence[Any], *others: Any) -> list[Batch]:
        return [replace(b, documents=Documents.plan([b.tokens_T.numel()])) for b in pack(samples, *others)]

    monkeypatch.setattr(checks, "pack", leaky)
    found = list(checks.packing(patient))
    assert {f.status for f in found} == {"FAILED"} and all(f.difference > 100 * f.tolerance for f in found)


# ---- each check finds what it is for


def statuses(found: Iterable[Finding]) -> dict[str, set[str]]:
    by_name: dict[str, set[str]] = {}
    for finding in found:
        by_name.setdefault(finding.what, set()).add(finding.status)
    return by_name


def test_a_mean_of_each_row_by_itself_is_found(patient: checks.Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_of_row(scored: Scored, batch: Batch, extra_N: torch.Tensor | None) -> tuple[torch.Tensor, Sums]:
        total, sums = cross_entropy(scored, batch, extra_N)
        return total / batch.num_scored, {name: value / batch.num_scored for name, value in sums.items()}

    monkeypatch.setattr(checks, "cross_entropy", mean_of_row)
    found = statuses(checks.rows(patient))
    assert [found[what] for what in found if "RL" not in what] == [{"FAILED"}] * 2
    assert [found[what] for what in found if "RL" in what] == [{"ok"}]


def test_a_head_that_forgets_the_temperature_is_found(patient: checks.Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "score", lambda h, w, t, temperature, **more: score(h, w, t, 1.0, **more))
    assert list(statuses(checks.head(patient)).values()) == [{"FAILED"}] * 2


def test_a_policy_that_cuts_off_the_blocks_below_is_found_and_the_others_pass(
    patient: checks.Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(block: torch.nn.Module, hidden_1TD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return recompute._keep_nothing(block, hidden_1TD.detach().requires_grad_(), *args, **kwargs)

    monkeypatch.setitem(recompute._RUNS, "full", cut)
    found = statuses(checks.recompute(patient))
    assert found.pop("recompute: full against none") == {"ok", "FAILED"}  # the loss is right
    assert set().union(*found.values()) == {"ok"} and len(found) == 4


@pytest.mark.parametrize("lost", ["the optimizer's state", "the place in the data", "nothing"])
def test_a_resume_that_loses_something_is_found(
    patient: checks.Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    own = patient.learner()
    saved = Checkpoints(tmp_path / "checkpoints", own)
    checks._train(own, range(2))
    saved.save(2)
    if lost == "the optimizer's state":
        monkeypatch.setattr(Optimizers, "load", lambda *_: None)
    if lost == "the place in the data":
        restore = Checkpoints.restore
        monkeypatch.setattr(Checkpoints, "restore", lambda self: restore(self) + 1)
    (found,) = checks.resume(patient)
    assert found.status == ("ok" if lost == "nothing" else "FAILED")


def everybody_works_on_all_rows(patient: checks.Patient, world: World, folder: Path) -> list[str]:
    with mock.patch.object(learner, "deal", lambda sizes, hands: [list(range(len(sizes)))] * hands):
        return [finding.status for finding in checks.spread(patient, world)]


def test_rows_that_two_processes_both_work_on_are_found(patient: checks.Patient, tmp_path: Path) -> None:
    assert list(checks.spread_alone(patient)) == []
    two = partial(everybody_works_on_all_rows, replace(patient, mesh=(1, 2, 1)))
    (found,) = mesh_worker.run(2, [(2, two)], tmp_path)
    assert found == [["FAILED"] * 8] * 2


def test_what_is_not_a_number_fails() -> None:
    assert Finding("a against b", "loss", 1e-5, float("nan")).failed
    assert not Finding("a against b", "loss", 0.0, 0.0).failed
    assert TOLERANCE["float32"]["loss"] < TOLERANCE["bfloat16"]["loss"]
    assert compare("x", *[checks.Step(1.0, {})] * 2, "float32")[0].status == "ok"


def test_a_gradient_that_is_missing_is_as_far_off_as_it_is_large() -> None:
    """Of (3, 4) and 12 the 12 is missing: 12 / 13. One too many of length 13 is as far off as all that is right."""
    both = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}
    assert apart(both, {"a": both["a"]}) == pytest.approx(12 / 13)
    assert apart(both, {**both, "c": torch.tensor([13.0])}) == pytest.approx(1.0)


def test_what_is_no_farther_from_float32_than_the_plain_path_passes() -> None:
    """Gradients of 10: the plain path is 0.6 off, which is 6 %; another may be 1.25 times as far, 7.5 %."""

    def found(plain: float, other: float, loss: float = 1.0) -> list[Finding]:
        truth, *steps = (Step(1.0, {"w": torch.tensor([value])}) for value in (10.0, plain, other))
        return no_farther("x", truth, steps[0], replace(steps[1], loss=loss), "bfloat16")

    loss, gradients = found(10.6, 9.3)
    assert (loss.status, gradients.status) == ("ok", "ok")
    assert (gradients.measure, gradients.tolerance) == ("gradients, from float32", pytest.approx(0.075))
    assert gradients.difference == pytest.approx(0.07)
    assert [f.status for f in found(10.6, 9.2)] == ["ok", "FAILED"]
    assert [f.tolerance for f in found(10.0, 10.0)] == [2e-2, 5e-2]  # never less than where rounding ends
    assert found(10.0, 10.0, loss=1.03)[0].failed


def planted(name: str, value: float, own: checks.Step) -> checks.Step:
    return replace(own, gradients={n: g * value if name in n else g for n, g in own.gradients.items()})


def test_a_wrong_step_in_bfloat16_is_farther_from_float32_than_rounding_is(patient: checks.Patient) -> None:
    """The rounding of the plain path leaves room for nothing else: a leak, a loss 10 % too large, a block without
    gradients."""
    low = replace(patient, dtype="bfloat16")
    documents = checks.samples(low.learner(), checks.LENGTHS)
    truth = checks.step(patient.learner(), [documents])
    plain = checks.step(low.learner(), [documents])
    again = checks.step(low.learner(recompute="full"), [documents])
    assert not any(f.failed for f in no_farther("x", truth, plain, again, "bfloat16"))
    leaking = checks.step(low.learner(), [[checks.Sample(sum((d.tokens for d in documents), ()),
                                                         sum((d.loss_mask for d in documents), ()))]])  # fmt: skip
    for wrong in (planted("", 1.1, plain), planted("layers.1.", 0.0, plain), leaking):
        _, gradients = no_farther("x", truth, plain, wrong, "bfloat16")
        assert gradients.failed, gradients


def test_a_process_that_dies_is_a_finding_and_not_the_end(patient: checks.Patient, tmp_path: Path) -> None:
    broken = replace(patient, path=str(tmp_path / "nothing-here"))
    found = list(examine._one_by_one(["packing", "head"], broken, tmp_path, 60.0))
    assert [one.check for one in found] == ["packing", "head"]
    for one in found:
        assert [f.status for f in one.findings] == ["failed"] and "nothing-here" in one.findings[0].reason
        assert "failed" in view.lines(one)


def test_on_a_gpu_no_process_is_a_fork_of_one_that_may_have_looked_at_the_driver(
    patient: checks.Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu = worker.context("cuda")
    assert as_on_a_gpu.get_start_method() == "spawn"
    monkeypatch.setattr(worker, "context", lambda _: as_on_a_gpu)
    (found,) = examine._one_by_one(["packing"], patient, tmp_path, 120.0)
    assert {f.status for f in found.findings} == {"ok"}


def test_a_mesh_that_does_not_divide_the_heads_is_not_run_and_says_why(tmp_path: Path) -> None:
    case = examine.case_of("tiny", "cpu", None, tmp_path)
    (only,) = examine.examine(case, tmp_path, ["processes"], [(1, 1, 5)])
    assert [f.status for f in only.findings] == ["not run"] and "12 attention heads" in only.findings[0].reason


@pytest.mark.parametrize("mesh", ["1,2", "1,2,2,x", "1,0,2", "1,2,two"])
def test_a_mesh_that_is_none_is_refused(mesh: str) -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--mesh", mesh])
    assert isinstance(result.exception, UserError) and "give dp_replicate,dp_shard,sp" in str(result.exception)


def test_a_mesh_that_no_check_reads_is_refused() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--mesh", "1,1,2", "--only", "head"])
    assert isinstance(result.exception, UserError) and "add --only processes" in str(result.exception)


def test_a_graphics_card_that_is_not_here_is_refused() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--device", "cuda"])
    assert result.exit_code != 0
