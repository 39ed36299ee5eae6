"""Replays written replies: for tests, and for a dry run of a whole recipe without a model that can solve it.

A script is JSON Lines, one row for each prompt: {"prompt": "12 + 7 = ?", "replies": ["<think>...</think> 19", "18"]}.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from motet.base import jsonl
from motet.base.errors import UserError
from motet.base.records import Completion, Message
from motet.engine.protocol import Request, SamplingParams

if TYPE_CHECKING:
    import torch


class ScriptedEngine:
    """The reply to a prompt (its last user turn) is number `seed` modulo their count, in the order of the script.

    Every log-probability is 0.0: the script is certain. `encode` turns text into tokens without special ones.
    """

    def __init__(
        self, replies: Mapping[str, Sequence[str]] | Path, encode: Callable[[str], Sequence[int]], end_token: int
    ) -> None:
        self.replies = read_script(replies) if isinstance(replies, Path) else replies
        self.encode = encode
        self.end_token = end_token
        self.version = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            replies = self._replies_to(last_user_turn(request.messages))
            yield index, self._cut(replies[request.seed % len(replies)], sampling.max_tokens)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes the version; the weights are not looked at, since the script answers whatever they are."""
        self.version = version

    def close(self) -> None:
        """Nothing is held."""

    def _replies_to(self, prompt: str) -> Sequence[str]:
        replies = self.replies.get(prompt)
        if replies:
            return replies
        near = difflib.get_close_matches(prompt, self.replies, n=1, cutoff=0.0)
        known = f"the nearest prompt in it is {near[0][:200]!r}" if near else "it has no prompts"
        raise UserError(f"the script has no reply to {prompt[:200]!r}; {known}. Add a row for it.")

    def _cut(self, reply: str, max_tokens: int) -> Completion:
        tokens = (*self.encode(reply), self.end_token)
        if len(tokens) <= max_tokens:
            return Completion(reply, tokens, (0.0,) * len(tokens), "end", self.version)
        # a prefix of the text and not of the tokens: half a character has no text
        lengths = range(len(reply) + 1)
        fitting = bisect_right(lengths, max_tokens, key=lambda length: len(self.encode(reply[:length]))) - 1
        tokens = tuple(self.encode(reply[:fitting]))
        return Completion(reply[:fitting], tokens, (0.0,) * len(tokens), "length", self.version)


def read_script(path: Path) -> dict[str, list[str]]:
    """A prompt may have several rows; their replies follow each other."""
    replies: dict[str, list[str]] = {}
    for line, row in jsonl.read(path):
        prompt, texts = row.get("prompt"), row.get("replies")
        if not isinstance(prompt, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError(
                f'{path}, line {line}: a row of a script is {{"prompt": text, "replies": [text, ...]}}, '
                f"got the keys {sorted(row)}."
            )
        replies.setdefault(prompt, []).extend(texts)
    return replies


def last_user_turn(messages: Sequence[Message]) -> str:
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
