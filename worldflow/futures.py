"""Measures of a set of imagined futures against the one that happened: are they as sure as they are right?

`N` futures `x_1 .. x_N` of a number and its true value `y`. If the truth is one more draw of the same kind, its rank
among them is uniform on `0 .. N`, and every central interval holds it as often as it says. Futures that are too much
alike make the histogram of ranks U-shaped; ones too different make it a hill; a slope is a bias.

    crps   = mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 N (N - 1))
    spread = sqrt((N + 1) / N mean var_i(x_i)),   error = sqrt(mean (mean_i x_i - y)^2)

The first is the fair form, whose expectation does not depend on `N`. With the factor `(N + 1) / N` and the variance's
`N - 1`, spread and error of calibrated futures are equal for every `N`: their ratio is 1, below it futures are too
sure. All functions have the futures on the first axis and work on any others.

References:
    Hamill: Interpretation of rank histograms for verifying ensemble forecasts (2001).
    Gneiting, Raftery: Strictly proper scoring rules, prediction, and estimation (2007), section 4.2.
    Ferro: Fair scores for ensemble forecasts (2014).
    Fortin et al.: Why should ensemble spread match the RMSE of the ensemble mean? (2014).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from numpy.typing import ArrayLike

__all__ = ["coverage", "fair_brier", "fair_crps", "rank_histogram", "ranks", "spread_variance"]


def ranks(
    futures: ArrayLike, truth: ArrayLike, *, generator: torch.Generator | None = None
) -> Int64[np.ndarray, "..."]:
    """How many futures lie below the truth, ties broken at random.

    Args:
        futures: `(sample, ...)`.
        truth: `(...)`.
        generator: Breaks ties; by default a fresh one with seed 0.

    Returns:
        Ranks from 0 to the number of futures, shape `(...)`.

    Raises:
        ValueError: If shapes do not fit, or a number is not finite.
    """
    futures, truth = _checked(futures, truth, least=1)
    generator = generator or torch.Generator().manual_seed(0)
    below, equal = (futures < truth).sum(axis=0), (futures == truth).sum(axis=0)
    uniform = torch.rand(truth.shape, generator=generator, dtype=torch.float64).numpy()
    return (below + np.floor(uniform * (equal + 1))).astype(np.int64)


def rank_histogram(found: ArrayLike, *, num_futures: int) -> Float[np.ndarray, " rank"]:
    """Share of each rank; `1 / (N + 1)` everywhere where futures are calibrated."""
    counts = np.bincount(np.asarray(found).ravel(), minlength=num_futures + 1)
    return counts / counts.sum()


def coverage(found: ArrayLike, *, num_futures: int, level: float) -> Float[np.ndarray, "..."]:
    """How much of the truth's place lies within the central interval that should hold a share `level`.

    The truth of rank `r` lies somewhere in `[r, r + 1] / (N + 1)` of its distribution; what counts is the share of this
    stretch that the interval `[(1 - level) / 2, (1 + level) / 2]` holds. So the mean over calibrated futures is `level`
    exactly, for any number of futures; an interval between two of them could hold only multiples of `1 / (N + 1)`.

    Args:
        found: Ranks.
        num_futures: `N`.
        level: Between 0 and 1.

    Returns:
        Numbers in [0, 1], the shape of the ranks; their mean is the coverage.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    found = np.asarray(found, dtype=np.float64)
    low, high = (num_futures + 1) * (1 - level) / 2, (num_futures + 1) * (1 + level) / 2
    return np.clip(np.minimum(found + 1, high) - np.maximum(found, low), 0.0, 1.0)


def fair_crps(futures: ArrayLike, truth: ArrayLike) -> Float[np.ndarray, "..."]:
    """Continuous ranked probability score, in the units of the number, lower is better.

    One future, as of a deterministic predictor, scores its absolute error.

    Args:
        futures: `(sample, ...)`.
        truth: `(...)`.

    Returns:
        Scores `(...)`.
    """
    futures, truth = _checked(futures, truth, least=1)
    N = len(futures)
    distance = np.abs(futures - truth).mean(axis=0)
    if N == 1:
        return distance
    # sum_ij |x_i - x_j| = 2 sum_k (2 k - N - 1) x_(k), for x sorted and k from 1
    weights = (2.0 * np.arange(1, N + 1) - N - 1).reshape(-1, *[1] * truth.ndim)
    return distance - (weights * np.sort(futures, axis=0)).sum(axis=0) / (N * (N - 1))


def fair_brier(events: ArrayLike, truth: ArrayLike) -> Float[np.ndarray, "..."]:
    """Squared error of the chance of an event, as if there were infinitely many futures; lower is better.

    `(p - y)^2 - p (1 - p) / (N - 1)` with `p` the share of futures in which it happened. Single scores may be negative.

    Args:
        events: Whether it happened, `(sample, ...)`, at least two futures.
        truth: Whether it did, `(...)`.

    Returns:
        Scores `(...)`.
    """
    events, truth = _checked(events, truth, least=2)
    chance = events.mean(axis=0)
    return (chance - truth) ** 2 - chance * (1 - chance) / (len(events) - 1)


def spread_variance(futures: ArrayLike) -> Float[np.ndarray, "..."]:
    """What the squared error of the futures' mean is expected to be where they are calibrated: `(N + 1) / N var`.

    Args:
        futures: `(sample, ...)`, at least two.

    Returns:
        `(...)`, in squared units; average it before the root is taken.
    """
    futures = np.asarray(futures, dtype=np.float64)
    if len(futures) < 2:
        raise ValueError(f"a spread needs at least 2 futures, got {len(futures)}")
    return futures.var(axis=0, ddof=1) * (len(futures) + 1) / len(futures)


def _checked(futures: ArrayLike, truth: ArrayLike, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    futures, truth = np.asarray(futures, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if futures.shape[1:] != truth.shape or len(futures) < least:
        raise ValueError(
            f"futures must have shape (sample, ...) with at least {least} futures and the truth's {truth.shape}, "
            f"got {futures.shape}"
        )
    if not (np.isfinite(futures).all() and np.isfinite(truth).all()):
        raise ValueError("futures and truth must be finite")
    return futures, truth
