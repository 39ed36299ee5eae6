"""However many processes share a step, and along whichever axes: the same losses, gradients and weights."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.fsdp._fully_shard._fsdp_param_group as fsdp
from transformers import AutoModelForCausalLM

import mesh_worker
from mesh_worker import STEPS, UNEVEN, learner, train, weights
from motet.base import jsonl
from motet.base.errors import Elsewhere, UserError
from motet.base.recipe import Lora, Mesh, Optimizer
from motet.data.pack import pack
from motet.doctor.finding import apart
from motet.model import hosted, kernels, offload, packed, pinned, ulysses
from motet.train.checkpoint import Checkpoints
from motet.train.losses import cross_entropy
from motet.train.mesh import Shape, deal, resolve
from motet.train.world import World

Axes = tuple[int, int, int]
MESHES: list[Axes] = [
    (r, s, p) for r in range(1, 5) for s in range(1, 5) for p in range(1, 5) if 1 < r * s * p <= 4
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "weights kept gathered": {"mesh": {"reshard_after_forward": False}},
    "gradients reduced with every row": {"mesh": {"reduce_once": False}},
    "blocks recomputed": {"model": {"recompute": "full"}},
    "inputs offloaded, blocks in tiles": {"model": {"recompute": "offload"}},
    "adapters": {"lora": Lora(rank=3)},
}
BFLOAT16 = {"dtype": "bfloat16"}


def mesh_of(axes: Axes, **more: Any) -> Mesh:
    return Mesh(dp_replicate=axes[0], dp_shard=axes[1], sp=axes[2], **more)


def steps(axes: Axes, world: World, folder: Path) -> dict[str, Any]:
    return mesh_worker.some_steps(learner(folder / "model", world, mesh_of(axes)), STEPS)


def option(axes: Axes, name: str, model: str, world: World, folder: Path) -> Any:
    settings = dict(OPTIONS[name])
    with mock.patch.object(offload, "TILE", 7):  # tokens of a process's slice are up to 15
        own = learner(folder / model, world, mesh_of(axes, **settings.pop("mesh", {})), **settings)
    train(own, range(2))
    return weights(own)


def in_bfloat16(axes: Axes, weights: str, world: World, folder: Path) -> Any:
    own = learner(folder / "model", world, mesh_of(axes), model={**BFLOAT16, "weights": weights})
    return mesh_worker.gradients_of(own, pack(mesh_worker.samples(UNEVEN), 30), False)


def compiled(axes: Axes, name: str, policy: str, world: World, folder: Path) -> Any:
    """Blocks compiled as on a GPU, with its attention operation, by a backend that needs no compiler of C++."""
    compile, plain = torch.compile, partial(packed.attend, kernel="plain")
    with (
        mock.patch.object(torch, "compile", lambda run, **options: compile(run, backend="aot_eager", **options)),
        mock.patch.object(kernels, "_bucketed", lambda q, k, v, d, _: plain(q, k, v, d.starts, d.starts_host, 0.5)),
        mock.patch.object(hosted, "LEAST", 4),  # what is hosted leaves in small pieces
        mock.patch.object(pinned, "PIECE", 100),
    ):
        settings = {k: v for k, v in OPTIONS[name].items() if k == "lora"}
        model = {"compile": "on", "recompute": policy}
        own = learner(folder / "model", world, mesh_of(axes), model=model, any_length=True, **settings)
        return mesh_worker.gradients_of(own, pack(mesh_worker.samples(UNEVEN), 30), False)


def by_muon(axes: Axes, world: World, folder: Path) -> Any:
    config = Optimizer(kind="muon", learning_rate=1e-2, warmup_steps=0, schedule="constant")
    own = learner(folder / "model", world, mesh_of(axes), config)
    train(own, range(2))
    return weights(own)


def saved(axes: Axes, world: World, folder: Path) -> Any:
    own = learner(folder / "model", world, mesh_of(axes))
    train(own, range(2))
    checkpoints = Checkpoints(folder / "checkpoints", own)
    checkpoints.save(2)
    train(own, range(2, 3))  # while the checkpoint is being written
    checkpoints.wait()
    return weights(own)


def resumed(axes: Axes, world: World, folder: Path) -> Any:
    own = learner(folder / "model", world, mesh_of(axes))
    assert Checkpoints(folder / "checkpoints", own).restore() == 2 and own.version == 2
    train(own, range(2, 3))
    return weights(own)


def exported(axes: Axes, world: World, folder: Path) -> Any:
    own = learner(folder / "untied", world, mesh_of(axes))
    train(own, range(1))
    own.export(folder / "exported", _NoTokenizer())
    return weights(own)


class _NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


def strided(world: World, folder: Path) -> Any:
    """What is exchanged is no contiguous tensor: of [2, 3] the transpose."""
    group = ulysses.SequenceGroup.of(torch.distributed.group.WORLD)
    sent = (10.0 * world.rank + torch.arange(6.0).view(2, 3)).t().contiguous().t()
    return sent.tolist(), ulysses.exchange(sent, group.group).tolist()


def skipped(axes: Axes, world: World, folder: Path) -> Any:
    config = Optimizer(on_nonfinite="skip")
    own = learner(folder / "model", world, mesh_of(axes), config, notes=folder)
    before = weights(own)
    own.accumulate(pack(mesh_worker.samples(UNEVEN), 30), lambda s, b, _: (s.logprobs_N.sum() * float("inf"), {}))
    metrics = own.update()
    after = weights(own)
    return metrics["optim/skipped"], own.version, all(torch.equal(before[name], after[name]) for name in before)


def traffic(reduce_once: bool, world: World, folder: Path) -> Any:
    """How often weights of each group are gathered, and its gradients reduced, in a step of several rows."""
    own = learner(folder / "model", world, mesh_of((1, 1, 2), reduce_once=reduce_once))
    batches = pack(mesh_worker.samples(UNEVEN), 30)
    gathered, reduced = Counter[str](), Counter[str]()

    def counting(counts: Counter[str], run: Any) -> Any:
        def counted(parameters: Any, *others: Any, **more: Any) -> Any:
            names = [parameter._param_fqn for parameter in parameters]
            counts[next((n for n in ("layers.0", "layers.1") if n in names[0]), "root")] += 1
            return run(parameters, *others, **more)

        return counted

    with (
        mock.patch.object(fsdp, "foreach_all_gather", counting(gathered, fsdp.foreach_all_gather)),
        mock.patch.object(fsdp, "foreach_reduce", counting(reduced, fsdp.foreach_reduce)),
    ):
        own.accumulate(batches, cross_entropy)
    return len(batches), dict(gathered), dict(reduced)


def laid_out(world: World, folder: Path) -> Any:
    """Of each parameter, its gradient and AdamW's two moments: elements here, rows of the whole and elements a row."""
    own = learner(folder / "model", world, mesh_of((2, 1, 2)))
    own.accumulate(pack(mesh_worker.samples(UNEVEN), 30), cross_entropy)
    grads = {name: p.grad for name, p in own._trained.items()}
    own._optimizers.step(1e-3)
    state = {key: value for key, value in own._optimizers.state().items() if key.endswith(("exp_avg", "exp_avg_sq"))}
    tensors = {**own._trained, **{f"{name}/grad": grad for name, grad in grads.items()}, **state}
    return {name: (t.to_local().numel(), t.shape[0], t[0].numel()) for name, t in tensors.items()}


