"""motet's side of vLLM, against a small server that speaks its HTTP interface and dies when told to; the real one is in
test_vllm_real.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError

import fake_vllm
from motet.base.errors import UserError
from motet.base.load_recipe import load
from motet.base.recipe import Chat, Engine, Model, Rope
from motet.base.records import Completion
from motet.base.run import Run
from motet.data.chat import ChatFormat
from motet.data.pack import pack
from motet.engine import arrival, vllm, vllm_worker
from motet.engine.again import Remembered
from motet.engine.arrival import Ledger, compare
from motet.engine.protocol import Request, SamplingParams
from motet.engine.transformers import TransformersEngine
from motet.engine.vllm_http import Trouble
from motet.engine.vllm_process import Process
from motet.engine.vllm_server import ServedVllm
from motet.engine.vllm_transfer import buckets
from motet.engine.vllm_worker import fingerprint, fingerprints, held, read_folder, sums_of_rows_and_columns
from motet.model.rope import with_rope
from motet.stages.context import Context
from test_engine import as_samples, trained

SAMPLING = SamplingParams(temperature=0.8, top_p=1.0, max_tokens=9)
SOURCE = Path(__file__).parent.parent / "src"
FAKE = Path(fake_vllm.__file__)


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, Chat())


@pytest.fixture
def servers() -> Iterator[Callable[[], fake_vllm.FakeVllm]]:
    made: list[fake_vllm.FakeVllm] = []

    def make() -> fake_vllm.FakeVllm:
        made.append(fake_vllm.FakeVllm())
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def engine_of(chat: ChatFormat, model_folder: Path, tmp_path: Path) -> Iterator[Callable[..., ServedVllm]]:
    """An engine by its settings; `own=True` starts a server process of its own."""
    made: list[ServedVllm] = []

    def make(urls: Sequence[str] = (), **settings: Any) -> ServedVllm:
        if not urls:
            program = tmp_path / "python"
            path = os.pathsep.join([str(SOURCE), str(FAKE.parent)])
            program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} {FAKE} "$@"\n')
            program.chmod(0o755)
            settings["python"] = str(program)
        chat.stop_tokens = frozenset({fake_vllm.END})
        config = Engine(kind="vllm", urls=tuple(urls), **{"batch_size": 4, "timeout_seconds": 30.0, **settings})
        made.append(ServedVllm(model_folder, Model(path=str(model_folder), device="cpu"), chat, config))
        return made[-1]

    stops = chat.stop_tokens
    yield make
    chat.stop_tokens = stops
    for engine in made:
        engine.close()


def requests(count: int) -> list[Request]:
    return [Request((5, 9, 2 + index % 4), (), 1000 + index) for index in range(count)]


def answers(asked: Sequence[Request], most: int = SAMPLING.max_tokens) -> list[tuple[int, ...]]:
    return [tuple(fake_vllm.tokens_of(list(r.prompt_tokens), r.seed, most)[0]) for r in asked]


def tokens(found: dict[int, Completion]) -> list[tuple[int, ...]]:
    return [found[index].tokens for index in sorted(found)]


# --- arrival: what the engine holds, by Hugging Face name ---


class Linear(torch.nn.Module):
    """A layer of vLLM's: its weight may have been packed away."""

    def __init__(self, weight: torch.Tensor, packed: bool = False) -> None:
        super().__init__()
        self.input_size_per_partition = weight.shape[1]
        self._packed = weight.clone()
        self.weight = torch.nn.Parameter(torch.empty(0) if packed else weight.clone())
        self.quant_method = self

    def apply(self, layer: Any, x: torch.Tensor, bias: None) -> torch.Tensor:  # type: ignore[override]
        return x @ layer._packed.T


