"""What frames are measured with: one gauge, read in the same way for imagined, copied, predicted and real frames.

A gauge knows the recorded clips' episodes (`Stills`), a probe of the state where there is one, and an encoder of short
clips. `read` turns frames `(sample, clip, time, ...)` of any predictor, the real ones included, into a few numbers a
frame (`Reading`), so that frames can be forgotten: a hundred thousand of them need not be in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from worldflow.data import Dataset
from worldflow.frechet import ClipEncoder
from worldflow.metrics import ssim
from worldflow.permanence import StillObject, find_background, find_object, follow_object
from worldflow.types import Clip

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, UInt8
    from torch import Tensor

    from worldflow.probe import StateProbe

__all__ = ["Gauge", "Projections", "Reading", "Stills", "joined"]

WINDOW = 8
"""Frames of a clip that the encoder sees, and from one to the next."""
FEATURE_SAMPLES = 4
"""Futures of a clip that the encoder sees; each is a set of its own."""
SSIM_WINDOW = 11


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read from a predictor's frames.

    Args:
        error: Squared error of a pixel, averaged over pixels and futures, in squared gray levels.
        mean_error: Squared error of the mean of the futures, not rounded.
        spread: Variance of a pixel over the futures, as `futures.spread_variance`; NaN for one future.
        ssim: Structural similarity of the first future; None where frames are too small for it, or it was not
            measured.
        perceptual: LPIPS of the first future, or None.
        summary: Numbers that sum up a frame: the probed state in its standard deviations, or random projections.
        before: The same of the last real frame, `(clip, value)`.
        features: The encoder's, of the first few futures; None where the horizon is too short.
        presence, kept: Of the episode's still object: how much of it is seen, and whether within a pixel of its place;
            NaN where the episode has none, None where it was not looked for.
    """

    error: Float64[np.ndarray, "clip time"]
    mean_error: Float64[np.ndarray, "clip time"]
    spread: Float64[np.ndarray, "clip time"]
    ssim: Float64[np.ndarray, "clip time"] | None
    perceptual: Float64[np.ndarray, "clip time"] | None
    summary: Float32[np.ndarray, "sample clip time value"]
    before: Float32[np.ndarray, "clip value"]
    features: Float32[np.ndarray, "sample clip window feature"] | None
    presence: Float64[np.ndarray, "clip time"] | None
    kept: Float64[np.ndarray, "clip time"] | None


@dataclass(frozen=True, kw_only=True)
class Stills:
    """The still objects of some episodes.

    Args:
        background: What is seen where no object stands.
        objects: From episode to its object; episodes without one are missing.
    """

    background: Float32[np.ndarray, "row column channel"]
    objects: Mapping[int, StillObject]

    @staticmethod
    def of(dataset: Dataset, episodes: Sequence[int]) -> Stills | None:
        """Still objects of these episodes; None where fewer than half of them have one."""
        background = find_background(dataset)
        found = {}
        for number in sorted(set(episodes)):
            frames = dataset.frames(number, 0, int(dataset.lengths[number]) + 1)
            found[number] = find_object(frames, background)
        objects = {number: each for number, each in found.items() if each is not None}
        return Stills(background=background, objects=objects) if 2 * len(objects) >= len(found) else None


