"""torch's GPU allocator stood in for by a count of bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from motet.engine.lent_memory import SEGMENT, LentMemory


class Device:
    """`live` bytes of tensors among `reserved` ones, on a device of `size`."""

    def __init__(self, reserved: int, live: int, size: int) -> None:
        self.reserved, self.live, self.size = reserved, live, size
        self.peak = reserved
        """Of live tensors."""
        self.asked: list[int] = []

    def empty_cache(self) -> None:
        self.reserved = self.live

    def empty(self, count: int, dtype: torch.dtype, device: str) -> object:
        assert (dtype, device) == (torch.uint8, "cuda")
        if self.reserved + count > self.size:
            raise torch.OutOfMemoryError
        self.reserved += count
        self.asked.append(count)
        return object()


def put(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    for name, value in {"is_available": lambda: True, "memory_reserved": lambda: device.reserved,
                        "memory_allocated": lambda: device.live, "max_memory_allocated": lambda: device.peak,
                        "empty_cache": device.empty_cache}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    fake: Any = device.empty
    monkeypatch.setattr(torch, "empty", fake)
    return device


def test_what_was_given_in_two_calls_comes_back_in_whole_segments_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = put(Device(reserved=13 * SEGMENT, live=8 * SEGMENT, size=80 * SEGMENT), monkeypatch)
    memory = LentMemory()
    memory.give()
    device.reserved += SEGMENT // 2  # what loading has left behind
    memory.give()
    assert device.reserved == 8 * SEGMENT
    memory.take_back()
    assert device.asked == [SEGMENT] * 5
    memory.take_back()
    assert len(device.asked) == 5


def test_holes_are_not_taken_back_and_nothing_grows_from_turn_to_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    device = put(Device(reserved=13 * SEGMENT, live=8 * SEGMENT, size=80 * SEGMENT), monkeypatch)
    device.peak = 11 * SEGMENT  # a step had three segments in use
    memory = LentMemory()
    for _ in range(4):
        memory.give()
        memory.take_back()
        assert device.reserved == 11 * SEGMENT
        device.reserved += 2 * SEGMENT  # a tensor that found no place among what was taken back, and left one


def test_where_others_have_taken_the_memory_less_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = put(Device(reserved=13 * SEGMENT, live=8 * SEGMENT, size=80 * SEGMENT), monkeypatch)
    memory = LentMemory()
    memory.give()
    device.size = 10 * SEGMENT
    memory.take_back()
    assert device.asked == [SEGMENT] * 2


def test_without_a_gpu_nothing_happens() -> None:
    memory = LentMemory()
    memory.give()
    memory.take_back()
