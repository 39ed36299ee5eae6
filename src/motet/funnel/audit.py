"""How far a judge and a person agree: the rows of an audit.jsonl that the person has filled in.

    {"rule": "judge", "drawn": "at random", "prompt": ..., "text": ..., "judge": "false",
     "complaint": "the moon is cheese", "human": "sound"}

`human` is "sound", "false" or, not read yet, null. Rows that were drawn for their complaint say nothing but whether a
complaint is right: the others are a fair sample of everything that the judge was asked about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.base import jsonl
from motet.base.errors import UserError
from motet.funnel.judge import COMPLAINT, share

SAID = ("sound", "false")
Z = 1.959964
ENOUGH = 30
"""Rows that a person has read; below it nothing is advised."""
ENOUGH_COMPLAINTS = 10
FAIR, GOOD = 0.4, 0.6
"""Of kappa: up to the first "fair", from the second on "substantial" agreement (Landis and Koch, 1977)."""
Table = dict[str, dict[str, int]]
"""{what the judge says: {what the person says: how many}}"""


def agreement(path: Path) -> dict[str, Any]:
    """{rules: {rule: {read, unread, table, agreement, kappa, upheld, missed}}, advice: {rule: [sentence]}} of a file,
    or of the folder of a stage that has one. Raises UserError where there is none or a row holds something else.

    table and the shares: of the rows drawn at random; read, unread and upheld: of all. {mean, low, high}, 95 %:
    agreement, rows on which both say the same; upheld, of the judge's complaints those that the person shares; missed,
    of what the judge passes, what the person finds false. Shares by Wilson (1927). kappa: Cohen (1960), with his
    standard error; None where chance alone would agree on every row.
    """
    file = path / "audit.jsonl" if path.is_dir() else path
    tables: dict[str, Table] = {}
    complaints: dict[str, Table] = {}
    unread: dict[str, int] = {}
    for number, row in jsonl.read(file):
        rule = str(row.get("rule", "judge"))
        for group in (tables, complaints):
            group.setdefault(rule, {judge: dict.fromkeys(SAID, 0) for judge in SAID})
        table = (complaints if row.get("drawn") == COMPLAINT else tables)[rule]
        unread.setdefault(rule, 0)
        if row.get("judge") not in SAID:
            raise UserError(f"{file}, line {number}: this is no row of an audit.jsonl: field 'judge' says "
                            f"{row.get('judge')!r}. Give the audit.jsonl of a stage with rules.judge.")  # fmt: skip
        human = row.get("human")
        if human is None:
            unread[rule] += 1
        elif human in SAID:
            table[row["judge"]][human] += 1
        else:
            raise UserError(f"{file}, line {number}: field 'human' must be \"sound\", \"false\" (in quotation marks) "
                            f"or null, got {human!r}")  # fmt: skip
    if not tables:
        raise UserError(f"{file}: it holds no row; the judge was asked of nothing.")
    rules = {
        rule: {"unread": unread[rule], **measures(table, complaints[rule]["false"])} for rule, table in tables.items()
    }
    return {"rules": rules, "advice": {rule: advice(row) for rule, row in rules.items()}}


def measures(table: Table, more: dict[str, int]) -> dict[str, Any]:
    """Of one rule's table, and what the person says of `more` complaints, what `agreement` says of it."""
    whole = sum(sum(row.values()) for row in table.values())
    same = sum(table[said][said] for said in SAID)
    passed, complaints = table["sound"], {said: table["false"][said] + more[said] for said in SAID}
    return {
        "read": whole + sum(more.values()),
        "complaints": sum(complaints.values()),
        "table": table,
        "agreement": share(same, whole),
        "kappa": kappa(table),
        "upheld": share(complaints["false"], sum(complaints.values())),
        "missed": share(passed["false"], sum(passed.values())),
    }


def kappa(table: Table) -> dict[str, float] | None:
    """(p - e) / (1 - e) with the share p of agreement and e, what the two would agree by chance with their own
    habits; standard error sqrt(p (1 - p) / n) / (1 - e).

    Example: 20 and 15 rows alike, 5 and 10 not: p = 0.7, e = 0.5, kappa 0.4 +- 1.96 x 0.130.
    """
    whole = sum(sum(row.values()) for row in table.values())
    if not whole:
        return None
    p = sum(table[said][said] for said in SAID) / whole
    e = sum(sum(table[said].values()) * sum(row[said] for row in table.values()) for said in SAID) / whole**2
    if e == 1.0:
        return None
    value, error = (p - e) / (1.0 - e), (p * (1.0 - p) / whole) ** 0.5 / (1.0 - e)
    return {"mean": value, "low": max(-1.0, value - Z * error), "high": min(1.0, value + Z * error)}


def advice(row: dict[str, Any]) -> list[str]:
    """What to do, in sentences; judged by the ends of the intervals."""
    if row["read"] < ENOUGH:
        return [f"{row['read']} rows read, and {ENOUGH} are needed before anything can be said: fill in more, or draw "
                "more with rules.judge_audit."]  # fmt: skip
    found: list[str] = []
    upheld, missed, k = row["upheld"], row["missed"], row["kappa"]
    if row["complaints"] < ENOUGH_COMPLAINTS:
        found.append(f"Only {row['complaints']} of the rows read are complaints: whether what the judge drops is false "
                     "cannot be told from them.")  # fmt: skip
    elif upheld["high"] < 0.5:
        found.append('Most of what the judge drops is sound to the reader: switch it off, rules.off = ["judge"], or '
                     "take a stronger model in rules.judge.")  # fmt: skip
    elif upheld["low"] < 0.5:
        found.append("Whether most of what the judge drops is false cannot be told yet: read more complaints.")
    if missed["low"] is not None and missed["low"] > 0.1:
        found.append("More than a tenth of what the judge passes is false to the reader: do not rely on it for facts. "
                     "A stronger model, or teachers that err less, would help.")  # fmt: skip
    if k is not None and k["high"] < FAIR:
        found.append(f"Kappa is below {FAIR}: hardly better than two who answer by habit. Switch the judge off, or "
                     "change its model, and audit again.")  # fmt: skip
    elif k is not None and k["low"] >= GOOD:
        found.append(f"Kappa is above {GOOD}: substantial agreement, the judge can be kept.")
    elif k is not None:
        found.append(f"Kappa is not surely above {GOOD}: read more rows, or look at those on which you differ: two "
                     "readers may mean different things by a false statement.")  # fmt: skip
    return found


def text(found: dict[str, Any]) -> str:
    """For the terminal."""
    lines: list[str] = []
    for rule, row in found["rules"].items():
        table = row["table"]
        lines += [
            f"{rule}: {row['read']} rows read, {row['unread']} not yet",
            f"  {'':<14}{'reader: sound':>14}{'false':>8}",
            *(f"  judge: {said:<7}{table[said]['sound']:>14}{table[said]['false']:>8}" for said in SAID),
            f"  agreement            {_shown(row['agreement'])}",
            f"  Cohen's kappa        {_shown(row['kappa'], 1)}",
            f"  complaints upheld    {_shown(row['upheld'])}",
            f"  false, but passed    {_shown(row['missed'])}",
            *(f"  {sentence}" for sentence in found["advice"][rule]),
        ]
    return "\n".join(lines)


def _shown(row: dict[str, Any] | None, scale: int = 100) -> str:
    if row is None or row["mean"] is None:
        return "-"
    if scale == 1:
        return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{scale * row['mean']:.1f} % [{scale * row['low']:.1f}, {scale * row['high']:.1f}]"
