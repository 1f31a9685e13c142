"""Fréchet distance between sets of short clips, on features of our own encoder.

Two sets of clips become two clouds of feature vectors, and the clouds two normal distributions:

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

The features are those of `ClipEncoder`: a small convolutional network over space and time with random weights from a
fixed seed, followed by the principal components of real training clips, each in units of its own standard deviation. It
sees frames and the differences between neighbors, so that motion counts as much as looks. Random convolutions keep
enough of a picture to tell sets of clips apart, need no download and no training, and are the same on every machine;
they are **not** the features of I3D, so this distance is no FVD and compares with no published number.

The distance depends on the number of clips (few clips look farther apart than they are), so it is only ever compared
between sets of one size, and stands beside what two sets of real clips of this size are apart.

References:
    Heusel et al.: GANs trained by a two time-scale update rule (2017), arXiv:1706.08500, equation 6.
    Unterthiner et al.: Towards accurate generative models of video (2018), arXiv:1812.01717.
    Saxe et al.: On random weights and unsupervised feature learning (2011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

__all__ = ["ClipEncoder", "frechet_distance"]

SIDE = 32
"""Pixels of a frame's longer side inside the encoder."""
WEIGHTS_SEED = 20240229


class ClipEncoder:
    """Features of short clips: random convolutions, then principal components of real clips.

    Args:
        clips: Real training clips `uint8 (clip, time, row, column, channel)` that fix the scale and the components.
        num_features: Most components to keep; there are never more than a quarter of the clips.

    Raises:
        ValueError: If there are fewer than 8 clips, or they are shorter than 4 frames.
    """

    def __init__(self, clips: UInt8[Tensor, "clip time row column channel"], *, num_features: int = 24) -> None:
        if clips.dim() != 5 or len(clips) < 8 or clips.shape[1] < 4:
            raise ValueError(
                "clips must have shape (clip, time, row, column, channel) with at least 8 clips of 4 frames, "
                f"got {tuple(clips.shape)}"
            )
        self.num_frames, self.frame_shape = clips.shape[1], tuple(clips.shape[2:])
        self.name = f"random3d-{SIDE}px-{self.num_frames}frames-seed{WEIGHTS_SEED}"
        generator = torch.Generator().manual_seed(WEIGHTS_SEED)
        widths = (2 * clips.shape[-1], 32, 48, 64)
        strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
        self._layers = [
            nn.Conv3d(a, b, 3, stride=stride, padding=1, device="meta").to_empty(device="cpu").requires_grad_(False)
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        for layer in self._layers:
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
            assert layer.bias is not None
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
        pixels = self._shrink(clips)
        self._mean = pixels.mean((0, 2))[:, None]
        self._std = float((pixels - self._mean).std().clamp_min(1e-3))
        self._motion = float(pixels.diff(dim=2).std().clamp_min(1e-3))
        raw = self._raw(clips).double()
        self._center = raw.mean(0)
        _, scales, components = torch.linalg.svd(raw - self._center, full_matrices=False)
        scales = scales / (len(clips) - 1) ** 0.5
        num = min(num_features, len(clips) // 4, int((scales > 1e-6 * scales[0].clamp_min(1e-12)).sum()))
        if num < 1:
            raise ValueError("all clips are the same; a distance between sets of clips needs clips that differ")
        self._project = components[:num].T / scales[:num]

    @property
    def num_features(self) -> int:
        """Length of a feature vector."""
        return self._project.shape[1]

    @torch.no_grad()
    def __call__(
        self, clips: UInt8[Tensor, "clip time row column channel"], *, chunk: int = 64
    ) -> Float32[Tensor, "clip feature"]:
        """Features of clips of the length and size it was made for."""
        if tuple(clips.shape[1:]) != (self.num_frames, *self.frame_shape):
            expected = (self.num_frames, *self.frame_shape)
            raise ValueError(f"clips must have shape (clip, {expected}), got {tuple(clips.shape)}")
        raw = torch.cat([self._raw(part) for part in clips.split(chunk)]).double()
        return ((raw - self._center) @ self._project).float()

    @torch.no_grad()
    def _raw(self, clips: Tensor) -> Tensor:
        parts = []
        for part in clips.split(64):
            pixels = self._shrink(part)
            motion = F.pad(pixels.diff(dim=2), (0, 0, 0, 0, 0, 1)) / self._motion
            x = torch.cat(((pixels - self._mean) / self._std, motion), dim=1)
            for layer in self._layers:
                x = F.relu(layer(x))
            # Where things are, coarsely, and how much of everything there is.
            where, what = F.adaptive_avg_pool3d(x, (1, 2, 2)).flatten(1), x.flatten(2).std(2)
            parts.append(torch.cat((where, what), dim=1))
        return torch.cat(parts)

    def _shrink(self, clips: Tensor) -> Tensor:
        """Frames as floats `(clip, channel, time, row, column)`, at most `SIDE` pixels high and wide."""
        pixels = clips.cpu().float().div(127.5).sub(1).permute(0, 4, 1, 2, 3)
        rows, columns = pixels.shape[-2:]
        scale = min(1.0, SIDE / max(rows, columns))
        if scale == 1.0:
            return pixels
        return F.adaptive_avg_pool3d(
            pixels, (pixels.shape[2], max(1, round(scale * rows)), max(1, round(scale * columns)))
        )


def frechet_distance(a: Float[np.ndarray, "row feature"], b: Float[np.ndarray, "row feature"]) -> float:
    """Squared Fréchet distance between the normal distributions of two sets of feature vectors.

    Args:
        a: One set, at least two rows.
        b: The other.

    Returns:
        The distance, 0 for sets with equal means and covariances.

    Raises:
        ValueError: If the sets do not fit each other, or one has fewer than two rows.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"sets must have shape (row, feature) with at least 2 rows, got {a.shape} and {b.shape}")
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2), which are always real.
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(max(0.0, shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
