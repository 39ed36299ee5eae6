"""vLLM servers on GPUs of their own: where they run, what they are told, and how weights reach them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from motet.base.errors import UserError
from motet.base.recipe import Engine, Machine, Mesh
from motet.engine import vllm_process, vllm_server
from motet.engine.vllm_http import Trouble
from motet.engine.vllm_transfer import Nccl
from test_vllm import SAMPLING, answers, chat, engine_of, requests, servers, tokens  # noqa: F401

PYTHON = {"kind": "vllm", "python": ".venv-vllm/bin/python"}


def engine(**settings: Any) -> Engine:
    return Engine(**{**PYTHON, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": (4, 4)}, r"gpus = \[4, 4\] names one twice"),
        (
            {"gpus": (4, 5, 6), "arguments": ("--tensor-parallel-size", "2")},
            "3 gpus are no whole number of servers on 2",
        ),
        ({"gpus": (-1,)}, "greater than or equal to 0"),
        ({"gpus": (4,), "python": None}, "gpus has no effect without python"),
    ],
)
def test_gpus_that_make_no_servers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        engine(**settings)


def test_each_server_has_as_many_gpus_as_its_tensor_parallelism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert vllm_process.places(engine()) == [()]
    assert vllm_process.places(engine(gpus=(2, 3))) == [(2,), (3,)]
    for words in (("--tensor-parallel-size", "2"), ("--tensor_parallel_size=2",), ("-tp", "2", "--seed", "1")):
        assert vllm_process.places(engine(gpus=(2, 3, 4, 5), arguments=words)) == [(2, 3), (4, 5)]


def test_a_gpu_of_the_learners_is_refused_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"GPU 3 is a learner's: its 4 processes have the GPUs from 0 to 3"):
        vllm_process.places(engine(gpus=(5, 3)))


def test_a_server_sees_its_gpus_by_the_names_that_this_process_sees_them_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-a,2,0")
    assert vllm_process.visible((1, 3)) == "GPU-a,0"
    assert vllm_process.environment(engine(), "cuda", "nccl", (2,))["CUDA_VISIBLE_DEVICES"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in vllm_process.environment(engine(), "cuda", "ipc")
    with pytest.raises(UserError, match="there is no GPU 4 here; this process sees 4, from 0 on"):
        vllm_process.visible((4,))


def test_a_server_that_torchrun_knows_nothing_of_hears_nothing_of_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "HF_HOME": "x",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    process = vllm_process.Process(["/usr/bin/env"], tmp_path / "log")
    process._process.wait(10)
    heard = dict(line.split("=", 1) for line in (tmp_path / "log").read_text().splitlines() if "=" in line)
    process.stop()
    assert told.keys() & heard.keys() == {"HF_HOME"} and heard["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("settings", "device", "vllm_here", "way"),
    [
        ({}, "cuda", True, "ipc"),
        ({"gpus": (0,)}, "cuda", True, "ipc"),
        ({"gpus": (0, 1)}, "cuda", True, "files"),  # one of them is the learner's: neither reaches both
        ({"gpus": (4, 5)}, "cuda", True, "nccl"),
        ({"gpus": (4, 5)}, "cuda", False, "files"),
        ({}, "cpu", True, "files"),
    ],
)
def test_weights_go_the_way_that_the_gpus_allow(
    settings: dict[str, Any], device: str, vllm_here: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "find_spec", lambda _: object() if vllm_here else None)
    assert vllm_server._way(engine(**settings), device) == way


def test_a_server_is_started_on_each_gpu_and_requests_are_spread_over_them(
    engine_of: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    made = engine_of(gpus=(2, 3), transfer="files")
    first, second = made.servers
    environments = [Path(f"/proc/{s.process.pid}/environ").read_bytes().split(b"\0") for s in (first, second)]
    assert [b"CUDA_VISIBLE_DEVICES=2" in environments[0], b"CUDA_VISIBLE_DEVICES=3" in environments[1]] == [True, True]
    assert {first.process.log.name, second.process.log.name} == {"server-2.log", "server-3.log"}
    asked = requests(12)
    assert tokens(dict(made.generate(asked, SAMPLING))) == answers(asked)


# --- NCCL: the order of what both ends do


class Group:
    """The learner's end."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.ended = False

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any) -> None:
        assert src == 0 and tensor.is_contiguous()
        self.sent.append(tensor)

    def destroy(self) -> None:
        self.ended = True


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    made = Group()
    monkeypatch.setattr(Nccl, "_join", lambda self, _: made)
    yield made


