"""What a likelihood of latents says about pixels: a bound, and never more.

The flow's density is exact, but of noisy codes `x~`, whose scale is the codec's own. About the recorded `uint8` pixels
`o` only a bound follows from it,

    log P(o_t | o_<t, a) >= E_q [ log P(o_t | x~_t) + log p(x~_t | x~_<t, a) - log q(x~_t | o_t) ]

with `q = N(encode(o), noise_std^2)`, as training draws it (its last term is a constant), and `P(o | x~)` a Gaussian
around the decoded frame, of one standard deviation for all pixels, integrated over each gray level. It is what worlds
of different codecs can be compared by; `above_floor` and `log_prob` of one codec say nothing beside those of another.

    exact          log p(x~_t | x~_<t, a), nats: `WorldModel.log_prob`, of this codec's noisy codes
    a convention   the same, negative, per dimension, less what the noise alone costs: `WorldModel.above_floor`
    a bound        log P of pixels: `elbo`; in bits per pixel and channel `-elbo / (num ln 2)`, from above

Reference: SimFlow, 2025, arXiv 2512.04084: an encoder of fixed width in place of a learned one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldflow.codec import Codec
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Shaped, UInt8

__all__ = ["LEAST_STD", "Elbo", "elbo", "log_mass", "noise_entropy", "pixel_log_prob", "pixel_std"]

LEAST_STD = 0.2
"""Gray levels below which a Gaussian is narrower than a level can tell."""


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """A lower bound of each frame's log-probability in nats, and its parts, `(batch, time)`.

    Args:
        pixels: `E log P(o | x~)`.
        latents: `E log p(x~ | past)`.
        entropy: `-E log q`, the same for every frame.
        num_values: Pixels times channels of a frame.
        pixel_std: Gray levels that decoded frames were taken to be off by.
    """

    pixels: Float[Tensor, "batch time"]
    latents: Float[Tensor, "batch time"]
    entropy: float
    num_values: int
    pixel_std: float

    @property
    def total(self) -> Float[Tensor, "batch time"]:
        """The bound, in nats."""
        return self.pixels + self.latents + self.entropy

    @property
    def bits_per_dim(self) -> Float[Tensor, "batch time"]:
        """The bound as bits per pixel and channel: the frame's own cannot be more."""
        return -self.total / (self.num_values * math.log(2))


@torch.no_grad()
def pixel_std(
    world: WorldModel, frames: UInt8[Tensor, "*batch row column channel"], *, generator: torch.Generator | None = None
) -> float:
    """By how many gray levels frames are off once they went through the noisy code: the `std` that suits them best.

    Args:
        world: The world.
        frames: Frames; not those that are to be compared, but others like them.
        generator: Draws the codes' noise.
    """
    flat = torch.as_tensor(frames).reshape(-1, *world.config.data.image_shape)
    x = world.with_noise(world.codes(flat)[None], generator=generator)[0]
    off = _decoded(world, x) - _levels(world, flat)
    return max(float(off.square().mean().sqrt()), LEAST_STD)


