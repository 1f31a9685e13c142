"""TARFlow: an image as one sequence of patches through a stack of autoregressive affine blocks.

    x -> z ~ N(0, I),   log p(x | class) = log N(z; 0, I) - sum_blocks sum ln sigma

Every block sees the whole image, in alternating order, and the class at every slot. Patches are pixels themselves, so
with uniform dequantization the density is one of pixels, and comparable with any other (`worldflow.metrics`).

Reference: Zhai et al., 2024, "Normalizing Flows are Capable Generative Models" (TARFlow), arXiv 2412.06329.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.autoregressive import AffineBlock, standard_normal_log_prob
from worldflow.guidance import Rule, extrapolate
from worldflow.jacobi import Method

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["TarFlow", "TarFlowConfig", "TarFlowOutput"]


@dataclass(frozen=True, kw_only=True)
class TarFlowConfig:
    """Sizes of a `TarFlow`, saved with its weights."""

    latent_dim: int
    """Channels of a token: pixels of a patch times colors."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    layers: tuple[int, ...] = (4, 4, 4, 4)
    """Transformer layers of each block; every other block runs through the patches last to first."""
    width: int = 256
    """Channels of the transformers."""
    head_dim: int = 64
    """Channels of one attention head."""
    num_classes: int = 0
    """Classes to condition on; 0 for none."""
    dropout: float = 0.0
    """Share of what a transformer's layers add that is left out in training, against learning few images by heart."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers must name at least one layer for each block, got {self.layers}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {self.num_classes}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TarFlowOutput:
    """The density of images, and what they are mapped to."""

    log_prob: Float[Tensor, " batch"]
    """`log p(x | class)` in nats."""
    z: Float[Tensor, "batch token latent"]
    log_det: Float[Tensor, "batch token"]
    """Log-determinant of every token, all blocks together."""


class TarFlow(nn.Module):
    """Exact density of an image, given its class.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: TarFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            AffineBlock(
                config.latent_dim,
                grid=config.grid,
                width=config.width,
                layers=layers,
                is_reversed=i % 2 == 1,
                soft_clip=None,
                head_dim=config.head_dim,
                layout="tarflow",
                num_classes=config.num_classes,
                dropout=config.dropout,
            )
            for i, layers in enumerate(config.layers)
        )

    def forward(
        self, x: Float[Tensor, "batch token latent"], *, label: Int64[Tensor, " batch"] | None = None
    ) -> TarFlowOutput:
        """The density of images.

        Args:
            x: Their tokens.
            label: Class of each, -1 for none: it is then the mean of all class embeddings. None leaves all without.

        Raises:
            ValueError: If shapes do not fit the configuration.
        """
        self._check(x, label)
        z, log_det = x, x.new_zeros(x.shape[:2])
        for block in self.blocks:
            z, added = block(z, label=label)
            log_det = log_det + added
        return TarFlowOutput(log_prob=standard_normal_log_prob(z) + log_det.sum(-1), z=z, log_det=log_det)

    @torch.no_grad()
    def inverse(
        self,
        z: Float[Tensor, "batch token latent"],
        *,
        label: Int64[Tensor, " batch"] | None = None,
        guidance: float = 0.0,
        rule: Rule = extrapolate,
        method: Method = "jacobi",
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "batch token latent"]:
        """The images that `forward` maps to `z`.

        Args:
            z: Standard normal noise.
            label: As in `forward`.
            guidance: How far to go away from no class; 0 samples as the flow is.
            rule: How, of `worldflow.guidance`.
            method: How to invert.
            tolerance: How closely.

        Raises:
            ValueError: If shapes do not fit, or guidance has no class to go to.
        """
        self._check(z, label)
        if guidance and label is None:
            raise ValueError("guidance needs a class to go to: give label")
        x = z
        for i in reversed(range(len(self.blocks))):
            block = self.blocks[i]
            assert isinstance(block, AffineBlock)
            x = block.inverse(x, label=label, guidance=guidance, rule=rule, method=method, tolerance=tolerance).x
        return x

    def _check(self, x: Tensor, label: Tensor | None) -> None:
        expected = (self.config.grid[0] * self.config.grid[1], self.config.latent_dim)
        if x.dim() != 3 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"images must have shape (batch, {expected[0]}, {expected[1]}), got {tuple(x.shape)}")
        if label is None:
            return
        if not self.config.num_classes:
            raise ValueError("this flow has no classes (num_classes is 0), yet labels are given")
        if label.shape != x.shape[:1] or label.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"label must be {len(x)} integers, got {label.dtype} of shape {tuple(label.shape)}")
        if int(label.max()) >= self.config.num_classes or int(label.min()) < -1:
            raise ValueError(
                f"labels must be from 0 to {self.config.num_classes - 1}, or -1 for none, "
                f"got {int(label.min())} to {int(label.max())}"
            )
