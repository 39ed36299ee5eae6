"""Low-rank adapters by peft: W + alpha / rank x B A, where only A and B are trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from motet.base.errors import UserError, how_to_install
from motet.base.recipe import Lora
from motet.base.records import seed_of

_ADAPTER = "default"


def inject(model: Any, config: Lora, seed: int) -> dict[str, torch.Tensor]:
    """Puts adapters into the model's linear layers and freezes the rest. Returns the adapters' first values by name,
    the same in every process: A uniform within +-1/sqrt(inputs), B zero."""
    peft_config = _peft_config(config)
    from peft import inject_adapter_in_model

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    on_meta = next(model.parameters()).is_meta
    try:
        inject_adapter_in_model(peft_config, model, adapter_name=_ADAPTER, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"lora.targets = {config.targets}: no such layers; the model has {', '.join(linear)}"
        ) from error
    values: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                generator = torch.Generator().manual_seed(seed_of(seed, name) % 2**63)
                first.uniform_(-1.0, 1.0, generator=generator).div_(math.sqrt(parameter.shape[1]))
            values[name] = first
            if not on_meta:
                parameter.data.copy_(first)
    return values


def merged(model: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's own weights, adapters added, from its weights and adapters in the order of `named_parameters`."""
    waiting: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        layer, _, rest = name.partition(".base_layer.")
        if rest == "weight":  # its adapter's A and B come next
            waiting = {"base": tensor}
        elif rest:
            yield f"{layer}.{rest}", tensor
        elif f".lora_A.{_ADAPTER}." in name:
            waiting["A"] = tensor
        elif f".lora_B.{_ADAPTER}." in name:
            layer = name.partition(".lora_B.")[0]
            scaling = model.get_submodule(layer).scaling[_ADAPTER]
            base = waiting.pop("base")
            added = base.float() + scaling * (tensor.float() @ waiting.pop("A").float())
            yield f"{layer}.weight", added.to(base.dtype)
        else:
            yield name, tensor


def save_adapter(folder: Path, config: Lora, base: str, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained(base_model, folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": t.contiguous() for name, t in tensors.items()}
    save_file(names, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = _peft_config(config)
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    described = settings.to_dict()
    described["target_modules"] = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    text = json.dumps(described, indent=1, default=_plain, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _peft_config(config: Lora) -> Any:
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError(f"lora: adapters need the package peft; {how_to_install('lora')}") from None
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": targets}
    return LoraConfig(task_type="CAUSAL_LM", **settings)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
