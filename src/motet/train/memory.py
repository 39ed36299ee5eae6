"""Out of memory, explained: in which phase, on how many tokens, what was largest, and which line of the recipe helps.

What is said is read off the error's traceback, whose frames still hold what was being worked on: nothing is kept or
counted while all is well.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch

from motet.base.recipe import EvaluateStage, FilterStage, Recipe, RlStage, SftStage, Stage, SynthesizeStage
from motet.base.run import peak_memory_bytes
from motet.data.pack import Batch
from motet.engine.protocol import Request
from motet.model.footprint import rows_of_a_chunk
from motet.rl.alarms.record import Alarm, Cause, ranked, written

TOLD = {"generate": "sample", "train": "steps"}
"""Names of timed phases, in the words of the report."""
PLACES = {
    ("train.learner", "update"): "optimizer step",
    ("train.learner", "logprobs"): "anchor",
    ("train.learner", "accumulate"): "steps",
    ("train.learner", "export"): "export",
    ("train.learner", "__init__"): "building the learner",
    ("rl.rollouts", "groups"): "sample",
    ("stages.evaluate", "run"): "evaluate",
    ("stages.context", "sampler"): "start of the engine",
    ("stages.context", "reference"): "building the reference",
}
"""Functions by which the phase is known where no timer says it, and the optimizer told apart."""


NO_CACHE = r"No available memory for the cache blocks|larger than the available KV cache memory"
"""vLLM, where its share of the memory is too small."""
SAID = (
    r"can't allocate memory|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
    rf"is less than desired [CG]PU memory utilization|{NO_CACHE}"
)
"""In errors without a type of their own: of torch's CPU allocator, CUDA's libraries, vLLM, and its server's log."""


class Largest(NamedTuple):
    size: int
    """Bytes of its storage."""
    text: str
    """ "logits_CV [1024, 49152] float32 in train/logprobs.py" """


def let_go() -> None:
    """After a stage: what nothing refers to any more is freed at once. A block whose forward pass was replaced refers
    to itself, so a learner's weights and gradients stay until garbage is collected, and who comes next, an engine for
    the evaluation or another learner, would have to fit beside them. vLLM asleep has frozen what was there before.
    Pinned memory goes back to the machine: the next learner asks how much that has left for blocks and moments."""
    gc.unfreeze()
    gc.collect()
    empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None)  # an older torch names it otherwise
    empty_host_cache = empty_host_cache or getattr(torch._C, "_host_emptyCache", None)
    if torch.cuda.is_available() and empty_host_cache is not None:
        empty_host_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the host; raised here, or told by the engine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | ValueError) and re.search(SAID, str(error)) is not None


def explain(error: BaseException, recipe: Recipe, stage: str, step: int = 0, planned: str = "") -> Alarm:
    """`planned`: what the plan had said, where there is one."""
    frames = list(_frames(error.__traceback__))
    phase, largest = phase_of(error, frames), largest_tensor(frames)
    work = _work(frames)
    seen = f"out of memory in the phase {phase}{work.text}. {_told(error)}"
    seen += f"The largest live tensor: {largest.text}, {_size(largest.size)}. {_head(frames, recipe, work)}"
    seen += f"{_in_use()}" + (f" The plan: {planned}." if planned else "")
    matters = (
        "Nothing that was finished is lost: with other values of micro_batch_tokens, model.recompute, [engine] or "
        "[mesh] the same command goes on from the last checkpoint; other lines make the stage anew."
    )
    causes = ranked(_causes(phase, recipe, stage, work, str(error)))
    return Alarm("memory", stage, step, seen, matters, causes)


def phase_of(error: BaseException, frames: Sequence[FrameType]) -> str:
    """A timer's name where one was running, and the optimizer told apart; else by the functions on the stack."""
    on_stack = [PLACES[place] for f in frames if (place := (_module(f), f.f_code.co_name)) in PLACES]
    timed = getattr(error, "phase", None)
    if "optimizer step" in on_stack:
        return "optimizer step"
    if isinstance(timed, str):
        return TOLD.get(timed, timed)
    return on_stack[-1] if on_stack else "start"


def largest_tensor(frames: Sequence[FrameType]) -> Largest:
    """By the bytes of its storage, among all that are alive; named by the variable that holds it, or as a parameter."""
    best: torch.Tensor | None = None
    named = [value for frame in reversed(frames) for value in frame.f_locals.values()]
    for item in (*named, *gc.get_objects()):  # of equal ones, one with a name
        if issubclass(type(item), torch.Tensor) and (best is None or _bytes(item) > _bytes(best)):
            best = item
    if best is None:
        return Largest(0, "none")
    shape = f"{list(best.shape)} {str(best.dtype).removeprefix('torch.')}"
    return Largest(_bytes(best), f"{_name(best, frames)} {shape}")


