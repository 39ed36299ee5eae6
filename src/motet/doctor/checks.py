"""The checks: each takes what it works on and returns what it found. They run in processes of their own (worker.py).

Documents are of random tokens and uneven lengths, of each the last two thirds trained on.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from motet.base.recipe import Mesh, Model, Optimizer
from motet.data.pack import Batch, Sample, pack
from motet.doctor.finding import TOLERANCE, Finding, Step, against, apart, compare
from motet.model.blocks import blocks_of
from motet.model.recompute import Policy, apply
from motet.rl.objectives import ClippedPolicyLoss
from motet.train.checkpoint import Checkpoints
from motet.train.learner import Learner
from motet.train.logprobs import score, score_plainly
from motet.train.losses import cross_entropy
from motet.train.mesh import Shape
from motet.train.world import World

LENGTHS = (46, 18, 8, 34, 6, 60, 4)
MOST = 60
"""Tokens of a row in the checks that cut a step into rows."""
FEW = (18, 10)
"""Fewer documents than processes: one has nothing to do."""
REWEIGHTED = (-0.6, -0.1, 0.1, 0.6)
"""By how much a token's anchor is moved: to both sides of either clip, and never to where rounding takes it across."""


@dataclass(frozen=True)
class Patient:
    """What is examined, and where."""

    path: str
    device: str
    dtype: str
    mesh: tuple[int, int, int]
    """(dp_replicate, dp_shard, sp) of the checks of several processes."""
    scratch: str
    """A folder in which a check leaves things for its next process."""

    def learner(self, world: World | None = None, mesh: Mesh | None = None, **model: Any) -> Learner:
        settings = {"path": self.path, "device": self.device, "dtype": self.dtype} | model
        optimizer = Optimizer(learning_rate=1e-3, warmup_steps=0, schedule="constant")
        return Learner(self.path, Model(**settings), optimizer, 8, mesh=mesh, world=world, any_length=True)

    def truths(self, steps: Callable[[Learner], list[Step]]) -> list[Step]:
        """What they are in float32, uncompiled and with everything kept; nothing where all is in float32 already."""
        if self.dtype == "float32":
            return []
        return steps(self.learner(dtype="float32", recompute="none", compile="off"))


def packing(patient: Patient) -> Iterator[Finding]:
    """Document B's loss and gradients, with another text in its neighbours' places and without them."""
    own = patient.learner()
    a, b, c = samples(own, (46, 34, 18))  # rows are packed longest first: b lies between the others
    quiet = [Sample(s.tokens, (False,) * len(s.tokens)) for s in (a, c)]
    other = [Sample(tuple(reversed(s.tokens)), s.loss_mask) for s in quiet]
    row = [quiet[0], b, quiet[1]]
    expected = step(own, [row])
    changed = step(own, [[other[0], b, other[1]]])
    yield from compare("packing: a document, its neighbours' text changed", expected, changed, patient.dtype)
    yield from compare("packing: a document, packed against alone", step(own, [[b]]), expected, patient.dtype)


def rows(patient: Patient) -> Iterator[Finding]:
    """One row of all documents, against rows of few and of one each."""
    truths = patient.truths(lambda exact: [step(exact, [samples(exact, LENGTHS)], on) for on in (False, True)])
    own = patient.learner()
    documents = samples(own, LENGTHS)
    several, each = _packed(documents), [[document] for document in documents]
    for words, reinforced in (("", False), (", RL", True)):
        whole = step(own, [documents], reinforced)
        for name, way in [("several", several)] + [("one a document", each)] * (not reinforced):
            what, found = f"rows: one row against {name}{words}", step(own, way, reinforced)
            yield from against(what, truths[reinforced : reinforced + 1], whole, found, patient.dtype)


