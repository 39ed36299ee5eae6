"""Numbers held back between a scheduler and an output processor; the real ones are in test_vllm_real.py."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from motet.engine import vllm_held
from motet.engine.vllm_held import holding
from motet.engine.vllm_local import told


class LogprobsLists(NamedTuple):
    logprobs: Any
    cu_num_generated_tokens: list[int] | None = None


@dataclass
class ModelRunnerOutput:
    req_id_to_index: dict[str, int]
    tokens: list[list[int]]
    """By row."""
    logprobs: LogprobsLists | None = None


@dataclass
class EngineCoreOutput:
    request_id: str
    new_token_ids: list[int]
    finish_reason: str | None = None


@dataclass
class OutputProcessorOutput:
    request_outputs: list[Any] = field(default_factory=list)
    reqs_to_abort: list[str] = field(default_factory=list)


class Scheduler:
    """Takes what was sampled for the requests that it knows; 1 is the end."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.saw: list[Any] = []

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> list[EngineCoreOutput]:
        self.saw.append(model_runner_output.logprobs)
        outputs = []
        for name, row in model_runner_output.req_id_to_index.items():
            new = model_runner_output.tokens[row]
            if new and name not in self.gone:
                ended = new[-1] == 1
                outputs.append(EngineCoreOutput(name, new, "stop" if ended else None))
                self.gone |= {name} if ended else set()
        return outputs


class Processor:
    def __init__(self) -> None:
        self.given: list[tuple[str, list[int]]] = []

    def process_outputs(self, engine_core_outputs: Any, timestamp: float) -> OutputProcessorOutput:
        result = OutputProcessorOutput()
        for output in engine_core_outputs:
            self.given.append((output.request_id, output.new_token_ids))
            if output.finish_reason:
                answer = SimpleNamespace(token_ids=output.new_token_ids, logprobs="vLLM's own")
                result.request_outputs.append(SimpleNamespace(request_id=output.request_id, outputs=[answer]))
        return result


