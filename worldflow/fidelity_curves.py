"""From numbers a clip to a curve over the horizon, with the interval that other clips would have given.

Clips are the independent rows; everything of a clip is resampled together. Averages are taken before roots, logarithms
and ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from worldflow.metrics import Curve, bootstrap_interval, decibels

if TYPE_CHECKING:
    from jaxtyping import Float64

__all__ = [
    "decibel_curve",
    "jackknife_curve",
    "mean_curve",
    "ratio_curve",
    "resampled_curve",
    "rms_curve",
    "rms_excess_curve",
    "weighted_rms_curve",
]


def resampled_curve(
    values: Float64[np.ndarray, "clip ..."], statistic: Callable[[np.ndarray], np.ndarray], *, num_resamples: int = 1000
) -> Curve:
    """Any statistic of the rows, over time, with its percentile bootstrap interval."""
    low, high = bootstrap_interval(values, statistic=statistic, num_resamples=num_resamples)
    return Curve(mean=np.asarray(statistic(np.asarray(values, dtype=np.float64))), low=low, high=high)


def mean_curve(values: Float64[np.ndarray, "clip time"]) -> Curve:
    """The mean over clips; clips that have no value (NaN) do not count."""
    return resampled_curve(_complete(values), lambda rows: rows.mean(axis=0))


def rms_curve(squared: Float64[np.ndarray, "clip time"]) -> Curve:
    """The root of the mean square."""
    return resampled_curve(_complete(squared), lambda rows: np.sqrt(rows.mean(axis=0)))


def decibel_curve(error: Float64[np.ndarray, "clip time"]) -> Curve:
    """PSNR of mean squared errors of frames."""
    return resampled_curve(error, lambda rows: decibels(rows.mean(axis=0)))


def rms_excess_curve(squared: Float64[np.ndarray, "clip time"], floor: Float64[np.ndarray, "clip time"]) -> Curve:
    """How much one root-mean-square exceeds another one of the same clips."""
    both = np.stack((squared, floor), axis=1)
    return resampled_curve(both, lambda rows: np.diff(np.sqrt(rows.mean(axis=0))[::-1], axis=0)[0])


def ratio_curve(above: Float64[np.ndarray, "clip time"], below: Float64[np.ndarray, "clip time"]) -> Curve:
    """Root of the ratio of two mean squares."""
    both = np.stack((above, below), axis=1)

    def statistic(rows: np.ndarray) -> np.ndarray:
        top, bottom = rows.mean(axis=0)
        return np.sqrt(top / np.maximum(bottom, 1e-12))

    return resampled_curve(both, statistic)


def weighted_rms_curve(squared: Float64[np.ndarray, "clip time"], weight: Float64[np.ndarray, "clip time"]) -> Curve:
    """The root of a mean square over the clips that count at each time."""
    both = np.stack((squared * weight, weight), axis=1)

    def statistic(rows: np.ndarray) -> np.ndarray:
        top, bottom = rows.sum(axis=0)
        return np.sqrt(top / np.maximum(bottom, 1e-12))

    return resampled_curve(both, statistic)


def jackknife_curve(statistic: Callable[[np.ndarray], np.ndarray], num_rows: int, *, num_groups: int = 8) -> Curve:
    """A statistic of rows given by number, with an interval of 1.96 jackknife standard errors on both sides.

    For statistics that a bootstrap would bias, because rows that are drawn twice make its sets smaller.

    Args:
        statistic: From the numbers of the rows that count to its values over time.
        num_rows: How many rows there are.
        num_groups: Groups of rows that are left out in turn.

    Reference:
        Efron, Stein: The jackknife estimate of variance (1981).
    """
    rows = np.arange(num_rows)
    whole = np.asarray(statistic(rows), dtype=np.float64)
    groups = min(num_groups, num_rows)
    parts = np.stack([np.asarray(statistic(rows[rows % groups != k]), dtype=np.float64) for k in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(parts - parts.mean(axis=0)).sum(axis=0))
    return Curve(mean=whole, low=whole - 1.96 * error, high=whole + 1.96 * error)


def _complete(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
