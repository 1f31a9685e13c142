"""Conformal p-values: how high a new value ranks among normal ones, which may weigh differently.

    p(v) = (1 + sum_i w_i [v_i >= v]) / (1 + sum_i w_i)

Where the new value is exchangeable with those ranked, `p <= alpha` has a probability of at most `alpha`, whatever their
distribution; ties make p-values higher, never lower. What the promise is about follows from the weights, see
`worldflow.calibration`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Ranks", "peaks"]


class Ranks:
    """Values to rank others among.

    Args:
        values: Normal values.
        weights: Of each; 1 unless given.
    """

    def __init__(self, values: Float[np.ndarray, " value"], weights: Float[np.ndarray, " value"] | None = None) -> None:
        order = np.argsort(values)
        self.values = values[order]
        weights = np.ones(len(values)) if weights is None else weights[order]
        self.above = np.append(weights[::-1].cumsum()[::-1], 0.0)  # weight of each value and all higher ones

    def p_value(self, values: Float[np.ndarray, " new"]) -> Float[np.ndarray, " new"]:
        """Small where few are as high."""
        return (1 + self.above[np.searchsorted(self.values, values, side="left")]) / (1 + self.above[0])

    def threshold(self, rate: float) -> float:
        """The value above which p-values are at most `rate`; infinite where none is."""
        rings = (1 + self.above) / (1 + self.above[0]) <= rate  # for a new value just above each one's predecessor
        if not rings.any():
            return math.inf
        first = int(rings.argmax())
        return -math.inf if first == 0 else float(self.values[first - 1])


def peaks(
    values: Float[np.ndarray, "statistic time"], lengths: Int64[np.ndarray, " episode"]
) -> Float[np.ndarray, "statistic episode"]:
    """The highest value of each episode."""
    return np.maximum.reduceat(values, np.concatenate(([0], np.cumsum(lengths)[:-1])), axis=1)