class Engine:
    def __init__(self) -> None:
        self.scheduler, self.output_processor = Scheduler(), Processor()
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=self.scheduler))

    def step(self, tokens: dict[str, list[int]], logprobs: list[list[float]] | None, first: Any = None) -> list[Any]:
        rows = {name: row for row, name in enumerate(tokens)}
        lists = None if logprobs is None else LogprobsLists(np.array(logprobs, np.float32), first)
        sampled = ModelRunnerOutput(rows, [list(new) for new in tokens.values()], lists)
        taken = self.scheduler.update_from_output(None, sampled)
        found = self.output_processor.process_outputs(taken, timestamp=1.0).request_outputs
        return [(o.request_id, o.outputs[0].token_ids, o.outputs[0].logprobs) for o in found]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its records, under its names."""
    vllm_held._tell.cache_clear()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="9.9"))
    for path in vllm_held.FIELDS:
        module, _, name = path.rpartition(".")
        if not isinstance(sys.modules.get(module), Records):
            monkeypatch.setitem(sys.modules, module, Records(module))
        setattr(sys.modules[module], name, globals()[name])
    yield
    vllm_held._tell.cache_clear()


class Records(ModuleType):
    pass


def test_a_request_is_told_of_once_when_it_ends_with_all_its_tokens_and_the_first_number_of_each_row() -> None:
    engine = Engine()
    with holding(engine):
        assert engine.step({"a": [5], "b": [6]}, [[-0.5, -9.0], [-0.25, -9.0]]) == []
        assert engine.step({"a": [7], "b": [1]}, [[-1.5, -9.0], [-0.75, -9.0]]) == [("b", [6, 1], [-0.25, -0.75])]
        assert engine.output_processor.given == [("b", [6, 1])]
        assert engine.step({"a": [1]}, [[-2.0, -9.0]]) == [("a", [5, 7, 1], [-0.5, -1.5, -2.0])]
    assert engine.scheduler.saw == [None, None, None]  # nothing is left for it to cut


def test_rows_that_move_prompts_computed_in_parts_and_tokens_after_the_end_are_no_part_of_an_answer() -> None:
    engine = Engine()
    with holding(engine):
        engine.step({"a": [5], "b": []}, [[-0.5], [-7.0]])  # b's prompt is not whole: a row, but no token
        engine.step({"b": [6], "a": [1]}, [[-0.25], [-1.0]])
        # a ended in the step before, when this one was on its way
        found = engine.step({"b": [1], "a": [9]}, [[-0.75], [-7.0]])
    assert found == [("b", [6, 1], [-0.25, -0.75])]


def test_several_tokens_of_a_step_have_the_rows_from_their_requests_first_one_on() -> None:
    engine = Engine()
    with holding(engine):
        found = engine.step({"a": [5, 1], "b": [6, 7, 1]}, [[-1.0], [-2.0], [-3.0], [-4.0], [-5.0]], [0, 2, 5])
    assert found == [("a", [5, 1], [-1.0, -2.0]), ("b", [6, 7, 1], [-3.0, -4.0, -5.0])]


def test_steps_alike_are_kept_together_and_each_request_has_its_own_of_them() -> None:
    """Three steps of a, b, c in rows 0, 1, 2, then b and c change rows, then c ends."""
    engine = Engine()
    with holding(engine):
        for step in range(3):
            engine.step({"a": [10 + step], "b": [20 + step], "c": [30 + step]}, [[-0.25 * step], [-1.0], [-2.0 - step]])
        engine.step({"a": [13], "c": [33], "b": [23]}, [[-8.0], [-5.0], [-1.0]])
        assert engine.step({"a": [14], "c": [1], "b": [24]}, [[-8.0], [-6.0], [-1.0]]) == [
            ("c", [30, 31, 32, 33, 1], [-2.0, -3.0, -4.0, -5.0, -6.0])
        ]
        assert engine.step({"a": [1], "b": [1]}, [[-9.0], [-1.5]]) == [
            ("a", [10, 11, 12, 13, 14, 1], [0.0, -0.25, -0.5, -8.0, -8.0, -9.0]),
            ("b", [20, 21, 22, 23, 24, 1], [-1.0, -1.0, -1.0, -1.0, -1.0, -1.5]),
        ]


def test_without_log_probabilities_there_are_none() -> None:
    engine = Engine()
    with holding(engine):
        engine.step({"a": [5]}, None)
        assert engine.step({"a": [1]}, None) == [("a", [5, 1], None)]


def test_a_request_that_lacks_some_of_its_log_probabilities_is_not_handed_on() -> None:
    engine = Engine()
    with holding(engine):
        engine.step({"a": [5]}, None)
        with pytest.raises(AssertionError, match="some of its log-probabilities"):
            engine.step({"a": [1]}, [[-1.0]])


def test_afterwards_the_engine_is_as_it_was_also_when_sampling_failed() -> None:
    engine = Engine()
    with pytest.raises(KeyboardInterrupt), holding(engine):
        raise KeyboardInterrupt
    engine.step({"a": [5]}, [[-0.5]])
    assert engine.step({"a": [1]}, [[-1.0]]) == [("a", [1], "vLLM's own")]
    assert engine.scheduler.saw[0] is not None and engine.output_processor.given == [("a", [5]), ("a", [1])]
    assert not {"update_from_output", "process_outputs"} & {*vars(engine.scheduler), *vars(engine.output_processor)}
    engine.output_processor.process_outputs = own = engine.output_processor.process_outputs  # type: ignore[method-assign]
    with holding(engine):
        assert engine.output_processor.process_outputs is not own
    assert engine.output_processor.process_outputs is own  # somebody else's


@pytest.mark.parametrize("other", ["away", "argument", "record", "module"])
def test_a_vllm_that_is_built_otherwise_goes_its_own_way_and_that_is_logged_once(
    other: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    match other:
        case "away":
            engine.engine_core.engine_core = None  # in a process of its own
        case "argument":
            monkeypatch.setattr(Scheduler, "update_from_output", lambda self, model_runner_output: [])
        case "record":
            monkeypatch.setitem(vllm_held.FIELDS, "vllm.v1.engine.EngineCoreOutput", {"request_id", "tokens"})
        case "module":
            monkeypatch.setitem(sys.modules, "vllm.v1.outputs", None)
    why = {
        "away": "not in this process",
        "argument": "no update_from_output(scheduler_output, model_runner_output)",
        "record": "EngineCoreOutput has no tokens",
        "module": "ModelRunnerOutput has no logprobs",
    }
    with caplog.at_level(logging.INFO, "motet"):
        for _ in range(2):
            with holding(engine):
                assert not {*vars(engine.scheduler)} & {"update_from_output"}
    (said,) = caplog.messages
    assert said.startswith("vLLM 9.9: ") and why[other] in said


def test_log_probabilities_that_were_not_held_back_are_read_from_vllms_record() -> None:
    flat = SimpleNamespace(start_indices=[0, 2, 3], logprobs=[-0.5, -9.0, -0.25, -1.0])
    assert told(flat) == [-0.5, -0.25, -1.0]
    assert (told(None), told([-0.5])) == ([], [-0.5])
