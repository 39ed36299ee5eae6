"""The sizes of a recipe's model, without its weights: from its configuration, or from the recipe's own table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from motet.base.errors import UserError
from motet.base.recipe import Model, ModelSizes, TinyModel
from motet.model.blocks import blocks_of
from motet.model.footprint import Sizes
from motet.model.load import load_config

TINY_VOCABULARY = 100
"""A tiny model's tokenizer is made from the recipe's problems; this is about as large as it gets."""


def sizes_of(model: Model) -> Sizes:
    """Raises UserError where the model is not at hand and its sizes are not given."""
    table = _table(model)
    return from_table(table) if table is not None else from_config(_config(model))


def parameters_in_words(count: int) -> str:
    """ "56,640 parameters", "596 M parameters", "1.72 B parameters"."""
    if count < 1e6:
        return f"{count:,} parameters"
    return f"{count / 1e6:,.0f} M parameters" if count < 1e9 else f"{count / 1e9:.2f} B parameters"


def positions_of(model: Model) -> int | None:
    """The model's own number of positions, where it is known."""
    if model.tiny is not None:
        return model.tiny.context
    if _table(model) is not None:
        return None
    return getattr(_config(model), "max_position_embeddings", None)


def from_table(table: ModelSizes) -> Sizes:
    """Of a gated transformer with two norms a block and none for its heads."""
    D, Q, K = table.hidden, table.heads * table.head, table.key_heads * table.head
    return Sizes(
        table.layers, D, table.heads, table.key_heads, table.head, table.mlp, table.vocabulary, table.tied,
        head_norms=False, gated=True, block=D * (2 * Q + 2 * K + 3 * table.mlp + 2), rest=D,
    )  # fmt: skip


def from_config(config: Any) -> Sizes:
    """Of the model that transformers makes of it, without memory for its weights."""
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        made = build(config)
    return Sizes.of(made, blocks_of(made))


def tiny_config(tiny: TinyModel) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=TINY_VOCABULARY, hidden_size=tiny.hidden, intermediate_size=tiny.mlp, num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads, max_position_embeddings=tiny.context, tie_word_embeddings=True,
    )  # fmt: skip


def _table(model: Model) -> ModelSizes | None:
    """Where the model itself is not here."""
    return model.sizes if model.path is not None and not Path(model.path).is_dir() else None


def _config(model: Model) -> Any:
    if model.tiny is not None:
        return tiny_config(model.tiny)
    assert model.path is not None
    try:
        return load_config(model.path)
    except UserError as error:
        raise UserError(f"{error}. To plan without the model, give model.sizes (motet explain sizes).") from None
