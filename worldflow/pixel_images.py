"""Images as pixels: a `TarFlow` of them, conditional on a class or not, and its samples (`worldflow.images` trains it).

    k  ->  x = (k + u) / levels  ->  t (worldflow.marginals)  ->  patches  ->  z ~ N(0, I)

Every arrow but the first is exact and invertible, so `log_prob` is a density of the unit cube, and its bits per
dimension (`worldflow.bits`) bound those of a model of the numbers themselves. One network serves both densities: labels
are hidden from a share of the training images, and `log p(x)` is either what it says without a label, or

    log p(x) = log mean_c p(x | c),

the exact marginal of the classes, all equally likely: as many passes as there are classes, and the lower bits.

With `noise_std` the images are spread by Gaussian noise instead, as TARFlow's samples want it, `y = 2 (k + 1/2) /
levels - 1 + noise_std * eps`. Samples are then noisy, and one step along the flow's own gradient takes the noise away
(Tweedie): `E[x | y] = y + noise_std^2 * grad log p(y)`. Such a density has no bits per dimension.

Reference: Zhai et al., 2024, "Normalizing Flows are Capable Generative Models" (TARFlow), arXiv 2412.06329.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from worldflow.bits import Bits, bits_per_dim, dequantized, dequantized_log_prob
from worldflow.denoiser import tweedie
from worldflow.density import DensityLoss
from worldflow.guidance import Rule, extrapolate
from worldflow.jacobi import Method
from worldflow.marginals import Marginals
from worldflow.tarflow import TarFlow, TarFlowConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped

__all__ = ["ImageConfig", "ImageFlow", "pixel_loss"]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What images are, and the sizes of the flow; saved with its weights."""

    shape: tuple[int, int, int]
    """Rows, columns and channels of an image."""
    levels: int
    """How many values a number of an image can take, 256 for bytes."""
    num_classes: int = 0
    """Classes to condition on; 0 for none."""
    patch_size: int = 2
    """Rows and columns of a token."""
    layers: tuple[int, ...] = (2, 2, 2, 2)
    """Transformer layers of each block."""
    width: int = 64
    """Channels of the transformers."""
    head_dim: int = 32
    """Channels of one attention head."""
    dropout: float = 0.0
    """Of the transformers, in training."""
    noise_std: float = 0.0
    """Standard deviation of Gaussian noise on images in [-1, 1]; 0 dequantizes uniformly instead."""

    def __post_init__(self) -> None:
        rows, columns, channels = self.shape
        if self.patch_size < 1 or rows % self.patch_size or columns % self.patch_size or min(self.shape) < 1:
            raise ValueError(
                f"rows and columns must be multiples of the patch size {self.patch_size}, got images of "
                f"{rows}x{columns}x{channels}"
            )
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.noise_std < 0:
            raise ValueError(f"noise_std must not be negative, got {self.noise_std}")
        _ = self.flow  # which checks the rest

    @property
    def dim(self) -> int:
        """Numbers in an image."""
        return math.prod(self.shape)

    @property
    def flow(self) -> TarFlowConfig:
        """Sizes of the flow of tokens."""
        rows, columns, channels = self.shape
        return TarFlowConfig(
            latent_dim=channels * self.patch_size**2,
            grid=(rows // self.patch_size, columns // self.patch_size),
            layers=self.layers,
            width=self.width,
            head_dim=self.head_dim,
            num_classes=self.num_classes,
            dropout=self.dropout,
        )


class ImageFlow(nn.Module):
    """Exact density of images.

    Args:
        config: What images are.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.marginals = Marginals(config.dim, config.levels)
        self.flow = TarFlow(config.flow)

    def log_prob(
        self, x: Float[Tensor, "batch row column channel"], label: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-density in nats: of the unit cube; with `noise_std`, of noisy images in [-1, 1].

        Args:
            x: Dequantized images (`worldflow.bits.dequantized`), or noisy ones (`noisy`).
            label: Class of each, -1 for none.

        Raises:
            ValueError: If shapes do not fit the configuration.
        """
        self._check(x)
        return _log_prob(self.flow, self, x, label)

    def marginal_log_prob(self, x: Float[Tensor, "batch row column channel"]) -> Float[Tensor, " batch"]:
        """`log mean_c p(x | c)`: all classes equally likely; an exact density without a class, too.

        Raises:
            ValueError: If there are no classes, or shapes do not fit.
        """
        if not self.config.num_classes:
            raise ValueError("this flow has no classes to sum over (num_classes is 0); use log_prob")
        by_class = [self.log_prob(x, torch.full((len(x),), c)) for c in range(self.config.num_classes)]
        return torch.stack(by_class).logsumexp(0) - math.log(self.config.num_classes)

    def bits(
        self,
        images: Shaped[Tensor, "image row column channel"],
        labels: Int64[Tensor, " image"] | None = None,
        *,
        generator: torch.Generator,
        draws: int = 4,
    ) -> Bits:
        """Bits per dimension of whole-numbered images: given their labels, or without, classes summed over.

        Raises:
            ValueError: If the density is one of noisy images, which has none.
        """
        if self.config.noise_std:
            raise ValueError(
                "a density of images with Gaussian noise has no bits per dimension; train with noise_std 0"
            )
        if labels is None and self.config.num_classes:
            rows = dequantized_log_prob(
                self.marginal_log_prob, images, self.config.levels, draws=draws, generator=generator
            )
        else:  # the density takes images in one batch, so that labels stay beside them
            rows = dequantized_log_prob(
                lambda x: self.log_prob(x, labels),
                images,
                self.config.levels,
                draws=draws,
                generator=generator,
                batch_size=len(images),
            )
        return bits_per_dim(rows, self.config.dim, self.config.levels)

    def noisy(
        self, images: Shaped[Tensor, "image row column channel"], *, generator: torch.Generator
    ) -> Float[Tensor, "image row column channel"]:
        """What the density is one of: dequantized images, or those with Gaussian noise."""
        if not self.config.noise_std:
            return dequantized(images, self.config.levels, generator=generator)
        middle = 2 * (images.to(torch.get_default_dtype()) + 0.5) / self.config.levels - 1
        return middle + self.config.noise_std * torch.randn(middle.shape, generator=generator)

    def sample(
        self,
        label: Int64[Tensor, " batch"] | None = None,
        *,
        count: int | None = None,
        guidance: float = 0.0,
        rule: Rule = extrapolate,
        denoise: bool = True,
        method: Method = "jacobi",
        generator: torch.Generator,
    ) -> Int64[Tensor, "batch row column channel"]:
        """Draw images, whole numbers in `0 .. levels - 1`.

        Args:
            label: Class of each, -1 for none.
            count: How many, where there are no labels.
            guidance: How far to go from what is likely without the class to what is likely with it.
            rule: How, of `worldflow.guidance`.
            denoise: Take the noise away that a density of noisy images draws with them.
            method: How to invert the flow.
            generator: Of the noise.

        Raises:
            ValueError: If neither or both of `label` and `count` are given, or guidance has no class to go to.
        """
        if (label is None) == (count is None):
            raise ValueError("give either label or count: how many images to draw")
        batch = len(label) if label is not None else int(count or 0)
        tokens, latent = math.prod(self.config.flow.grid), self.config.flow.latent_dim
        z = torch.randn(batch, tokens, latent, generator=generator).to(next(self.flow.parameters()))
        found = self.flow.inverse(z, label=label, guidance=guidance, rule=rule, method=method)
        t = _to_images(found, self.config)
        levels = self.config.levels
        if not self.config.noise_std:
            x = self.marginals.inverse(t.flatten(1)).view_as(t)
            return (x * levels).floor().long().clamp(0, levels - 1)
        clean = self.denoised(t, label) if denoise else t
        return ((clean + 1) / 2 * levels).floor().long().clamp(0, levels - 1)

    def denoised(
        self, y: Float[Tensor, "batch row column channel"], label: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch row column channel"]:
        """Tweedie's estimate of images without their noise: `y + noise_std^2 * grad log p(y)`.

        Raises:
            ValueError: If the density is not one of noisy images.
        """
        if not self.config.noise_std:
            raise ValueError("there is no noise to take away: this flow was made with noise_std 0")
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(at, label).sum(), at)
        return tweedie(y, gradient, noise_std=self.config.noise_std)

    def to_tokens(
        self, x: Float[Tensor, "batch row column channel"]
    ) -> tuple[Float[Tensor, "batch token latent"], Float[Tensor, " batch"]]:
        """What the flow reads, and the log-determinant of the way there in nats."""
        log_det = x.new_zeros(len(x))
        if not self.config.noise_std:
            t, log_det = self.marginals(x.flatten(1))
            x = t.view_as(x)
        p = self.config.patch_size
        return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p), log_det

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.config.shape:
            expected = ", ".join(map(str, self.config.shape))
            raise ValueError(f"images must have shape (batch, {expected}), got {tuple(x.shape)}")


def pixel_loss(module: nn.Module, model: ImageFlow, *, generator: torch.Generator) -> DensityLoss:
    """What `worldflow.density.fit_density` minimizes: bits per dimension of `model`, with `module` for its flow."""
    config = model.config

    def bits(images: Tensor, labels: Tensor) -> Tensor:
        x = model.noisy(images, generator=generator)
        nats = -_log_prob(module, model, x, labels if config.num_classes else None)
        return (nats / config.dim + (0.0 if config.noise_std else math.log(config.levels))) / math.log(2)

    return bits


def _log_prob(flow: nn.Module, model: ImageFlow, x: Tensor, label: Tensor | None) -> Tensor:
    """Of `model`, with `flow` in the place of its own: a fit measures the running mean of weights."""
    tokens, log_det = model.to_tokens(x)
    return flow(tokens, label=label).log_prob + log_det


def _to_images(tokens: Tensor, config: ImageConfig) -> Tensor:
    p, (rows, columns) = config.patch_size, config.flow.grid
    return rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", p=p, q=p, h=rows, w=columns)
