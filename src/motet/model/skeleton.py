"""Models larger than a process: built without memory, cut by FSDP, then filled, each process reading its own part.

model = skeleton(path, "motet", torch.float32)    # every parameter on the meta device
fully_shard(...)                                   # every parameter a DTensor on the meta device
fill(model, path, device)                          # reads the rows that this process keeps
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from motet.base.errors import UserError
from motet.model.load import load_config, load_model, refuse_shape

Rows = Callable[[str, slice], torch.Tensor]
"""(name, rows of the first axis) -> those rows of a weight."""


def skeleton(path: str | Path, attention: str, dtype: torch.dtype) -> Any:
    """A causal LM whose parameters are on the meta device, in training mode."""
    config = load_config(path)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(config, dtype=dtype, attn_implementation=attention)
    with suppress(OSError):  # it has none: what from_config derived stays
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.train()


@torch.no_grad()
def fill(model: Any, path: str | Path, device: torch.device, given: Mapping[str, torch.Tensor]) -> None:
    """Gives every parameter of a sharded skeleton its values: from `given` by name, else from the checkpoint.

    Tied weights stay one parameter. Raises UserError where the checkpoint does not have what the model needs.
    """
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {
        tuple(_published(name) for name in names): tuple(parameters[names[0]].shape)
        for names in tied.values()
        if names[0] not in given
    }
    rows = _reader(path, wanted)
    state: dict[str, torch.Tensor] = {}
    for names in tied.values():
        blank = parameters[names[0]]
        source: Rows = _from(given) if names[0] in given else rows
        filled = _filled(blank, names[0] if names[0] in given else _published(names[0]), source, device)
        state |= dict.fromkeys(names, filled)
    model.load_state_dict(state, strict=False, assign=True)
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            if not hasattr(module, "config"):
                raise UserError(f"{path}: {name} holds values that motet cannot compute anew for a model in parts")
            with device:  # tables that follow from the configuration, as those of rotary positions
                model.set_submodule(name, type(module)(module.config))


def _filled(blank: torch.Tensor, name: str, rows: Rows, device: torch.device) -> torch.nn.Parameter:
    """The rows that this process keeps, as a parameter of the same layout: parts of ceil(rows / parts)."""
    if not isinstance(blank, DTensor):
        values = rows(name, slice(None)).to(device, blank.dtype)
        return torch.nn.Parameter(values, requires_grad=blank.requires_grad)
    start, stop = 0, blank.shape[0]
    for axis, placement in enumerate(blank.placements):
        if isinstance(placement, Shard):
            size = -(-blank.shape[0] // blank.device_mesh.size(axis))
            start = min(blank.device_mesh.get_local_rank(axis) * size, blank.shape[0])
            stop = min(start + size, blank.shape[0])
    local = torch.empty((stop - start, *blank.shape[1:]), dtype=blank.dtype, device=device)
    if stop > start:
        local.copy_(rows(name, slice(start, stop)))
    whole = DTensor.from_local(
        local, blank.device_mesh, blank.placements, run_check=False, shape=blank.shape, stride=blank.stride()
    )
    return torch.nn.Parameter(whole, requires_grad=blank.requires_grad)


def _published(name: str) -> str:
    """The name without what adapters put into it."""
    return name.replace(".base_layer.", ".")


def _from(tensors: Mapping[str, torch.Tensor]) -> Rows:
    return lambda name, part: tensors[name][part]


def _reader(path: str | Path, wanted: Mapping[tuple[str, ...], tuple[int, ...]]) -> Rows:
    """Reads rows of the checkpoint's files; `wanted` holds, for each weight, the names of which one must be there, and
    its shape. Where its names are not the model's, transformers translates them, in memory."""
    places = _places(path)
    if places is None or not all(any(name in places for name in names) for names in wanted):
        whole = load_model(path, "eager", torch.device("cpu"), torch.float32).state_dict()
        return _from(whole)
    called = {names[0]: next(name for name in names if name in places) for names in wanted}
    shapes = {names[0]: shape for names, shape in wanted.items()}
    opened: dict[Path, Any] = {}

    def rows(name: str, part: slice) -> torch.Tensor:
        file = places[called[name]]
        try:
            if file not in opened:
                opened[file] = safe_open(file, framework="pt")
            held = opened[file].get_slice(called[name])
            refuse_shape(file, name, held.get_shape(), shapes[name])
            values: torch.Tensor = held[part]
        except (OSError, SafetensorError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{file}: {name} cannot be read ({said}); copy or export the model again") from error
        return values

    return rows


def _places(path: str | Path) -> dict[str, Path] | None:
    """The file of each weight of a safetensors checkpoint; None where it is of another kind."""
    index = cached_file(str(path), SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        try:
            files: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            found = {name: cached_file(str(path), name) for name in set(files.values())}
        except (OSError, ValueError, KeyError) as error:  # a file that is missing, an index that is cut short
            said = str(error).splitlines()[0]
            raise UserError(f"{path}: its weights cannot be loaded ({said}); copy or export the model again") from error
        return {name: Path(str(found[file])) for name, file in files.items()}
    single = cached_file(str(path), SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is None:
        return None
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), Path(single))
    except SafetensorError as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{single}: it cannot be read ({said}); copy or export the model again") from error
