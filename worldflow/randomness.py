"""Random numbers that a caller can own: one generator for a batch, or one for each of its rows.

With a generator a row, a row's numbers depend on nothing but its own generator: the same seed gives the same
trajectory in a batch of any size. Numbers are drawn on the generator's device and moved, so a CPU generator gives the
same numbers to a model on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldflow.types import Generators

__all__ = ["normal", "uniform"]


def normal(
    shape: tuple[int, ...],
    generator: Generators,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers, float32 ones cast to `dtype`; the first axis of `shape` is the batch."""
    return _draw(torch.randn, shape, generator, device=device, dtype=dtype)


def uniform(
    shape: tuple[int, ...],
    generator: Generators,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1); the first axis of `shape` is the batch."""
    return _draw(torch.rand, shape, generator, device=device, dtype=dtype)


def _draw(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: Generators,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"expected one generator or {shape[0]}, one per row of the batch, got {len(generator)}")
        rows = [function(shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generator]
        if len({row.device for row in rows}) > 1:
            rows = [row.to(device) for row in rows]
        drawn = torch.stack(rows).to(device)  # moved as one: a thousand small copies to a GPU cost more than a step
    else:
        source = "cpu" if generator is None else generator.device
        drawn = function(shape, generator=generator, device=source, dtype=torch.float32).to(device)
    return drawn.to(dtype)
