"""A Qwen3 model with random weights, for benchmarks in which what is said does not matter, and prompts for it.

Its tokenizer has a word for every row of the vocabulary ("t0", "t1", ...), so whatever is sampled can be decoded.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SHAPES: dict[str, dict[str, int]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 512},
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> {% endif %}"
)


def make(folder: Path, shape: str, device: str) -> Path:
    """Writes the model once, in bfloat16 on a GPU and float32 on a CPU, with a tied head."""
    if (folder / "config.json").exists():
        return folder
    config = Qwen3Config(
        **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=0.04,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder)
    tokenizer(SHAPES[shape]["vocab_size"]).save_pretrained(folder)
    return folder


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    words = {"<|im_start|>": 0, "<|im_end|>": 1, **{f"t{i}": i for i in range(2, size)}}
    made = Tokenizer(WordLevel(words, unk_token="t2"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|im_start|>", eos_token="<|im_end|>", unk_token="t2", chat_template=TEMPLATE
    )


def prompts(count: int, length: int, vocabulary: int, copies: int = 1) -> list[list[int]]:
    """`count` lists of token ids, each of them `copies` times in a row."""
    draw = random.Random(0)
    distinct = [[draw.randrange(2, vocabulary) for _ in range(length)] for _ in range(count // copies)]
    return [prompt for prompt in distinct for _ in range(copies)]


if __name__ == "__main__":
    if len(sys.argv) < 3 or {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    make(Path(sys.argv[1]), sys.argv[2], "cuda" if torch.cuda.is_available() else "cpu")
