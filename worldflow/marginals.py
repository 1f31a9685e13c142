"""Every pixel's own distribution, made normal: an exact map for a flow to start from.

A dequantized number `x = (k + u) / levels` of a pixel with level probabilities `m_0 .. m_{levels-1}` has the
distribution function `F(x) = m_0 + .. + m_{k-1} + u m_k`, linear inside a level's cell, and

    t = Phi^-1(F(x)),   log|dt/dx| = log m_k + log(levels) - log N(t; 0, 1)

is standard normal, pixel by pixel. The density of the cube in which all pixels are independent is then that of `t`
under `N(0, I)`; what a flow of `t` gains is what pixels tell about each other. Without this map a flow spends most of
what it can learn on the steep edges that dequantization leaves at every level, above all at pixels that are always 0.

Probabilities are counted, with a pseudo-count for levels that were never seen, so the density is positive everywhere.

Reference: Chen and Gopinath, 2000, "Gaussianization", NeurIPS 13 (one marginal step of it, fitted by counting).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Marginals"]

EDGE = 1e-9
"""How near to 0 and 1 `F` may come: nearer than the float32 numbers that are drawn, but for 0 itself."""


class Marginals(nn.Module):
    """See the module; a network without parameters, whose counts are saved with the weights around it.

    Args:
        pixels: Numbers in an image.
        levels: How many values a number can take.
    """

    def __init__(self, pixels: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("mass", torch.full((pixels, levels), 1 / levels, dtype=torch.float64))
        self.mass: Tensor

    def count(self, images: Int[Tensor, "image pixel"], *, pseudo_count: float = 1.0) -> None:
        """Take the level probabilities from images.

        Args:
            images: Whole numbers in `0 .. levels - 1`.
            pseudo_count: How often every level of every pixel counts as seen beforehand.

        Raises:
            ValueError: If shapes or numbers do not fit.
        """
        if images.dim() != 2 or images.shape[1] != len(self.mass):
            raise ValueError(f"images must have shape (image, {len(self.mass)}), got {tuple(images.shape)}")
        if pseudo_count <= 0:
            raise ValueError(f"pseudo_count must be above 0, or some images have no density, got {pseudo_count}")
        counts = torch.zeros_like(self.mass).scatter_add_(1, images.long().T, torch.ones_like(images.T).double())
        self.mass.copy_((counts + pseudo_count) / (len(images) + pseudo_count * self.levels))

    def forward(self, x: Float[Tensor, "batch pixel"]) -> tuple[Float[Tensor, "batch pixel"], Float[Tensor, " batch"]]:
        """`t`, and `log|dt/dx|` of whole images in nats, for points of the unit cube."""
        scaled = x.double() * self.levels
        k = scaled.floor().clamp(0, self.levels - 1)
        pixel, level = torch.arange(len(self.mass), device=x.device), k.long()
        mass, below = self.mass.double(), self._below()
        share = (below[pixel, level] + mass[pixel, level] * (scaled - k)).clamp(EDGE, 1 - EDGE)
        t = torch.special.ndtri(share)
        log_normal = -0.5 * (t.square() + math.log(2 * math.pi))
        log_det = (mass[pixel, level].log() + math.log(self.levels) - log_normal).sum(-1)
        return t.to(x.dtype), log_det.to(x.dtype)

    def inverse(self, t: Float[Tensor, "batch pixel"]) -> Float[Tensor, "batch pixel"]:
        """The points that `forward` maps to `t`."""
        share = torch.special.ndtr(t.double()).T.contiguous()
        mass, below = self.mass.double(), self._below()
        level = (torch.searchsorted(below, share, right=True) - 1).clamp(0, self.levels - 1)
        inside = ((share - below.gather(1, level)) / mass.gather(1, level)).clamp(0, 1)
        return ((level + inside) / self.levels).T.to(t.dtype)

    def _below(self) -> Tensor:
        mass = self.mass.double()
        return torch.cat((torch.zeros_like(mass[:, :1]), mass.cumsum(1)[:, :-1]), dim=1)
