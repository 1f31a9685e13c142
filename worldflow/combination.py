"""Many statistics of a transition in one number, learned from normal transitions alone.

Each way is fitted to the values that normal transitions have, `(statistic, transition)`, and maps the values of others
to how odd they are: the higher, the odder. None of the numbers means anything by itself; `worldflow.calibrate` ranks
them among normal ones. Which way is best depends on what goes wrong: `worldflow evaluate --anomalies` holds them
side by side on labeled anomalies, `worldflow.comparison` on anybody's labeled recordings.

    highest      the most surprising statistic: max_j s_j, see `surprise`
    fisher       all surprises added up, sum_j s_j: Fisher's way to combine p-values, ranked instead of looked up
    parts        sum_g s_g, with s_g the surprise of what Fisher's way makes of one part (frame, action, motion, reward,
                 termination) over one window: eleven statistics of a frame have no more say than the reward's one
    copula       Gaussian copula: g' R^-1 g, with g_j the normal score of statistic j by rank, R their correlation
    mahalanobis  (v - m)' S^-1 (v - m), of values as they are
    forest       how soon random cuts set the transition apart (scikit-learn's IsolationForest)

A statistic that is another one's negative tells the two-sided ways nothing and is left out there.

Reference: Liu, Ting, Zhou, "Isolation Forest", 2008; Ledoit and Wolf, 2004, for why covariances are shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np

from worldflow.hints import did_you_mean
from worldflow.surprise import Surprise, normal_score, surprise

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "COMBINATIONS",
    "DEFAULT_COMBINATION",
    "Combination",
    "CombinationName",
    "Group",
    "Grouped",
    "fit_combination",
]

CombinationName = Literal["highest", "fisher", "parts", "copula", "mahalanobis", "forest"]
COMBINATIONS: tuple[CombinationName, ...] = get_args(CombinationName)
DEFAULT_COMBINATION: CombinationName = "parts"
"""Chosen among thirty ways on InvertedPendulum and Reacher, on episodes of `worldflow evaluate --anomalies` that no
reported number is from: see the README for what it finds."""
SHRINKAGE = 0.05
"""How far covariances are drawn to their diagonal."""


class Combination(Protocol):
    """How odd transitions are."""

    def __call__(
        self, values: Float[np.ndarray, "statistic time"], nats: Float[np.ndarray, "statistic time"]
    ) -> Float[np.ndarray, " time"]:
        """One number a transition, higher for odder.

        Args:
            values: The statistics.
            nats: How surprising each of them is.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Statistics of one part of a transition, averaged over one window.

    Args:
        rows: Which ones.
        independent: How many usual transitions are worth as much as independent ones, see `Surprise`.
    """

    rows: Sequence[int]
    independent: float | None = None


class Grouped:
    """How surprising groups of statistics are: Fisher's sum within each, held against usual sums; a single one stays.

    Args:
        usual: How surprising each statistic is on usual transitions.
        groups: What belongs together.
    """

    def __init__(self, usual: Float[np.ndarray, "statistic transition"], groups: Sequence[Group]) -> None:
        self.rows = [list(group.rows) for group in groups]
        self._surprises = [
            Surprise(usual[rows].sum(0), independent=g.independent, has_ranks=False) if len(rows) > 1 else None
            for rows, g in zip(self.rows, groups, strict=True)
        ]

    def __call__(self, nats: Float[np.ndarray, "statistic time"]) -> Float[np.ndarray, "group time"]:
        """Nats of each group."""
        found = [nats[rows].sum(0) for rows in self.rows]
        return np.stack([v if s is None else s(v) for s, v in zip(self._surprises, found, strict=True)])


def fit_combination(
    name: CombinationName,
    usual: Float[np.ndarray, "statistic transition"],
    nats: Float[np.ndarray, "statistic transition"],
    *,
    groups: Sequence[Group],
) -> Combination:
    """Learn from normal transitions how to combine statistics.

    Args:
        name: The way.
        usual: Values of normal transitions, each statistic higher for more anomalous.
        nats: How surprising each of them is.
        groups: What belongs together, for `parts`.

    Raises:
        ValueError: If there is no such way.
        ImportError: If the forest is asked for and scikit-learn is not installed.
    """
    match name:
        case "highest":
            return _Highest()
        case "fisher":
            return _Fisher()
        case "parts":
            return _Parts(Grouped(nats, groups))
        case "copula":
            return _Copula(usual)
        case "mahalanobis":
            return _Mahalanobis(usual)
        case "forest":
            return _Forest(usual)
    raise ValueError(f"unknown combination {name!r}{did_you_mean(name, COMBINATIONS)}")


class _Highest:
    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return nats.max(0)


class _Fisher:
    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return nats.sum(0)


class _Parts:
    def __init__(self, grouped: Grouped) -> None:
        self.grouped = grouped

    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return self.grouped(nats).sum(0)


class _Copula:
    def __init__(self, usual: np.ndarray) -> None:
        self.kept = _kept(usual)
        self.up = np.sort(usual[self.kept], axis=1)
        scores = self._scores(usual)
        self.precision = np.linalg.inv(_shrunk(scores @ scores.T / scores.shape[1]))

    def _scores(self, values: np.ndarray) -> np.ndarray:
        """Normal scores by rank, from the nearer end; what is tied with half of all has none."""
        rows = []
        for up, value in zip(self.up, values[self.kept], strict=True):
            high, low = surprise(up, value), surprise(-up[::-1], -value)
            side = np.where(high > low, 1.0, -1.0)
            rows.append(side * normal_score(np.maximum(np.maximum(high, low), np.log(2))))
        return np.stack(rows)

    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return _squared(self._scores(values), self.precision)


class _Mahalanobis:
    def __init__(self, usual: np.ndarray) -> None:
        self.kept = _kept(usual)
        usual = usual[self.kept]
        self.mean = usual.mean(1, keepdims=True)
        scale = usual.std(1, keepdims=True)
        self.scale = np.maximum(scale, 1e-9 * np.maximum(1.0, np.abs(self.mean)))
        standard = (usual - self.mean) / self.scale
        self.precision = np.linalg.inv(_shrunk(standard @ standard.T / standard.shape[1]))

    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return _squared((values[self.kept] - self.mean) / self.scale, self.precision)


class _Forest:
    def __init__(self, usual: np.ndarray) -> None:
        try:
            from sklearn.ensemble import IsolationForest
        except ImportError as error:
            raise ImportError(
                "the forest needs scikit-learn: pip install 'worldflow[bench]', or choose another combination"
            ) from error
        self.forest = IsolationForest(n_estimators=100, random_state=0)
        self.forest.set_params(max_samples=min(256, usual.shape[1])).fit(usual.T)

    def __call__(self, values: np.ndarray, nats: np.ndarray) -> np.ndarray:
        return -self.forest.score_samples(values.T)


def _kept(usual: np.ndarray) -> list[int]:
    """Rows that are no earlier row's negative."""
    kept: list[int] = []
    for row in range(len(usual)):
        if not any(np.array_equal(usual[row], -usual[other]) and usual[row].any() for other in kept):
            kept.append(row)
    return kept


def _shrunk(covariance: np.ndarray) -> np.ndarray:
    diagonal = np.diag(np.maximum(np.diag(covariance), 1e-6))  # a constant has none, and may not vary
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal


def _squared(values: np.ndarray, precision: np.ndarray) -> np.ndarray:
    return np.einsum("jt,jk,kt->t", values, precision, values)