@torch.no_grad()
def elbo(
    world: WorldModel,
    frames: UInt8[Tensor, "batch time+1 row column channel"],
    actions: Shaped[Tensor | np.ndarray, "batch time *action"],
    *,
    std: float | None = None,
    draws: int = 4,
    text: Float[Tensor, "batch word text"] | None = None,
    generator: torch.Generator | None = None,
) -> Elbo:
    """Bound the log-probability of recorded pixels, each frame given the ones before it.

    Args:
        world: The world.
        frames: Recorded frames; the first one is given, and bounded is every later one.
        actions: Recorded actions.
        std: Gray levels that decoded frames are taken to be off by; by default `pixel_std` of the pasts that are stored
            with the world.
        draws: Draws of the codes' noise to average over.
        text: Embedded texts, for a world that reads some; None for the empty text.
        generator: Draws the noise.

    Raises:
        ValueError: If shapes do not fit, `std` or `draws` is not above 0, or `std` is not given and the world stores no
            pasts.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    num_values = math.prod(world.config.data.image_shape)  # says so, where there are no pictures alone
    if std is None:
        if world.contexts is None:
            raise ValueError("this world stores no pasts to tell std by: give std, see worldflow.elbo.pixel_std")
        std = pixel_std(world, world.contexts.frames, generator=torch.Generator().manual_seed(0))
    if not std > 0:
        raise ValueError(f"std must be above 0 gray levels, got {std}")
    frames, actions = torch.as_tensor(frames), torch.as_tensor(actions)
    codes = world.codes(frames)
    shown = frames[:, 1:].flatten(0, 1)
    pixels, latents = 0.0, 0.0
    for _ in range(draws):
        x = world.with_noise(codes, generator=generator)
        latents = latents + world.log_prob_latents(x, actions, codes=codes, text=text).frame
        pixels = pixels + pixel_log_prob(world, shown, x[:, 1:].flatten(0, 1), std=std).unflatten(0, latents.shape)
    assert isinstance(pixels, Tensor) and isinstance(latents, Tensor)
    return Elbo(
        pixels=pixels / draws,
        latents=latents / draws,
        entropy=noise_entropy(world),
        num_values=num_values,
        pixel_std=std,
    )


@torch.no_grad()
def pixel_log_prob(
    world: WorldModel,
    frames: UInt8[Tensor, "frame row column channel"],
    x: Float[Tensor, "frame token latent"],
    *,
    std: float,
) -> Float[Tensor, " frame"]:
    """`log P(o | x~)` of frames given their noisy codes, in nats.

    Args:
        world: The world.
        frames: Recorded frames.
        x: Their noisy codes.
        std: Gray levels that decoded frames are taken to be off by.
    """
    return log_mass(_levels(world, frames), _decoded(world, x), std).sum((-3, -2, -1))


def noise_entropy(world: WorldModel) -> float:
    """Entropy of a frame's noise in nats, `-E log q`: what the bound gets back for it."""
    return world.config.flow.frame_dim * world.noise_floor


def _levels(world: WorldModel, frames: Tensor) -> Float[Tensor, "frame channel row column"]:
    """Gray levels as floats, in the order in which frames are decoded."""
    return frames.to(world.device).movedim(-1, -3).to(torch.get_default_dtype())


def _decoded(world: WorldModel, x: Float[Tensor, "frame token latent"], *, chunk: int = 256) -> Tensor:
    """Decoded frames in gray levels, neither rounded nor clipped."""
    assert isinstance(world.codec, Codec)
    return 127.5 * (torch.cat(list(world.codec.decoded_parts(x, chunk=chunk))) + 1)


def log_mass(
    levels: Float[Tensor, "*batch"], mean: Float[Tensor, "*batch"], std: float | Tensor, *, num_levels: int = 256
) -> Float[Tensor, "*batch"]:
    """`log` of what a Gaussian puts on each gray level; the first and the last have all that lies beyond.

    A difference of two tails, taken on the side where both are small, so that nothing cancels.

    Args:
        levels: Whole numbers in `0 .. num_levels - 1`, as floats.
        mean: Of the Gaussians, in levels.
        std: Their standard deviation, in levels.
        num_levels: How many levels there are.
    """
    center = (levels - mean).double()
    low, high = (center - 0.5) / std, (center + 0.5) / std
    low = torch.where(levels < 0.5, -torch.inf, low)
    high = torch.where(levels > num_levels - 1.5, torch.inf, high)
    is_right = center > 0  # far out on the right: use the mirrored tails
    below, above = torch.where(is_right, -high, low), torch.where(is_right, -low, high)
    log_above, log_below = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    return (log_above + torch.log1p(-(log_below - log_above).exp().clamp(max=1 - 1e-15))).to(mean.dtype)