# ---- what the traceback holds


class _Work(NamedTuple):
    text: str
    tokens: int
    longest: int
    """Tokens of the longest document of the row; 0 for sampling."""
    scored: int


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _work(frames: Sequence[FrameType]) -> _Work:
    """The innermost packed row, or the requests that were being sampled."""
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            batch = _batch(value)
            if batch is not None:
                lengths, tokens = batch.documents.lengths, batch.tokens_T.numel()
                text = f", on a row of {tokens:,} tokens ({batch.num_scored:,} scored, {len(lengths)} documents, "
                return _Work(text + f"the longest {max(lengths):,})", tokens, max(lengths), batch.num_scored)
            if isinstance(value, list) and value and isinstance(value[0], Request):
                prompts = [len(request.prompt_tokens) for request in value]
                text = f", sampling {len(value):,} completions after prompts of up to {max(prompts):,} tokens"
                return _Work(text, sum(prompts), 0, 0)
    return _Work("", 0, 0, 0)


def _batch(value: object) -> Batch | None:
    """A packed row, or the largest of a list of them."""
    found = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Batch)]
    return max(found, key=lambda batch: batch.tokens_T.numel(), default=None)


def _name(tensor: torch.Tensor, frames: Sequence[FrameType]) -> str:
    place = tensor.untyped_storage().data_ptr()
    for frame in frames:
        model = getattr(frame.f_locals.get("self"), "model", None)
        if isinstance(model, torch.nn.Module):
            for name, parameter in model.named_parameters():
                if parameter.untyped_storage().data_ptr() == place:
                    return f"the weight {name}"
                if parameter.grad is not None and parameter.grad.untyped_storage().data_ptr() == place:
                    return f"the gradient of {name}"
    for frame in reversed(frames):
        for name, value in frame.f_locals.items():
            if isinstance(value, torch.Tensor) and _bytes(value) and value.untyped_storage().data_ptr() == place:
                return f"{name} in {'/'.join(Path(frame.f_code.co_filename).parts[-2:])}"
    return "a tensor"


def _bytes(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage().nbytes())
    except (RuntimeError, NotImplementedError):  # meta, fake and freed tensors have no storage
        return 0


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).removeprefix("motet.")


# ---- sentences


def _told(error: BaseException) -> str:
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    text = f"{asked[1]} were asked for. " if asked else ""
    if isinstance(error, ValueError):  # the engine's: nothing of it is on this process's stack
        line = next(line for line in str(error).splitlines() if re.search(SAID, line))
        text += f'The engine said: "{line.strip()[:300]}". '
    return text


def _head(frames: Sequence[FrameType], recipe: Recipe, work: _Work) -> str:
    """Whether the head was in chunks, and what its logits would have been otherwise."""
    if recipe.model.head != "own":
        return f'The head was computed by the package of model.head = "{recipe.model.head}". '
    models = [getattr(frame.f_locals.get("self"), "model", None) for frame in frames]
    model: Any = next(
        (m for m in models if isinstance(m, torch.nn.Module) and hasattr(m, "get_output_embeddings")), None
    )
    head = model.get_output_embeddings() if model is not None else None
    if head is None or not work.scored:
        return "The head is computed in chunks. "
    vocabulary, size = int(head.weight.shape[0]), head.weight.element_size()
    rows = rows_of_a_chunk(vocabulary, size)
    return (
        f"The head was in chunks of {rows:,} tokens ({_size(min(rows, work.scored) * vocabulary * 4)} of logits; "
        f"whole they would be {_size(work.scored * vocabulary * 4)}). "
    )


def _in_use() -> str:
    if not torch.cuda.is_available():
        return f"Peak memory of the process: {_size(peak_memory_bytes())}."
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_allocated()
    return f"Of the GPU's {_size(total)} {_size(free)} were free, and {_size(held)} were this process's tensors."