def receiver(calls: list[tuple[str, Any]], refuse: Callable[[str], bool] = lambda path: False) -> Any:
    def post(path: str, body: Any) -> None:
        if refuse(path):
            raise Trouble(f"{path}: status 500")
        calls.append((path, body.get("update_info", {}).get("names")))

    return SimpleNamespace(url="http://a", lives=0, post=post)


def weights(count: int) -> list[tuple[str, torch.Tensor]]:
    return [(f"w{n}", torch.full((4,), float(n)).as_subclass(OnGpu)) for n in range(count)]


def test_servers_are_told_of_each_bucket_whose_tensors_are_then_broadcast(group: Group) -> None:
    calls: list[tuple[str, Any]] = []
    Nccl(32, "127.0.0.1").send([receiver(calls)], weights(3))
    assert calls == [
        ("/start_weight_update", None),
        ("/update_weights", ["w0", "w1"]),  # 16 bytes each
        ("/update_weights", ["w2"]),
        ("/finish_weight_update", None),
    ]
    assert [float(tensor[0]) for tensor in group.sent] == [0.0, 1.0, 2.0] and not group.ended


def test_a_transfer_that_fails_gives_its_group_up_and_the_next_one_joins_again(group: Group) -> None:
    calls: list[tuple[str, Any]] = []
    own, broken = Nccl(32, "127.0.0.1"), receiver(calls, lambda path: path == "/update_weights")
    with pytest.raises(Trouble, match="status 500"):
        own.send([broken], weights(3))
    assert group.ended and own._group is None
    own.send([receiver(calls)], weights(1))
    assert own._group is group


def test_a_server_that_was_started_anew_is_joined_again(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Sequence[Any]] = []
    monkeypatch.setattr(Nccl, "_join", lambda self, members: joined.append(members) or group)
    own, server = Nccl(32, "127.0.0.1"), receiver([])
    own.send([server], weights(1))
    own.send([server], weights(1))
    assert len(joined) == 1 and not group.ended
    server.lives += 1
    own.send([server], weights(1))
    assert len(joined) == 2 and group.ended


def test_weights_of_a_folder_are_put_on_the_gpu_first(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.as_subclass(OnGpu))
    Nccl(32, "127.0.0.1").send([receiver([])], [("w0", torch.zeros(2, 3).t())])
    assert [type(tensor) for tensor in group.sent] == [OnGpu]


def test_weights_that_are_on_no_gpu_are_refused_by_name(group: Group) -> None:
    with pytest.raises(UserError, match=r'engine\.transfer = "nccl", but w0 lies on cpu; use "files"'):
        Nccl(32, "127.0.0.1").send([receiver([])], [("w0", torch.zeros(1))])
    assert group.sent == [] and group.ended


# --- the plan


def test_the_plan_gives_the_learner_the_gpus_before_the_engines() -> None:
    from motet.base.load_recipe import load
    from motet.plan.report import plan_of, planner_of
    from motet.plan.work import Share

    recipe = load(Path(__file__).parent.parent / "recipes" / "motif-2-12.7b.toml", ["mesh.sp=4"])
    own = recipe.model_copy(update={"engine": engine(gpus=(4, 5, 6, 7)), "machine": Machine(gpus=8, memory_gib=79.2)})
    plan = plan_of(own, planner_of(own), tables=False)
    rl = next(stage for stage in plan.stages if stage.work.name == "rl")
    assert rl.need is not None and tuple(rl.need.setup.shape) == (1, 1, 4)
    assert rl.engine == Share(0, "vLLM, on GPUs of its own (4, 5, 6, 7)") and rl.need.sampling is None
    assert Mesh(sp=4) == recipe.mesh.model_copy(update={"reduce_once": True})
