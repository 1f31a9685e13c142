"""Bits per dimension: what a density of images costs in the currency of codes, comparable between models.

An image of `D` whole numbers `k` in `0 .. levels - 1` becomes a point of the unit cube by *uniform dequantization*,
`x = (k + u) / levels` with `u ~ U[0, 1)^D`. A density `p` of the cube is then a model of the numbers themselves,

    P(k) = E_u[p((k + u) / levels)] levels^-D,

and, by Jensen's inequality, what is reported is an upper bound of its negative log-likelihood, in bits a number:

    bits = log2(levels) - E_u[log2 p((k + u) / levels)] / D  >=  -log2 P(k) / D.

With several draws of `u` the mean inside the logarithm gives a tighter bound, `-log2 P(k)` itself in the limit. A model
that knows nothing, `p = 1`, takes `log2(levels)` bits. These numbers leave the library from here only: an NLL of
noise-augmented or encoded images has another floor and must not stand beside them.

References:
    Theis, van den Oord, Bethge, 2015, "A note on the evaluation of generative models", arXiv 1511.01844, section 3.1.
    Burda, Grosse, Salakhutdinov, 2015, "Importance weighted autoencoders", arXiv 1509.00519 (the tighter bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Bits", "bits_per_dim", "dequantized", "dequantized_log_prob"]


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits per dimension of images under a density; smaller is better."""

    mean: float
    """Upper bound of the discrete model's negative log-likelihood, averaged over draws and images."""
    standard_error: float
    """Of `mean`, over images."""
    tighter: float
    """The same bound with all draws inside the logarithm; with one draw it is `mean`."""
    images: int
    """How many were measured."""
    draws: int
    """Dequantizations of each."""


def dequantized(
    images: Int[Tensor, "*image"], levels: int, *, generator: torch.Generator | None
) -> Float[Tensor, "*image"]:
    """`(k + u) / levels`, uniformly inside each number's own cell of the unit interval.

    Args:
        images: Whole numbers in `0 .. levels - 1`.
        levels: How many values a number can take.
        generator: Of `u`.

    Raises:
        TypeError: If images are not whole numbers.
        ValueError: If one is out of range.
    """
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise TypeError(f"images must hold whole numbers to be dequantized, got {images.dtype}")
    if images.numel() and (int(images.min()) < 0 or int(images.max()) >= levels):
        raise ValueError(
            f"images of {levels} levels hold 0 to {levels - 1}, got {int(images.min())} to {int(images.max())}"
        )
    dtype = torch.get_default_dtype()
    u = torch.rand(images.shape, generator=generator, dtype=dtype)
    # Rounding may carry a float32 sum to the next number; it belongs to this one.
    below = torch.nextafter((images + 1).to(dtype), torch.zeros((), dtype=dtype))
    return torch.minimum(images + u, below) / levels


def dequantized_log_prob(
    log_prob: Callable[[Float[Tensor, "batch *image"]], Float[Tensor, " batch"]],
    images: Int[Tensor, "image *shape"],
    levels: int,
    *,
    draws: int,
    generator: torch.Generator,
    batch_size: int = 256,
) -> Float[Tensor, "draw image"]:
    """Log-density of every image at several points of its cell, as `bits_per_dim` wants it.

    Args:
        log_prob: Log-density on the unit cube, in nats.
        images: Whole numbers in `0 .. levels - 1`.
        levels: How many values a number can take.
        draws: Points of each image.
        generator: Of the points; the same one gives every model the same points.
        batch_size: Images that are scored at once.
    """
    with torch.no_grad():
        rows = [
            torch.cat([log_prob(part) for part in dequantized(images, levels, generator=generator).split(batch_size)])
            for _ in range(draws)
        ]
    return torch.stack(rows)


def bits_per_dim(log_prob: Float[Tensor, "draw image"], dim: int, levels: int) -> Bits:
    """Bits per dimension from log-densities of dequantized images.

    Args:
        log_prob: `log p((k + u) / levels)` in nats, a row for each draw of `u`, a column for each image. The density
            is one of the unit cube: a flow that rescales it has to count that in.
        dim: Numbers in an image, `D`.
        levels: How many values a number can take.

    Returns:
        The bound, its standard error over images, and the tighter one.

    Raises:
        ValueError: If shapes or sizes do not fit, or a log-density is not a number.

    Example:
        >>> round(bits_per_dim(torch.zeros(1, 8), dim=64, levels=17).mean, 4)  # uniform: log2(17)
        4.0875
    """
    if log_prob.dim() != 2 or not log_prob.numel():
        raise ValueError(f"log_prob must have shape (draws, images), neither of them 0, got {tuple(log_prob.shape)}")
    if dim < 1 or levels < 2:
        raise ValueError(f"dim must be at least 1 and levels at least 2, got {dim} and {levels}")
    if log_prob.isnan().any():
        raise ValueError(f"log_prob must be numbers, got {int(log_prob.isnan().sum())} that are not")
    draws, images = log_prob.shape
    log_prob = log_prob.double()
    nats = dim * math.log(levels) - log_prob.mean(0)
    tighter = dim * math.log(levels) - (log_prob.logsumexp(0) - math.log(draws))
    bits = nats / (dim * math.log(2))
    return Bits(
        mean=float(bits.mean()),
        standard_error=float(bits.std()) / math.sqrt(images) if images > 1 else math.nan,
        tighter=float(tighter.mean()) / (dim * math.log(2)),
        images=images,
        draws=draws,
    )
