"""`motet doctor` finds nothing where all is well, and finds what is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from motet.base.errors import UserError
from motet.cli import cli
from motet.data.pack import Batch, pack
from motet.doctor import checks, examine, view
from motet.doctor.finding import TOLERANCE, Finding, Step, compare, no_farther
from motet.model.kernels import Documents


@pytest.fixture
def patient(tmp_path: Path) -> checks.Patient:
    case = examine.case_of("tiny", "cpu", None, tmp_path)
    return checks.Patient(case.path, "cpu", "float32", (1, 1, 1), str(tmp_path))


def test_a_sound_model_passes_in_processes_of_its_own() -> None:
    result = CliRunner().invoke(cli, ["doctor", "tiny", "--only", "packing", "--only", "resume"])
    assert result.exit_code == 0, result.output
    assert "0 failed, 0 not run" in result.output and result.output.count("  ok") == 5
    assert max(map(len, result.output.splitlines())) <= 120


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


def test_what_is_not_a_number_fails() -> None:
    assert Finding("a against b", "loss", 1e-5, float("nan")).failed
    assert not Finding("a against b", "loss", 0.0, 0.0).failed
    assert TOLERANCE["float32"]["loss"] < TOLERANCE["bfloat16"]["loss"]
    assert compare("x", *[checks.Step(1.0, {})] * 2, "float32")[0].status == "ok"


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
    found = examine._examined("packing", broken, 1, tmp_path, 60.0)
    assert [f.status for f in found.findings] == ["failed"] and "nothing-here" in found.findings[0].reason
    assert "failed" in view.lines(found)


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
