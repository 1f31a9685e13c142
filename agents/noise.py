"""Colored noise: normal numbers that stay a while, so that candidate actions push on instead of trembling.

The power of a sequence at frequency `f` is proportional to `f^-exponent`: 0 is white noise, in which all times are
independent, 1 pink, 2 a random walk's. Each number by itself is standard normal, whatever the exponent.

Reference:
    Timmer and Koenig 1995, "On generating power law noise"; for planning: Pinneri et al. 2020 (iCEM), arXiv 2008.06389,
    section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worldflow.randomness import normal
from worldflow.types import Generators

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

__all__ = ["colored_normal"]


def colored_normal(
    shape: tuple[int, int, int, int], exponent: float, generator: Generators
) -> Float64[Tensor, "batch candidate time component"]:
    """Draw standard normal numbers that are correlated over time.

    A sum of waves `k = 0 .. T` over twice the length, of which the first half is kept: the whole is periodic, and its
    last numbers are followed by the first ones. With `w_k = max(k, 1)^-exponent`, halved for the first and the last,
    which have no sine,

        x_t = sum_k sqrt(w_k / sum w) (a_k cos(pi k t / T) + b_k sin(pi k t / T)),   a_k, b_k ~ N(0, 1)

    and numbers `d` steps apart have the correlation `sum_k w_k cos(pi k d / T) / sum w`.

    Args:
        shape: `(batch, candidate, time, component)`.
        exponent: Of the power spectrum.
        generator: One for all, or one per row of the batch.
    """
    if exponent == 0:
        return normal(shape, generator, dtype=torch.float64)
    B, N, T, A = shape
    wave = torch.arange(T + 1, dtype=torch.float64)
    power = wave.clamp(min=1) ** -exponent
    power[0], power[-1] = power[0] / 2, power[-1] / 2
    angle = torch.pi / T * wave[:T, None] * wave
    waves = torch.cat((angle.cos(), angle.sin()), dim=1) * (power / power.sum()).sqrt().repeat(2)
    return waves @ normal((B, N, 2 * (T + 1), A), generator, dtype=torch.float64)
