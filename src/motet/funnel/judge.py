"""An optional opinion on facts: a model is asked of each trace whether it holds a false statement, and is audited.

The judge is a function from texts to texts, whoever answers. Each trace is asked about twice, with the two verdicts
named in either order, because models prefer what is named first: only two complaints drop a trace. Every reply goes to
a journal, so a killed run asks nothing twice. A sample drawn at random, and some complaints, are written to
audit.jsonl for a person to read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from motet.base import jsonl
from motet.base.records import content_id, seed_of

Judge = Callable[[Sequence[str]], Sequence[str]]
"""One reply for each text, in order."""

WORDS = ("SOUND", "FALSE")
BATCH = 64
COMPLAINT = "for its complaint"
COMPLAINTS = 20
"""In an audit: where the random draw has fewer, others are drawn for their complaint."""
LONGEST = 24_000
"""Characters of a trace that are shown: its beginning and its end."""
_REPLY = re.compile(r"VERDICT:\W*(SOUND|FALSE)\b(.*)", re.IGNORECASE | re.DOTALL)
_ASK = """Below are a question and a reply to it. Look for statements of fact in the reply that are false, whether or \
not they change its conclusion. Opinions, estimates and steps that are corrected later are not false statements.

QUESTION
{prompt}

REPLY
{trace}

End with one line: "VERDICT: {first}" or "VERDICT: {second}", where SOUND means that you found no false statement and \
FALSE that you found one. After FALSE quote the statement on the same line."""


class Opinion(NamedTuple):
    complaint: str | None
    """What is false, where both replies say so."""
    replies: tuple[str, str]
    """ "sound", "false" or "unread", with the verdicts named in either order."""


def question(prompt: str, trace: str, swapped: bool) -> str:
    first, second = WORDS[::-1] if swapped else WORDS
    if len(trace) > LONGEST:
        trace = f"{trace[: LONGEST // 2]}\n[...]\n{trace[-LONGEST // 2 :]}"
    return _ASK.format(prompt=prompt, trace=trace, first=first, second=second)


def read(reply: str) -> tuple[str, str]:
    """("sound" | "false" | "unread", the statement that is quoted): the last verdict in a reply."""
    found = _REPLY.search(reply, max(0, reply.upper().rfind("VERDICT:")))
    return (found[1].lower(), " ".join(found[2].split())[:300]) if found else ("unread", "")


class JudgeRule:
    def __init__(self, judge: Judge, journal: Path, audit: int) -> None:
        self._judge = judge
        self._journal = journal
        self._size = audit
        self.opinions: dict[int, Opinion] = {}

    def ask(self, rows: Iterable[tuple[int, str, str]]) -> Iterator[tuple[int, Opinion]]:
        """(row, opinion) of each (row, prompt, trace)."""
        with jsonl.Journal(self._journal) as journal:
            known = {row["question"]: row["reply"] for row in journal.rows}
            stream = iter(rows)
            while batch := list(islice(stream, BATCH)):
                asked = [question(prompt, trace, swapped) for _, prompt, trace in batch for swapped in (False, True)]
                ids = [content_id(text) for text in asked]
                new = {id: text for id, text in zip(ids, asked, strict=True) if id not in known}
                for id, reply in zip(new, self._judge(list(new.values())) if new else (), strict=True):
                    known[id] = reply
                    journal.append({"question": id, "reply": reply})
                for place, (row, _, _) in enumerate(batch):
                    replies = [read(known[id]) for id in ids[2 * place : 2 * place + 2]]
                    self.opinions[row] = opinion = _opinion(replies)
                    yield row, opinion

    def audit(self, file: Path, texts: Callable[[int], tuple[str, str]]) -> dict[str, Any]:
        """Draws rows at random into `file`, and says how often the judge agreed with itself: {asked, complaints, split,
        unread, self_agreement {mean, low, high}, sample}. `human` is left for a reader: `motet audit` counts it."""
        asked = sorted(self.opinions)
        stream = random.Random(seed_of("audit", len(asked)))
        sample = stream.sample(asked, min(self._size, len(asked)))
        wrong = [row for row in asked if self.opinions[row].complaint is not None]
        more = sorted(set(wrong) - set(sample))
        more = stream.sample(more, min(len(more), max(0, COMPLAINTS - len(set(wrong) & set(sample)))))
        drawn = {**dict.fromkeys(sample, "at random"), **dict.fromkeys(more, COMPLAINT)}
        rows = []
        for row in sorted(drawn):
            prompt, trace = texts(row)
            complaint = self.opinions[row].complaint
            rows.append({"rule": "judge", "drawn": drawn[row], "row": row, "prompt": prompt, "text": trace,
                         "judge": "sound" if complaint is None else "false", "complaint": complaint,
                         "human": None})  # fmt: skip
        jsonl.write(file, rows)
        replies = [opinion.replies for opinion in self.opinions.values()]
        read_twice = [pair for pair in replies if "unread" not in pair]
        same = sum(a == b for a, b in read_twice)
        return {
            "asked": len(asked),
            "complaints": len(wrong),
            "split": len(read_twice) - same,
            "unread": len(replies) - len(read_twice),
            "self_agreement": share(same, len(read_twice)),
            "sample": len(sample),
        }


def share(part: int, whole: int) -> dict[str, float | None]:
    """A share with its 95 % interval (Wilson, 1927)."""
    if whole == 0:
        return {"mean": None, "low": None, "high": None}
    z, p = 1.959964, part / whole
    middle = (p + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * ((p * (1 - p) + z * z / (4 * whole)) / whole) ** 0.5 / (1 + z * z / whole)
    return {"mean": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def _opinion(replies: list[tuple[str, str]]) -> Opinion:
    (one, quoted), (other, quoted_too) = replies
    complaint = (quoted or quoted_too or "no statement quoted") if one == other == "false" else None
    return Opinion(complaint, (one, other))
