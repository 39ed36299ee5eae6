"""What came out of the arms of a curriculum: curves over tokens, what each step in length did, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from motet.base import jsonl
from motet.base.statistics import ALL, bootstrap_mean, enough_to_tell, paired_difference

RESAMPLES = 1000
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""
CURVES = ("loss", "grad_norm", "heldout")
MEANS = ("tokens", "trained", "seconds", "norm_median", "norm_max", "heldout")
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


def judge(arms: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]], seed: int) -> list[dict[str, Any]]:
    """The arms (name and lengths, what `measure` says for each seed): their figures as means over the seeds, their
    held-out loss and its difference to the last arm (direct), nats a token, averaged over conversations.

    With one seed intervals are bootstraps over conversations, the difference paired by conversation. With several they
    are Student's t over the seeds' own values (`by_seed`): the conversations held out are the same for all, and what
    another draw of the training rows would give is what is asked. Below zero is better.
    """
    base = arms[-1][1]
    return [_judged(told, results, base if results is not base else None, seed) for told, results in arms]


def _judged(
    told: Mapping[str, Any], results: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None, seed: int
) -> dict[str, Any]:
    values = [list(result["conversations"].values()) for result in results]
    by_seed = [fmean(found) for found in values]
    one = len(results) == 1
    own = {**told, **means(results)}
    own["heldout_mean"] = bootstrap_mean(values[0], RESAMPLES, seed)._asdict() if one else over_seeds(by_seed)
    own["by_seed"], own["differences"], own["difference"] = by_seed, None, None
    if base is not None:
        pairs = [_paired(b["conversations"], r["conversations"]) for b, r in zip(base, results, strict=True)]
        n = min(len(pair[0]) for pair in pairs)
        if n:
            own["differences"] = [fmean(after) - fmean(before) for before, after in pairs]
            found = paired_difference(*pairs[0], RESAMPLES, seed)._asdict() if one else over_seeds(own["differences"])
            own["difference"] = {**found, "n": n, "seeds": len(results)}
    own["verdict"] = verdict(own["difference"])
    return own


def _paired(base: Mapping[str, float], own: Mapping[str, float]) -> tuple[list[float], list[float]]:
    common = [key for key in base if key in own]
    return [base[key] for key in common], [own[key] for key in common]


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval by Student's t. Example: 1, 2, 3 has 2 -+ 4.303 x 1 / sqrt 3."""
    freedom = len(values) - 1
    # beyond the table: the first term of the expansion in 1 / degrees of freedom, which is off by less than 0.03
    t = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.95996 + 2.37 / freedom
    mean, half = fmean(values), t * stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def means(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `measure` says of one arm, averaged over its seeds; spikes are those of all of them together."""
    first = results[0]
    found: dict[str, Any] = {key: fmean(result[key] for result in results) for key in MEANS}
    found["tokens"], found["trained"] = round(found["tokens"]), round(found["trained"])
    found["points"] = [
        {"phase": point["phase"], **_mean_of([r["points"][place] for r in results], ("tokens", *CURVES))}
        for place, point in enumerate(first["points"])
    ]
    found["steps_up"] = [
        {"phase": row["phase"], **_mean_of([r["steps_up"][place] for r in results], tuple(row)[1:])}
        for place, row in enumerate(first["steps_up"])
    ]
    for key in ("by_position", "by_length"):
        found[key] = _mean_of([result[key] for result in results], tuple(first[key]))
    found["by_length_trained"] = first["by_length_trained"]
    found["spikes"] = sum(result["spikes"] for result in results)
    passed = [result["final"]["mean"] for result in results if result["final"]]
    found["final"] = None if not passed else first["final"] if len(passed) == 1 else {"mean": fmean(passed)}
    return found


def _mean_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, float | None]:
    """None where a row has none."""
    columns = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    return {key: fmean(values) if len(values) == len(rows) else None for key, values in columns.items()}


def verdict(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    if difference["seeds"] == 1 and not enough_to_tell(difference["n"]):
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
