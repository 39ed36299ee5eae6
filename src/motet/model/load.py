"""Models are transformers models: loaded from a folder or hub id, or made tiny with random weights."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from motet.base.errors import UserError
from motet.base.places import check_folder
from motet.base.recipe import Model, TinyModel

# Head transformations that our own head does not do: refusing beats a silently different distribution.
_UNSUPPORTED_CONFIG = ("final_logit_softcapping", "logit_scale", "logits_scaling", "sliding_window")


def device_of(config: Model) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError('model.device = "cuda", but torch sees no GPU here; use "auto" or "cpu"')
    return torch.device(config.device)


def load_config(path: str | Path) -> Any:
    """The configuration of a causal LM that motet can train. Raises UserError for another one."""
    check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a model ({_first_line(path, error)})") from error
    for name in _UNSUPPORTED_CONFIG:
        value = getattr(config, name, None)
        if value not in (None, 1, 1.0) and not (name == "sliding_window" and not _uses_window(config)):
            raise UserError(f"{path}: the model has {name} = {value}, which motet does not support yet")
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if strange:  # their state would run on from one packed document into the next
        raise UserError(f"{path}: the model has layers of kind {sorted(strange)}, which motet does not support yet")
    return config


def load_model(path: str | Path, attention: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal LM in `dtype` on `device`, in evaluation mode. Raises UserError for a folder that holds none."""
    load_config(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path}: its weights cannot be loaded ({str(error).splitlines()[0]}); copy or export the model again"
        ) from error
    model, info = loaded
    # transformers fills what is missing, or of another shape, with random numbers
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{path}: weights are missing from it: {missing}; copy or export the model again")
    for name, held, wanted in sorted(info["mismatched_keys"]):
        refuse_shape(path, name, held, wanted)
    return model.to(device).eval()


def refuse_shape(path: str | Path, name: str, held: Sequence[int], wanted: Sequence[int]) -> None:
    """Raises UserError for a weight of another shape than the configuration says."""
    if tuple(held) != tuple(wanted):
        raise UserError(
            f"{path}: {name} is of shape {tuple(held)} there and {tuple(wanted)} by its config.json; the two are of "
            "different models: copy or export the model again"
        )


def _uses_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "use_sliding_window", True)) and (kinds is None or "sliding_attention" in kinds)


def load_tokenizer(path: str | Path) -> Any:
    check_folder(path)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer can be loaded from it ({_first_line(path, error)})") from error


def _first_line(path: str | Path, error: Exception) -> str:
    said = str(error).splitlines()[0]
    return said if Path(path).is_dir() else f"no such folder here, and as a hub id: {said}"


def make_tiny(config: TinyModel, tokenizer: Any, seed: int, folder: Path) -> None:
    """Writes a random Llama of the given shape, with its tokenizer, as a Hugging Face folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=config.mlp,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.05,
            )
        )
    export(model, tokenizer, folder)


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a Hugging Face folder, all or nothing."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    except Exception as error:  # what safetensors and tokenizers raise for a full disk is no OSError
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary)) from error
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