def head(patient: Patient) -> Iterator[Finding]:
    """The chunked head on the model's own hidden states, against the [tokens, vocabulary] logits."""
    own = patient.learner()
    (batch,) = pack(samples(own, LENGTHS), sum(LENGTHS), own.device)
    body = own.model.base_model(
        input_ids=batch.tokens_T[None], position_ids=batch.positions_T[None], use_cache=False, documents=batch.documents
    )
    hidden_ND = body.last_hidden_state[0].index_select(0, batch.scored_N).detach()
    weight_VD = own.model.get_output_embeddings().weight.detach().to(hidden_ND.dtype)
    pull_N = torch.linspace(-1.0, 1.0, batch.num_scored, device=own.device)
    found: dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]] = {}
    for name in ("dense", "chunked", "known"):
        hidden, weight = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        if name == "dense":
            scored = score_plainly(hidden, weight, batch.targets_N, 0.9)
        else:
            known = pull_N if name == "known" else None
            scored = score(hidden, weight, batch.targets_N, 0.9, chunk=32, coefficients_N=known)
        loss = scored.weighted if scored.weighted is not None else (pull_N * scored.logprobs_N).sum()
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert scored.entropy_N is not None
        found[name] = (scored.logprobs_N.detach(), scored.entropy_N, dict(zip(("hidden", "head"), grads, strict=True)))
    bounds, dense = TOLERANCE[patient.dtype], found["dense"]
    for name, words in (("chunked", "any loss (RL)"), ("known", "known loss (SFT)")):
        what = f"head: in chunks against dense logits, {words}"
        pairs = zip(("log-probabilities", "entropies"), dense[:2], found[name][:2], strict=True)
        for measure, expected, seen in pairs:
            yield Finding(what, measure, bounds["loss"], float((seen - expected).detach().abs().max()))
        yield Finding(what, "gradients", bounds["gradients"], apart(dense[2], found[name][2]))


def recompute(patient: Patient) -> Iterator[Finding]:
    """Each policy of recomputation, against none, uncompiled; on a GPU compiled as well."""
    documents: list[Sample] = []
    expected: Step | None = None
    truth: list[Step] = []
    options = [(policy, "off") for policy in get_args(Policy) if policy != "hosted"]
    if patient.device == "cuda" and patient.dtype != "float32":
        options += [(policy, "on") for policy in ("none", "attention", "hosted")]
    for policy, compiled in options:
        own = patient.learner(recompute=policy, compile=compiled)
        documents = documents or samples(own, LENGTHS)
        found = step(own, [documents])
        if expected is None:
            expected = found
            continue
        if compiled == "off":
            yield from compare(f"recompute: {policy} against none", expected, found, patient.dtype)
            continue
        truth = truth or patient.truths(lambda exact: [step(exact, [samples(exact, LENGTHS)])])
        yield from against(f"recompute: {policy}, compiled, and none", truth, expected, found, patient.dtype)
    own = patient.learner(recompute="offload", compile="off")
    apply(blocks_of(own.model), "offload", tile=MOST)
    assert expected is not None
    what = f"recompute: offload in tiles of {MOST} tokens against none"
    yield from compare(what, expected, step(own, [documents]), patient.dtype)


def spread_alone(patient: Patient) -> Iterator[Finding]:
    """The steps of `spread` in one process, left for it."""

    def saved(own: Learner) -> list[Step]:
        return [found for _, found in _steps(own)]

    left = {"truths": patient.truths(saved), "alone": saved(patient.learner())}
    torch.save({name: [vars(one) for one in steps] for name, steps in left.items()}, Path(patient.scratch) / "alone.pt")
    return iter(())


def spread(patient: Patient, world: World) -> Iterator[Finding]:
    """The same steps on a mesh."""
    replicate, shard, sp = patient.mesh
    own = patient.learner(world, Mesh(dp_replicate=replicate, dp_shard=shard, sp=sp))
    left = torch.load(Path(patient.scratch) / "alone.pt", weights_only=True, map_location=own.device)
    truths, alone = ([Step(**one) for one in left[name]] for name in ("truths", "alone"))
    for place, (words, found) in enumerate(_steps(own)):
        what = f"processes: {called(patient.mesh)} against one, {words}"
        yield from against(what, truths[place : place + 1], alone[place], found, patient.dtype)


def called(mesh: tuple[int, int, int]) -> str:
    """ "sp = 2", or where several axes are longer than one "2 x 2 x 2"."""
    axes = [f"{axis} = {size}" for axis, size in zip(Shape._fields, mesh, strict=True) if size > 1]
    return axes[0] if len(axes) == 1 else " x ".join(map(str, mesh))


