"""Slow drifts: changes too small to show in one transition, found by adding up.

    CUSUM       C_t = max(0, C_{t-1} + g_t - allowance)
    e-process   E_t = sum_{j <= t} w_j prod_{i = j .. t} e(p_i) + sum_{j > t} w_j,   w_j = 1 / (j (j + 1))

A cumulative sum needs a threshold, which `worldflow.calibrate` takes from whole normal episodes: it depends on nothing
but that episodes are exchangeable. The e-process needs none: where p-values are uniform, or higher, given the ones
before, the chance that it ever reaches `1 / alpha` is at most `alpha`, however long one looks (Ville's inequality). It
bets against p-values, from every starting point at once, by

    e(p) = integral over 0 < k < 1 of k p^(k-1) = (1 - p + p ln p) / (p ln^2 p)

Reference: Page, 1954, "Continuous inspection schemes"; Vovk, Wang, 2021, "E-values: calibration, combination and
applications", arXiv 1912.06116; Shin, Ramdas, Rinaldo, 2022, "E-detectors", arXiv 2203.03532.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ALLOWANCE", "cusum", "e_process", "e_value"]

ALLOWANCE = 0.5
"""Standard deviations that a cumulative sum forgives in each transition: tuned to shifts of twice as much."""


def cusum(
    scores: Float[np.ndarray, "*statistic time"],
    *,
    start: Float[np.ndarray, "*statistic"] | float = 0.0,
    allowance: float = ALLOWANCE,
) -> Float[np.ndarray, "*statistic time"]:
    """One-sided cumulative sums.

    Args:
        scores: What to add up; standard normal scores under normal conditions.
        start: The sums before the first one.
        allowance: What is taken off each.
    """
    sums = np.empty_like(scores, np.float64)
    level = np.broadcast_to(np.asarray(start, np.float64), sums[..., 0].shape)
    for t in range(sums.shape[-1]):
        level = np.maximum(0.0, level + scores[..., t] - allowance)
        sums[..., t] = level
    return sums


def e_value(p_value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """A bet against p-values, of mean 1 where they are uniform."""
    p = np.clip(np.asarray(p_value, np.float64), 1e-300, 1.0)
    log = np.log(p)
    near = log > -1e-3  # where the formula is 0 / 0: its series
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (1 - p + p * log) / (p * log**2)
    return np.where(near, 0.5 - log / 6, value)


def e_process(p_values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Evidence against p-values that are uniform, gathered from every possible beginning of a change.

    Args:
        p_values: Uniform or higher given the ones before, under normal conditions.

    Returns:
        Evidence after each; it reaches `1 / alpha` at any time with probability of at most `alpha`.
    """
    evidence, gathered = np.empty(len(p_values)), 0.0
    for t, value in enumerate(e_value(p_values), start=1):
        gathered = min(value * (gathered + 1 / (t * (t + 1))), 1e300)  # beyond doubt, and short of overflow
        evidence[t - 1] = gathered + 1 / (t + 1)
    return evidence