class Fused(torch.nn.Module):
    """q (6 rows), k and v (2 rows each) in one matrix; a vocabulary of 5, padded to 8."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, weights: dict[str, torch.Tensor], packed: bool = False) -> None:
        super().__init__()
        self.attn = torch.nn.Module()
        self.attn.qkv_proj = Linear(torch.cat([weights[f"attn.{part}_proj.weight"] for part in "qkv"]), packed)
        self.mlp = torch.nn.Module()
        self.mlp.gate_up_proj = Linear(torch.cat([weights[f"mlp.{part}_proj.weight"] for part in ("gate", "up")]))
        self.embed_tokens = torch.nn.Module()
        table = torch.cat([weights["embed_tokens.weight"], torch.full((3, 4), float("nan"))])
        self.embed_tokens.weight = torch.nn.Parameter(table)
        self.lm_head = Linear(table)
        self.lm_head.weight = self.embed_tokens.weight
        if packed:
            self.lm_head.cpu_linear = None  # it computes with a copy
        self.norm = torch.nn.Module()
        self.norm.weight = torch.nn.Parameter(weights["norm.weight"].clone())


def checkpoint() -> dict[str, torch.Tensor]:
    shapes = {"embed_tokens": (5, 4), "attn.q_proj": (6, 4), "attn.k_proj": (2, 4), "attn.v_proj": (2, 4),
              "mlp.gate_proj": (3, 4), "mlp.up_proj": (3, 4), "norm": (4,)}  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def noted(weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> Ledger:
    ledger = Ledger(dtype)
    list(ledger.through(weights.items()))
    return ledger


@pytest.mark.parametrize("packed", [False, True])
def test_every_name_of_a_checkpoint_is_found_in_fused_padded_and_packed_parameters(packed: bool) -> None:
    weights = checkpoint()
    ledger = noted(weights)
    found = fingerprints(held(Fused(weights, packed), ledger.shapes))
    assert len(found) == 8 and compare(ledger.expected(), found, ledger.shapes) == []


def test_a_tensor_that_did_not_arrive_is_named() -> None:
    weights = checkpoint()
    ledger = noted(weights)
    swapped = weights | {
        "attn.k_proj.weight": weights["attn.v_proj.weight"],
        "attn.v_proj.weight": weights["attn.k_proj.weight"],
    }
    found = fingerprints(held(Fused(swapped), ledger.shapes))
    with pytest.raises(UserError, match=r"engine's attn\.k_proj\.weight \[2, 4\] and 1 more of 8 tensors differs"):
        compare(ledger.expected(), found, ledger.shapes)


def test_a_name_that_the_engine_does_not_have_is_told_and_proves_nothing() -> None:
    weights = checkpoint() | {"rotary.table": torch.zeros(3)}
    ledger = noted(weights)
    found = fingerprints(held(Fused(weights), ledger.shapes))
    assert compare(ledger.expected(), found, ledger.shapes) == ["rotary.table"]


def test_the_tensor_is_compared_in_the_engines_dtype() -> None:
    weights = checkpoint()
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    assert noted(weights, torch.bfloat16).expected() == noted(halves, torch.bfloat16).expected()
    assert noted(weights).expected() != noted(halves, torch.bfloat16).expected()


def test_a_tied_head_is_sent_once_and_proven_as_the_head_too() -> None:
    table, norm = torch.ones(3, 2), ("norm.weight", torch.ones(2))
    for weights in ([("embed_tokens.weight", table), norm, ("lm_head.weight", table)],
                    [("embed_tokens.weight", table), norm]):  # fmt: skip
        ledger = Ledger(torch.float32)
        assert [name for name, _ in ledger.through(weights)] == ["embed_tokens.weight", "norm.weight"]
        assert ledger.expected()["lm_head.weight"] == ledger.expected()["embed_tokens.weight"]
    apart = [("embed_tokens.weight", table), ("lm_head.weight", table + 1)]
    assert [name for name, _ in Ledger(torch.float32).through(apart)] == ["embed_tokens.weight", "lm_head.weight"]


def test_a_tied_head_that_computes_with_an_old_copy_is_seen() -> None:
    weights = checkpoint()
    ledger, engine = noted(weights), Fused(weights, packed=True)
    engine.lm_head._packed = engine.lm_head._packed + 1
    with pytest.raises(UserError, match=r"the engine's lm_head\.weight \[5, 4\] of 8 tensors differs"):
        compare(ledger.expected(), fingerprints(held(engine, ledger.shapes)), ledger.shapes)


def changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    copy = tensor.clone()
    return result if (result := change(copy)) is not None else copy


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.view(torch.int32).bitwise_xor_(torch.tensor([[1, 0, 0], [0, 0, 0]], dtype=torch.int32)).float(),
        lambda t: t.flip(0),
        lambda t: t.flip(1),
        lambda t: t.bfloat16(),
        lambda t: -t,
    ],
    ids=["one bit", "rows swapped", "columns swapped", "another dtype", "sign"],
)
def test_a_fingerprint_sees(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert not fingerprint(tensor).equal(fingerprint(changed(tensor, change)))


def test_a_gpu_and_a_cpu_sum_rows_and_columns_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.engine.vllm_worker._CHUNK", 7)  # a CPU takes one row of three at a time, then two
    bits = torch.randint(-(2**15), 2**15, (5, 3)).to(torch.int16)
    rows, columns = sums_of_rows_and_columns(bits)
    assert rows.equal(bits.sum(1, dtype=torch.int64)) and columns.equal(bits.sum(0, dtype=torch.int64))


def test_a_fingerprint_is_of_the_numbers_and_not_of_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    whole = fingerprint(tensor)
    assert whole.equal(fingerprint(tensor.T.contiguous().T))
    monkeypatch.setattr(vllm_worker, "_CHUNK", 21)  # three rows at a time
    assert whole.equal(fingerprint(tensor))


def test_the_probe_passes_equal_weights_and_stops_at_others(model_folder: Path, chat: ChatFormat) -> None:
    learner = trained(model_folder, chat)
    engine = TransformersEngine(model_folder, Model(path=str(model_folder), device="cpu"), chat, 8)
    asked = arrival.fixed_requests(chat)
    with pytest.raises(UserError, match=r"engine and learner disagree about the same weights .* 0.002 is allowed"):
        arrival.probe(engine, asked, learner.logprobs, "cpu", 0.002)
    engine.load(learner.weights(), learner.version)
    assert arrival.probe(engine, asked, learner.logprobs, "cpu", 0.002) < 1e-4
    model = Model(path="m", dtype="bfloat16")
    assert arrival.largest_drift(Engine(), model) == 0.05
    assert arrival.largest_drift(Engine(kind="vllm", largest_drift=0.3), model) == 0.3


# --- servers ---


def test_requests_are_spread_over_servers_and_each_is_answered_once(servers: Any, engine_of: Any) -> None:
    first, second = servers(), servers()
    engine = engine_of([first.url, second.url + "/v1"])
    asked = requests(24)
    pairs = list(engine.generate(asked, SAMPLING))
    assert sorted(index for index, _ in pairs) == list(range(24))
    assert tokens(dict(pairs)) == answers(asked)
    assert len(first.bodies) + len(second.bodies) == 24 and min(len(first.bodies), len(second.bodies)) >= 4
    assert {(c.stop, c.version) for _, c in pairs} == {("end", 0), ("length", 0)}
    assert {len(c.logprobs) - len(c.tokens) for _, c in pairs} == {0}
    assert list(engine.generate([], SAMPLING)) == []


def test_a_request_leaves_nothing_to_the_defaults_of_server_or_model(servers: Any, engine_of: Any) -> None:
    server = servers()
    engine = engine_of([server.url])
    dict(engine.generate(requests(1), SAMPLING))
    (body,) = server.bodies
    off = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert off.items() <= body.items()
    assert (body["temperature"], body["top_p"], body["logprobs"], body["ignore_eos"]) == (0.8, 1.0, 0, True)
    assert (body["prompt"], body["seed"], body["stop_token_ids"]) == ([5, 9, 2], 1000, [fake_vllm.END])
    (completion,) = dict(engine.generate(requests(1), SamplingParams(0.8, 0.9, 9))).values()
    assert completion.logprobs == ()  # those of a nucleus are not the learner's


def test_servers_that_run_already_are_given_the_model_of_the_recipe(
    servers: Any, engine_of: Any, model_folder: Path
) -> None:
    server = servers()
    server.weights = {"other": torch.zeros(1)}
    engine_of([server.url])
    wanted = dict(read_folder(model_folder))
    assert server.weights.keys() == wanted.keys()
    assert all(server.weights[name].equal(wanted[name]) for name in wanted)


def test_new_weights_arrive_and_completions_carry_their_version(
    servers: Any, engine_of: Any, model_folder: Path
) -> None:
    server = servers()
    engine = engine_of([server.url], bucket_mebibytes=1)
    weights = {name: tensor + 1 for name, tensor in read_folder(model_folder)}
    engine.load(weights.items(), 7)
    assert all(server.weights[name].equal(tensor) for name, tensor in weights.items())
    assert server.calls[-3:] == [
        "/reset_prefix_cache",
        "/collective_rpcmotet_mark",
        "/collective_rpcmotet_fingerprints",
    ]
    assert engine.version == 7 and {c.version for _, c in engine.generate(requests(3), SAMPLING)} == {7}


def test_a_server_with_other_numbers_than_were_sent_stops_the_run(
    servers: Any, engine_of: Any, model_folder: Path
) -> None:
    server = servers()
    engine = engine_of([server.url])
    server.broken.add("model.norm.weight")
    with pytest.raises(UserError, match=r"new weights did not arrive: the engine's model\.norm\.weight \[32\] of"):
        engine.load(read_folder(model_folder), 1)
    assert engine.version == 0


def test_a_server_killed_in_the_middle_is_started_anew_with_its_weights_and_loses_nothing(
    engine_of: Any, model_folder: Path
) -> None:
    engine = engine_of()
    engine.load(((name, tensor + 1) for name, tensor in read_folder(model_folder)), 3)
    (server,) = engine.servers
    before, asked, pairs = server.describe(), requests(40), []
    for index, completion in engine.generate(asked, SAMPLING):
        pairs.append((index, completion))
        if len(pairs) in (5, 20):
            os.killpg(server.process.pid, signal.SIGKILL)
    assert sorted(index for index, _ in pairs) == list(range(40))  # none lost, none twice
    assert tokens(dict(pairs)) == answers(asked) and {c.version for _, c in pairs} == {3}
    assert engine.mended == server.lives == 2 and server.describe() == before  # the same weights, too


def test_a_server_that_died_between_two_steps_is_back_for_the_next_load(engine_of: Any, model_folder: Path) -> None:
    engine = engine_of()
    os.killpg(engine.servers[0].process.pid, signal.SIGKILL)
    engine.load(read_folder(model_folder), 1)
    assert len(dict(engine.generate(requests(3), SAMPLING))) == 3


def test_the_others_take_over_the_requests_of_a_server_that_stays_dead(servers: Any, engine_of: Any) -> None:
    first, second = servers(), servers()
    engine = engine_of([first.url, second.url], timeout_seconds=1.0)
    first.broken.add("dead")
    asked = requests(20)
    assert tokens(dict(engine.generate(asked, SAMPLING))) == answers(asked)
    assert len(second.bodies) == 20


def test_when_no_server_is_left_the_run_stops_and_says_why(servers: Any, engine_of: Any) -> None:
    server = servers()
    engine = engine_of([server.url], timeout_seconds=0.5)
    server.broken.add("dead")
    with pytest.raises(UserError, match=f"{server.url} did not answer within 0 s; see that it runs"):
        dict(engine.generate(requests(3), SAMPLING))


def test_an_answer_that_a_shutdown_cut_is_asked_again(servers: Any, engine_of: Any) -> None:
    server = servers()
    engine = engine_of([server.url])
    server.finishes = ["abort", "abort"]
    asked = requests(6)
    assert tokens(dict(engine.generate(asked, SAMPLING))) == answers(asked)
    assert len(server.bodies) == 8


def test_an_answer_that_lacks_a_log_probability_is_no_answer(
    servers: Any, engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = engine_of([servers().url]).servers[0]
    reply = {"token_ids": [5, 1], "logprobs": {"token_logprobs": [None, -0.5]}, "finish_reason": "stop"}
    monkeypatch.setattr(server, "post", lambda *_: {"choices": [reply]})
    with pytest.raises(Trouble, match=r"not a completion with token ids: .*None, -0.5"):
        server.complete({})


def test_a_server_that_always_fails_is_given_up_after_the_retries(servers: Any, engine_of: Any) -> None:
    server = servers()
    engine = engine_of([server.url], retries=2)
    server.finishes = ["abort"] * 100
    with pytest.raises(
        UserError, match=r"failed 3 times in a row; the last: a completion of \d+ tokens ended with 'abort'"
    ):
        dict(engine.generate(requests(2), SAMPLING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs_mode": "LogprobsMode.raw_logprobs"}, "its logprobs_mode is 'raw_logprobs', and RL needs 'proc"),
        ({"dtype": "float16"}, "its dtype is 'float16', and RL needs 'float32': start it with --dtype float32"),
        ({"quantization": "fp8"}, "its quantization is 'fp8'"),
    ],
)
def test_a_server_whose_numbers_would_not_compare_is_refused(
    servers: Any, engine_of: Any, change: dict[str, str], message: str
) -> None:
    server = servers()
    server.about.update(change)
    with pytest.raises(UserError, match=message):
        engine_of([server.url])


def test_a_server_without_motets_part_is_refused_with_the_way_to_start_one(servers: Any, engine_of: Any) -> None:
    server = servers()
    server.broken.add("no rpc")
    with pytest.raises(UserError, match=r"status 404.*python -m motet\.engine\.vllm_worker serve MODEL"):
        engine_of([server.url])


def test_a_server_that_cannot_start_shows_its_last_lines(engine_of: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)ended while it started. Its last lines, in .*server\.log:.*no such GPU"):
        engine_of(arguments=("--crash",))


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(servers: Any, engine_of: Any) -> None:
    engine = engine_of([servers().url])  # 64 positions
    with pytest.raises(
        UserError, match=r"prompt of 3 tokens and sampling\.max_tokens = 62 are 65 positions.*engine's 64"
    ):
        dict(engine.generate(requests(1), SamplingParams(1.0, 1.0, 62)))


def test_sleep_gives_memory_back_after_sampling_and_loading_wakes_the_weights_alone(
    engine_of: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(sleep=2)
    asked: list[str] = []
    monkeypatch.setattr(engine, "_to_sleep", lambda level: asked.append(f"sleep {level}"))
    monkeypatch.setattr(engine, "_rouse", lambda *tags: asked.append(f"wake {tags}"))
    weights = dict(read_folder(model_folder))
    dict(engine.generate(requests(2), SAMPLING))
    engine.load(weights.items(), 1)
    dict(engine.generate(requests(2), SAMPLING))
    dict(engine.generate(requests(2), SAMPLING))
    # nothing was loaded before the first sleep, so the weights are kept; then they can be had again
    expected = ["sleep 1", "wake ('weights',)", "wake ('kv_cache',)", "sleep 2", "wake ('weights',)",
                "wake ('kv_cache',)", "sleep 2"]  # fmt: skip
    assert asked == expected


def test_weights_that_changed_while_the_engine_slept_without_a_copy_are_refused(
    engine_of: Any, model_folder: Path
) -> None:
    engine = engine_of(sleep=2, transfer="ipc")  # keeps the learner's tensors
    engine._transport, engine._way = engine._files, "ipc"
    weights = dict(read_folder(model_folder))
    engine.load(weights.items(), 1)
    dict(engine.generate(requests(2), SAMPLING))
    weights["model.norm.weight"].add_(1.0)
    with pytest.raises(
        UserError, match=r"changed model\.norm\.weight since it loaded version 1 .* load before sampling"
    ):
        dict(engine.generate(requests(2), SAMPLING))


def test_a_server_ends_when_motet_is_killed(tmp_path: Path) -> None:
    """The launcher holds a pipe of motet's; here it watches over a process that only sleeps."""
    program = f"""
import sys, time
from pathlib import Path
from motet.engine.vllm_process import Process
code = "import os, sys; from motet.engine import vllm_worker as w; print(os.getpid(), flush=True); " \\
       "sys.exit(w._watched([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(300)'], os.environ))"
server = Process([sys.executable, "-c", code], Path({str(tmp_path)!r}) / "log")
print(server.pid, flush=True)
time.sleep(300)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as motet:
        assert motet.stdout is not None
        group = int(motet.stdout.readline())
        wait_for(lambda: (tmp_path / "log").read_text().count("\n") == 2)
        motet.kill()
    wait_for(lambda: not group_lives(group))


def group_lives(group: int) -> bool:
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.02)


def test_stopping_a_server_ends_its_whole_session(tmp_path: Path) -> None:
    server = Process(["/bin/sh", "-c", "trap '' TERM; sleep 300 & echo up; wait; sleep 300"], tmp_path / "log")
    wait_for(lambda: "up" in (tmp_path / "log").read_text())
    server.stop(seconds=0.2)
    wait_for(lambda: not group_lives(server.pid))


def test_an_engine_is_kept_for_the_next_stage_and_given_its_weights(
    servers: Any, engine_of: Any, model_folder: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    server = servers()
    model, settings = Model(path=str(model_folder), device="cpu"), Engine(kind="vllm", urls=(server.url,))
    lender = vllm.Lender()
    lent = lender.lend(model_folder, model, chat, settings)
    lent.load(((name, tensor + 1) for name, tensor in read_folder(model_folder)), 5)
    lent.close()
    again = lender.lend(model_folder, model, chat, settings)
    assert again.engine is lent.engine and again.version == 0
    assert server.weights["model.norm.weight"].equal(dict(read_folder(model_folder))["model.norm.weight"])
    lender.close()


class Standing:
    """An engine of this process's GPU, as far as a Lender is concerned."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.version, self.open = path, 0, True

    def restart_on(self, path: str | Path) -> None:
        self.path, self.version = path, 0

    def rest(self) -> None: ...

    def close(self) -> None:
        self.open = False


