"""One trace under one student: how far its tokens are from what the student would write, and how it is built.

The student reads the trace rendered in its own template, so that a teacher's tags and system prompt count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from motet.base.records import Message, content_id
from motet.data.chat import ChatFormat
from motet.data.pack import Sample
from motet.fit.tokens import Ranked

CLIP = 100
"""Ranks count up to this one (arXiv 2601.14249)."""
IMPROBABLE = 0.01
"""The tail: tokens that the student gives less than this probability."""
TOP = 10
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\d(\\$])")
MARKER = re.compile(
    r"\b(?:wait|hmm|alternatively|let me (?:check|verify|re-?check|double-check|reconsider)|on second thought)\b",
    re.IGNORECASE,
)
"""Phrases with which a trace turns back on itself."""


class Trace(NamedTuple):
    problem: str
    """`problem_key` of what was asked."""
    messages: tuple[Message, ...]
    """What was asked, without anybody's system prompt but the problem's own, then the assistant's turn."""

    @property
    def key(self) -> str:
        last = self.messages[-1]
        return content_id(self.problem, last.get("reasoning_content", ""), last["content"])


def problem_key(messages: Sequence[Message]) -> str:
    """Equal for equal questions, whatever system prompt stood before them."""
    turns = [m for m in messages if m["role"] != "system"]
    return content_id(*(part for m in turns for part in (m["role"], " ".join(m["content"].split()))))


def sample_of(trace: Trace, chat: ChatFormat) -> Sample:
    """The last turn scored, in the student's template. Raises UserError for a turn that does not fit `chat.think`."""
    prompt, completion = chat.prompt(trace.messages[:-1]), chat.completion(trace.messages[-1])
    return Sample((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))


def answer_tokens(trace: Trace, chat: ChatFormat) -> int | None:
    """How many of the trace's last tokens are its answer, the end of the turn included; None without a reasoning."""
    last = trace.messages[-1]
    return len(chat.encode(last["content"])) + 1 if last.get("reasoning_content") else None


def measures(ranked: Ranked, answer: int | None) -> dict[str, float]:
    """Of one trace's N tokens, N > 0; s surprisal in nats, r rank from 1, c = min(r, CLIP).

    tokens N. surprisal: mean s. surprisal_p95: 95th percentile of s. improbable: share with p < IMPROBABLE.
    rank: mean c. passed_over: mean c - 1, how many tokens the student liked better. top1, top10: share with r <= 1, 10.
    first, middle, last: mean s of the first 5 %, what lies between, the last 10 % of the tokens (at least one each).
    answer: sum of s over the last `answer` tokens; absent where that is None.
    """
    s, c = ranked.surprisal_N.double(), ranked.rank_N.clamp(max=CLIP).double()
    n = s.numel()
    head, tail = max(1, n // 20), max(1, n // 10)
    found = {
        "tokens": torch.tensor(n),
        "surprisal": s.mean(),
        "surprisal_p95": s.quantile(0.95),
        "improbable": (s > -torch.tensor(IMPROBABLE).log()).double().mean(),
        "rank": c.mean(),
        "passed_over": c.mean() - 1.0,
        "top1": (ranked.rank_N <= 1).double().mean(),
        "top10": (ranked.rank_N <= TOP).double().mean(),
        "first": s[:head].mean(),
        "middle": s[head : max(head + 1, n - tail)].mean() if n > 1 else s.mean(),
        "last": s[-tail:].mean(),
    }
    if answer is not None:
        found["answer"] = s[-answer:].sum()
    return {name: float(value) for name, value in found.items()}


def structure(trace: Trace, chat: ChatFormat) -> dict[str, Any]:
    """steps: how many. step_tokens: of each, in the student's tokenizer. markers: turns back in the reasoning."""
    last = trace.messages[-1]
    reasoning = last.get("reasoning_content") or last["content"]
    parts = steps(reasoning)
    return {
        "steps": len(parts),
        "step_tokens": [len(chat.encode(part)) for part in parts],
        "markers": len(MARKER.findall(reasoning)),
    }


def steps(text: str) -> list[str]:
    """Lines, and the sentences of a line. "a = 1\\nSo b = 2. Then c = 3" has three. Displayed formulas of several lines
    and programs are steps a line as well: teachers are compared with a student, not counted."""
    return [part.strip() for line in text.splitlines() for part in SENTENCE.split(line) if part.strip()]


def distance(a: Iterable[float], b: Iterable[float]) -> float | None:
    """Between two samples: the largest difference of their distribution functions (Kolmogorov-Smirnov), 0 where they
    are alike, 1 where all of one lies above all of the other; None where one is empty."""
    import numpy as np

    left, right = np.sort(np.fromiter(a, float)), np.sort(np.fromiter(b, float))
    if not len(left) or not len(right):
        return None
    places = np.concatenate([left, right])
    shares = [np.searchsorted(side, places, "right") / len(side) for side in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


RATIOS: Mapping[str, tuple[str, str]] = {"fit": ("passed_over", "surprisal"), "rsr": ("rank", "surprisal")}
"""Of a data set: the mean over problems of the first by the mean of the second. Lower is better.

rsr is the rank-surprisal ratio of arXiv 2601.14249, clipped mean rank by mean surprisal. Its ranks begin with 1, so it
is at least 1 / mean surprisal, and grows without bound for a teacher whose every token is the student's own first
choice: among tokens that the student writes itself it says only how sure the student is. fit counts ranks from 0: how
many tokens the student liked better, for each nat that a trace tells it. Where surprisal is far above 1 / rank they
order teachers alike.
"""
