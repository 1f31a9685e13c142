"""Tokens of a vector that stands beside a picture: behind those of the picture's grid, the last one filled up.

A token has as many channels as the picture's have, so that `ceil(vector_dim / latent_dim)` of them hold the vector.
What fills the last one up is zero and stays zero: every block maps it by `mu = 0, sigma = 1`, nothing is added to it,
and its share of the base density is left out. So the density is one of the real numbers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

__all__ = ["num_vector_tokens", "real_numbers"]


def num_vector_tokens(vector_dim: int, latent_dim: int) -> int:
    """Tokens of `latent_dim` channels that hold a vector of `vector_dim` numbers."""
    return -(-vector_dim // latent_dim)


def real_numbers(grid: tuple[int, int], latent_dim: int, vector_dim: int) -> Bool[Tensor, "token latent"] | None:
    """Which numbers of a frame's tokens are part of it, and do not only fill up the last token.

    Args:
        grid: Rows and columns of the picture's tokens.
        latent_dim: Channels of a token.
        vector_dim: Numbers of the vector beside the picture.

    Returns:
        None where all of them are.
    """
    if vector_dim % latent_dim == 0:
        return None
    tokens = grid[0] * grid[1] + num_vector_tokens(vector_dim, latent_dim)
    is_real = torch.arange(tokens * latent_dim, device="cpu") < grid[0] * grid[1] * latent_dim + vector_dim
    return is_real.reshape(tokens, latent_dim)