@pytest.fixture
def lend(chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> tuple[vllm.Lender, Callable[..., Any]]:
    """A Lender of engines that do not sleep on a GPU, and its `lend`."""
    monkeypatch.setattr(vllm, "make", lambda path, *_: Standing(path))
    monkeypatch.setattr(vllm, "device_of", lambda _: torch.device("cuda"))
    lender = vllm.Lender()

    def lend(path: Path, **settings: Any) -> Any:
        return lender.lend(path, Model(path=str(path), device="cpu"), chat, Engine(kind="vllm", **settings))

    return lender, lend


def test_an_engine_that_does_not_sleep_stands_for_the_next_stage_until_memory_is_asked_for(
    lend: tuple[vllm.Lender, Callable[..., Any]], model_folder: Path, tmp_path: Path
) -> None:
    lender, given = lend
    other = shutil.copytree(model_folder, tmp_path / "other")
    first = given(model_folder)
    lender.give_back()  # it is in use
    assert first.engine.open
    first.close()
    lender.give_back(Engine(kind="vllm"))
    again = given(other)
    assert again.engine is first.engine and again.engine.path == other and first.engine.open
    again.close()
    lender.give_back()
    assert not first.engine.open and given(other).engine is not first.engine


def test_an_engine_that_nobody_uses_ends_before_another_is_started(
    lend: tuple[vllm.Lender, Callable[..., Any]], model_folder: Path
) -> None:
    _, given = lend
    one, two = given(model_folder), given(model_folder, batch_size=2)
    assert one.engine.open and two.engine.open
    one.close()
    given(model_folder, batch_size=3)
    assert not one.engine.open and two.engine.open


def test_an_engine_that_nobody_uses_ends_before_another_wakes(
    lend: tuple[vllm.Lender, Callable[..., Any]], model_folder: Path
) -> None:
    _, given = lend
    asleep = given(model_folder, sleep=1)
    asleep.close()
    awake = given(model_folder)
    awake.close()
    again = given(model_folder, sleep=1)
    assert again.engine is asleep.engine and again.engine.open and not awake.engine.open


def test_of_an_engine_with_a_model_of_its_own_no_configuration_is_read(
    lend: tuple[vllm.Lender, Callable[..., Any]], tmp_path: Path
) -> None:
    _, given = lend
    assert given(tmp_path / "nowhere", model="org/teacher").engine.path == tmp_path / "nowhere"


def test_a_kept_engine_makes_room_for_a_learner_but_for_one_that_it_samples_beside(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(SOURCE.parent / "recipes" / "smollm2-vllm.toml", ["model.device=cpu"])
    asked: list[Engine | None] = []
    with Run(tmp_path / "run", console=False) as run:
        context = Context(recipe, run, model_folder)
        monkeypatch.setattr(vllm.Lender, "give_back", lambda _, but=None: asked.append(but))
        context.learner("sft-1", recipe.stage["sft-1"], model_folder, 1)  # type: ignore[arg-type]
        assert asked == []  # no engine was ever lent
        assert context._lender is not None
        for name in ("sft-1", "rl"):
            context.learner(name, recipe.stage[name], model_folder, 1)  # type: ignore[arg-type]
        context.student(model_folder)
        context.close()
    assert asked == [None, recipe.engine, None]


@pytest.mark.parametrize("sleep", [0, 2])
def test_a_model_with_other_positions_has_an_engine_of_its_own(
    sleep: int, lend: tuple[vllm.Lender, Callable[..., Any]], model_folder: Path, tmp_path: Path
) -> None:
    _, given = lend
    longer = with_rope(model_folder, Rope(kind="yarn", positions=4096), tmp_path / "longer")
    first = given(model_folder, sleep=sleep)
    second = given(longer, sleep=sleep)
    assert second.engine is not first.engine and not first.engine.open


# --- small parts ---


def test_tensors_that_somebody_holds_can_be_had_again_and_others_cannot() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    kept = Remembered()
    list(kept.through([("whole", table.detach()), ("part", table.T[1:])]))
    table[0, 1] = 9.0
    assert kept.lives
    (_, whole), (_, part) = kept.again()
    assert whole.equal(table) and part.tolist() == [[9.0, 4.0], [2.0, 5.0]]
    del table, whole, part
    assert not kept.lives
    with pytest.raises(UserError, match=r"dropped its weights .* whole is gone"):
        list(kept.again())


def test_a_bucket_holds_at_most_its_size_or_one_tensor() -> None:
    weights = [(str(i), torch.zeros(n)) for i, n in enumerate((2, 2, 9, 1, 1, 1))]  # 4 bytes an element
    assert [[name for name, _ in bucket] for bucket in buckets(weights, 16)] == [["0", "1"], ["2"], ["3", "4", "5"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "transformers", "sleep": 1}, 'sleep is a setting of kind = "vllm"'),
        ({"kind": "vllm", "python": "p", "urls": ["http://a"]}, "give one of them"),
        ({"kind": "vllm", "transfer": "files"}, "transfer has no effect without python or urls"),
        ({"kind": "vllm", "urls": ["http://a"], "arguments": ["--x"]}, "arguments has no effect without python"),
        ({"kind": "vllm", "urls": ["http://a"], "context": 9}, "context is decided where the servers of urls"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Engine(**settings)


def test_settings_that_spell_out_every_default_are_read_back() -> None:
    """resolved.json holds all of them, whatever the kind."""
    assert Engine(**Engine().model_dump()) == Engine()


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is installed here")
def test_without_vllm_in_this_environment_the_way_to_get_it_is_told(model_folder: Path, chat: ChatFormat) -> None:
    from importlib.util import find_spec

    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(UserError, match=r"vLLM is not installed beside motet.*make vllm.*engine\.python"):
        vllm.make(model_folder, Model(path=str(model_folder)), chat, Engine(kind="vllm"))
    with pytest.raises(UserError, match=r"engine\.sleep = 2 gives GPU memory back, and this run is on a CPU"):
        vllm.make(model_folder, Model(path=str(model_folder), device="cpu"), chat, Engine(kind="vllm", sleep=2))
    with pytest.raises(UserError, match=r"engine\.python: 'nowhere/python' is no program"):
        vllm.make(model_folder, Model(path=str(model_folder)), chat, Engine(kind="vllm", python="nowhere/python"))


def test_the_probe_reads_what_the_learner_would_train_on(chat: ChatFormat) -> None:
    (sample,) = as_samples([Request((3, 4), (), 0)], [Completion("x", (5, 6), (-0.1, -0.2), "length", 0)])
    assert arrival.as_sample(Request((3, 4), (), 0), Completion("x", (5, 6), (-0.1, -0.2), "length", 0)) == sample
    (batch,) = pack([sample], 8)
    assert batch.behaviour_N.tolist() == pytest.approx([-0.1, -0.2])


LOG = """WARNING [utils.py:255] this can cause errors like `OSError: [Errno 24] Too many open files`
(Worker pid=2) ERROR 12-01 02:31:49 [executor.py:1063] RuntimeError: Unsupported attention: head_dim=16
(APIServer pid=1) ERROR 12-01 02:31:49 [llm.py:906] vllm.EngineDeadError: EngineCore encountered an issue. See above.
INFO: shutting down
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [(LOG, "RuntimeError: Unsupported attention: head_dim=16"),
     ("ValueError: no such model\n", "ValueError: no such model"),
     ("WARNING [utils.py:255] errors like `OSError: [Errno 24]`\n", "")],
    ids=["logged", "traceback", "none"],
)  # fmt: skip
def test_of_a_servers_log_the_last_error_that_is_a_cause_is_told_of_this_start_alone(
    tmp_path: Path, text: str, cause: str
) -> None:
    (tmp_path / "log").write_text("MemoryError: of the start before\n")
    (tmp_path / "text").write_text(text)
    server = Process(["/bin/cat", str(tmp_path / "text")], tmp_path / "log")
    server._process.wait()
    server.stop()
    assert server.last_error() == cause


def test_an_environment_without_vllm_is_told_as_that(tmp_path: Path) -> None:
    server = Process(["/bin/echo", "ModuleNotFoundError: No module named 'vllm'"], tmp_path / "log")
    server._process.wait()
    server.stop()
    assert str(server.refuse("ended")).startswith("engine.python: /bin/echo has no vLLM. Make an environment with it")
