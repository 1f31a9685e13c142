"""How fast something is, and how fast it could be: times, operations, and what the machine's products reach.

A time is the median over calls, measured until enough of them were made; products of two large square matrices give the
rate that arithmetic can reach at all (`matmul_rate`), so that a share of it says how far from the floor something is.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Timed", "copy_rate", "count_flops", "machine", "matmul_rate", "matmul_side", "timed"]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of a call, over `calls` of them."""

    median: float
    fastest: float
    calls: int


def timed(function: Callable[[], Any], *, seconds: float = 2.0, warm_up: int = 3, at_least: int = 5) -> Timed:
    """Call a function for some time.

    Args:
        function: What to time; on a GPU it is waited for.
        seconds: How long to call it, warm-up left out.
        warm_up: Calls before.
        at_least: Calls, however long they take.
    """
    for _ in range(warm_up):
        function()
    _wait()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < at_least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        function()
        _wait()
        taken.append(time.perf_counter() - start)
    taken.sort()
    return Timed(median=taken[len(taken) // 2], fastest=taken[0], calls=len(taken))


def count_flops(function: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and convolutions in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_side(device: torch.device | str) -> int:
    """Side of square matrices that are large enough to keep a device busy."""
    return 8192 if torch.device(device).type == "cuda" else 1024


def matmul_rate(device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a product of two large square matrices, the fastest of some."""
    side = matmul_side(device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, seconds=0.5).fastest


def copy_rate(device: torch.device | str = "cpu", *, megabytes: int = 256) -> float:
    """Bytes a second that memory moves, read and written, in a copy that is far larger than caches."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source), seconds=0.5).fastest


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What it was measured on."""
    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
