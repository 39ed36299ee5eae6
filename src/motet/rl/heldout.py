"""Figures of a look at the held-out problems, alone and against the evaluation of the weights that RL started from."""

from __future__ import annotations

from collections.abc import Sequence

from motet.base.records import Group, VerdictKind
from motet.base.statistics import ALL, Tally, compare_tallies, enough_to_tell, evaluate_groups, tally

SHARES: tuple[VerdictKind, ...] = ("malformed", "no_answer", "truncated")


def figures(groups: Sequence[Group], before: Sequence[Tally], bootstrap: int, seed: int) -> dict[str, float]:
    """heldout/pass, _low and _high (95 %), heldout/pass/DOMAIN, and the shares malformed, no_answer, truncated.

    With `before`, on the problems that both have: heldout/before/pass and its shares, heldout/after/pass,
    heldout/change, _low and _high, the same by domain (heldout/change/DOMAIN, heldout/change_low/DOMAIN, ...). An
    interval is given where there are enough pairs for one.
    """
    domains = evaluate_groups(groups, bootstrap, seed)["domains"]
    found = {name: row["pass_at_1"] for name, row in domains.items() if row["pass_at_1"]["mean"] is not None}
    if ALL not in found:
        return {}
    whole = found.pop(ALL)
    metrics = {"heldout/pass": whole["mean"], "heldout/pass_low": whole["low"], "heldout/pass_high": whole["high"]}
    metrics |= {f"heldout/pass/{name}": row["mean"] for name, row in found.items()}
    metrics |= {f"heldout/{share}": domains[ALL][share] for share in SHARES}
    return metrics | _against(groups, before, bootstrap, seed)


def _against(groups: Sequence[Group], before: Sequence[Tally], bootstrap: int, seed: int) -> dict[str, float]:
    now = [tally(group) for group in groups]
    asked = {outcome.key for outcome in now}
    same = [outcome for outcome in before if outcome.key in asked]
    compared = compare_tallies(same, now, bootstrap, seed)
    if ALL not in compared:
        return {}
    kinds = [kind for outcome in same for kind in outcome.kinds]
    metrics = {f"heldout/before/{share}": kinds.count(share) / len(kinds) for share in SHARES}
    metrics |= {"heldout/before/pass": compared[ALL]["a"], "heldout/after/pass": compared[ALL]["b"]}
    for name, row in compared.items():
        suffix, change = "" if name == ALL else f"/{name}", row["difference"]
        metrics[f"heldout/change{suffix}"] = change["mean"]
        if enough_to_tell(row["n"]):
            metrics |= {f"heldout/change_{side}{suffix}": change[side] for side in ("low", "high")}
    return metrics