def resume_killed(patient: Patient) -> Iterator[Finding]:
    """Two steps, a checkpoint, and death in the third."""
    own = patient.learner()
    checkpoints = Checkpoints(Path(patient.scratch) / "checkpoints", own)
    _train(own, range(2))
    checkpoints.save(2)
    checkpoints.wait()
    own.accumulate(_batches(own, [samples(own, LENGTHS, 2)]), cross_entropy)
    os.kill(os.getpid(), signal.SIGKILL)
    return iter(())


def resume(patient: Patient) -> Iterator[Finding]:
    """The killed run, gone on with, against one that was left alone: bit for bit."""
    own = patient.learner()
    done = Checkpoints(Path(patient.scratch) / "checkpoints", own).restore()
    _train(own, range(done, 4))
    resumed = {name: tensor.clone() for name, tensor in own.weights()}
    own = patient.learner()
    _train(own, range(4))
    worst = max(float((tensor.double() - resumed[name].double()).abs().max()) for name, tensor in own.weights())
    yield Finding("resume: killed in step 3 of 4, against uninterrupted", "weights", 0.0, worst)


ALONE: dict[str, Callable[[Patient], Iterator[Finding]]] = {
    "packing": packing,
    "rows": rows,
    "head": head,
    "recompute": recompute,
}
"""Checks of one process."""


def samples(own: Learner, lengths: Sequence[int], seed: int = 0) -> list[Sample]:
    """The same for every learner of a model."""
    stream = random.Random(seed)
    vocabulary = own.model.get_input_embeddings().weight.shape[0]
    made = []
    for n in lengths:
        mask = tuple(3 * i >= n and i > 0 for i in range(n))
        behaviour = tuple(-stream.random() for _ in range(sum(mask)))
        tokens = tuple(stream.randrange(vocabulary) for _ in range(n))
        made.append(Sample(tokens, mask, stream.choice((-1.0, 0.5, 2.0)), behaviour))
    return made


def step(own: Learner, rows: Sequence[Sequence[Sample]], reinforced: bool = False) -> Step:
    """Loss and gradients of a step on these rows, which is not taken."""
    own.discard()
    batches = _batches(own, rows)
    if reinforced:
        # moved by what is the same in every layout: a ratio may not follow the rounding of the log-probabilities
        pairs = zip(batches, own.logprobs(batches, 0.9), strict=True)
        moves = torch.tensor(REWEIGHTED, device=own.device)
        anchors = [a + moves[(-4.0 * batch.behaviour_N).long().clamp(0, 3)] for batch, a in pairs]
        metrics = own.accumulate(batches, ClippedPolicyLoss(0.2, 0.28), anchors, temperature=0.9)
        value = metrics["loss/policy"]
    else:
        value = own.accumulate(batches, cross_entropy)["loss/nll"]
    found = Step(value, {name: tensor.clone() for name, tensor in own.gradients()})
    own.discard()
    return found


def _steps(own: Learner) -> Iterator[tuple[str, Step]]:
    for words, lengths in (("", LENGTHS), ("a process idle, ", FEW)):
        rows = _packed(samples(own, lengths))
        yield words + "SFT", step(own, rows)
        yield words + "RL", step(own, rows, reinforced=True)


def _packed(documents: list[Sample]) -> list[list[Sample]]:
    return [[documents[i] for i in batch.order] for batch in pack(documents, MOST)]


def _batches(own: Learner, rows: Sequence[Sequence[Sample]]) -> list[Batch]:
    """One for each row."""
    return [batch for row in rows for batch in pack(row, sum(len(s.tokens) for s in row), own.device)]


def _train(own: Learner, steps: range) -> None:
    for number in steps:
        own.accumulate(_batches(own, _packed(samples(own, LENGTHS, number))), cross_entropy)
        own.update()


def divisor(heads: int, most: int) -> int | None:
    """The smallest number of processes above one that can share a row."""
    return next((n for n in range(2, most + 1) if heads % n == 0), None)