def pending(world: World, folder: Path) -> Any:
    """Bytes of gradients and moments to come, and parameters here: of 3 processes each has another part."""
    own = learner(folder / "model", world, mesh_of((1, 3, 1)))
    return own._pending(), sum(p.to_local().numel() for p in own._trained.values())


def damaged(world: World, folder: Path) -> Any:
    """What one process wrote is cut short: all of them say so."""
    own = learner(folder / "model", world, mesh_of((1, 2, 1)))
    checkpoints = Checkpoints(folder / "damaged", own)
    checkpoints.save(1)
    checkpoints.wait()
    file = folder / "damaged" / "step-000001" / "__1_0.distcp"
    world.first(lambda: file.write_bytes(file.read_bytes()[:-100]))
    try:
        checkpoints.restore()
    except UserError as error:
        return str(error)


def first_fails(world: World, folder: Path) -> Any:
    told = world.first(lambda: f"by {world.rank}"), world.gather(world.rank)
    try:
        world.first(lambda: 1 // 0)
    except Exception as error:
        return told, type(error), str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    mesh_worker.make_model(folder / "model")
    mesh_worker.make_model(folder / "untied", tied=False)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[Any, list[Any]]:
    """What each process found, by case: all processes are started once."""
    cases: dict[Any, Any] = {axes: partial(steps, axes) for axes in MESHES}
    cases |= {("option", name): partial(option, (1, 2, 2), name, "model") for name in OPTIONS}
    cases |= {("untied", "adapters"): partial(option, (2, 2, 1), "adapters", "untied")}
    cases |= {("bfloat16", kind): partial(in_bfloat16, (1, 2, 2), kind) for kind in ("float32", "bfloat16")}
    cases |= {"muon": partial(by_muon, (1, 2, 1))}
    cases |= {"saved": partial(saved, (1, 2, 1)), "resumed": partial(resumed, (2, 1, 2))}
    cases |= {
        "strided": strided,
        "exported": partial(exported, (1, 3, 1)),
        "skipped": partial(skipped, (2, 1, 1)),
        "first": first_fails,
        "laid out": laid_out,
        "damaged": damaged,
        "pending": pending,
    }
    cases |= {("traffic", once): partial(traffic, once) for once in (True, False)}
    sizes = {"strided": 2, "muon": 2, "saved": 2, "exported": 3, "skipped": 2, "first": 2, "damaged": 2, "pending": 3}
    sizes |= {("traffic", once): 2 for once in (True, False)}
    sized = [(sizes.get(k, k[0] * k[1] * k[2] if k in MESHES else 4), case) for k, case in cases.items()]
    return dict(zip(cases, mesh_worker.run(4, sized, folder), strict=True))


pytestmark = pytest.mark.timeout(900)
ALONE = (1, 1, 1)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    return steps(ALONE, World(), folder)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_mesh_has_the_losses_and_gradients_of_one_process(
    found: dict[Any, list[Any]], expected: dict[str, Any], axes: Axes, step: str
) -> None:
    for everyone in found[axes]:
        own, other = everyone[step], expected[step]
        assert own["metrics"] == pytest.approx(other["metrics"], abs=1e-5)
        same(own["gradients"], other["gradients"], 1e-5)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_step_on_a_mesh_leaves_the_weights_where_one_process_leaves_them(
    found: dict[Any, list[Any]], expected: dict[str, Any], axes: Axes
) -> None:
    for everyone in found[axes]:
        assert everyone["updated"] == pytest.approx(expected["updated"], abs=1e-5)
        for part, wanted in zip(everyone["logprobs"], expected["logprobs"], strict=True):
            torch.testing.assert_close(part, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_the_mesh_changes_no_number(found: dict[Any, list[Any]], folder: Path, name: str) -> None:
    settings = {k: v for k, v in OPTIONS[name].items() if k == "lora"}
    alone = learner(folder / "model", World(), Mesh(), **settings)
    train(alone, range(2))
    for own in found["option", name]:
        same(own, weights(alone), 1e-4)


def test_adapters_of_a_model_with_a_head_of_its_own(found: dict[Any, list[Any]], folder: Path) -> None:
    same(found["untied", "adapters"][3], option(ALONE, "adapters", "untied", World(), folder), 1e-4)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_in_bfloat16_a_mesh_is_as_near_to_one_process_as_rounding_allows(
    found: dict[Any, list[Any]], folder: Path, kind: str
) -> None:
    """`kind`: of the weights that the optimizer steps on, and of the gradients that it is given."""
    alone = in_bfloat16(ALONE, kind, World(), folder)
    for own in found["bfloat16", kind]:
        assert own["metrics"] == pytest.approx(alone["metrics"], rel=0.02)
        assert {gradient.dtype for gradient in own["gradients"].values()} == {getattr(torch, kind)}
        assert apart(alone["gradients"], own["gradients"]) < 0.05


@pytest.mark.slow
def test_compiled_blocks_with_an_exchange_inside_have_the_gradients_of_plain_ones(tmp_path: Path) -> None:
    mesh_worker.make_model(tmp_path / "model")
    cases: list[tuple[Axes, str, str]] = [
        ((1, 1, 2), "blocks recomputed", "attention"), ((1, 1, 2), "adapters", "attention"),
        ((1, 1, 2), "blocks recomputed", "hosted"), ((1, 2, 1), "adapters", "hosted"),
    ]  # fmt: skip
    runs = mesh_worker.run(2, [(2, partial(compiled, *case)) for case in cases], tmp_path)
    for (_, name, _), found in zip(cases, runs, strict=True):
        settings = {k: v for k, v in OPTIONS[name].items() if k == "lora"}
        alone = learner(tmp_path / "model", World(), Mesh(), **settings)
        expected = mesh_worker.gradients_of(alone, pack(mesh_worker.samples(UNEVEN), 30), False)
        for own in found:
            same(own["gradients"], expected["gradients"], 1e-5)


def test_an_exchange_of_a_tensor_that_is_not_contiguous_moves_its_values(found: dict[Any, list[Any]]) -> None:
    (first, got_first), (second, got_second) = found["strided"]
    assert got_first == [first[0], second[0]] and got_second == [first[1], second[1]]


def test_muon_on_two_processes_is_muon_on_one(found: dict[Any, list[Any]], folder: Path) -> None:
    same(found["muon"][1], by_muon(ALONE, World(), folder), 2e-3)  # its iteration is in bfloat16


def test_what_two_processes_saved_four_and_one_go_on_from(found: dict[Any, list[Any]], folder: Path) -> None:
    uninterrupted = found["saved"][0]
    for own in (*found["resumed"], resumed(ALONE, World(), folder)):
        same(own, uninterrupted, 1e-4)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000002"]


def test_three_processes_export_what_they_trained(found: dict[Any, list[Any]], folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "exported")
    assert plain.state_dict().keys() == found["exported"][0].keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, found["exported"][0][name])


def test_a_loss_that_is_not_finite_is_skipped_by_all_and_written_by_one(
    found: dict[Any, list[Any]], folder: Path
) -> None:
    assert found["skipped"] == [(1.0, 0, True)] * 2
    rows = [row for _, row in jsonl.read(folder / "nonfinite-1.jsonl")]
    assert sorted(length for row in rows for length in row["lengths"]) == sorted(UNEVEN)


def test_what_the_first_process_does_all_have_and_its_error_too(found: dict[Any, list[Any]]) -> None:
    (told, kind, _), (other, other_kind, text) = found["first"]
    assert told == other == ("by 0", [0, 1])
    assert kind is ZeroDivisionError and other_kind is Elsewhere and "zero" in text


def test_a_step_gathers_the_head_once_and_reduces_every_gradient_once(found: dict[Any, list[Any]]) -> None:
    for rows, gathered, reduced in found["traffic", True]:
        assert rows == 3
        assert gathered == {"root": 1, "layers.0": 2 * rows, "layers.1": rows}  # forward and backward; the last stays
        assert reduced == {"root": 1, "layers.0": 1, "layers.1": 1}
    for rows, gathered, reduced in found["traffic", False]:
        assert gathered["root"] == 1 and reduced == {"root": rows, "layers.0": rows, "layers.1": rows}


def test_weights_gradients_and_moments_are_cut_over_the_processes_that_share_a_row(found: dict[Any, list[Any]]) -> None:
    """Two copies, each in two halves of the rows; the MLP's 37 are 19 and 18."""
    everyone = found["laid out"]
    assert sum("grad" in name for name in everyone[0]) == 20 == sum("exp_avg_sq" in name for name in everyone[0])
    for name, (_, rows, wide) in everyone[0].items():
        larger = -(-rows // 2)
        held = [own[name][0] for own in everyone]
        assert held == [larger * wide, (rows - larger) * wide] * 2, name
    up = [own["model.layers.0.mlp.up_proj.weight"][0] for own in everyone]
    assert up == [19 * 48, 18 * 48] * 2


def test_all_processes_count_with_the_largest_part_of_what_is_cut(found: dict[Any, list[Any]]) -> None:
    """Of 31 rows 11, 11 and 9: who decided by its own would keep other blocks than those that it shares rows with."""
    counted, held = zip(*found["pending"], strict=True)
    assert counted == (counted[0],) * 3 and len(set(held)) > 1
    assert counted[0] == (4 * max(held), 8 * max(held))


def test_a_checkpoint_of_which_one_processs_part_is_cut_short_is_refused_by_all(found: dict[Any, list[Any]]) -> None:
    for told in found["damaged"]:
        assert "step-000001: the checkpoint is damaged" in told and "Remove this folder" in told


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# ---- what fits


@pytest.mark.parametrize(
    ("config", "size", "per_node", "shape"),
    [
        (Mesh(), 1, 1, (1, 1, 1)),
        (Mesh(), 16, 8, (2, 8, 1)),  # a copy a node
        (Mesh(sp=4), 16, 8, (2, 2, 4)),
        (Mesh(dp_replicate=4), 8, 8, (4, 2, 1)),
        (Mesh(dp_shard=2, sp=2), 8, 8, (2, 2, 2)),
    ],
)
def test_axes_that_are_unset_take_what_is_left(
    config: Mesh, size: int, per_node: int, shape: tuple[int, int, int]
) -> None:
    assert resolve(config, size, per_node, 16) == Shape(*shape)


@pytest.mark.parametrize(
    ("config", "size", "per_node", "heads", "message"),
    [
        (Mesh(sp=3), 6, 6, 16,
         "sp = 3 does not divide the model's 16 attention heads.*: dp_replicate = 1, dp_shard = 3, sp = 2"),
        (Mesh(dp_shard=4, sp=2), 4, 4, 16,
         r"its product is 8 and 4 processes were started \(torchrun --nproc-per-node 8"),
        (Mesh(dp_shard=16), 16, 8, 16,
         "dp_shard x sp = 16 does not stay inside a node of 8.*: dp_replicate = 2, dp_shard = 8"),
        (Mesh(sp=2), 1, 1, 16, r"its product is 2 and 1 process was started \(torchrun --nproc-per-node 2 starts"),
        (Mesh(dp_replicate=1, dp_shard=2), 4, 4, 16,
         r"its product is 2 and 4 .*\(torchrun --nproc-per-node 2 starts as many.*: dp_replicate = 2, dp_shard = 2"),
        (Mesh(dp_replicate=4, dp_shard=8), 16, 8, 16,
         r"its product is 32 and 16 .*\(torchrun --nnodes 4 --nproc-per-node 8 starts"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(
    config: Mesh, size: int, per_node: int, heads: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(config, size, per_node, heads)


def test_rows_are_dealt_longest_first_to_whom_has_least() -> None:
    assert deal([5, 4, 3, 3], 2) == [[0, 3], [1, 2]]
    assert deal([9, 1, 1, 1], 2) == [[0, 3], [1, 2]]  # nobody has a round more than needed
    assert deal([2], 3) == [[0], [], []]
