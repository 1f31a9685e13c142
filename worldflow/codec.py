"""Frames to latent grids and back: `PatchCodec` keeps every pixel, `LatentCodec` learns a short code.

Vectors have a codec of their own (`worldflow.vector_codec`), and so have vectors beside a picture
(`worldflow.dict_codec`).

The flow models `x~ = x + noise_std * eps` of the code `x`. `LatentCodec` is an autoencoder made for that: its code is
normalized to unit variance, the noise has a fixed standard deviation (SimFlow, arXiv 2512.04084: a posterior of fixed
width instead of a KL term), and its decoder is trained on noisy codes only, so decoding a sample of the flow removes
the flow's noise. The reconstruction error weighs a pixel by how far it lies from the mean frame: small moving things
matter, and the static background is added to the decoder's output rather than learned.

A code that is only good for reconstruction scatters: on Reacher it changed by 1.07 of its standard deviation from one
frame to the next, as if frames had nothing to do with each other. So its second difference in time is held down
(`smoothness`): what moves evenly then moves evenly in the code, and the flow has an easier world to learn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.randomness import normal
from worldflow.types import PartsSpec
from worldflow.vector_tokens import num_vector_tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

    from worldflow.dict_codec import DictCodec

__all__ = [
    "Codec",
    "CodecConfig",
    "CodecLoss",
    "LatentCodec",
    "PatchCodec",
    "background",
    "build_codec",
    "to_float",
    "to_uint8",
]


def to_float(frames: UInt8[Tensor, "*batch row column channel"]) -> Float[Tensor, "*batch channel row column"]:
    """`uint8` pixels to [-1, 1], channels first."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}; scale float frames to 0..255 and cast them")
    return frames.movedim(-1, -3).to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(pixels: Float[Tensor, "*batch channel row column"]) -> UInt8[Tensor, "*batch row column channel"]:
    """[-1, 1], channels first, to `uint8`, rounded and clipped."""
    return ((pixels.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def background(
    frames: UInt8[Tensor, "frame row column channel"],
) -> tuple[Float[Tensor, "channel row column"], float]:
    """The mean frame, and the mean absolute distance of a pixel from it, both of [-1, 1] frames."""
    pixels = to_float(frames)
    mean = pixels.mean(0)
    return mean, float((pixels - mean).abs().mean())


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a codec, saved with its weights."""

    kind: Literal["latent", "patch", "vector"] = "latent"
    """`latent`: a learned code; `patch`: the pixels themselves; `vector`: a vector's numbers, standardized."""
    frame_shape: tuple[int, ...] = (64, 64, 3)
    """Row, column, channel; the count of numbers of a vector."""
    patch_size: int = 16
    """Pixels on a side of a token's cell."""
    pieces: int = 2
    """Pieces on a side of a token's cell: what the learned code's networks mix."""
    latent_dim: int = 16
    """Channels of a token of the learned code, or numbers of a vector in a token."""
    width: int = 128
    """Channels inside the learned code's networks."""
    blocks: int = 2
    """Mixer layers of the encoder; the decoder has one more."""
    noise_std: float = 0.3
    """Standard deviation of the noise added to the code; the learned code has unit variance, pixels span [-1, 1]."""
    parts: PartsSpec | None = None
    """Where vectors stand beside the picture, the names and sizes of both; the rest is about the picture then."""

    def __post_init__(self) -> None:
        if self.kind not in ("latent", "patch", "vector"):
            raise ValueError(f"codec kind must be 'latent', 'patch' or 'vector', got {self.kind!r}")
        if len(self.frame_shape) != (1 if self.kind == "vector" else 3):
            shape = "(number,)" if self.kind == "vector" else "(row, column, channel)"
            raise ValueError(f"frame_shape of a {self.kind} codec must be {shape}, got {self.frame_shape}")
        if self.kind == "vector" and self.parts is not None:
            raise ValueError("a vector codec has no picture for vectors to stand beside: leave out parts")
        if self.kind == "vector" and (self.latent_dim < 1 or self.frame_shape[0] % self.latent_dim):
            raise ValueError(
                f"latent_dim must divide the {self.frame_shape[0]} numbers of a vector, so that every token is full, "
                f"got {self.latent_dim}"
            )
        if self.patch_size < 1 or self.pieces < 1 or self.patch_size % self.pieces:
            raise ValueError(
                f"patch_size must be a multiple of pieces, and both at least 1, got {self.patch_size} and {self.pieces}"
            )
        if not self.noise_std > 0:
            raise ValueError(f"noise_std must be above 0 for the density to exist, got {self.noise_std}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's tokens; a frame that is no whole number of cells is padded."""
        if self.kind == "vector":
            return 1, self.frame_shape[0] // self.latent_dim
        rows, columns, _ = self.frame_shape
        return -(-rows // self.patch_size), -(-columns // self.patch_size)

    @property
    def token_dim(self) -> int:
        """Channels of a token."""
        return self.patch_size**2 * self.frame_shape[2] if self.kind == "patch" else self.latent_dim

    @property
    def vector_dim(self) -> int:
        """Numbers of the vectors beside a picture."""
        return 0 if self.parts is None else self.parts.vector_dim

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame, those of a vector beside the picture included."""
        return self.grid[0] * self.grid[1] + num_vector_tokens(self.vector_dim, self.token_dim)


@dataclass(frozen=True, kw_only=True)
class CodecLoss:
    """The loss of a batch of clips, and what it is made of (scalars)."""

    total: Tensor
    error: Tensor
    """Mean squared error of a pixel in [-1, 1] units, unweighted."""
    unevenness: Tensor
    """Mean squared second difference of the code in time; 6 for a code that forgets itself from frame to frame."""


class Codec(nn.Module, ABC):
    """What all codecs share: shapes, padding to whole cells, and the boundary between frames and floats.

    Where frames are vectors, what is said of pixels holds for their numbers, and nothing is padded or rounded.

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
            TypeError: If they are not `uint8`, or vectors not floating.
        """
        shape = self.config.frame_shape
        if tuple(frames.shape[-len(shape) :]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"frames must have shape (..., {expected}), got {tuple(frames.shape)}")
        flat = frames.reshape(-1, *shape)
        codes = [self.encode_pixels(self._pad(self.from_frames(part))) for part in flat.split(chunk)]
        return torch.cat(codes).reshape(*frames.shape[: -len(shape)], *codes[0].shape[1:])

    def decode(
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> UInt8[Tensor, "*batch row column channel"]:
        """Frames of codes, clean or noisy, `chunk` frames at a time."""
        frames = [self.to_frames(pixels) for pixels in self.decoded_parts(x, chunk=chunk)]
        return torch.cat(frames).reshape(*x.shape[:-2], *frames[0].shape[1:])

    def decode_checked(
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> tuple[UInt8[Tensor, "*batch row column channel"], Bool[Tensor, "*batch"]]:
        """Frames of codes, and whether each was finite before it became gray levels, which hide that."""
        frames, finite = [], []
        for pixels in self.decoded_parts(x, chunk=chunk):
            frames.append(self.to_frames(pixels))
            finite.append(pixels.isfinite().flatten(1).all(1))
        return torch.cat(frames).reshape(*x.shape[:-2], *frames[0].shape[1:]), torch.cat(finite).reshape(x.shape[:-2])

    def decoded_parts(
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> Iterator[Float[Tensor, "frame channel row column"]]:
        """Float frames of codes, neither rounded nor clipped, `chunk` frames at a time."""
        rows, columns, _ = self.config.frame_shape
        for part in x.reshape(-1, *x.shape[-2:]).split(chunk):
            yield self.decode_pixels(part)[..., :rows, :columns]

    def shown(
        self, x: Float[Tensor, "batch token latent"]
    ) -> tuple[UInt8[Tensor, "batch row column channel"], Float[Tensor, "batch token latent"]]:
        """Frames of codes, and the codes of these frames, with gradients as if nothing were rounded (straight-through).

        Args:
            x: Codes.
        """
        (decoded,) = self.decoded_parts(x, chunk=len(x))
        pixels = decoded.clamp(-1, 1)
        frames = self.to_frames(pixels.detach())
        rounded = self.from_frames(frames).to(pixels)
        return frames, self.encode_pixels(self._pad(pixels + (rounded - pixels).detach()))

    def reconstruction_error(
        self, frames: UInt8[Tensor, "frame row column channel"], codes: Float[Tensor, "frame token latent"]
    ) -> Float[Tensor, " frame"]:
        """Mean squared error of the frames that codes show, on pixels in [-1, 1], or in the units of vectors."""
        off = self.from_frames(self.decode(codes)) - self.from_frames(frames)
        return off.square().mean(tuple(range(1, off.dim())))

    def from_frames(self, frames: Tensor) -> Tensor:
        """Frames as the floats that `encode_pixels` takes, not padded yet."""
        return to_float(frames)

    def to_frames(self, pixels: Tensor) -> Tensor:
        """Decoded floats as frames."""
        return to_uint8(pixels)

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


class _Mixing(nn.Module):
    """A mixer layer: one MLP over the pieces of a frame, one over the channels (Tolstikhin et al., arXiv 2105.01601).

    Every piece sees the whole frame in one layer, for a fraction of a convolution's cost.
    """

    def __init__(self, pieces: int, width: int, *, expansion: int = 2, most_hidden: int = 256) -> None:
        super().__init__()
        hidden = min(pieces, most_hidden)
        self.piece_norm = nn.LayerNorm(width)
        self.piece_in = nn.Linear(pieces, hidden)
        self.piece_out = nn.Linear(hidden, pieces)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_in = nn.Linear(width, expansion * width)
        self.channel_out = nn.Linear(expansion * width, width)
        for layer in (self.piece_out, self.channel_out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "frame piece width"]) -> Float[Tensor, "frame piece width"]:
        across = self.piece_norm(x).transpose(-1, -2)
        x = x + self.piece_out(F.gelu(self.piece_in(across))).transpose(-1, -2)
        return x + self.channel_out(F.gelu(self.channel_in(self.channel_norm(x))))


class _Mixer(nn.Module):
    """Vectors of pieces in, vectors of pieces out, through mixer layers."""

    def __init__(self, pieces: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(pieces, width))
        self.blocks = nn.ModuleList([_Mixing(pieces, width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "frame piece width"]) -> Float[Tensor, "frame piece width"]:
        x = x + self.place.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class LatentCodec(Codec):
    """Autoencoder of mixer layers with a unit-variance code and a decoder that removes noise.

    A frame is cut in `pieces^2` pieces a cell; the pieces of a cell share its token.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        channels, width = config.frame_shape[2], config.width
        rows, columns = (cells * config.patch_size for cells in config.grid)
        self.piece_size = config.patch_size // config.pieces
        pieces = rows * columns // self.piece_size**2
        self.pieces_in = nn.Linear(channels * self.piece_size**2, width)
        self.encoder = _Mixer(pieces, width=width, blocks=config.blocks)
        self.code_out = nn.Linear(config.pieces**2 * width, config.latent_dim)
        self.code_in = nn.Linear(config.latent_dim, config.pieces**2 * width)
        self.decoder = _Mixer(pieces, width=width, blocks=config.blocks + 1)
        self.pieces_out = nn.Linear(width, channels * self.piece_size**2)
        nn.init.zeros_(self.pieces_out.weight)
        nn.init.zeros_(self.pieces_out.bias)
        self.normalize = nn.BatchNorm1d(config.latent_dim, affine=False, momentum=0.05)
        self.register_buffer("mean_frame", torch.zeros(channels, rows, columns))
        self.register_buffer("deviation", torch.ones(()))
        self.mean_frame: Tensor
        self.deviation: Tensor

    def set_mean_frame(self, mean: Float[Tensor, "channel row column"], deviation: float) -> None:
        """Fix the background and the mean absolute distance of a pixel from it, both of [-1, 1] frames."""
        self.mean_frame.copy_(self._pad(mean[None])[0])
        self.deviation.fill_(max(deviation, 1e-3))

    @torch.no_grad()
    def settle(self, batches: Iterable[UInt8[Tensor, "frame row column channel"]]) -> None:
        """Replace the running statistics of the code by those of the encoder as it is now, over many frames."""
        self.normalize.reset_running_stats()
        self.normalize.momentum = None  # a plain average over the calls to come
        self.train()
        for frames in batches:
            self.encode_pixels(self._pad(to_float(frames)))
        self.eval()

    def encode_pixels(self, pixels: Tensor) -> Tensor:  # noqa: D102
        p, k, (h, w) = self.piece_size, self.config.pieces, self.config.grid
        pixels = (pixels.to(self.mean_frame.dtype) - self.mean_frame) * 2
        pieces = self.pieces_in(rearrange(pixels, "f c (h p) (w q) -> f (h w) (p q c)", p=p, q=p))
        cells = rearrange(self.encoder(pieces), "f (h a w b) d -> f (h w) (a b d)", h=h, w=w, a=k, b=k)
        code = _wide(self.code_out(cells))
        return self.normalize(code.flatten(0, 1)).unflatten(0, code.shape[:2])

    def decode_pixels(self, x: Tensor) -> Tensor:  # noqa: D102
        p, k, (h, w) = self.piece_size, self.config.pieces, self.config.grid
        cells = self.code_in(x.to(self.mean_frame.dtype))
        pieces = self.decoder(rearrange(cells, "f (h w) (a b d) -> f (h a w b) d", h=h, w=w, a=k, b=k))
        pixels = rearrange(self.pieces_out(pieces), "f (h w) (p q c) -> f c (h p) (w q)", h=h * k, p=p, q=p)
        return self.mean_frame + _wide(pixels)

    def loss(
        self,
        frames: UInt8[Tensor, "clip time row column channel"],
        *,
        smoothness: float = 0.0,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "frame token latent"] | None = None,
    ) -> CodecLoss:
        """Weighted reconstruction error through a noisy code, and how unevenly the code moves.

        A pixel weighs `1 + |o - mean| / E|o - mean|`, at most 50.

        Args:
            frames: Short clips; three frames each are enough.
            smoothness: Weight of the code's mean squared second difference in time.
            generator: Draws the noise.
            noise: Standard normal noise of the codes, where it is drawn already.
        """
        return self.loss_and_codes(frames, smoothness=smoothness, generator=generator, noise=noise)[0]

    def loss_and_codes(
        self,
        frames: UInt8[Tensor, "clip time row column channel"],
        *,
        smoothness: float = 0.0,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "frame token latent"] | None = None,
    ) -> tuple[CodecLoss, Float[Tensor, "clip time token latent"]]:
        """As `loss`, and the clean codes that it is about."""
        pixels = self._pad(to_float(frames.flatten(0, 1)))
        x = self.encode_pixels(pixels)
        noise = normal(tuple(x.shape), generator, device=x.device, dtype=x.dtype) if noise is None else noise
        error = (self.decode_pixels(x + self.config.noise_std * noise) - pixels).square()
        distance = (pixels - self.mean_frame).abs().mean(1, keepdim=True)
        weight = (1 + distance / self.deviation).clamp(max=50)
        codes = x.unflatten(0, frames.shape[:2])
        bend = codes.diff(n=2, dim=1)
        unevenness = bend.square().mean() if bend.numel() else x.new_zeros(())
        total = (weight * error).mean() / weight.mean() + smoothness * unevenness
        return CodecLoss(total=total, error=error.mean().detach(), unevenness=unevenness.detach()), codes


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def build_codec(config: CodecConfig) -> Codec | DictCodec:
    """The codec a configuration names."""
    # These are made of what is defined here.
    if config.parts is not None:
        from worldflow.dict_codec import DictCodec

        alone = build_codec(replace(config, parts=None))
        assert isinstance(alone, Codec)
        return DictCodec(config, alone)
    if config.kind == "vector":
        from worldflow.vector_codec import VectorCodec

        return VectorCodec(config)
    return LatentCodec(config) if config.kind == "latent" else PatchCodec(config)
