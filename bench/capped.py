"""A larger GPU measured as one of an H100's size: `--cap 80` holds each process of a bench to 80 x 10^9 bytes.

The parent notes it in its environment, which the processes that it starts inherit; each of them calls `hold`.
"""

from __future__ import annotations

import argparse
import os

VARIABLE = "MOTET_BENCH_CAP"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cap", type=float, default=0.0, help="10^9 bytes of the GPU at most; 0: all of it")


def note(gigabytes: float) -> dict[str, float]:
    """For this process and those that it starts. Returns what a report says of it."""
    if gigabytes:
        os.environ[VARIABLE] = str(gigabytes)
    return noted()


def noted() -> dict[str, float]:
    return {"cap_gigabytes": float(os.environ[VARIABLE])} if VARIABLE in os.environ else {}


def hold() -> None:
    """What torch's allocator may take of this process's first GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share(), 0)


def share() -> float:
    """Of this process's first GPU, from 0 to 1."""
    import torch

    if VARIABLE not in os.environ or not torch.cuda.is_available():
        return 1.0
    return min(1.0, float(os.environ[VARIABLE]) * 1e9 / torch.cuda.get_device_properties(0).total_memory)
