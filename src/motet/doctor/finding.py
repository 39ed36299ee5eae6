"""What a check found, as plain data, and how differences are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

TOLERANCE = {"float32": {"loss": 1e-5, "gradients": 1e-5}, "bfloat16": {"loss": 2e-2, "gradients": 5e-2}}
"""Of a loss in nats a token, and of gradients in the Euclidean norm of all of them, relative to it. In bfloat16 a
product is rounded to 1 part in 256, and another order of sums rounds differently; a wrong mask, scale or shift costs
tens of percent."""


@dataclass(frozen=True)
class Finding:
    what: str
    """What was compared with what."""
    measure: str
    tolerance: float
    difference: float | None
    """None where it was not run."""
    reason: str = ""
    """Why it was not run, or how it failed."""

    @property
    def status(self) -> str:
        if self.difference is None:
            return "failed" if self.reason.startswith("failed") else "not run"
        return "ok" if self.difference <= self.tolerance else "FAILED"  # not a number is a failure

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "not run")


def not_run(what: str, reason: str) -> Finding:
    return Finding(what, "", 0.0, None, reason)


def encode(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def decode(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    return [Finding(**row) for row in rows]


@dataclass(frozen=True)
class Step:
    """Of one step that was not taken."""

    loss: float
    gradients: dict[str, torch.Tensor]


def compare(what: str, expected: Step, found: Step, dtype: str, strict: bool = False) -> list[Finding]:
    """`strict`: the same operations ran in the same order, and the smallest tolerances hold in any type."""
    bounds = TOLERANCE["float32" if strict else dtype]
    return [
        Finding(what, "loss", bounds["loss"], abs(found.loss - expected.loss)),
        Finding(what, "gradients", bounds["gradients"], apart(expected.gradients, found.gradients)),
    ]


FARTHER = 1.25
"""How much farther than the plain path another one may be from float32."""


def no_farther(what: str, truth: Step, plain: Step, found: Step, dtype: str) -> list[Finding]:
    """Of what rounds elsewhere than the plain path does, as a compiled block that skips roundings, or rows of other
    lengths: two results that are equally right are as far apart as both are wrong. `truth` is the step in float32;
    `found` may be as far from it as `plain` is, times FARTHER, or as TOLERANCE says."""
    bounds = TOLERANCE[dtype]
    losses = [abs(one.loss - truth.loss) for one in (plain, found)]
    gradients = [apart(truth.gradients, one.gradients) for one in (plain, found)]
    return [
        Finding(what, f"{measure}, from float32", max(bounds[measure], FARTHER * own), other)
        for measure, (own, other) in (("loss", losses), ("gradients", gradients))
    ]


def against(what: str, truth: Sequence[Step], plain: Step, found: Step, dtype: str) -> list[Finding]:
    """`truth`: the step in float32, or nothing where `plain` is that."""
    return no_farther(what, truth[0], plain, found, dtype) if truth else compare(what, plain, found, dtype)


def apart(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of the difference, over that of `expected`; a gradient that one of them lacks is zero there."""
    squares, wholes = 0.0, 0.0
    for name in sorted(expected.keys() | found.keys()):
        own, other = (held[name].double() if name in held else 0.0 for held in (expected, found))
        squares += float(torch.as_tensor(other - own).square().sum())
        wholes += float(torch.as_tensor(own).square().sum())
    return (squares / wholes) ** 0.5 if wholes else float(squares > 0)
