"""Images as codes: STARFlow, a flow of one frame's noisy codes, conditional on a class, on a text, or on nothing.

    image o -> code x -> x~ = x + noise_std * eps -> shallow blocks -> u -> deep block, which reads the condition -> z

The flow is a `VideoFlow` of one frame, so that a class, a text and guidance are what they are for videos. A text is a
prefix of tokens that the deep block attends to, as in the released STARFlow models. A class is a prefix of one token,
looked up in a table that is learned: the released models have no other way in, and none is needed. Without a
condition there is the empty text, or a row of the table for no class. Of TARFlow's classes, which are added at every
slot, only `worldflow.pixel_images` has some.

What the numbers are. `log_prob` is the exact log-density of *noisy codes*, in nats; `bits` are an upper bound of what
the images themselves cost, the negative evidence lower bound (`worldflow.elbo`):

    log P(o | c) >= E_q [ log P(o | x~) + log p(x~ | c) - log q(x~ | o) ],   q = N(x, noise_std^2)

The decoder is trained on noisy codes, so it takes the noise of a sample off by itself; `denoised` is Tweedie's step
along the flow's own gradient, for codes that are pixels.

Reference: Gu et al., 2025, STARFlow, arXiv 2506.06276.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from worldflow.bits import Bits, bits_per_dim
from worldflow.codec import Codec, CodecConfig, build_codec
from worldflow.denoiser import tweedie
from worldflow.elbo import LEAST_STD, log_mass
from worldflow.flow import FlowConfig, Guidance, VideoFlow
from worldflow.guidance import Rule, sharpen
from worldflow.jacobi import Method
from worldflow.randomness import normal
from worldflow.world_config import TextSpec

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped, UInt8

__all__ = ["LatentImageConfig", "LatentImageFlow", "to_frames"]

CHUNK = 256
"""Images that are scored or decoded at once."""


@dataclass(frozen=True, kw_only=True)
class LatentImageConfig:
    """What images are, their condition, and the sizes of code and flow; saved with the weights."""

    shape: tuple[int, int, int]
    """Rows, columns and channels of an image."""
    levels: int = 256
    """How many values a number of an image can take, at most 256."""
    num_classes: int = 0
    """Classes to condition on; 0 for none."""
    text: TextSpec | None = None
    """Texts to condition on, or None."""
    code: Literal["latent", "patch"] = "latent"
    """`latent`: a learned code; `patch`: the pixels themselves, in [-1, 1]."""
    patch_size: int = 8
    """Rows and columns of a token."""
    pieces: int = 2
    """Pieces on a side of a token that the learned code's networks mix."""
    latent_dim: int = 16
    """Channels of a token of the learned code."""
    codec_width: int = 128
    """Channels inside the learned code's networks."""
    codec_blocks: int = 2
    """Mixer layers of the encoder; the decoder has one more."""
    noise_std: float = 0.2
    """Standard deviation of the noise on codes; the learned code has unit variance."""
    shallow_layers: tuple[int, ...] = (2,)
    """Transformer layers of each shallow block: none, or an odd number of blocks."""
    shallow_width: int = 128
    """Channels of the shallow blocks."""
    deep_layers: int = 4
    """Transformer layers of the deep block, which reads the condition."""
    deep_width: int = 128
    """Channels of the deep block, and of a class."""
    head_dim: int = 32
    """Channels of one attention head."""

    def __post_init__(self) -> None:
        rows, columns, channels = self.shape
        if self.patch_size < 1 or min(self.shape) < 1 or rows % self.patch_size or columns % self.patch_size:
            raise ValueError(
                f"rows and columns must be multiples of the patch size {self.patch_size}, got images of "
                f"{rows}x{columns}x{channels}"
            )
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be from 2 to 256, got {self.levels}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {self.num_classes}")
        if self.num_classes and self.text is not None:
            raise ValueError("images are conditional on classes or on texts, not on both: leave one of them out")
        _ = self.codec, self.flow  # which check the rest

    @property
    def dim(self) -> int:
        """Numbers in an image."""
        return math.prod(self.shape)

    @property
    def codec(self) -> CodecConfig:
        """Sizes of the code."""
        return CodecConfig(
            kind=self.code,
            frame_shape=self.shape,
            patch_size=self.patch_size,
            pieces=self.pieces,
            latent_dim=self.latent_dim,
            width=self.codec_width,
            blocks=self.codec_blocks,
            noise_std=self.noise_std,
        )

    @property
    def flow(self) -> FlowConfig:
        """Sizes of the flow of codes."""
        text_dim = self.deep_width if self.num_classes else 0 if self.text is None else self.text.dim
        return FlowConfig(
            latent_dim=self.codec.token_dim,
            grid=self.codec.grid,
            shallow_layers=self.shallow_layers,
            shallow_width=self.shallow_width,
            deep_layers=self.deep_layers,
            deep_width=self.deep_width,
            draft_layers=0,
            head_dim=self.head_dim,
            window=1,
            text_dim=text_dim,
            has_time_axis=text_dim > 0,
        )


