"""Frames to latent grids and back: `PatchCodec` keeps every pixel, `LatentCodec` learns a short code.

The flow models `x~ = x + noise_std * eps` of the code `x`. `LatentCodec` is an autoencoder made for that: its code is
normalized to unit variance, the noise has a fixed standard deviation (SimFlow, arXiv 2512.04084: a posterior of fixed
width instead of a KL term), and its decoder is trained on noisy codes only, so decoding a sample of the flow removes
the flow's noise. The reconstruction error weighs a pixel by how far it lies from the mean frame: small moving things
matter, and the static background is added to the decoder's output rather than learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

__all__ = ["Codec", "CodecConfig", "LatentCodec", "PatchCodec", "build_codec", "to_float", "to_uint8"]


def to_float(frames: UInt8[Tensor, "*batch row column channel"]) -> Float[Tensor, "*batch channel row column"]:
    """`uint8` pixels to [-1, 1], channels first."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}; scale float frames to 0..255 and cast them")
    return frames.movedim(-1, -3).to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(pixels: Float[Tensor, "*batch channel row column"]) -> UInt8[Tensor, "*batch row column channel"]:
    """[-1, 1], channels first, to `uint8`, rounded and clipped."""
    return ((pixels.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec, saved with its weights."""

    kind: Literal["latent", "patch"] = "latent"
    """`latent`: a learned code; `patch`: the pixels themselves."""
    frame_shape: tuple[int, int, int] = (64, 64, 3)
    """Row, column, channel."""
    patch_size: int = 16
    """Pixels on a side of a token's cell."""
    latent_dim: int = 16
    """Channels of a token of the learned code."""
    width: int = 128
    """Channels inside the learned code's networks."""
    blocks: int = 2
    """Residual blocks of the encoder; the decoder has one more."""
    noise_std: float = 0.3
    """Standard deviation of the noise added to the code; the learned code has unit variance, pixels span [-1, 1]."""

    def __post_init__(self) -> None:
        if self.kind not in ("latent", "patch"):
            raise ValueError(f"codec kind must be 'latent' or 'patch', got {self.kind!r}")
        if self.patch_size < 2 or self.patch_size % 2:
            raise ValueError(f"patch_size must be even and at least 2, got {self.patch_size}")
        if not self.noise_std > 0:
            raise ValueError(f"noise_std must be above 0 for the density to exist, got {self.noise_std}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens; a frame that is no whole number of cells is padded."""
        rows, columns, _ = self.frame_shape
        return -(-rows // self.patch_size), -(-columns // self.patch_size)

    @property
    def token_dim(self) -> int:
        """Channels of a token."""
        return self.latent_dim if self.kind == "latent" else self.patch_size**2 * self.frame_shape[2]


class Codec(nn.Module, ABC):
    """What both codecs share: shapes, padding to whole cells, and the boundary between `uint8` and floats.

    Args:
        config: Sizes.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config

    def encode(
        self, frames: UInt8[Tensor, "*batch row column channel"], *, chunk: int = 256
    ) -> Float[Tensor, "*batch token latent"]:
        """The clean code `x` of frames, `chunk` frames at a time.

        Raises:
            ValueError: If the frames have another size than the codec was made for.
            TypeError: If they are not `uint8`.
        """
        if tuple(frames.shape[-3:]) != self.config.frame_shape:
            expected = ", ".join(map(str, self.config.frame_shape))
            raise ValueError(f"frames must have shape (..., {expected}), got {tuple(frames.shape)}")
        flat = frames.reshape(-1, *frames.shape[-3:])
        codes = [self.encode_pixels(self._pad(to_float(part))) for part in flat.split(chunk)]
        return torch.cat(codes).reshape(*frames.shape[:-3], *codes[0].shape[1:])

    def decode(
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> UInt8[Tensor, "*batch row column channel"]:
        """Frames of codes, clean or noisy, `chunk` frames at a time."""
        flat = x.reshape(-1, *x.shape[-2:])
        rows, columns, _ = self.config.frame_shape
        frames = [to_uint8(self.decode_pixels(part)[..., :rows, :columns]) for part in flat.split(chunk)]
        return torch.cat(frames).reshape(*x.shape[:-2], *frames[0].shape[1:])

    @abstractmethod
    def encode_pixels(self, pixels: Float[Tensor, "frame channel row column"]) -> Float[Tensor, "frame token latent"]:
        """The code of padded float frames."""

    @abstractmethod
    def decode_pixels(self, x: Float[Tensor, "frame token latent"]) -> Float[Tensor, "frame channel row column"]:
        """Padded float frames of a code."""

    def _pad(self, pixels: Tensor) -> Tensor:
        rows, columns = (cells * self.config.patch_size for cells in self.config.grid)
        below, right = rows - pixels.shape[-2], columns - pixels.shape[-1]
        return F.pad(pixels, (0, right, 0, below), mode="replicate") if below or right else pixels


class PatchCodec(Codec):
    """Pixels as they are: a token is a patch, its channels ordered (row, column, channel). Lossless."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:  # noqa: D102
        p = self.config.patch_size
        return rearrange(pixels, "f c (h p) (w q) -> f (h w) (p q c)", p=p, q=p)

    def decode_pixels(self, x: Tensor) -> Tensor:  # noqa: D102
        p, (h, w) = self.config.patch_size, self.config.grid
        return rearrange(x, "f (h w) (p q c) -> f c (h p) (w q)", h=h, w=w, p=p, q=p)


def _zero(layer: nn.Conv2d) -> None:
    """Let the layer give nothing, to begin with."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            last,
        )
        _zero(last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LatentCodec(Codec):
    """Convolutional autoencoder with a unit-variance code and a decoder that removes noise.

    Most of its work is done on a grid twice as fine as the tokens', where convolutions run fast on a CPU too.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        channels, width, half = config.frame_shape[2], config.width, config.patch_size // 2
        rows, columns = (cells * config.patch_size for cells in config.grid)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(half),
            nn.Conv2d(channels * half**2, width, 3, padding=1),
            *[_Residual(width) for _ in range(config.blocks)],
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, config.latent_dim, 1),
        )
        last = nn.Conv2d(width, channels * half**2, 3, padding=1)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_dim, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            *[_Residual(width) for _ in range(config.blocks + 1)],
            nn.GroupNorm(8, width),
            nn.SiLU(),
            last,
            nn.PixelShuffle(half),
        )
        _zero(last)
        self.normalize = nn.BatchNorm2d(config.latent_dim, affine=False, momentum=0.05)
        self.register_buffer("mean_frame", torch.zeros(channels, rows, columns))
        self.register_buffer("deviation", torch.ones(()))
        self.mean_frame: Tensor
        self.deviation: Tensor

    def set_mean_frame(self, mean: Float[Tensor, "channel row column"], deviation: float) -> None:
        """Fix the background and the mean absolute distance of a pixel from it, both of [-1, 1] frames."""
        self.mean_frame.copy_(self._pad(mean[None])[0])
        self.deviation.fill_(max(deviation, 1e-3))

    def encode_pixels(self, pixels: Tensor) -> Tensor:  # noqa: D102
        code = _wide(self.encoder((pixels.to(self.mean_frame.dtype) - self.mean_frame) * 2))
        code = self.normalize(code)
        return rearrange(code, "f d h w -> f (h w) d")

    def decode_pixels(self, x: Tensor) -> Tensor:  # noqa: D102
        h, w = self.config.grid
        code = rearrange(x, "f (h w) d -> f d h w", h=h, w=w).to(self.mean_frame.dtype)
        return self.mean_frame + _wide(self.decoder(code))

    def loss(
        self, frames: UInt8[Tensor, "frame row column channel"], *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weighted reconstruction error through a noisy code.

        A pixel weighs `1 + |o - mean| / E|o - mean|`, at most 50.

        Returns:
            The loss, and the plain mean squared error in [-1, 1] units (both scalars).
        """
        pixels = self._pad(to_float(frames))
        x = self.encode_pixels(pixels)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        error = (self.decode_pixels(x + self.config.noise_std * noise) - pixels).square()
        distance = (pixels - self.mean_frame).abs().mean(1, keepdim=True)
        weight = (1 + distance / self.deviation).clamp(max=50)
        return (weight * error).mean() / weight.mean(), error.mean().detach()


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def build_codec(config: CodecConfig) -> Codec:
    """The codec a configuration names."""
    return LatentCodec(config) if config.kind == "latent" else PatchCodec(config)
