"""Measures: how close imagined frames are to real ones, how well scores tell anomalies, how sure we are of either.

Peak signal-to-noise ratio of 8-bit frames, with `mse` the mean squared error over pixels and channels:

    psnr = 10 log10(255^2 / mse)   dB

**Averages are taken of the error, before the logarithm.** The curve of a predictor over R rollouts at horizon h is
`psnr(h) = 10 log10(255^2 / mean_r mse(r, h))`, for the model and for every baseline alike. The other habit, the mean of
the rollouts' decibels, is not robust here: where nothing moves, copying the last frame is exact, its PSNR infinite, and
whatever cap one picks decides the mean; a model with a little noise everywhere then loses to a baseline that is perfect
on still rollouts and useless on all others. The mean error has no such freedom. It is also the stricter of the two for
large errors: one lost rollout costs as much as it is wrong.

Detection: a score is higher where something is more anomalous; `auroc` is the probability that an anomalous transition
scores higher than a normal one, ties counting one half, which is the Mann-Whitney statistic over its maximum.

References:
    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity (2004).
    Mann, Whitney: On a test of whether one of two random variables is stochastically larger than the other (1947).
    Efron: Bootstrap methods: another look at the jackknife (1979).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

__all__ = [
    "PSNR_CAP",
    "Curve",
    "RocCurve",
    "auprc",
    "auroc",
    "bootstrap_interval",
    "decibels",
    "mean_squared_error",
    "psnr",
    "psnr_curve",
    "roc_curve",
    "ssim",
]

PSNR_CAP = 60.0
"""dB reported for identical frames, and the most that is reported at all; rounding to 8 bits alone allows 58.9 dB."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A measure over the horizon, with the interval its mean over rollouts may lie in."""

    mean: Float64[np.ndarray, " time"]
    low: Float64[np.ndarray, " time"]
    high: Float64[np.ndarray, " time"]


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """What each threshold buys, from the strictest to the laxest; both begin at 0 and end at 1."""

    false_alarms: Float64[np.ndarray, " threshold"]
    detections: Float64[np.ndarray, " threshold"]


def mean_squared_error(a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor) -> Float64[np.ndarray, "..."]:
    """Mean squared difference of frames, over rows, columns and channels, in squared gray levels.

    Args:
        a: Frames `uint8 (..., row, column, channel)`.
        b: Frames to compare; leading axes broadcast, a frame's own must agree.

    Returns:
        One number a frame, shape `(...)`.

    Raises:
        TypeError: If frames are not `uint8`.
        ValueError: If shapes do not fit or nothing is there.
    """
    a, b = _frame_pair(a, b)
    # Integers: the difference and its sum are exact, and four times smaller than float64 until the very end.
    difference = a.astype(np.int32) - b.astype(np.int32)
    return np.asarray(np.square(difference).mean(axis=(-3, -2, -1), dtype=np.float64))


def decibels(error: ArrayLike, *, cap: float = PSNR_CAP) -> Float64[np.ndarray, "..."]:
    """PSNR of mean squared errors of 8-bit frames: `10 log10(255^2 / error)`, at most `cap`.

    Args:
        error: Mean squared errors in squared gray levels.
        cap: What an error of 0 is worth, and the largest value returned, in dB.

    Returns:
        PSNR in dB, the shape of `error`.
    """
    error = _finite(error, name="error")
    if np.any(error < 0):
        raise ValueError(f"a squared error cannot be negative, got {error.min()}; pass mean squared errors")
    return 10.0 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 10 ** (cap / 10)))


def psnr(
    a: ArrayLike | torch.Tensor,
    b: ArrayLike | torch.Tensor,
    *,
    over: int | tuple[int, ...] = (),
    cap: float = PSNR_CAP,
) -> Float64[np.ndarray, "..."]:
    """Peak signal-to-noise ratio of `uint8` frames in dB, peak 255.

    Args:
        a: Frames `(..., row, column, channel)`.
        b: Frames to compare; leading axes broadcast.
        over: Leading axes whose squared errors are averaged before the logarithm; none by default, so that every frame
            gets its own number. `psnr(real, imagined, over=0)` is the curve over time of `(rollout, time, ...)` frames.
        cap: Value of identical frames and the largest returned.

    Returns:
        PSNR, shape `(...)` without the axes in `over`.

    Raises:
        TypeError: If frames are not `uint8`.
        ValueError: If shapes do not fit or nothing is there.

    Example:
        >>> black, gray = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
        >>> print(round(float(psnr(black, gray)), 3))  # 20 log10(255 / 51)
        13.979
    """
    error = mean_squared_error(a, b)
    if over != ():
        error = error.mean(axis=over)
    return decibels(error, cap=cap)