class LatentImageFlow(nn.Module):
    """Exact density of the noisy codes of images.

    Args:
        config: What images are.
    """

    def __init__(self, config: LatentImageConfig) -> None:
        super().__init__()
        self.config = config
        codec = build_codec(config.codec)
        assert isinstance(codec, Codec)  # images have no vector beside them
        self.codec = codec.requires_grad_(False)
        self.flow = VideoFlow(config.flow)
        self.classes = None
        if config.num_classes:  # the last row stands for no class, so that label -1 is it
            self.classes = nn.Parameter(torch.randn(config.num_classes + 1, config.flow.text_dim))
        nothing = None if config.text is None else torch.zeros(config.text.words, config.text.dim)
        self.register_buffer("nothing", nothing)  # the embedded empty text
        self.nothing: Tensor | None
        self.register_buffer("pixel_std", torch.ones(()))  # levels that decoded images are taken to be off by
        self.pixel_std: Tensor

    @torch.no_grad()
    def codes(self, images: Shaped[Tensor, "image row column channel"]) -> Float[Tensor, "image token latent"]:
        """Codes `x` of whole-numbered images, without noise.

        Raises:
            TypeError, ValueError: If images are not whole numbers in range, or have another shape.
        """
        return self.codec.encode(to_frames(images, self.config.levels)).to(self.flow.deep.start)

    def with_noise(
        self, codes: Float[Tensor, "image token latent"], *, generator: torch.Generator
    ) -> Float[Tensor, "image token latent"]:
        """What the density is one of: `x + noise_std * eps`."""
        return codes + self.config.noise_std * normal(tuple(codes.shape), generator, dtype=codes.dtype)

    def noisy(
        self, images: Shaped[Tensor, "image row column channel"], *, generator: torch.Generator
    ) -> Float[Tensor, "image token latent"]:
        """Noisy codes of whole-numbered images."""
        return self.with_noise(self.codes(images), generator=generator)

    def log_prob(
        self,
        x: Float[Tensor, "batch token latent"],
        label: Int64[Tensor, " batch"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Log-density of noisy codes in nats.

        Args:
            x: Noisy codes (`noisy`).
            label: Class of each, -1 for none.
            text: Embedded text of each; None for the empty one.

        Raises:
            ValueError: If shapes do not fit, or a condition is given that the flow does not read.
        """
        return self.flow(x[:, None], text=self._words(len(x), label, text)).log_prob[:, 0]

    def marginal_log_prob(self, x: Float[Tensor, "batch token latent"]) -> Float[Tensor, " batch"]:
        """`log mean_c p(x | c)`: all classes equally likely.

        Raises:
            ValueError: If there are no classes, or shapes do not fit.
        """
        if not self.config.num_classes:
            raise ValueError("this flow has no classes to sum over (num_classes is 0); use log_prob")
        by_class = [self.log_prob(x, torch.full((len(x),), c)) for c in range(self.config.num_classes)]
        return torch.stack(by_class).logsumexp(0) - math.log(self.config.num_classes)

    @torch.no_grad()
    def bits(
        self,
        images: Shaped[Tensor, "image row column channel"],
        labels: Int64[Tensor, " image"] | None = None,
        *,
        text: Float[Tensor, "image word text"] | None = None,
        generator: torch.Generator,
        draws: int = 4,
    ) -> Bits:
        """Bits per dimension of whole-numbered images: an upper bound, the ELBO with its sign turned.

        Args:
            images: Whole numbers in `0 .. levels - 1`.
            labels: Class of each; without, classes are summed over.
            text: Embedded text of each; None for the empty one.
            generator: Of the noise.
            draws: Noises of each image; more make `tighter` tighter.

        Raises:
            ValueError: If shapes do not fit, or a condition is given that the flow does not read.
        """
        rows = []
        for _ in range(draws):
            parts = []
            for k in torch.arange(len(images)).split(CHUNK):
                codes = self.codes(images[k])
                x = self.with_noise(codes, generator=generator)
                if labels is None and self.config.num_classes:
                    prior = self.marginal_log_prob(x)
                else:
                    prior = self.log_prob(
                        x, None if labels is None else labels[k], text=None if text is None else text[k]
                    )
                spread = torch.distributions.Normal(codes, self.config.noise_std).log_prob(x).sum((1, 2))
                given = log_mass(images[k].to(x), self._decoded(x), self.pixel_std, num_levels=self.config.levels)
                parts.append(given.sum((1, 2, 3)) + prior - spread)
            rows.append(torch.cat(parts))
        # `bits_per_dim` reads log-densities of the unit cube, where a level is 1 / levels wide.
        cube = torch.stack(rows) + self.config.dim * math.log(self.config.levels)
        return bits_per_dim(cube, self.config.dim, self.config.levels)

    @torch.no_grad()
    def measure_pixel_std(
        self, images: Shaped[Tensor, "image row column channel"], *, generator: torch.Generator
    ) -> None:
        """Set the levels that decoded images are taken to be off by to those that suit these images best."""
        off = self._decoded(self.noisy(images, generator=generator)) - images.to(self.pixel_std)
        self.pixel_std.fill_(max(float(off.square().mean().sqrt()), LEAST_STD))

    @torch.no_grad()
    def sample(
        self,
        label: Int64[Tensor, " batch"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        count: int | None = None,
        guidance: float = 0.0,
        rule: Rule = sharpen,
        denoise: bool | None = None,
        method: Method = "jacobi",
        generator: torch.Generator,
    ) -> Int64[Tensor, "batch row column channel"]:
        """Draw images, whole numbers in `0 .. levels - 1`.

        Args:
            label: Class of each, -1 for none.
            text: Embedded text of each.
            count: How many, where there are neither labels nor texts.
            guidance: How far to go from what is likely without the condition to what is likely with it.
            rule: How, of `worldflow.guidance`.
            denoise: Take Tweedie's step before codes are decoded; by default where codes are the pixels themselves. The
                decoder of a learned code takes the noise off, and does it better from codes as they are: on digits it
                is off by 0.71 levels, after that step by 0.75.
            method: How to invert the flow.
            generator: Of the noise.

        Raises:
            ValueError: If not one of `label`, `text` and `count` is given, or guidance has no condition to go to.
        """
        given = [len(one) for one in (label, text) if one is not None] + ([] if count is None else [count])
        if len(given) != 1:
            raise ValueError("give one of label, text and count: how many images to draw, and of what")
        B = given[0]
        if guidance and label is None and text is None:
            raise ValueError("guidance needs a condition to go to: give label or text")
        state = self.flow.initial_state(B, self._words(B, label, text))
        guide = None
        if guidance:
            guide = Guidance(weight=guidance, state=self.flow.initial_state(B, self._words(B, None, None)), rule=rule)
        shape = (B, self.config.flow.num_tokens, self.config.flow.latent_dim)
        z = normal(shape, generator, dtype=self.flow.deep.start.dtype)
        drawn = self.flow.draw(state, None, z, method=method, tolerance=1e-5, guidance=guide)
        x = self.flow.from_deep(drawn.u, method=method)
        if denoise is None:
            denoise = self.config.code == "patch"
        return self.decode(self.denoised(x, label, text=text) if denoise else x)

    def denoised(
        self,
        x: Float[Tensor, "batch token latent"],
        label: Int64[Tensor, " batch"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
    ) -> Float[Tensor, "batch token latent"]:
        """Tweedie's estimate of codes without their noise: `x~ + noise_std^2 * grad log p(x~)`."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(at, label, text=text).sum(), at)
        return tweedie(x, gradient, noise_std=self.config.noise_std)

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "batch token latent"]) -> Int64[Tensor, "batch row column channel"]:
        """Whole-numbered images of codes, clean or noisy."""
        return self._decoded(x).round().long().clamp(0, self.config.levels - 1)

    def _decoded(self, x: Float[Tensor, "batch token latent"]) -> Float[Tensor, "batch row column channel"]:
        """Decoded images in levels, neither rounded nor clipped."""
        pixels = torch.cat([self.codec.decode_pixels(part) for part in x.split(CHUNK)])
        return (pixels.movedim(1, -1) + 1) / 2 * (self.config.levels - 1)

    def _words(self, batch: int, label: Tensor | None, text: Tensor | None) -> Tensor | None:
        """What the deep block reads of a condition."""
        if label is not None and self.classes is None:
            raise ValueError("this flow has no classes (num_classes is 0), yet labels are given")
        if text is not None and self.nothing is None:
            raise ValueError("this flow reads no text, yet texts are given")
        if self.classes is not None:
            label = torch.full((batch,), -1) if label is None else label
            if label.shape != (batch,) or label.dtype != torch.int64:
                raise ValueError(f"label must be {batch} int64, got {label.dtype} of shape {tuple(label.shape)}")
            if batch and not -1 <= int(label.min()) <= int(label.max()) < self.config.num_classes:
                raise ValueError(
                    f"labels must be from 0 to {self.config.num_classes - 1}, or -1 for none, "
                    f"got {int(label.min())} to {int(label.max())}"
                )
            return self.classes[label][:, None]
        if self.nothing is not None and text is None:
            return self.nothing.expand(batch, -1, -1)
        return text


def to_frames(
    images: Shaped[Tensor, "*batch row column channel"], levels: int
) -> UInt8[Tensor, "*batch row column channel"]:
    """Whole numbers in `0 .. levels - 1` as the gray levels nearest to them, as codecs read them.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If one is out of range.
    """
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise TypeError(f"images must hold whole numbers, got {images.dtype}")
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(
            f"images of {levels} levels hold 0 to {levels - 1}, got {int(images.min())} to {int(images.max())}"
        )
    return (images.double() * (255 / (levels - 1))).round().to(torch.uint8)
