"""The operation `motet::attend`, on a CPU with its plain kernel; `bench/attention.py` holds a GPU's kernels to it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from motet.model import kernels, packed
from motet.model.kernels import Documents

WIDTH = 8


def inputs(lengths: list[int], key_heads: int = 2, heads: int = 4, width: int = WIDTH) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(lengths), count, width) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, dtype=torch.float64, generator=stream, requires_grad=True) for shape in shapes]


def one_by_one(tensors: list[torch.Tensor], lengths: list[int], scale: float) -> torch.Tensor:
    documents = zip(*(x.transpose(0, 1).split(lengths, 1) for x in tensors), strict=True)
    outs = [F.scaled_dot_product_attention(*d, is_causal=True, scale=scale, enable_gqa=True) for d in documents]
    return torch.cat(outs, 1).transpose(0, 1)


@pytest.mark.parametrize("kernel", ["plain", "by length"])
@pytest.mark.parametrize("lengths", [[7], [3, 9, 1, 1, 6], [8, 8, 2], [1]], ids=str)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_operation_is_attention_document_by_document_forward_and_backward(
    lengths: list[int], key_heads: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packed.KERNELS, "by length", packed.ByLength(packed.Plain(), packed.Plain(), 5))
    tensors, documents = inputs(lengths, key_heads), Documents.plan(lengths)
    expected = one_by_one(tensors, lengths, 0.3)
    found = packed.attend(*tensors, documents.starts, documents.starts_host, 0.3, kernel)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    for gradient, other in zip(torch.autograd.grad((found * weights).sum(), tensors), wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-12, rtol=0)


def test_heads_of_a_width_that_kernels_do_not_take_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels want multiples of 8: heads of 13 go in as heads of 16."""
    widths: list[int] = []

    class Recorder(packed.Plain):
        def forward(self, query: torch.Tensor, *others: Any) -> packed.Tensors:
            widths.append(query.shape[-1])
            return super().forward(query, *others)

    monkeypatch.setitem(packed.KERNELS, "recorder", Recorder())
    tensors, documents = inputs([3, 9], width=13), Documents.plan([3, 9])
    expected = one_by_one(tensors, [3, 9], 0.3)
    found = packed.attend(*tensors, documents.starts, documents.starts_host, 0.3, "recorder")
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    wanted = torch.autograd.grad(expected.square().sum(), tensors)
    for gradient, other in zip(torch.autograd.grad(found.square().sum(), tensors), wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-12, rtol=0)
    assert widths == [16]


def test_the_operation_is_one_that_compilation_and_checkpointing_can_trust() -> None:
    documents = Documents.plan([3, 4])
    arguments = (*inputs([3, 4]), documents.starts, documents.starts_host, 0.3, "plain")
    assert set(torch.library.opcheck(torch.ops.motet.attend.default, arguments).values()) == {"SUCCESS"}


def test_neighbours_of_one_kind_are_one_run() -> None:
    assert packed.runs([9, 8, 1, 2, 9], 8) == [(0, 2, True), (2, 4, False), (4, 5, True)]
    assert packed.runs([1], 8) == [(0, 1, False)]


def test_each_kernel_of_a_mixed_row_gets_its_own_documents_and_the_positions_where_they_start() -> None:
    seen: list[tuple[str, list[int], list[int]]] = []

    class Recorder(packed.Plain):
        def __init__(self, name: str) -> None:
            self.name = name

        def forward(
            self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: packed.Row
        ) -> packed.Tensors:
            assert query.shape[0] == row.bounds[-1]
            seen.append((self.name, row.bounds, row.starts.tolist()))
            return super().forward(query, key, value, row)

    kernel = packed.ByLength(Recorder("long"), Recorder("short"), 8)
    documents = Documents.plan([9, 2, 3, 8])
    with torch.no_grad():
        row = packed.Row(documents.starts, documents.starts_host.tolist(), 0.3)
        _, lse = kernel.forward(*inputs([9, 2, 3, 8]), row)
    assert seen == [("long", [0, 9], [0, 9]), ("short", [0, 2, 5], [0, 2, 5]), ("long", [0, 8], [0, 8])]
    assert lse.shape == (4 * 22,)


def test_lengths_for_cudnn_are_rounded_up_and_padded_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "STEP", 4)
    padded = packed._padded(torch.ones(6, 2, 3))
    assert padded.shape == (1, 2, 8, 3) and padded[0, 0, :, 0].tolist() == [1] * 6 + [0, 0]


@pytest.mark.parametrize(
    ("interface", "of_use", "words"),
    [
        (SimpleNamespace(_flash_attn_fwd=print, _flash_attn_bwd=print), True, ""),
        (SimpleNamespace(_flash_attn_fwd=print), False, "AttributeError: .* has no attribute '_flash_attn_bwd'"),
        (ImportError("cannot import name 'cpp'"), False, "of no use .ImportError: cannot import name 'cpp'"),
    ],
)
def test_a_flash_attention_that_cannot_be_imported_is_said_and_done_without(
    interface: Any, of_use: bool, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def imported(_: str) -> Any:
        if isinstance(interface, Exception):
            raise interface
        return interface

    monkeypatch.setattr(packed.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(packed.importlib, "import_module", imported)
    packed._flash4.cache_clear()
    packed._flash4_installed.cache_clear()
    assert packed._flash4_installed() is of_use
    assert re.search(words, caplog.text) and bool(caplog.text) == (not of_use)
    packed._flash4.cache_clear()
    packed._flash4_installed.cache_clear()


def test_the_kernel_in_use_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.describe("cpu", torch.bfloat16) == "SDPA over documents of like length (cpu, bfloat16)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with monkeypatch.context() as replaced:  # a bench's stand-in is a kernel of KERNELS without words of its own
        replaced.setattr(packed, "fastest", lambda device, width=128: "cudnn")
        assert kernels.describe("cuda", torch.bfloat16) == "cudnn"
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    for installed, words in ((True, "FlashAttention 4"), (False, "cuDNN for documents from 3072 tokens on")):
        monkeypatch.setattr(packed, "_flash4_installed", lambda there=installed: there)
        assert kernels.describe("cuda", torch.bfloat16).startswith(words)
    assert kernels.describe("cuda", torch.float32).startswith("SDPA over documents")
