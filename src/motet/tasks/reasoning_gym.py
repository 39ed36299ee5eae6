"""Procedural problems: any generator of the package reasoning-gym (Apache-2.0), judged by its own scorer.

One row of {"dataset": "spell_backward"}: prompt "Spell this word backward (example: sun -> nus): moon\\nPut ...",
verifier "procedural", reference {"dataset": "spell_backward", "entry": {"question", "answer": "noom", "metadata"}},
worked solution {"reasoning": "1m 2o 3o 4n : 4n 3o 2o 1m", "answer": "\\boxed{noom}"} (no steps for most generators).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from typing import Any

from motet.base.errors import UserError
from motet.base.recipe import nearest
from motet.base.records import Problem, content_id, seed_of
from motet.tasks.worked import TERSE, worked_solution

INSTRUCTION = "Put the final answer in \\boxed{}."
CHUNK = 256
"""Problems of one generator object; the next chunk has a seed of its own."""


def procedural(
    source: str,
    seed: int,
    dataset: str,
    size: int | None = None,
    instruction: str = INSTRUCTION,
    terse: float = 0.0,
    **parameters: Any,
) -> Iterator[Problem]:
    """Endless, or `size` problems. `parameters` are the generator's own; `instruction` follows every question; a share
    `terse` of the worked solutions shows no steps."""
    create = _factory(dataset, parameters)
    for chunk in count():
        left = CHUNK if size is None else min(CHUNK, size - chunk * CHUNK)
        if left <= 0:
            return
        # numpy's generators, which some data sets use, take 32 bits
        generator = create(seed=seed_of("reasoning_gym", seed, chunk) % 2**32, size=left)
        for index in range(left):
            entry = json.loads(json.dumps(generator[index], default=str))
            reference = {"dataset": dataset, "entry": entry, **({"config": parameters} if parameters else {})}
            yield _problem(source, reference, instruction, terse)


def _problem(source: str, reference: dict[str, Any], instruction: str, terse: float) -> Problem:
    dataset, entry = reference["dataset"], reference["entry"]
    prompt = f"{entry['question']}\n{instruction}".strip()
    metadata: dict[str, Any] = {}
    if entry["answer"] is not None:  # some generators have a scorer but no answer of their own
        metadata["solution"] = worked_solution(dataset, entry)
        if seed_of("terse", prompt) < terse * 2**63:
            metadata["solution"]["reasoning"] = TERSE
    return Problem(
        id=f"{source}-{content_id(prompt)}",
        messages=({"role": "user", "content": prompt},),
        verifier="procedural",
        reference=reference,
        domain="procedural",
        source=source,
        metadata=metadata,
    )


def _factory(dataset: str, parameters: dict[str, Any]) -> Any:
    """`create(seed=, size=)`, its parameters checked. Raises UserError with the nearest name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dependency has invalid escapes and comparisons
        from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS or dataset == "composite":
        known = sorted(set(DATASETS) - {"composite"})
        raise UserError(f"reasoning_gym: there is no data set {dataset!r}; {nearest(dataset, known)}".rstrip("; "))
    make, settings = DATASETS[dataset]
    known = [f.name for f in fields(settings) if f.name not in ("seed", "size")]
    for key in parameters:
        if key not in known:
            hint = nearest(key, known).rstrip("; ")
            raise UserError(f"reasoning_gym: {dataset} has no parameter {key!r}; {hint}")

    def create(seed: int, size: int) -> Any:
        try:
            return make(settings(**parameters, seed=seed, size=size))
        except (AssertionError, TypeError, ValueError) as error:
            given = ", ".join(f"{k} = {v!r}" for k, v in parameters.items())
            raise UserError(f"reasoning_gym: {dataset} refuses {given or 'its defaults'} ({error})") from error

    return create