class Projections:
    """A frame as a few numbers, where no state was recorded: fixed random sums of its shrunken pixels.

    Args:
        frames: Training frames that fix mean and scale, `uint8 (frame, row, column, channel)`.
        num: How many sums.
        seed: Of the sums.
    """

    def __init__(self, frames: UInt8[Tensor, "frame row column channel"], *, num: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        pixels = self._shrink(frames)
        self._weight = torch.randn(pixels.shape[1], num, generator=generator)
        sums = pixels @ self._weight
        self._mean, self._std = sums.mean(0), sums.std(0).clamp_min(1e-6)

    def __call__(self, frames: UInt8[Tensor, "batch time row column channel"]) -> Float32[Tensor, "batch time value"]:
        """The sums, each in units of its standard deviation over training frames."""
        sums = self._shrink(frames.flatten(0, 1)) @ self._weight
        return ((sums - self._mean) / self._std).unflatten(0, frames.shape[:2])

    @staticmethod
    def _shrink(frames: Tensor) -> Tensor:
        pixels = frames.cpu().permute(0, 3, 1, 2).float()
        rows, columns = pixels.shape[-2:]
        return F.adaptive_avg_pool2d(pixels, (min(8, rows), min(8, columns))).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Everything that frames are measured with.

    Args:
        past: Transitions of each clip before the first frame to measure.
        probe: Reads the state, or None.
        projections: Sum up a frame where there is no probe.
        encoder: Of clips of `WINDOW` frames, or None.
        stills: Still objects, or None.
        perceptual: Distance of two sets of frames, one number a frame, or None.
        has_ssim: Whether structural similarity is measured, which takes longest.
    """

    past: int
    probe: StateProbe | None
    projections: Projections
    encoder: ClipEncoder | None
    stills: Stills | None
    perceptual: Callable[[Tensor, Tensor], np.ndarray] | None = None
    has_ssim: bool = True

    def summarize(self, clips: Clip, frames: UInt8[Tensor, "clip time row column channel"]) -> Float32[Tensor, "..."]:
        """Summary numbers `(clip, 1 + time, value)` of the last given frame and of frames that follow it."""
        view = 1 if self.probe is None else self.probe.view
        first = max(0, self.past + 1 - view)
        given = clips.frames[:, first : self.past + 1]
        whole = torch.cat((given, frames), dim=1)
        if self.probe is None:
            return self.projections(whole)[:, given.shape[1] - 1 :]
        std = self.probe.std[self.probe.kept].cpu()
        return (self.probe.read(whole).cpu().double() / std).float()[:, given.shape[1] - 1 :]

    def true_state(self, states: Float64[np.ndarray, "clip time state"]) -> Float64[np.ndarray, "clip time value"]:
        """Recorded states as `summary` counts them: kept coordinates in their standard deviations."""
        assert self.probe is not None
        kept, std = self.probe.kept.cpu().numpy(), self.probe.std.cpu().numpy()
        return states[..., kept] / std[kept]

    def read(self, clips: Clip, frames: UInt8[Tensor, "sample clip time row column channel"]) -> Reading:
        """Measure frames that follow each clip's last given one.

        Args:
            clips: The recorded clips, whole.
            frames: A predictor's, for each of them; at most as long as the clips go on.
        """
        B, T = frames.shape[1:3]
        frames = frames.cpu()
        real = clips.frames[:, self.past + 1 : self.past + 1 + T]
        pixels = [_pixels(frames[:, k], real[k]) for k in range(B)]
        summaries = torch.stack([self.summarize(clips, future) for future in frames])
        has_ssim = self.has_ssim and min(frames.shape[-3:-1]) >= SSIM_WINDOW
        follows = None if self.stills is None else [self._follow(clips, frames[:, k], k) for k in range(B)]
        return Reading(
            error=np.stack([each[0] for each in pixels]),
            mean_error=np.stack([each[1] for each in pixels]),
            spread=np.stack([each[2] for each in pixels]),
            ssim=np.stack([_ssim(real[k].numpy(), frames[0, k].numpy()) for k in range(B)]) if has_ssim else None,
            perceptual=None
            if self.perceptual is None
            else np.stack([self.perceptual(frames[0, k], real[k]) for k in range(B)]),
            summary=summaries[:, :, 1:].numpy(),
            before=summaries[0, :, 0].numpy(),
            features=self._features(frames[:FEATURE_SAMPLES]),
            presence=None if follows is None else np.stack([each[0] for each in follows]),
            kept=None if follows is None else np.stack([each[1] for each in follows]),
        )

    def _features(self, frames: Tensor) -> np.ndarray | None:
        num = frames.shape[2] // WINDOW
        if self.encoder is None or num == 0:
            return None
        windows = frames[:, :, : num * WINDOW].unflatten(2, (num, WINDOW))
        return self.encoder(windows.flatten(0, 2)).unflatten(0, windows.shape[:3]).numpy()

    def _follow(self, clips: Clip, futures: Tensor, row: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.stills is not None
        found = self.stills.objects.get(int(clips.episode[row]))
        if found is None:
            nothing = np.full(futures.shape[1], np.nan)
            return nothing, nothing
        both = [follow_object(found, future, self.stills.background) for future in futures]
        kept = np.mean([displacement <= 1.0 for _, displacement in both], axis=0)
        return np.mean([presence for presence, _ in both], axis=0), kept


def joined(readings: Sequence[Reading]) -> Reading:
    """Readings of several batches of clips as one."""
    parts = {}
    for field in fields(Reading):
        values = [getattr(reading, field.name) for reading in readings]
        axis = 1 if field.name in ("summary", "features") else 0
        parts[field.name] = None if values[0] is None else np.concatenate(values, axis=axis)
    return Reading(**parts)


def _pixels(futures: Tensor, real: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error of the futures, error of their mean and their spread, one number a time; sums of integers are exact."""
    x, y, N = futures.to(torch.int32), real.double(), len(futures)
    mean, square = x.sum(0).double() / N, x.square().sum(0).double() / N
    mean_error = (mean - y).square().mean((-3, -2, -1)).numpy()
    variance = (square - mean.square()).mean((-3, -2, -1)).numpy()
    spread = variance * (N + 1) / (N - 1) if N > 1 else np.full_like(variance, np.nan)
    return mean_error + variance, mean_error, spread


def _ssim(real: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Two frames at a time: what fits into the cache is done twice as fast."""
    return np.concatenate([ssim(real[k : k + 2], frames[k : k + 2]) for k in range(0, len(real), 2)])