def psnr_curve(
    real: ArrayLike | torch.Tensor,
    predicted: ArrayLike | torch.Tensor,
    *,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Curve:
    """PSNR over the horizon, of the error averaged over rollouts, with a bootstrap interval over rollouts.

    Args:
        real: Frames `(rollout, time, row, column, channel)`.
        predicted: Frames that broadcast to it: a model's `(rollout, time, ...)` or `(sample, rollout, time, ...)`,
            a copied last frame `(rollout, 1, ...)`. Samples of one rollout are averaged and resampled together,
            because they are not independent.
        level: Share of resamples inside the interval.
        generator: Where the resamples come from; by default a fresh one with seed 0.

    Returns:
        The curve, in dB, one entry a time.
    """
    if np.ndim(real) != 5:
        raise ValueError(f"real must have shape (rollout, time, row, column, channel), got {tuple(np.shape(real))}")
    error = mean_squared_error(real, predicted)
    error = error.reshape(-1, *error.shape[-2:]).mean(axis=0)
    low, high = bootstrap_interval(
        error, statistic=lambda resampled: decibels(resampled.mean(axis=0)), level=level, generator=generator
    )
    return Curve(mean=decibels(error.mean(axis=0)), low=low, high=high)


def ssim(
    a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor, *, window: int = 11, std: float = 1.5
) -> Float64[np.ndarray, "..."]:
    """Structural similarity of `uint8` frames: 1 for equal ones.

    With local means `m`, variances `v` and covariance `c` under a Gaussian window, per channel,

        ssim = (2 m_a m_b + C1) (2 c + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2)),

    `C1 = (0.01 * 255)^2`, `C2 = (0.03 * 255)^2`, averaged over channels and over all places where the window lies
    inside the frame.

    Args:
        a: Frames `uint8 (..., row, column, channel)`.
        b: Frames to compare; leading axes broadcast.
        window: Side of the window in pixels, odd.
        std: Standard deviation of the Gaussian in pixels.

    Returns:
        One number a frame, shape `(...)`.

    Raises:
        TypeError: If frames are not `uint8`.
        ValueError: If shapes do not fit or the window does not fit into the frame.

    Reference:
        Wang et al. (2004), equation 13.
    """
    a, b = _frame_pair(a, b)
    if window % 2 == 0 or not 1 <= window <= min(a.shape[-3:-1]):
        raise ValueError(
            f"window must be odd and at most as large as the frame's {a.shape[-3]} x {a.shape[-2]} pixels, got {window}"
        )
    offsets = np.arange(window) - window // 2
    weights = np.exp(-0.5 * (offsets / std) ** 2)
    weights /= weights.sum()

    def local(x: np.ndarray) -> np.ndarray:
        """Weighted mean around every pixel the window fits around; the Gaussian is separable."""
        for axis in (-3, -2):
            places = x.shape[axis] - window + 1
            shifted = (np.take(x, np.arange(k, k + places), axis=axis) for k in range(window))
            x = sum((w * s for w, s in zip(weights, shifted, strict=True)), start=np.zeros(()))
        return x

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x**2 + local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return similarity.mean(axis=(-3, -2, -1))


def roc_curve(normal: ArrayLike | torch.Tensor, anomalous: ArrayLike | torch.Tensor) -> RocCurve:
    """Rates of false alarms and detections at every threshold the scores distinguish.

    Args:
        normal: Scores of what should raise no alarm, any shape; `inf` is a score, NaN is not.
        anomalous: Scores of what should, higher for more anomalous.

    Returns:
        The curve; equal scores share one threshold.
    """
    false, true = _alarms(normal, anomalous)
    return RocCurve(false_alarms=false / false[-1], detections=true / true[-1])


def auroc(normal: ArrayLike | torch.Tensor, anomalous: ArrayLike | torch.Tensor) -> float:
    """Probability that an anomalous score exceeds a normal one, ties counting one half.

    Args:
        normal: Scores of what should raise no alarm, any shape; `inf` is a score, NaN is not.
        anomalous: Scores of what should, higher for more anomalous.

    Returns:
        Area under the ROC curve: 0.5 for scores that tell nothing, 1 for a perfect detector.

    Raises:
        ValueError: If either is empty or has NaN.

    Example:
        >>> auroc([0.0, 1.0, 2.0], [1.0, 3.0])
        0.75
    """
    curve = roc_curve(normal, anomalous)
    return float(np.trapezoid(curve.detections, curve.false_alarms))


def auprc(normal: ArrayLike | torch.Tensor, anomalous: ArrayLike | torch.Tensor) -> float:
    """Average precision: precision at each threshold, weighted by the detections it adds.

    Unlike `auroc` it depends on how rare anomalies are: scores that tell nothing reach the share of anomalous ones.

    Args:
        normal: Scores of what should raise no alarm, any shape; `inf` is a score, NaN is not.
        anomalous: Scores of what should, higher for more anomalous.

    Returns:
        Area under the precision-recall curve, as steps (no interpolation between thresholds, which flatters).

    Raises:
        ValueError: If either is empty or has NaN.
    """
    false, true = _alarms(normal, anomalous)
    precision = true[1:] / (true[1:] + false[1:])
    return float(np.sum(np.diff(true) / true[-1] * precision))


def bootstrap_interval(
    values: ArrayLike | torch.Tensor,
    *,
    statistic: Callable[[np.ndarray], Any] | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    generator: torch.Generator | None = None,
) -> tuple[Float64[np.ndarray, "..."], Float64[np.ndarray, "..."]]:
    """Percentile bootstrap interval of a statistic of independent rows.

    Args:
        values: Array `(row, ...)`; rows are resampled with replacement, what lies within a row stays together. To
            compare two predictors on the same rollouts, stack them: `lambda v: v[:, 0].mean() - v[:, 1].mean()`.
        statistic: From `(row, ...)` to a number or an array; the mean over rows by default.
        level: Share of resamples inside the interval.
        num_resamples: Number of resamples; 1000 fix the ends of a 95 % interval to about a tenth of its width.
        generator: Where the resamples come from; by default a fresh one with seed 0, so that the same values always
            give the same interval.

    Returns:
        The interval's low and high end, of the shape the statistic has.

    Raises:
        ValueError: If values are empty or not finite, or the level is not between 0 and 1.

    Reference:
        Efron (1979); the percentile method.
    """
    values = _finite(values, name="values")
    if values.ndim == 0:
        raise ValueError("values must have shape (row, ...), got a single number; an interval needs rows to resample")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    num_rows = len(values)
    index = torch.randint(num_rows, (num_resamples, num_rows), generator=generator, device=generator.device)
    measure = _row_mean if statistic is None else statistic
    resampled = np.stack([np.asarray(measure(values[rows]), dtype=np.float64) for rows in index.cpu().numpy()])
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _row_mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0)


