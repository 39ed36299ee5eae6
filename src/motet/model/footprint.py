"""How many bytes of a device a training step takes, from sizes alone: what `motet plan` prints and what
`recompute = "auto"` decides by.

Legend: D width of the residual stream, Q query heads x head width, K key heads x head width, H and G their numbers,
M width of the MLP, V vocabulary, T tokens of a row that this process holds, e bytes of a value of the computation.

A block's bytes are counted from the tensors that its backward pass reads, a list that differs between a compiled
block (where the partitioner of AOTAutograd keeps inputs of products, and computes chains of cheap operations again)
and one that runs operation by operation (where autograd keeps every operand). `tests/test_footprint.py` counts both
on a CPU and compares. A row has three moments that can be the highest: the head, with everything kept; the backward
pass of some block, with what the earlier ones keep; the end, with all gradients. With hosted blocks there is a fourth,
the forward pass of some block, when what others keep is still on its way out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from motet.model.recompute import Policy

LADDER: tuple[Policy, ...] = ("none", "matmul", "attention", "full")
"""From most kept to least; "offload" comes after, where none of them fits. "hosted" is beside it: what "matmul" keeps,
in host memory."""
BEHIND = 3
"""Blocks after which what a hosted one keeps has left the device; of the last ones it does not leave."""
SPEED, LINK = 600e12, 50e9
"""Of an H100: operations a second in attention and products, and bytes a second to host memory or back. A slower device
has more time for a copy than is counted on; how fast its link is, is measured (model/keep.py)."""
MARGIN = 0.08
"""Share of a device's memory that is left alone: the context, libraries' buffers, holes between tensors."""
TILE = 8192
"""Tokens of a tile, where a row is cut into tiles (model/halves.py, model/tiles.py). Matrix products of this many rows
gain nothing from more."""
HEAD_BUDGET, HEAD_ROWS = 1_520_000_000, 4096
"""Bytes of a chunk's logits (float32) and of TOGETHER chunks' gradients (of the hidden states' type), and rows of a
chunk, at most: beyond that many, matrix products gain nothing (train/logprobs.py). With what else the head needs that
is under 2 GiB at a width of 2,048."""
TOGETHER = 2
"""Chunks whose gradients are multiplied at once, in 16 bits."""


@dataclass(frozen=True)
class Sizes:
    """Of a dense causal LM."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head: int
    mlp: int
    vocabulary: int
    tied: bool
    head_norms: bool
    """Queries and keys have norms of their own."""
    gated: bool
    """The MLP multiplies two products."""
    block: int
    """Parameters of a block."""
    rest: int
    """Parameters outside of blocks, embedding and head."""

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.width

    @property
    def root(self) -> int:
        """Parameters that are in no block."""
        return self.rest + self.embedding * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.block + self.root

    @staticmethod
    def of(model: Any, blocks: Sequence[Any]) -> Sizes:
        """Of a transformers model, with weights or without (on the meta device); adapters do not count."""
        vocabulary, width = (int(n) for n in model.get_input_embeddings().weight.shape)
        config, block = model.config, dict(blocks[0].named_parameters())
        own = {name: p for name, p in block.items() if ".lora_" not in name}
        heads = int(config.num_attention_heads)
        mlp = int(getattr(config, "intermediate_size", None) or 4 * width)
        head = model.get_output_embeddings().weight
        tied = head is model.get_input_embeddings().weight
        inside = sum(p.numel() for p in own.values())
        whole = sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
        return Sizes(
            layers=len(blocks),
            width=width,
            heads=heads,
            key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head=int(getattr(config, "head_dim", None) or width // heads),
            mlp=mlp,
            vocabulary=vocabulary,
            tied=tied,
            head_norms=any("q_norm" in name or "q_layernorm" in name for name in own),
            gated=sum(p.ndim == 2 and p.shape[0] == mlp for p in own.values()) > 1,
            block=inside,
            rest=whole - len(blocks) * inside - vocabulary * width * (1 if tied else 2),
        )


@dataclass(frozen=True)
class Compute:
    """How blocks are run."""

    element: int
    """e: 2 in bfloat16, 4 in float32."""
    compiled: bool
    sp: int = 1
    """Processes that share a row: inside attention, each has all tokens of a part of the heads."""
    kernel: bool = True
    """Attention is a GPU kernel, whose backward pass sums in float32."""
    rank: int = 0
    """Of adapters on every linear layer; 0: none."""
    host: bool = True
    """What is offloaded or hosted leaves the device."""
    link: float = LINK
    """Bytes a second to host memory and back."""


@dataclass(frozen=True)
class BlockBytes:
    """Bytes for each of this process's tokens of a row, by policy."""

    kept: dict[Policy, int]
    """From a block's forward to its backward pass; its input belongs to it."""
    backward: dict[Policy, int]
    """In its backward pass, beyond what it keeps."""
    cut: int
    """Of an offloaded block of a row that is longer than a tile."""
    tile: int
    """For each token of such a tile, on top."""
    sums: int
    """Bytes of the float32 sums of its weights' gradients."""

    def working(self, policy: Policy, tokens: int) -> int:
        """In the backward pass of a block, bytes beyond what it keeps."""
        if policy != "offload" or tokens <= TILE:
            return tokens * self.backward[policy]
        return tokens * self.cut + TILE * self.tile + self.sums


def block_bytes(sizes: Sizes, compute: Compute) -> BlockBytes:
    return _compiled(sizes, compute) if compute.compiled else _eager(sizes, compute)


class _Widths(NamedTuple):
    D: int
    Q: int
    K: int
    inside: int
    """K as attention sees it: key heads are repeated where there are fewer than processes."""
    M: int
    up: int
    """Widths of the MLP's first products together."""
    pre_q: int
    pre_k: int
    """Queries and keys before their norms, where these exist."""
    rms: int
    """Bytes of the norms' reciprocal deviations."""
    lse: int
    sums: int
    """Bytes of float32 sums in attention's backward pass."""

    @staticmethod
    def of(sizes: Sizes, compute: Compute) -> _Widths:
        Q, K = sizes.heads * sizes.head, sizes.key_heads * sizes.head
        inside = K * (compute.sp // math.gcd(compute.sp, sizes.key_heads))
        normed = sizes.head_norms
        grouped = inside < Q
        sums = (4 * Q + 8 * sizes.heads + (8 * inside if grouped else 0)) if compute.kernel else 0
        rms = 4 * (2 + (sizes.heads + sizes.key_heads if normed else 0))
        up = sizes.mlp * (2 if sizes.gated else 1)
        return _Widths(
            sizes.width, Q, K, inside, sizes.mlp, up, Q * normed, K * normed, rms, 4 * sizes.heads, sums
        )  # fmt: skip


def _compiled(sizes: Sizes, compute: Compute) -> BlockBytes:
    """The partitioner keeps inputs of matrix products and of attention; a chain of cheap operations is fused."""
    e, w = compute.element, _Widths.of(sizes, compute)
    D, Q, K, inside, M, up = w.D, w.Q, w.K, w.inside, w.M, w.up
    shared = compute.sp > 1
    kept: dict[Policy, int] = {
        # input, both norms' results, result of attention's last product; attention's inputs and result; products
        "none": e * (4 * D + w.pre_q + w.pre_k + 2 * Q + 2 * inside + Q * shared + up + M) + w.rms + w.lse,
        "matmul": e * (2 * D + 2 * Q + 2 * K + up + (D + Q + 2 * K + up) * (compute.rank > 0)) + w.lse,
        "attention": e * (D + Q) + w.lse,
        "full": e * D,
    }
    # of the MLP: gradients of its result, of the product's input, of the first products
    mlp = {"none": D + M + up, "matmul": 2 * D + 2 * M + up, "attention": 3 * D + 2 * M + 2 * up}
    forward = D + w.pre_q + w.pre_k + 2 * Q + 2 * inside  # attention, computed again before the MLP
    if compute.rank:  # beside each product that of its adapter, and their gradients apart
        mlp = {"none": mlp["none"] + 2 * up, "matmul": mlp["matmul"] + 2 * up, "attention": mlp["attention"] + 3 * up}
    mlp["full"] = mlp["attention"] + forward
    # of attention: gradients of its result and inputs, of which query's and key's are copied; `sums` are the kernel's
    gradients = 3 * D + 3 * Q + 3 * inside + 2 * (Q + inside) * shared
    again = {"none": 0, "matmul": D + Q + inside, "attention": D + w.pre_q + w.pre_k + Q + 2 * inside}
    again["full"] = again["attention"] + Q
    backward: dict[Policy, int] = {}
    for policy in LADDER:
        lse = w.lse if policy == "full" else 0
        backward[policy] = lse + max(e * mlp[policy], e * (gradients + again[policy]) + w.sums)
    return _with_offload(kept, backward, sizes, compute)


def _eager(sizes: Sizes, compute: Compute) -> BlockBytes:
    """Every operand is kept; norms compute in float32, and keep their input in it and its normalised value."""
    e, w = compute.element, _Widths.of(sizes, compute)
    D, Q, K, inside, M, up = w.D, w.Q, w.K, w.inside, w.M, w.up
    shared = compute.sp > 1
    norm = 4 + e
    act = 2 * M if sizes.gated else M
    kept: dict[Policy, int] = {
        "none": (
            2 * D * (norm + e) + (w.pre_q + w.pre_k) * norm + e * (2 * Q + 2 * inside + Q * shared) + e * (up + act)
            + w.rms + w.lse
        ),
        "matmul": e * (3 * D + 2 * Q + 2 * K + up + (2 * D + Q + 2 * K + up) * (compute.rank > 0)) + w.lse,
        "attention": e * (D + Q) + w.lse,
        "full": e * D,
    }  # fmt: skip
    whole = kept["none"]
    mlp = e * (up + 3 * D)
    heads = e * (4 * Q + 3 * inside + 2 * (Q + inside) * shared)
    attention = max(heads + w.sums, (w.pre_q + w.pre_k > 0) * 11 * Q * e // 2) + e * 3 * D - e * (up + act)
    backward: dict[Policy, int] = {policy: whole - kept[policy] + max(mlp, attention) for policy in LADDER}
    backward["none"] = max(mlp, attention)
    return _with_offload(kept, backward, sizes, compute)


def _with_offload(kept: dict[Policy, int], backward: dict[Policy, int], sizes: Sizes, compute: Compute) -> BlockBytes:
    """An offloaded block runs operation by operation; its input, and that of the one before it, come back for its
    backward pass. Of a row longer than a tile attention is in one piece, the rest a tile at a time, and the input of
    the block before comes when attention is done."""
    e, w = compute.element, _Widths.of(sizes, compute)
    D, Q, K, inside = w.D, w.Q, w.K, w.inside
    shared = compute.sp > 1
    norm = 4 + e
    saved = (w.pre_q + w.pre_k) * norm + e * (2 * Q + 2 * inside + Q * shared) + w.rms + w.lse
    heads = e * (4 * Q + 3 * inside + 2 * (Q + inside) * shared) + w.sums
    adapted = 7 * e * compute.rank  # results of the first products of the adapters
    came_back = 2 if compute.host else 1
    held = (5 + came_back) * e * D + saved
    # attention's inputs and result, its result's gradient, and when those of its inputs are made, these too
    attention = e * (4 * Q + 4 * K + (3 * Q + 4 * inside) * shared) + w.lse + w.sums
    # of a tile everything that its block computes, and gradients: the MLP's, or queries' and keys' norms'
    tile = e * (4 * D + 2 * Q + 2 * K + 3 * w.up + 2 * w.M) + 2 * D * norm + (w.pre_q + w.pre_k) * norm + adapted
    kept = {p: n + adapted * (p in ("none", "matmul")) for p, n in kept.items()}
    leaves = compute.host and compute.compiled
    return BlockBytes(
        kept=kept | {"hosted": w.lse if leaves else kept["matmul"], "offload": 0 if compute.host else e * D},
        backward=backward
        | {"hosted": backward["matmul"], "offload": adapted + held + max(heads, (w.pre_q > 0) * 12 * Q * e - saved)},
        cut=3 * e * D + attention,
        tile=tile,
        sums=4 * sizes.block,
    )


def rows_of_a_chunk(vocabulary: int, element: int) -> int:
    """Of the head: as many as HEAD_BUDGET holds, a multiple of 256 (the tiles of matrix products), at least 128, at
    most HEAD_ROWS. `element`: bytes of a value of the hidden states.

    Example: 151,936 in bfloat16: 1.52e9 / (151,936 x 8 bytes) = 1,250, so 1,024.
    """
    return max(128, min(HEAD_ROWS, HEAD_BUDGET // head_row(vocabulary, element) // 256 * 256))


def head_row(vocabulary: int, element: int) -> int:
    """Bytes for each row of a chunk."""
    return vocabulary * (4 + element * (TOGETHER if element < 4 else 1))


@dataclass(frozen=True)
class Row:
    """One packed row as a process sees it: its slice of the tokens, where several share the row."""

    tokens: int
    scored: int
    """Tokens that have a loss."""
    known: bool = True
    """The loss's coefficients are known beforehand (SFT), so the head's gradients are formed in the forward pass."""
    entropy_gradient: bool = False
    head_trained: bool = True
    trained: int = 0
    """Parameters of a block that are trained."""
    fresh: float = 0.0
    """Bytes of a parameter's gradient, where this row is the first to allocate it; 0 where it is there already."""
    returning: float = 0.0
    """Bytes of a parameter's moments, where they come back from host memory during this row's backward pass."""
    passing: int = 0
    """Bytes of weights gathered ahead, and of gradients on their way, in the backward pass of a block."""
    reduced_at_end: int = 0
    """The same for the gradients of what is in no block."""
    attended: float = 0.0
    """Tokens of the document that an average token of the whole row is in; 0: the row is one document."""


class Peak(NamedTuple):
    """Bytes beyond what is allocated before the row."""

    total: int
    at: str
    """What is highest: "forward", "head", "backward" or "end"."""
    kept: int
    """By blocks, at that moment."""
    working: int
    """In the backward pass of one block."""
    head: int
    """The head's buffers and gradients, and the hidden states around it."""
    gradients: int
    """Allocated by this row up to that moment, and moments that came back."""
    passing: int = 0
    """On the way from and to other processes."""


def peak_of(sizes: Sizes, compute: Compute, row: Row, policies: Sequence[Policy]) -> Peak:
    block = block_bytes(sizes, compute)
    e, D, T, N = compute.element, sizes.width, row.tokens, row.scored
    always = T * (64 + 2 * sizes.head * e) + (T * e * D if "offload" in policies and compute.host else 0)
    kept = [T * block.kept[policy] for policy in policies]
    back = T * (block.kept["matmul"] - block.kept["hosted"])
    """Of a hosted block, what comes back."""
    hosted = [policy == "hosted" and index < len(policies) - BEHIND for index, policy in enumerate(policies)]
    kept = [n + back * (p == "hosted" and not away) for n, p, away in zip(kept, policies, hosted, strict=True)]
    tiled = T > TILE and "offload" in policies
    last = T * (e * D + (0 if compute.compiled or tiled else D * (4 + e)))
    weight = sizes.embedding * row.head_trained
    rows = min(rows_of_a_chunk(sizes.vocabulary, e), max(128, N))
    logits = rows * (head_row(sizes.vocabulary, e) + (8 * sizes.vocabulary if row.entropy_gradient else 0))
    head = last + row.known * T * e * D + N * (2 * e * D + 40) + logits + 4 * weight
    found = [Peak(0, "head", always + sum(kept), 0, head, 0)]
    for index in range(len(policies) if any(hosted) else 0):  # until copies are out, several hosted blocks' are there
        leaving = back * sum(hosted[max(0, index + 1 - BEHIND) : index + 1])
        working = block.working("matmul", T)  # no more than in the backward pass
        found.append(Peak(0, "forward", always + sum(kept[: index + 1]) + leaving, working, 0, 0, row.passing))
    waits = e * weight if e < 4 else 4 * weight
    # of a head of its own, whose gradient is the first; a tied one's is whole at the end
    first = 0 if sizes.tied else max(0, int((row.fresh + row.returning) * weight) - waits)
    for index, policy in reversed(list(enumerate(policies))):
        own = block.working(policy, T) + e * row.trained + back * sum(hosted[max(0, index - 1) : index + 1])
        fresh = first + int((row.fresh + row.returning) * row.trained * (len(policies) - 1 - index))
        found.append(Peak(0, "backward", always + sum(kept[: index + 1]), own, waits, fresh, row.passing))
    everything = row.trained * sizes.layers + (sizes.root if row.head_trained else 0)
    found.append(
        Peak(0, "end", always, 0, 3 * waits, int((row.fresh + row.returning) * everything), row.reduced_at_end)
    )
    summed = [p._replace(total=p.kept + p.working + p.head + p.gradients + p.passing) for p in found]
    return max(summed, key=lambda peak: peak.total)


def choose(sizes: Sizes, compute: Compute, row: Row, room: int, host_room: int = 0) -> list[Policy]:
    """The first policies of the ladder that fit into `room` bytes; where none do, what takes least. Where blocks
    differ, the later ones keep more: the backward pass begins with them, and frees what they keep before another has to
    be computed again. `host_room`: bytes that hosted blocks may take of host memory; before anything but cheap
    operations is computed again, as many as that and the link allow are hosted."""
    count, places = sizes.layers, hosted_places(sizes, compute, row, host_room)
    for more, less in itertools.pairwise(LADDER):
        if more == "matmul":
            for most in range(len(places) + 1):
                policies = with_hosted(["matmul"] * count, places[:most])
                if peak_of(sizes, compute, row, policies).total <= room:
                    return policies
        for kept in range(count, 0, -1):
            plain = [less] * (count - kept) + [more] * kept
            # what comes back lies beside what is computed again: a row may fit without what would fit with less of it
            for policies in (with_hosted(plain, places), plain) if places and more != "none" else (plain,):
                if peak_of(sizes, compute, row, policies).total <= room:
                    return policies
    last: list[list[Policy]] = [["full"] * count, ["offload"] * count]
    return min(last, key=lambda policies: peak_of(sizes, compute, row, policies).total)


def hosted_places(sizes: Sizes, compute: Compute, row: Row, host_room: int) -> list[int]:
    """Blocks that may be hosted: so far apart that the copies of one are done while those up to the next compute."""
    if not (compute.host and compute.compiled):
        return []
    size = block_bytes(sizes, compute).kept["matmul"]
    work = 2 * sizes.block + 2 * sizes.heads * sizes.head * (row.attended or row.tokens * compute.sp)
    apart = math.ceil(size / compute.link * SPEED / work)
    return list(range(0, sizes.layers - BEHIND, apart))[: host_room // (size * row.tokens)]


def with_hosted(policies: list[Policy], places: Sequence[int]) -> list[Policy]:
    return ["hosted" if index in places else policy for index, policy in enumerate(policies)]


@dataclass(frozen=True)
class Training:
    """What is trained, and how its state lies."""

    element: int
    weights: int
    """Bytes of a weight that the optimizer steps on."""
    adapters: int = 0
    """Parameters of adapters; 0: everything is trained."""
    slots: int = 2
    """Values of optimizer state a parameter of a block (AdamW: 2, Muon: 1)."""
    parallel: bool = False
    """Several processes train one model: FSDP lays out its state."""
    shards: int = 1
    """Processes over which the state is cut."""
    reshard: bool = True
    reduce_once: bool = True
    offload: bool = False
    """AdamW's moments wait in host memory while rows go forward and backward."""
    rounds: int = 2
    """Rows that a process works on in a step, one after the other."""

    @property
    def copies(self) -> bool:
        """Beside weights to compute with, more exact ones to step on."""
        return self.element != self.weights and not self.parallel

    @property
    def gradient(self) -> int:
        """Bytes of one: the first of a step is kept as it comes, and summed in the weights' type."""
        return self.element if self.copies and self.rounds == 1 else self.weights


@dataclass(frozen=True)
class State:
    """Bytes that a process holds besides a row's."""

    weights: int
    optimizer: int
    gradients: int
    """Of a whole step, sharded where the state is."""
    summed: int
    """Gradients of whole blocks that wait, in float32, for the step's last row to be reduced."""
    gathered: int
    """Weights of the block at work and of the root, gathered from the other processes."""
    passing: int
    """In the backward pass besides: weights of the next block on their way here, gradients of the last on theirs."""
    reduced_at_end: int
    """Buffers of the root's gradients."""
    away: int = 0
    """Of `optimizer`, in host memory when a row begins."""

    @property
    def total(self) -> int:
        """When the optimizer steps."""
        return self.weights + self.optimizer + self.gradients

    def held(self, row: Row) -> int:
        """When a row begins. Gradients that wait in whole become parts of `gradients` with the step's last row."""
        return self.weights + self.optimizer - self.away + self.gathered + self.made(row)

    def made(self, row: Row) -> int:
        """Gradients, when a row begins."""
        return 0 if row.fresh else self.summed or self.gradients


def state_of(sizes: Sizes, training: Training) -> State:
    e, w, n = training.element, training.weights, training.shards
    trained = training.adapters or sizes.parameters
    frozen = sizes.parameters if training.adapters else 0
    inside = sizes.layers * sizes.block * trained // sizes.parameters if not training.adapters else trained
    slots = training.slots * inside + 2 * (trained - inside)
    if not training.parallel:
        weights = frozen * (e if training.element != training.weights else w) + trained * (w + e * training.copies)
        away = w * slots if training.offload else 0
        return State(weights, w * slots, training.gradient * trained, 0, 0, 0, 0, away)
    share = trained * sizes.block // sizes.parameters if not training.adapters else trained // sizes.layers
    root = sizes.root if not training.adapters else 0
    block = e * (sizes.block + training.adapters // sizes.layers)
    ahead = block * (2 * n + 2) // n if training.reshard else 0  # all-gather's buffers, and the copy that it makes
    waiting = 4 * trained if training.reduce_once and training.rounds > 1 else 0
    return State(
        weights=-(-(frozen + trained) * w // n),
        optimizer=-(-w * slots // n),
        gradients=-(-w * trained // n),
        summed=waiting,
        gathered=e * sizes.root + block * (1 if training.reshard else sizes.layers),
        passing=ahead + (2 * 4 * n + 4) * share // n,
        reduced_at_end=(4 * n + 4) * root // n,
    )


def at_rest(sizes: Sizes, training: Training) -> int:
    """Bytes between two steps, when an engine samples: weights that the optimizer steps on, and its state."""
    state = state_of(sizes, training)
    copies = training.element * (training.adapters or sizes.parameters) * training.copies
    return state.weights + state.optimizer - state.away - copies


@dataclass(frozen=True)
class Forecast:
    """Of one process in a training step."""

    state: State
    peak: Peak
    row: Row
    others: int = 0
    """What else has its place on the device: an engine, a reference model."""

    @property
    def total(self) -> int:
        """The optimizer's moment has all gradients and no row; a row's moment those that were made before."""
        return self.others + max(self.state.held(self.row) + self.peak.total, self.state.total)


def forecast(
    sizes: Sizes, compute: Compute, training: Training, row: Row, policies: Sequence[Policy], others: int = 0
) -> Forecast:
    return Forecast(state_of(sizes, training), peak_of(sizes, compute, row, policies), row, others)


def row_of(sizes: Sizes, training: Training, tokens: int, known: bool, entropy_gradient: bool = False) -> Row:
    """A row of which this process holds `tokens`, all of them scored."""
    state = state_of(sizes, training)
    return Row(
        tokens, tokens, known, entropy_gradient,
        head_trained=not training.adapters,
        trained=training.adapters // sizes.layers if training.adapters else sizes.block,
        fresh=training.gradient / training.shards if training.rounds == 1 else 0.0,
        returning=training.slots * training.weights if training.offload else 0.0,
        passing=state.passing,
        reduced_at_end=state.reduced_at_end,
    )  # fmt: skip


def adapter_parameters(sizes: Sizes, rank: int) -> int:
    """Of adapters on every linear layer of every block."""
    D, Q, K, M = sizes.width, sizes.heads * sizes.head, sizes.key_heads * sizes.head, sizes.mlp
    inputs_and_outputs = (D + Q) + 2 * (D + K) + (Q + D) + (3 if sizes.gated else 2) * (D + M)
    return sizes.layers * rank * inputs_and_outputs


def attention_bytes(sizes: Sizes, compute: Compute, tokens: int) -> tuple[int, int]:
    """Of a row: what attention's kernel sums in, and what all-to-alls send and receive, while its block goes back."""
    w = _Widths.of(sizes, compute)
    exchanged = 2 * compute.element * (w.Q + w.inside) if compute.sp > 1 else 0
    return tokens * w.sums, tokens * exchanged
