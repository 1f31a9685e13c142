"""How surprising a value is among usual ones, in nats: minus the log of its p-value, beyond all of them, too.

    by rank      s(v) = -log p(v) + max(v - max, 0) / beta,    p(v) = (1 + #{usual values >= v}) / (n + 1)
    by spread    s(v) = -log P(t_{m-1} > (v - mean) / (std sqrt(1 + 1 / m)))

The first has the usual values' own shape, and an exponential tail of their mean excess over the 90 % quantile. The
second is a normal variable's predictive distribution after `m` independent values. Averages over 50 transitions of 20
episodes are hundreds, but no more than 20 or 30 of them are independent: their ranks claim more than is known, and the
chance extremes of forty such averages drown the one that means something. So the lower of the two counts; of sums of
many statistics, whose tails are none of their own, the second alone.

`t` is brought to a normal score by Wallace's transform, `z = (8 k + 1) / (8 k + 3) sqrt(k ln(1 + t^2 / k))`, whose
nats are exact to 4 % for `k` of 4 or more and up to 50 standard deviations, and too few rather than too many.

Reference: Wallace, 1959, "Bounds on normal approximations to Student's and the chi-square distributions".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Surprise", "normal_score", "surprise"]

TAIL = 0.9
"""Share of usual values below the tail that is continued beyond the highest."""


class Surprise:
    """How surprising values of one statistic are.

    Args:
        usual: Usual values.
        independent: How many of them are worth as much as independent ones; None goes by rank alone.
        has_ranks: False goes by spread alone, where `independent` is given.
    """

    def __init__(
        self, usual: Float[np.ndarray, " transition"], *, independent: float | None = None, has_ranks: bool = True
    ) -> None:
        self.usual = np.sort(usual)
        self.has_ranks = has_ranks or independent is None
        self.mean, self.std, self.freedom = float(usual.mean()), 0.0, 0.0
        if independent is not None:
            floor = 1e-9 * max(1.0, abs(self.mean))  # a constant has no spread
            self.std = max(float(usual.std()), floor) * math.sqrt(1 + 1 / independent)
            self.freedom = max(independent - 1, 1.0)

    def __call__(self, values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
        """Nats, never below 0."""
        if not self.freedom:
            return surprise(self.usual, values)
        k, t = self.freedom, (values - self.mean) / self.std
        score = (8 * k + 1) / (8 * k + 3) * np.sqrt(k * np.log1p(np.square(t) / k)) * np.sign(t)
        by_spread = -torch.special.log_ndtr(torch.from_numpy(-score)).numpy()
        return np.minimum(surprise(self.usual, values), by_spread) if self.has_ranks else by_spread


def surprise(usual: Float[np.ndarray, " transition"], values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """How surprising values are by rank, in nats.

    Args:
        usual: Usual values, sorted.
        values: Others.
    """
    tail = usual[int(TAIL * len(usual)) :]
    scale = max(float(tail.mean() - tail[0]), 1e-9 * max(1.0, abs(float(tail[-1]))))  # a constant has no tail
    above = len(usual) - np.searchsorted(usual, values, side="left")
    return -np.log((1 + above) / (len(usual) + 1)) + np.maximum(values - usual[-1], 0.0) / scale


def normal_score(nats: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The value that a standard normal variable exceeds with probability `exp(-nats)`, however small that is.

    By Newton's method on the logarithm of the tail, which is concave, so that it converges from anywhere.
    """
    log_p = -torch.from_numpy(np.maximum(nats, 1e-12)).double()
    score = torch.where(log_p < -1, (-2 * log_p).clamp(min=0).sqrt(), torch.special.ndtri(-torch.expm1(log_p)))
    for _ in range(6):
        tail = torch.special.log_ndtr(-score)
        slope = (-0.5 * (score.square() + np.log(2 * np.pi)) - tail).exp()  # minus the tail's derivative
        score = score + (tail - log_p) / slope
    return score.numpy()