def _alarms(
    normal: ArrayLike | torch.Tensor, anomalous: ArrayLike | torch.Tensor
) -> tuple[Float64[np.ndarray, " threshold"], Float64[np.ndarray, " threshold"]]:
    """Numbers of false and true alarms, from no alarm at all to the lowest threshold; ties fall together."""
    parts = []
    for name, scores in (("normal", normal), ("anomalous", anomalous)):
        flat = _array(scores).astype(np.float64).ravel()
        if flat.size == 0:
            raise ValueError(f"{name} scores are empty; a detector needs at least one of each kind")
        if np.isnan(flat).any():
            raise ValueError(f"{name} scores hold {int(np.isnan(flat).sum())} NaN of {flat.size}; drop or repair them")
        parts.append(flat)
    scores = np.concatenate(parts)
    is_anomalous = np.repeat([0.0, 1.0], [part.size for part in parts])
    order = np.argsort(-scores, kind="stable")
    scores, is_anomalous = scores[order], is_anomalous[order]
    last = np.append(scores[1:] != scores[:-1], True)  # only the last of equal scores ends a threshold
    true, false = np.cumsum(is_anomalous)[last], np.cumsum(1 - is_anomalous)[last]
    return np.append(0.0, false), np.append(0.0, true)


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _finite(values: ArrayLike | torch.Tensor, *, name: str) -> np.ndarray:
    array = _array(values).astype(np.float64)
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or inf of {array.size}")
    return array


def _frame_pair(a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, checked; not broadcast, which would copy nothing but hide shapes from the messages."""
    a, b = _array(a), _array(b)
    for name, frames in (("a", a), ("b", b)):
        if frames.dtype != np.uint8:
            raise TypeError(f"{name} must hold uint8 frames, got {frames.dtype}; scale to 0..255 and round first")
        if frames.ndim < 3 or 0 in frames.shape:
            raise ValueError(f"{name} must have shape (..., row, column, channel), not empty, got {frames.shape}")
    if a.shape[-3:] != b.shape[-3:]:
        raise ValueError(f"frames differ in (row, column, channel): {a.shape[-3:]} against {b.shape[-3:]}")
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise ValueError(
            f"shapes {a.shape} and {b.shape} do not broadcast; compare as many frames as there are"
        ) from error
    return a, b
