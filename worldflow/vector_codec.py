"""Vectors to tokens and back: every number standardized, nothing lost.

    x = (o - mean) / std,   o = mean + std x,   log|dx/do| = -sum ln std

`mean` and `std` are those of the training episodes. A number that never changed there has no deviation to divide by: it
keeps its unit (`std = 1`), so its code is zero wherever it is what it always was. The code is a closed form with a
closed inverse, so it needs no training, and the density of noisy codes is one of noisy observations: `o + noise_std std
eps` has the log-density of its code, in nats, plus `log_det`, in nats per unit of each number.

A token holds `latent_dim` numbers in their recorded order. It must divide their count: there is no padding, which would
count in the likelihood.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldflow.codec import Codec, CodecConfig
from worldflow.frames import Frames

if TYPE_CHECKING:
    from jaxtyping import Float

    from worldflow.data import Dataset

__all__ = ["VectorCodec", "vector_statistics"]

LEAST_SHARE = 1e-6
"""A number that deviates from its mean by less than this share of it, or of 1, is taken for a constant: float32 has no
digits for what is left."""


class VectorCodec(Codec):
    """Standardized numbers of a vector, side by side.

    Args:
        config: Sizes; `kind` is "vector".
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.frame_shape))
        self.register_buffer("std", torch.ones(config.frame_shape))
        self.mean: Tensor
        self.std: Tensor

    def set_statistics(self, mean: Float[Tensor, " number"], std: Float[Tensor, " number"]) -> None:
        """Fix what codes are measured by.

        Args:
            mean: Of each number.
            std: Its standard deviation, zero where it never changed.

        Raises:
            ValueError: If there is not one finite number of each kind for each number of a vector.
        """
        for name, values in (("mean", mean), ("std", std)):
            if tuple(values.shape) != self.config.frame_shape or not values.isfinite().all():
                raise ValueError(
                    f"{name} must be {self.config.frame_shape[0]} finite numbers, got {values.dtype} of shape "
                    f"{tuple(values.shape)}; take them over finite observations"
                )
        is_constant = std <= LEAST_SHARE * mean.abs().clamp(min=1)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(is_constant, 1.0, std))

    @property
    def log_det(self) -> float:
        """`log|dx/do|` in nats: what a log-density of codes lacks to one of observations in their own units."""
        return -float(self.std.double().log().sum())

    def from_frames(self, frames: Tensor) -> Tensor:  # noqa: D102
        if not frames.is_floating_point():
            raise TypeError(f"vectors must be floating, got {frames.dtype}; cast them to float32")
        return frames.to(self.mean.dtype)

    def to_frames(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return pixels.float()

    def encode_pixels(self, pixels: Float[Tensor, "frame number"]) -> Float[Tensor, "frame token latent"]:
        """The code of vectors."""
        return ((pixels - self.mean) / self.std).unflatten(-1, (-1, self.config.latent_dim))

    def decode_pixels(self, x: Float[Tensor, "frame token latent"]) -> Float[Tensor, "frame number"]:
        """Vectors of a code."""
        return self.mean + self.std * x.flatten(-2).to(self.mean.dtype)

    def decoded_parts(  # noqa: D102
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> Iterator[Float[Tensor, "frame number"]]:
        yield from map(self.decode_pixels, x.reshape(-1, *x.shape[-2:]).split(chunk))

    def shown(  # noqa: D102
        self, x: Float[Tensor, "batch token latent"]
    ) -> tuple[Float[Tensor, "batch number"], Float[Tensor, "batch token latent"]]:
        numbers = self.decode_pixels(x)
        return self.to_frames(numbers.detach()), self.encode_pixels(numbers)

    def _pad(self, pixels: Tensor) -> Tensor:
        return pixels


def vector_statistics(dataset: Dataset) -> tuple[Float[Tensor, " number"], Float[Tensor, " number"]]:
    """Mean and standard deviation of every number of a data set's training observations, read an episode at a time.

    Where vectors stand beside a picture, they are taken one behind the other, in the order of their names.
    """
    spec = dataset.spec
    size = spec.frame_shape[0] if spec.parts is None else spec.parts.vector_dim
    count, mean, squares = 0, torch.zeros(size, dtype=torch.float64), 0.0
    for number in dataset.episodes("train").tolist():
        seen = dataset.frames(number, 0, int(dataset.lengths[number]) + 1)
        frames = torch.from_numpy(seen.vector if isinstance(seen, Frames) else seen).double()
        own, n = frames.mean(0), len(frames)
        # Two groups joined (Chan et al., 1979): sums of squares would lose what varies little far from zero.
        squares = squares + (frames - own).square().sum(0) + (own - mean).square() * (count * n / (count + n))
        mean, count = mean + (own - mean) * (n / (count + n)), count + n
    return mean, torch.as_tensor(squares / count).sqrt()
