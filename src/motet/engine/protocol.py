"""What an engine is: tokens in, completions out, and new weights whenever the learner has them.

Whoever samples (this process, a server, a script) is behind `Engine`; the stages know nothing else. The conformance
tests hold every engine to: the same request and seed give the same completion whatever else is in the batch; greedy
equals the full forward pass; log-probabilities equal the learner's; new weights take effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from motet.base.records import Completion, Message

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Request:
    prompt_tokens: tuple[int, ...]
    """The rendered prompt, the opening of the assistant's turn included."""
    messages: tuple[Message, ...]
    """The same conversation as text, for engines that render it themselves."""
    seed: int
    """The completion is a function of weights, prompt, sampling and this seed."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float
    """0 is greedy."""
    top_p: float
    max_tokens: int


class Engine(Protocol):
    @property
    def version(self) -> int:
        """How often the weights in use had been updated."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[tuple[int, Completion]]:
        """Yields (index into requests, completion) as each ends, in any order, each index once."""

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes new weights; completions of later calls carry `version`. Raises UserError where it cannot."""

    def close(self) -> None:
        """Gives back memory, connections and processes."""


@runtime_checkable
class InWaves(Protocol):
    """An engine that decodes so many requests side by side: with other company the last bits of a log-probability are
    others, so that what is asked for again has to be asked for with the same company."""

    def generate_waves(
        self, requests: Sequence[Request], wanted: Collection[int], sampling: SamplingParams
    ) -> Iterator[tuple[int, Completion]]:
        """As `Engine.generate` for all requests, but without the waves that hold none of the `wanted` ones. Of the
        other waves all completions are sampled, and come to the bit as in a call for all."""


@runtime_checkable
class Mended(Protocol):
    """An engine that is brought back when it fails, and asked again for what it had not answered."""

    @property
    def mended(self) -> int:
        """How often it was, by this process; servers that were given up included."""


@runtime_checkable
class Recorded(Protocol):
    """An engine whose replies are paid for: it keeps them on disk and never asks for one again."""

    def keep(self, groups: Path) -> None:
        """From now on replies are kept beside this file of groups, in raw/; those that are there answer without being
        asked for, and what they cost counts."""

    def bill(self) -> dict[str, Any]:
        """Requests, replies, failed tries by reason, tokens and cost so far, earlier processes included."""
