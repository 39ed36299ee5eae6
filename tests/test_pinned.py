from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from motet.model import pinned


class Runtime:
    """CUDA's, as far as it is asked."""

    def __init__(self, error: int = 0) -> None:
        self.error, self.calls = error, []  # type: ignore[var-annotated]

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls.append(("register", address, size))
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    found = Runtime()
    monkeypatch.setattr(pinned, "PIECE", 10_000)
    monkeypatch.setattr(pinned, "_runtime", lambda: found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: found.calls.append(("wait",)))
    return found


def test_each_piece_is_registered_and_its_pages_go_after_the_registration_has_ended(runtime: Runtime) -> None:
    pieces = pinned.pieces(11, on_gpu=True)
    addresses = [piece.data_ptr() for piece in pieces]
    assert len(set(addresses)) == 11 and all(piece.numel() == 10_000 for piece in pieces)
    assert sorted(runtime.calls) == sorted(("register", address, 10_000) for address in addresses)
    runtime.calls.clear()
    kept = pieces[3][5:9]  # a view holds its memory
    kept.fill_(7)
    del pieces
    assert ("unregister", addresses[3]) not in runtime.calls and kept.tolist() == [7] * 4
    assert runtime.calls.count(("wait",)) == 10
    del kept
    assert runtime.calls[-2:] == [("wait",), ("unregister", addresses[3])]


def test_where_registering_fails_it_is_torchs(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.error = 2
    empty: Any = torch.empty
    asked = []

    def allocated(*sizes: int, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*sizes, **more)

    monkeypatch.setattr(torch, "empty", allocated)
    (piece,) = pinned.pieces(1, on_gpu=True)
    assert asked == [True] and piece.numel() == 10_000
    del piece
    assert len(runtime.calls) == 1  # nothing was registered


def test_without_a_gpu_it_is_ordinary_memory(runtime: Runtime) -> None:
    assert [piece.numel() for piece in pinned.pieces(2, on_gpu=False)] == [10_000] * 2 and not runtime.calls


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
def test_a_gpu_copies_to_it_on_its_own_and_a_child_that_is_forked_does_not_have_it() -> None:
    (piece,) = pinned.pieces(1, on_gpu=True)
    assert piece.is_pinned()
    values = torch.arange(pinned.PIECE // 8, device="cuda").view(torch.uint8)
    child = os.fork()
    if not child:
        os._exit(0)
    piece.copy_(values, non_blocking=True)
    torch.cuda.synchronize()
    os.waitpid(child, 0)
    assert torch.equal(piece.cuda(), values)
    del piece
    torch.zeros(1, device="cuda").item()  # no error was left behind
