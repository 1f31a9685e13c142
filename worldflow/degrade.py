"""Frames as a middling world imagines them: a little blurred, a little noisy.

What is fitted on sharp recorded frames alone may read nonsense from frames that any person would call the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["degraded"]

NOISE_STD = 0.09
"""Most of the noise, in units of [-1, 1] frames: 27 dB."""
BLOB = 4
"""Pixels on a side of a blob of noise."""


def degraded(
    pixels: Float[Tensor, "clip time channel row column"], *, generator: torch.Generator
) -> Float[Tensor, "clip time channel row column"]:
    """Blur the first half of the clips and add noise, each to its own degree, and leave the others as they are.

    A clip is blurred alike in all its frames, by at most 0.7 pixels' standard deviation. Its noise, of at most
    `NOISE_STD`, is white and in blobs, and new in every frame, so that it never follows the motion.

    Args:
        pixels: Float frames in [-1, 1]; the result may leave that range.
        generator: Where randomness comes from, on the CPU.
    """
    num, times, channels, rows, columns = len(pixels) // 2, *pixels.shape[1:]
    if num == 0:
        return pixels
    x = pixels[:num].flatten(0, 1)
    degree = torch.rand(2, num, 1, generator=generator).expand(-1, -1, times).reshape(2, -1, 1, 1, 1).to(x)
    # Twice the mean of 2 x 2 pixels is the 3 x 3 binomial mean, of variance 1/2 along each axis.
    mean = F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, stride=1), 2, stride=1)
    white = torch.randn(x.shape, generator=generator).to(x)
    blobs = torch.randn(len(x), channels, -(-rows // BLOB), -(-columns // BLOB), generator=generator).to(x)
    noise = 0.6 * white + 0.8 * F.interpolate(blobs, size=(rows, columns), mode="bilinear")
    x = x + degree[0] * (mean - x) + NOISE_STD * degree[1] * noise
    return torch.cat((x.reshape(num, *pixels.shape[1:]), pixels[num:]))
