"""What vLLM in this process samples, kept as plain numbers until a request ends.

vLLM takes each token of each request through its output processor, and cuts a step's log-probabilities into arrays of
their own for every request, on the thread on which the GPU's next step waits. Who wants whole completions needs
neither: here a step's numbers are appended to lists, and vLLM's processor sees a request once, with all of its tokens,
in the step in which it ends. Tokens and log-probabilities are the same numbers either way.

Two methods are wrapped while one call samples: the scheduler's `update_from_output`, which is given what the model
sampled, and the output processor's `process_outputs`, which is given what the scheduler took of that. A vLLM that is
not built so is left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from motet.base.run import log

ARGUMENTS = {
    "update_from_output": ["scheduler_output", "model_runner_output"],
    "process_outputs": ["engine_core_outputs"],
}
"""Of the wrapped methods, the first ones."""
FIELDS = {
    "vllm.v1.outputs.ModelRunnerOutput": {"req_id_to_index", "logprobs"},
    "vllm.v1.outputs.LogprobsLists": {"logprobs", "cu_num_generated_tokens"},
    "vllm.v1.engine.EngineCoreOutput": {"request_id", "new_token_ids", "finish_reason"},
    "vllm.v1.engine.output_processor.OutputProcessorOutput": {"request_outputs", "reqs_to_abort"},
}
"""What is read or written of vLLM's records, by class."""


@contextmanager
def holding(engine: Any) -> Iterator[None]:
    """While it lasts, a finished request's `outputs[0].logprobs` is the list of its sampled tokens' log-probabilities
    (None where none were asked for), and nothing is told of a request before it ends. That holds for every request of
    the engine: they are to be added and finished, or aborted, within. An engine that motet does not know inside goes
    its own way."""
    why = unknown(engine)
    if why:
        _tell(why)
        yield
        return
    scheduler, processor = engine.engine_core.engine_core.scheduler, engine.output_processor
    held = Held(scheduler.update_from_output, processor.process_outputs)
    with (
        _instead(scheduler, "update_from_output", held.update_from_output),
        _instead(processor, "process_outputs", held.process_outputs),
    ):
        yield


@contextmanager
def _instead(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """The object's `method` for its class's, and what was there before afterwards."""
    before = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class Held:
    """Between a scheduler and an output processor. Requests go by vLLM's inner names."""

    def __init__(self, update: Callable[..., Any], process: Callable[..., Any]) -> None:
        self._update, self._process = update, process
        self._answers: dict[str, tuple[list[int], list[float]]] = {}
        self._told: list[float] = []
        """The step's log-probabilities, a row for each token that it sampled."""
        self._rows: Mapping[str, int] = {}
        """A request's first row; empty where the step has no log-probabilities."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Takes the log-probabilities off before the scheduler sees them: it has no other use for them."""
        told, self._rows = model_runner_output.logprobs, {}
        if told is not None:
            self._rows, first = model_runner_output.req_id_to_index, told.cu_num_generated_tokens
            if first is not None:
                self._rows = {name: first[row] for name, row in self._rows.items()}
            self._told = told.logprobs[:, 0].tolist()  # in each row the sampled token's comes first
            model_runner_output.logprobs = None
        return self._update(scheduler_output, model_runner_output)

    def process_outputs(self, engine_core_outputs: Sequence[Any], *others: Any, **named: Any) -> Any:
        """What vLLM would say of the requests that have ended in this step."""
        answers, told, rows, ended = self._answers, self._told, self._rows, []
        for output in engine_core_outputs:
            name, new = output.request_id, output.new_token_ids
            answer = answers.get(name)
            if answer is None:
                answer = answers[name] = ([], [])
            answer[0].extend(new)
            if rows and new:
                row = rows[name]
                answer[1].extend(told[row : row + len(new)])
            if output.finish_reason is not None:
                ended.append(output)
        result = self._process([], *others, **named)
        for output in ended:
            output.new_token_ids, logprobs = answers.pop(output.request_id)
            assert len(logprobs) in (0, len(output.new_token_ids)), "a step told some of its log-probabilities only"
            said = self._process([output], *others, **named)
            for request_output in said.request_outputs:
                request_output.outputs[0].logprobs = logprobs or None
            result.request_outputs.extend(said.request_outputs)
            result.reqs_to_abort.extend(said.reqs_to_abort)
        return result


def unknown(engine: Any) -> str:
    """What of this engine is not as motet knows it; nothing: empty."""
    core = getattr(getattr(engine, "engine_core", None), "engine_core", None)
    if core is None:
        return "its scheduler is not in this process"
    owners = (getattr(core, "scheduler", None), getattr(engine, "output_processor", None))
    for owner, (method, names) in zip(owners, ARGUMENTS.items(), strict=True):
        found = getattr(owner, method, None)
        if not callable(found) or list(inspect.signature(found).parameters)[: len(names)] != names:
            return f"it has no {method}({', '.join(names)})"
    for path, fields in FIELDS.items():
        missing = fields - _fields(path)
        if missing:
            return f"{path} has no {sorted(missing)[0]}"
    return ""


def _fields(path: str) -> set[str]:
    """Of a dataclass, a named tuple or a struct; none where there is no such class."""
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None)
    except ImportError:
        return set()
    return {
        field
        for where in ("__dataclass_fields__", "_fields", "__struct_fields__")
        for field in getattr(kind, where, ())
    }


@cache
def _tell(why: str) -> None:
    log.info("vLLM %s: motet does not know this one inside (%s) and has it tell every token: more work for the host",
             import_module("vllm").__version__, why)  # fmt: skip
