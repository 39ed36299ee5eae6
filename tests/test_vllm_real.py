"""vLLM itself, in a server of its own and, where it is installed beside motet, in this process: the conformance tests
of test_engine.py, and a server that is killed.

The server needs an environment with vLLM: MOTET_VLLM_PYTHON names its Python, else .venv-vllm (`make vllm`) is taken.
One server and one engine serve all tests of this file, because each start takes tens of seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.base.errors import UserError
from motet.base.recipe import Chat, Engine, Model, Optimizer, TinyModel
from motet.base.records import Completion
from motet.data.chat import ChatFormat
from motet.engine import arrival, vllm, vllm_held
from motet.engine.protocol import SamplingParams
from motet.engine.vllm_server import ServedVllm
from motet.engine.vllm_worker import read_folder
from motet.model.load import load_model, make_tiny
from motet.train.learner import Learner
from test_engine import GREEDY, WARM, as_samples, largest_difference, requests, sample, trained, words

BOUND = 1e-3
"""Of a log-probability in float32: the two compute the same sums in another order."""
PYTHON = os.environ.get("MOTET_VLLM_PYTHON") or str(Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # what vLLM and its packages warn of is theirs
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, Chat())


@pytest.fixture(scope="module")
def model_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in conftest.py, with heads of 32: vLLM has no CPU kernel for narrower ones."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    make_tiny(TinyModel(hidden=64, layers=2, heads=2, mlp=96, context=96), tokenizer, 1, folder)
    return folder


@pytest.fixture(scope="module", params=["local", "server"])
def engine(request: pytest.FixtureRequest, model_folder: Path, chat: ChatFormat) -> Iterator[vllm.Vllm]:
    if request.param == "local" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed beside motet (make vllm WITH=--motet installs both)")
    if request.param == "server" and not os.access(PYTHON, os.X_OK):
        pytest.skip("no environment with vLLM: make vllm, or name its Python in MOTET_VLLM_PYTHON")
    way: dict[str, Any] = {"python": PYTHON} if request.param == "server" else {}
    settings = Engine(kind="vllm", batch_size=16, eager=True, memory_share=0.3, **way)
    made = vllm.make(model_folder, Model(path=str(model_folder), device="cpu"), chat, settings)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def first_weights(engine: vllm.Vllm, model_folder: Path) -> None:
    if engine.version:
        engine.restart_on(model_folder)


def test_every_request_is_answered_once_with_tokens_that_end_or_are_cut(engine: vllm.Vllm, chat: ChatFormat) -> None:
    completions = sample(engine, requests(chat, seeds=8))
    assert {c.stop for c in completions} == {"end", "length"}
    for completion in completions:
        assert len(completion.logprobs) == len(completion.tokens) <= WARM.max_tokens
        ends = [i for i, token in enumerate(completion.tokens) if token in chat.stop_tokens]
        assert ends == ([len(completion.tokens) - 1] if completion.stop == "end" else [])
        assert completion.text == chat.decode(completion.tokens)
        assert completion.stop == "end" or len(completion.tokens) == WARM.max_tokens
    assert list(engine.generate([], WARM)) == []


def test_a_seed_and_a_prompt_give_the_same_completion_and_samples_of_one_prompt_differ(
    engine: vllm.Vllm, chat: ChatFormat
) -> None:
    asked = requests(chat, seeds=4)
    first, second = sample(engine, asked), sample(engine, asked[::-1])[::-1]
    assert words(first) == words(second)
    assert len({c.tokens for c in first[:4]}) == 4  # four samples of the first prompt


def test_greedy_is_the_largest_logit_of_the_full_forward_pass(
    engine: vllm.Vllm, chat: ChatFormat, model_folder: Path
) -> None:
    model = load_model(model_folder, "sdpa", torch.device("cpu"), torch.float32)
    asked = requests(chat, seeds=1)
    for request, completion in zip(asked, sample(engine, asked, GREEDY), strict=True):
        tokens = list(request.prompt_tokens)
        while len(tokens) < len(request.prompt_tokens) + GREEDY.max_tokens and tokens[-1] not in chat.stop_tokens:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert completion.tokens == tuple(tokens[len(request.prompt_tokens) :])


def test_log_probabilities_are_the_learners_and_new_weights_take_effect(
    engine: vllm.Vllm, chat: ChatFormat, model_folder: Path
) -> None:
    learner, asked = trained(model_folder, chat), requests(chat)
    before = as_samples(asked, sample(engine, asked))
    assert largest_difference(learner, before, WARM.temperature) > 0.1  # the learner has moved away
    engine.load(learner.weights(), learner.version)
    after = as_samples(asked, sample(engine, asked))
    assert largest_difference(learner, after, WARM.temperature) < BOUND
    drift = arrival.probe(
        engine, arrival.fixed_requests(chat), learner.logprobs, "cpu", arrival.LARGEST_DRIFT["float32"]
    )
    assert drift < BOUND
    (greedy,) = sample(engine, asked[:1], GREEDY)
    assert (greedy.text, greedy.stop, greedy.version) == ("<think>3</think>x", "end", 40)


def test_every_tensor_of_the_checkpoint_is_found_in_the_engine(engine: vllm.Vllm, model_folder: Path) -> None:
    """Fused, packed for the processor's kernels, padded (the vocabulary has 43 rows, vLLM's table 64), and tied."""
    ledger = arrival.Ledger(torch.float32)
    list(ledger.through(read_folder(model_folder)))
    assert engine._fingerprints(ledger.shapes) == [ledger.expected()]
    assert len(ledger.shapes) == 21 and "lm_head.weight" in ledger.shapes


def test_weights_that_did_not_arrive_are_named(
    engine: vllm.Vllm, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(weights: vllm.Weights) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            yield name, tensor + 1.0 if "layers.1.self_attn.v_proj" in name else tensor

    transfer = engine._transfer
    monkeypatch.setattr(engine, "_transfer", lambda weights: transfer(spoilt(weights)))
    with pytest.raises(UserError, match=r"engine's model\.layers\.1\.self_attn\.v_proj\.weight \[64, 64\] of 21 tens"):
        engine.load(read_folder(model_folder), 1)
    monkeypatch.undo()
    engine.restart_on(model_folder)


def test_a_nucleus_is_sampled_without_log_probabilities(engine: vllm.Vllm, chat: ChatFormat) -> None:
    completions = sample(engine, requests(chat), SamplingParams(1.0, 0.5, 8))
    assert {c.logprobs for c in completions} == {()}


def test_numbers_held_back_until_a_request_ends_are_those_that_vllm_tells(
    engine: vllm.Vllm, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(engine, ServedVllm):
        pytest.skip("a server tells them over HTTP")
    asked = requests(chat, seeds=8)
    with caplog.at_level(logging.INFO, "motet"):
        held_back = sample(engine, asked)
        assert vllm_held.unknown(engine._engine) == "" and caplog.messages == []  # type: ignore[attr-defined]
        monkeypatch.setitem(vllm_held.ARGUMENTS, "process_outputs", ["something_else"])
        assert sample(engine, asked) == held_back  # tokens, log-probabilities, texts
    assert ["has no process_outputs(something_else)" in said for said in caplog.messages] == [True]
    assert {len(c.logprobs) for c in held_back} == {len(c.tokens) for c in held_back} != {WARM.max_tokens}


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(engine: vllm.Vllm, chat: ChatFormat) -> None:
    (short,) = requests(chat, ("1",), 1)  # 3 tokens; the model has 96 positions
    assert sample(engine, [short], SamplingParams(1.0, 1.0, 93))
    with pytest.raises(UserError, match=r"prompt of 3 tokens and sampling\.max_tokens = 94 are 97 positions"):
        sample(engine, [short], SamplingParams(1.0, 1.0, 94))


def test_whoever_stops_reading_leaves_no_request_behind(engine: vllm.Vllm, chat: ChatFormat) -> None:
    asked = requests(chat)
    answers = engine.generate(asked, WARM)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert words(sample(engine, asked[:2])) == words(sample(engine, asked[:2]))


def test_a_server_killed_in_the_middle_loses_nothing_and_answers_with_the_weights_it_had(
    engine: vllm.Vllm, chat: ChatFormat, model_folder: Path
) -> None:
    if not isinstance(engine, ServedVllm):
        pytest.skip("what is in this process dies with it")
    config = Optimizer(learning_rate=0.02, warmup_steps=0, schedule="constant")
    learner = Learner(model_folder, Model(path=str(model_folder), device="cpu"), config, 40)
    engine.load(((name, tensor * 1.1) for name, tensor in learner.weights()), 2)
    asked = requests(chat, seeds=10)
    reference = sample(engine, asked)
    seen: list[tuple[int, Completion]] = []
    for pair in engine.generate(asked, WARM):
        seen.append(pair)
        if len(seen) == 5:
            assert engine.servers[0].process is not None
            os.killpg(engine.servers[0].process.pid, signal.SIGKILL)
    assert sorted(index for index, _ in seen) == list(range(len(asked)))
    assert words([c for _, c in sorted(seen, key=lambda pair: pair[0])]) == words(reference)
    assert engine.servers[0].lives == 1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="this is that environment")
def test_the_same_holds_in_the_process_of_an_environment_with_both() -> None:
    """Runs the tests of the local way there."""
    if not os.access(PYTHON, os.X_OK) or not knows(PYTHON, "vllm", "pytest", "hypothesis", "math_verify", "pyarrow"):
        pytest.skip("no environment with vLLM and motet: make vllm WITH=--motet")
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "local", str(Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "10 passed" in done.stdout, done.stdout


def knows(python: str, *packages: str) -> bool:
    code = f"import sys; from importlib.util import find_spec; sys.exit(any(find_spec(p) is None for p in {packages}))"
    return subprocess.run([python, "-c", code]).returncode == 0
