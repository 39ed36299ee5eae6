"""Losses, gradients and checkpoints of a mesh against one process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gpus_place import ALONE, Axes, Place, config_of
from transformers import AutoModelForCausalLM

from motet.base.recipe import Lora, Optimizer
from motet.data.pack import Sample, pack
from motet.doctor.checks import samples, step
from motet.doctor.finding import Finding, Step, apart, compare, encode, no_farther
from motet.train.checkpoint import Checkpoints
from motet.train.learner import Learner
from motet.train.losses import cross_entropy

LENGTHS = {"tiny": ((46, 18, 8, 34, 6, 60, 4), 60), "parity": ((3300, 300, 130, 1500, 90, 4096, 61), 4096)}
"""Of documents, and most tokens of a row: rows of one document, and of several of uneven lengths."""
FEW = {"tiny": (18, 10), "parity": (1800, 1000)}
"""Fewer rows than most meshes work on at the same time: processes have nothing to do."""
WEIGHTS = {"float32": 1e-3, "bfloat16": 0.2}
"""Of what one optimizer step changes, relative in the Euclidean norm. AdamW divides each element by its own size: of
elements whose gradients are rounding alone, so are the steps."""
OPTIMIZER = Optimizer(learning_rate=1e-3, warmup_steps=0, schedule="constant")


def learner(place: Place, shape: str, axes: Axes, dtype: str, compiled: bool = False, lora: bool = False) -> Learner:
    folder = place.folder(shape)
    place.world.first(lambda: make(place, shape))
    model = {"dtype": dtype, "compile": "on" if compiled else "off"}
    return place.learner(folder, axes, model, OPTIMIZER, lora=Lora(rank=4) if lora else None)


def make(place: Place, shape: str) -> None:
    """Weights wide enough apart that a wrong mask, scale or shift is seen in every gradient."""
    folder = place.scratch / shape
    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config
    model = build(config_of(shape))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    model.save_pretrained(folder)


def alone(place: Place, shape: str, dtype: str, lora: bool = False) -> dict[str, Any]:
    """The steps in one process, left for the meshes."""
    own = learner(place, shape, ALONE, dtype, lora=lora)
    found = {words: vars(taken) for words, taken in taken_by(own, shape)}
    torch.save(found, place.scratch / called(shape, dtype, lora))
    return {"losses": {words: taken["loss"] for words, taken in found.items()}}


def parity(
    place: Place, shape: str, axes: Sequence[int], dtype: str, compiled: bool = False, lora: bool = False
) -> dict[str, Any]:
    mesh: Axes = tuple(axes)  # type: ignore[assignment]
    own = learner(place, shape, mesh, dtype, compiled, lora)
    expected = left_alone(place, called(shape, dtype, lora), own.device)
    truth = left_alone(place, called(shape, "float32", lora), own.device) if compiled and dtype != "float32" else {}
    findings: list[Finding] = []
    for words, taken in taken_by(own, shape):
        if truth:
            findings += no_farther(words, truth[words], expected[words], taken, dtype)
        else:
            findings += compare(words, expected[words], taken, dtype)
        place.keep({"findings": encode(findings)})
    return judged(findings)


def left_alone(place: Place, name: str, device: torch.device) -> dict[str, Step]:
    found: dict[str, dict[str, Any]] = torch.load(place.scratch / name, weights_only=True, map_location=device)
    return {words: Step(**taken) for words, taken in found.items()}


def called(shape: str, dtype: str, lora: bool) -> str:
    return f"alone-{shape}-{dtype}{'-lora' if lora else ''}.pt"


def taken_by(own: Learner, shape: str) -> Iterator[tuple[str, Step]]:
    """Steps that are not taken: loss and gradients, whole."""
    lengths, most = LENGTHS[shape]
    for words, some in (("packed", lengths), ("a process idle", FEW[shape])):
        documents = samples(own, some)
        rows = [[documents[i] for i in batch.order] for batch in pack(documents, most)]
        yield f"SFT, {words}", step(own, rows)
        yield f"RL, {words}", step(own, rows, reinforced=True)


def save(place: Place, shape: str, axes: Sequence[int], dtype: str) -> dict[str, Any]:
    """Two steps, a checkpoint, and a third step while it is written."""
    own = learner(place, shape, tuple(axes), dtype)  # type: ignore[arg-type]
    train(own, shape, range(2))
    folder = place.scratch / f"checkpoints-{dtype}"
    place.world.first(lambda: shutil.rmtree(folder, ignore_errors=True))
    checkpoints = Checkpoints(folder, own)
    began = time.monotonic()
    checkpoints.save(2)
    asked = time.monotonic() - began
    saved = weights(own)
    train(own, shape, range(2, 3))
    checkpoints.wait()
    after = weights(own)
    found = {"seconds_until_training_goes_on": asked, "seconds_until_written": time.monotonic() - began}
    if place.world.rank == 0:
        torch.save({"saved": saved, "after": after}, place.scratch / f"saved-{dtype}.pt")
    return found | contexts(place)


def load(place: Place, shape: str, axes: Sequence[int], dtype: str) -> dict[str, Any]:
    """The checkpoint of another mesh, and the third step from there."""
    own = learner(place, shape, tuple(axes), dtype)  # type: ignore[arg-type]
    assert Checkpoints(place.scratch / f"checkpoints-{dtype}", own).restore() == 2
    wanted = torch.load(place.scratch / f"saved-{dtype}.pt", weights_only=True, map_location=own.device)
    restored = weights(own)
    train(own, shape, range(2, 3))
    after = weights(own)
    moved, asked = ({n: a[n] - b[n] for n in a} for a, b in ((after, restored), (wanted["after"], wanted["saved"])))
    return judged([
        Finding("the saved weights, restored", "bit for bit", 0.0, apart(wanted["saved"], restored)),
        Finding("the next step, against uninterrupted", "change of weights", WEIGHTS[dtype], apart(asked, moved)),
    ])  # fmt: skip


def hang(place: Place, seconds: float = 600.0) -> dict[str, Any]:
    """The last process does not come: what a report then says of all of them."""
    if place.world.rank == place.world.size - 1:
        time.sleep(seconds)
    place.world.gather(0)
    return {}


def train(own: Learner, shape: str, steps: range) -> None:
    lengths, most = LENGTHS[shape]
    for number in steps:
        documents: list[Sample] = samples(own, lengths, number)
        own.accumulate(pack(documents, most, own.device), cross_entropy)
        own.update()


def weights(own: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in own.weights()}


def contexts(place: Place) -> dict[str, Any]:
    """GiB of each GPU that are in no tensor: half a GiB more on the first one for each process that has a context there
    besides its own."""
    if place.cpu:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gib_outside_the_allocator": place.world.gather((total - free - torch.cuda.memory_reserved()) / 2**30)}


def judged(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"findings": encode(findings), "ok": not any(finding.failed for finding in findings)}
