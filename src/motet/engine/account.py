"""What an endpoint was asked for and what that cost: counts, tokens, money. Plain arithmetic; `gate` guards it.

Money is counted so that the true sum is never above what is said here: a reply that tells its usage counts with that;
whatever else may have been charged (a reply that never came or could not be read, one without usage, a request under
way at a kill) counts with the most that it can have taken, apart, as `unsure`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from motet.base.recipe import Price
from motet.engine.replies import Usage


@dataclass
class Account:
    price: Price | None = None
    requests: int = 0
    """Sent, repeated tries included."""
    replies: int = 0
    completions: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By reason: "timeout", "cut", "malformed", "connection", "status 429", ..."""
    lost: int = 0
    """Requests that were under way when a process was killed."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    unsure: float = 0.0

    def sent(self) -> None:
        self.requests += 1

    def answered(self, most: Usage, usage: Usage | None, completions: int) -> None:
        self.replies += 1
        self.completions += completions
        if usage is None:
            self.unsure += self.money(most)
            return
        self.input_tokens += usage.input
        self.output_tokens += usage.output
        self.cost += self.money(usage)

    def failed(self, why: str, most: Usage, charged: bool) -> None:
        """`charged`: whether the server may have charged for it."""
        self.failures[why] += 1
        if charged:
            self.unsure += self.money(most)

    def was_lost(self, most: Usage) -> None:
        self.lost += 1
        self.unsure += self.money(most)

    def money(self, usage: Usage) -> float:
        if self.price is None:
            return 0.0
        return (usage.input * self.price.input + usage.output * self.price.output) / 1e6

    @property
    def total(self) -> float:
        """The most that was spent."""
        return self.cost + self.unsure

    def bill(self) -> dict[str, Any]:
        """As it is written to files."""
        return {
            "requests": self.requests,
            "replies": self.replies,
            "completions": self.completions,
            "failures": dict(sorted(self.failures.items())),
            "lost": self.lost,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            **({} if self.price is None else {"cost": round(self.cost, 6), "unsure": round(self.unsure, 6)}),
        }

    def line(self, done: int, total: int, seconds: float, fresh: int) -> str:
        """Progress with an estimate: "120 of 512 completions; about 14 min and 0.41 more; so far 0.13; ...".

        `fresh` of the `done` ones came in the last `seconds`; the others were on disk.
        """
        parts = [f"{done:,} of {total:,} completions"]
        estimate = []
        if fresh and done < total:
            estimate.append(_duration(seconds / fresh * (total - done)))
        if self.price is not None and self.completions and done < total:
            estimate.append(f"{self.total / self.completions * (total - done):.4g}")
        if estimate:
            parts.append(f"about {' and '.join(estimate)} more")
        if self.price is not None:
            parts.append(f"cost {self.cost:.4g}" + (f" and perhaps {self.unsure:.4g}" if self.unsure else ""))
        if self.input_tokens or self.output_tokens:
            parts.append(f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out")
        if self.failures:
            parts.append("failed tries: " + ", ".join(f"{n} x {why}" for why, n in self.failures.most_common()))
        return "; ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
