"""Proof that new weights arrived: a fingerprint for each Hugging Face name, and log-probabilities of a few prompts.

A `Ledger` reads each tensor on its way to the engine, in the engine's dtype; `compare` holds it against what the engine
says that it holds. The fingerprints see the weights and nothing of how they are used; `probe` sees their use: learner
and engine score the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from motet.base.errors import UserError
from motet.base.recipe import Engine as Settings
from motet.base.recipe import Model
from motet.base.records import Completion, Message
from motet.data.chat import ChatFormat
from motet.data.pack import Batch, Sample, pack
from motet.engine.protocol import Engine, Request, SamplingParams
from motet.engine.vllm_worker import HEAD, Fingerprints

PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "What is 12 + 7?"},
    {"role": "user", "content": "Write one sentence about the sea."},
    {"role": "user", "content": "1 2 3 4 5 6 7"},
    {"role": "user", "content": "a"},
)
PROBE_TOKENS = 16
LARGEST_DRIFT = {"float32": 0.002, "bfloat16": 0.05}
"""Mean absolute difference of log-probabilities that rounding and another order of sums explain (ours)."""


class Ledger:
    """What was sent. `through` passes weights on and notes each; `expected` fetches the notes, once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._found = Fingerprints()
        self._tied_to = ""
        """The table that a head is tied to, which is sent once."""
        self.shapes: dict[str, tuple[int, ...]] = {}

    def through(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor in the engine's dtype. A tied head is sent once, under the embedding's name, and proven under
        both: an engine may compute with a copy."""
        table, home = "", torch.empty(0)  # the embedding is held: another tensor cannot come to lie where it lies
        for name, tensor in weights:
            if name == HEAD and table and tensor.data_ptr() == home.data_ptr():
                continue
            if name.endswith("embed_tokens.weight"):
                table, home = name, tensor
            cast = tensor.detach().to(self._dtype)
            self._found.add(name, cast)
            self.shapes[name] = tuple(cast.shape)
            yield name, cast
        if table and HEAD not in self.shapes:  # the same tensor, or a checkpoint without a head, which has it tied
            self._tied_to, self.shapes[HEAD] = table, self.shapes[table]

    def expected(self) -> dict[str, str]:
        words = self._found.words()
        return words | {HEAD: words[self._tied_to]} if self._tied_to else words


def compare(expected: Mapping[str, str], found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Raises UserError when the engine holds other numbers than were sent. Returns the names that it could not find
    among its own: nothing is known of those.

    What is not found at all is not a proof of anything: a tensor that the engine calls by another name is left to
    `probe`."""
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"new weights did not arrive: the engine's {wrong[0]} {list(shapes[wrong[0]])}{more} of {len(expected)} "
            f"tensors differs from the learner's (fingerprint {found[wrong[0]]}, not {expected[wrong[0]]}). Nothing "
            "may be sampled from such an engine. See that it was started on a model of the same shape and dtype, that "
            "nothing else writes its weights, and that its vLLM is a version that motet supports."
        )
    return [name for name in expected if name not in found]


def largest_drift(settings: Settings, model: Model) -> float:
    return settings.largest_drift or LARGEST_DRIFT[model.dtype]


def fixed_requests(chat: ChatFormat) -> list[Request]:
    return [Request(chat.prompt([message]), (message,), seed) for seed, message in enumerate(PROBE)]


def probe(
    engine: Engine,
    requests: Sequence[Request],
    logprobs: Callable[[Sequence[Batch]], Sequence[torch.Tensor]],
    device: torch.device | str,
    largest: float,
) -> float:
    """The mean absolute difference between the engine's log-probabilities of what it samples and the learner's of the
    same tokens, at temperature 1. Raises UserError above `largest`. `logprobs` is `Learner.logprobs`."""
    answers = dict(engine.generate(requests, SamplingParams(temperature=1.0, top_p=1.0, max_tokens=PROBE_TOKENS)))
    samples = [as_sample(request, answers[index]) for index, request in enumerate(requests)]
    batches = pack(samples, max(1024, *(len(sample.tokens) for sample in samples)), device)
    pairs = zip(batches, logprobs(batches), strict=True)
    drift = float(torch.cat([(batch.behaviour_N.float() - own.float()).abs() for batch, own in pairs]).mean())
    if not drift <= largest:  # a NaN is no small difference
        raise UserError(
            f"engine and learner disagree about the same weights (version {engine.version}): their log-probabilities "
            f"of {sum(len(a.tokens) for a in answers.values())} tokens differ by {drift:.3g} on average, where "
            f"{largest:.3g} is allowed. If the engine's dtype is not the learner's, make them equal; if both are "
            "right, raise engine.largest_drift."
        )
    return drift


def as_sample(request: Request, completion: Completion) -> Sample:
    """The completion scored, the prompt not."""
    mask = (False,) * len(request.prompt_tokens) + (True,) * len(completion.tokens)
    return Sample(request.prompt_tokens + completion.tokens, mask, logprobs=completion.logprobs)