def _causes(phase: str, recipe: Recipe, name: str, work: _Work, said: str) -> list[Cause]:
    stage = recipe.stage[name]
    if re.search(NO_CACHE, said):
        return _of_the_cache(recipe, stage)
    if phase in ("sample", "judge", "probe", "evaluate", "start of the engine") or isinstance(
        stage, EvaluateStage | FilterStage | SynthesizeStage
    ):
        return _of_sampling(recipe, name, stage)
    if phase == "load":
        mebibytes = recipe.engine.bucket_mebibytes
        line = written("engine.bucket_mebibytes", max(1, mebibytes // 2), mebibytes)
        return [Cause("the weights on their way to the engine", "", 0.9, (line,)), *_of_sampling(recipe, name, stage)]
    states = _of_states(recipe, name, stage)
    if phase in ("steps", "anchor", "reference"):
        return [*_of_rows(recipe, name, stage, work), replace(states, weight=0.3)]
    return [states]


def _of_the_cache(recipe: Recipe, stage: Stage) -> list[Cause]:
    """vLLM has its weights in its share of the memory, and no room for one text of the longest beside them."""
    engine, sampling = recipe.engine, getattr(stage, "sampling", recipe.evaluation.sampling)
    share = written("engine.memory_share", round(min(0.95, 1.4 * engine.memory_share), 2), engine.memory_share)
    enough = max(2 * sampling.max_tokens, (engine.context or 0) // 2)
    context = written("engine.context", enough, engine.context)
    evidence = f"it has {engine.memory_share:.0%}, for its weights and its cache together"
    return [
        Cause("the engine's share of the memory is too small", evidence, 0.8, (share,)),
        Cause("it keeps room for longer texts than are sampled", f"engine.context is {engine.context or 'unset'}",
              0.6 * (engine.context is None or enough < engine.context), (context,)),
    ]  # fmt: skip


def _of_sampling(recipe: Recipe, name: str, stage: Stage) -> list[Cause]:
    engine = recipe.engine
    if engine.kind == "vllm":
        asleep = (written("engine.sleep", 1, engine.sleep),) if not engine.sleep and not engine.urls else ()
        share = written("engine.memory_share", round(0.7 * engine.memory_share, 2), engine.memory_share)
        return [
            Cause(
                "engine and learner share the GPU", f"the engine has {engine.memory_share:.0%}", 0.8, (*asleep, share)
            )
        ]
    longest = stage.sampling.max_tokens if isinstance(stage, RlStage | FilterStage | SynthesizeStage) else 0
    key = f"stage.{name}.sampling.max_tokens"
    if not longest:
        longest, key = recipe.evaluation.sampling.max_tokens, "evaluation.sampling.max_tokens"
    return [
        Cause("too many completions are decoded side by side", f"{engine.batch_size} of up to {longest} tokens", 0.8,
              (written("engine.batch_size", max(1, engine.batch_size // 2), engine.batch_size),)),
        Cause("completions are long", f"up to {longest} tokens", 0.4, (written(key, max(1, longest // 2), longest),)),
    ]  # fmt: skip


def _of_rows(recipe: Recipe, name: str, stage: Stage, work: _Work) -> list[Cause]:
    packed = stage.micro_batch_tokens
    room = work.tokens > 1.5 * work.longest
    half = max(work.longest, packed // 2)
    kept, offered = recipe.model.recompute, recipe.model.recompute != "offload"
    deeper = "full" if kept not in ("full", "offload") else "offload"
    return [
        Cause("the row is larger than it has to be", f"{work.tokens:,} tokens, the longest text {work.longest:,}",
              0.9 * room, (written(f"stage.{name}.micro_batch_tokens", half, packed),)),
        Cause("too much is kept for the backward pass", f"model.recompute is {kept}", 0.7 * offered,
              (written("model.recompute", deeper, kept),)),
        Cause("a single document fills the row: cut it over several GPUs", f"it has {work.longest:,} tokens",
              0.6 * (not room), (written("mesh.sp", 2 * recipe.mesh.sp, recipe.mesh.sp),)),
    ]  # fmt: skip


def _of_states(recipe: Recipe, name: str, stage: Stage) -> Cause:
    """Weights, gradients and the optimizer's state, whatever the batch is."""
    change = [written("model.dtype", "bfloat16", "float32")] if recipe.model.dtype == "float32" else []
    if recipe.model.weights == "float32" and recipe.model.dtype == "bfloat16":
        change.append(written("model.weights", "bfloat16", "float32"))
    if isinstance(stage, SftStage | RlStage) and stage.lora is None:
        change.append(written(f"stage.{name}.lora", {"rank": 16}, None))
    change.append(written("mesh.dp_shard", 2 * (recipe.mesh.dp_shard or 1), recipe.mesh.dp_shard))
    evidence = "none of it depends on the batch"
    return Cause("weights, gradients and the optimizer's state fill the memory", evidence, 0.8, tuple(change))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.2f} MiB"
