"""What came out of the arms of a curriculum: curves over tokens, what each step in length did, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from motet.base import jsonl
from motet.base.statistics import ALL, bootstrap_mean, enough_to_tell, paired_difference

RESAMPLES = 1000
SPIKE = 3.0
"""A step whose gradient norm is so many times the median of the WINDOW steps before it is a spike."""
WINDOW = 20
AROUND = 0.1
"""Share of a phase's steps at its beginning, and of the phase before at its end, that are compared."""


def measure(folder: Path, phases: Sequence[str]) -> dict[str, Any]:
    """Of one finished arm.

    points: [{phase, tokens (packed, so far), loss, grad_norm, heldout}], one a step; heldout where it was measured.
    steps_up: [{phase, loss_before, loss_after, norm_before, norm_after}] of each phase but the first: means of the
    loss, the median gradient norm before and the largest one after. heldout: mean nats a token at the end, with
    by_position and by_length {end: nats}; conversations: {key: nats a token}.
    """
    found = list(jsonl.read(folder / "metrics.jsonl"))
    rows = [[row for _, row in found if row["stage"] == phase] for phase in phases]
    tokens, points = 0, []
    for phase, own in zip(phases, rows, strict=True):
        for row in own:
            tokens += row["tokens/packed"]
            points.append({"phase": phase, "tokens": tokens, "loss": row.get("loss/nll"),
                           "grad_norm": row.get("optim/grad_norm"), "heldout": row.get("heldout/loss")})  # fmt: skip
    last = rows[-1][-1]
    held = [row for _, row in jsonl.read(folder / phases[-1] / "heldout.jsonl")]
    norms = [point["grad_norm"] for point in points if point["grad_norm"] is not None]
    evaluated = folder / phases[-1] / "evaluation.json"
    return {
        "points": points,
        "steps_up": [
            {"phase": phase, **_step_up(before, after)}
            for phase, before, after in zip(phases[1:], rows, rows[1:], strict=False)
        ],
        "tokens": tokens,
        "trained": sum(row["tokens/trained"] for own in rows for row in own),
        "seconds": sum(row["time/step"] for own in rows for row in own),
        "norm_median": median(norms),
        "norm_max": max(norms),
        "spikes": spikes(norms),
        "heldout": last["heldout/loss"],
        "by_position": _by_end(last, "heldout/loss/position/"),
        "by_length": _by_end(last, "heldout/loss/length/"),
        "by_length_trained": {phase: _trained_by_length(own) for phase, own in zip(phases, rows, strict=True)},
        "conversations": {row["key"]: row["nll"] / row["scored"] for row in held},
        "final": jsonl.read_json(evaluated)["domains"][ALL]["pass_at_1"] if evaluated.exists() else None,
    }


def judge(results: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The arms, each with the interval of its held-out loss and the difference to the last arm (direct), paired by
    conversation: nats a token, averaged over conversations; below zero is better."""
    base = results[-1]["conversations"]
    arms = []
    for result in results:
        own = {key: value for key, value in result.items() if key != "conversations"}
        values = result["conversations"]
        own["heldout_mean"] = bootstrap_mean(list(values.values()), RESAMPLES, seed)._asdict()
        common = [key for key in base if key in values]
        own["difference"] = None
        if result is not results[-1] and common:
            pairs = [base[key] for key in common], [values[key] for key in common]
            own["difference"] = {**paired_difference(*pairs, RESAMPLES, seed)._asdict(), "n": len(common)}
        own["verdict"] = verdict(own["difference"])
        arms.append(own)
    return arms


def verdict(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    if not enough_to_tell(difference["n"]):
        return "too few conversations"
    if difference["high"] < 0:
        return "better"
    return "worse" if difference["low"] > 0 else "no significant difference"


def spikes(norms: Sequence[float]) -> int:
    """Steps whose norm is SPIKE times the median of the WINDOW steps before them. Example: 1, 1, 1, 9, 1 has one."""
    return sum(
        norm > SPIKE * median(norms[max(0, place - WINDOW) : place]) for place, norm in enumerate(norms) if place >= 3
    )


def _step_up(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    end = before[-max(1, round(AROUND * len(before))) :]
    start = after[: max(1, round(AROUND * len(after)))]
    return {
        "loss_before": fmean(row["loss/nll"] for row in end),
        "loss_after": fmean(row["loss/nll"] for row in start),
        "norm_before": median(row["optim/grad_norm"] for row in end),
        "norm_after": max(row["optim/grad_norm"] for row in start),
    }


def _by_end(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    ends = sorted(int(key.removeprefix(prefix)) for key in row if key.startswith(prefix))
    return {str(end): row[f"{prefix}{end}"] for end in ends}


def _trained_by_length(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Trained tokens by length of the conversation."""
    ends = sorted({int(key.rpartition("/")[2]) for row in rows for key in row if key.startswith("tokens/length/")})
    return {str(end): sum(row.get(f"tokens/length/{end}", 0) for row in rows) for end in ends}
