"""How far imagined returns agree with real ones: ranks of policies, the gap by horizon, starts without a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.agents.imagined_returns import PolicyReturns
from worldflow.agents.standings import Estimate
from worldflow.metrics import Curve, bootstrap_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

__all__ = ["SOLVED_WITHIN", "Agreement", "agreement", "rank_correlation"]

SOLVED_WITHIN = 0.1
"""A start is solved already if doing nothing comes so close to the best policy, as a share of that policy's return."""


def rank_correlation(a: Float64[np.ndarray, " item"], b: Float64[np.ndarray, " item"]) -> float:
    """Spearman's rank correlation: that of the ranks, ties sharing the mean of theirs; NaN where all are tied.

    Raises:
        ValueError: If there are not as many of both, two at least.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 1000.0, 100.0]))
        0.5
    """
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b) or len(a) < 2:
        raise ValueError(f"ranks need two lists of the same length, 2 at least, got {np.shape(a)} and {np.shape(b)}")
    x, y = (_ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    size = np.sqrt((x @ x) * (y @ y))
    return float(np.round(x @ y / size, 12)) if size > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Imagined against real returns over the whole horizon, and what is between them step by step."""

    policies: Sequence[PolicyReturns]
    weight: float
    """Of the in-distribution term, in reward per nat per dimension."""
    solved: Bool[np.ndarray, " start"]
    """Starts from which doing nothing comes within a tenth of the best policy's mean return."""
    rank: Estimate
    """Rank correlation of the policies' mean returns; its interval is over starts."""
    rank_penalized: Estimate
    """The same with the in-distribution term."""
    rank_unsolved: Estimate | None
    """The first without starts that are solved already; None if fewer than two are left."""
    gap: Curve
    """Imagined minus real return up to each step, the mean over policies and starts."""
    gap_size: Curve
    """The same without its sign."""

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        curves = {"gap": self.gap, "gap_size": self.gap_size}
        estimates = {
            "rank_correlation": self.rank,
            "rank_correlation_in_distribution": self.rank_penalized,
            "rank_correlation_unsolved_starts": self.rank_unsolved,
        }
        return {
            "starts": len(self.solved),
            "starts_solved_already": int(self.solved.sum()),
            "in_distribution_weight": self.weight,
            **{name: None if one is None else asdict(one) for name, one in estimates.items()},
            **{
                name: {end: getattr(curve, end).tolist() for end in ("mean", "low", "high")}
                for name, curve in curves.items()
            },
            "policies": [self._policy(one) for one in self.policies],
        }

    def _policy(self, one: PolicyReturns) -> dict[str, Any]:
        return {
            "name": one.name,
            "is_replayed": one.is_replayed,
            "real": asdict(Estimate.of_mean(one.real[:, -1])),
            "imagined": asdict(Estimate.of_mean(one.imagined[:, -1])),
            "imagined_in_distribution": asdict(Estimate.of_mean(one.penalized(self.weight)[:, -1])),
            "real_by_start": one.real[:, -1].tolist(),
            "imagined_by_start": one.imagined[:, -1].tolist(),
        }


def agreement(
    policies: Sequence[PolicyReturns], idle: Float64[np.ndarray, " start"], *, weight: float = 1.0
) -> Agreement:
    """Compare returns of several policies from the same starts.

    Args:
        policies: Two at least.
        idle: What doing nothing gets for real from each start.
        weight: Of the in-distribution term.

    Raises:
        ValueError: If there are fewer than two policies, or they did not have the same starts.
    """
    if len(policies) < 2:
        raise ValueError(f"agreement of ranks needs at least 2 policies, got {len(policies)}; add a contender")
    if len({one.real.shape for one in policies}) > 1 or len(idle) != len(policies[0].real):
        raise ValueError("all policies must have gone on from the same starts for as many steps")
    real = np.stack([one.real for one in policies], axis=1)  # (start, policy, time)
    imagined = np.stack([one.imagined for one in policies], axis=1)
    penalized = np.stack([one.penalized(weight) for one in policies], axis=1)
    best = float(real[:, :, -1].mean(axis=0).max())
    solved = idle >= best - SOLVED_WITHIN * abs(best)
    gap = imagined - real
    unsolved = ~solved
    return Agreement(
        policies=policies,
        weight=weight,
        solved=solved,
        rank=_rank_estimate(imagined[:, :, -1], real[:, :, -1]),
        rank_penalized=_rank_estimate(penalized[:, :, -1], real[:, :, -1]),
        rank_unsolved=_rank_estimate(imagined[unsolved, :, -1], real[unsolved, :, -1]) if unsolved.sum() > 1 else None,
        gap=_mean_curve(gap.mean(axis=1)),
        gap_size=_mean_curve(np.abs(gap).mean(axis=1)),
    )


def _rank_estimate(
    imagined: Float64[np.ndarray, "start policy"], real: Float64[np.ndarray, "start policy"]
) -> Estimate:
    """Rank correlation of the mean returns, with its interval over starts."""

    def statistic(rows: np.ndarray) -> float:
        first, second = rows.mean(axis=0)
        return rank_correlation(first, second)

    both = np.stack((imagined, real), axis=1)
    value = statistic(both)
    if len(both) < 2 or not np.isfinite(value):
        return Estimate(value=value, low=None, high=None)
    low, high = bootstrap_interval(both, statistic=lambda rows: np.nan_to_num(statistic(rows)))
    return Estimate(value=value, low=float(low), high=float(high))


def _mean_curve(values: Float64[np.ndarray, "start time"]) -> Curve:
    low, high = bootstrap_interval(values)
    return Curve(mean=values.mean(axis=0), low=low, high=high)


def _ranks(values: Float64[np.ndarray, " item"]) -> Float64[np.ndarray, " item"]:
    """Places in order from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1.0
    return (last - (counts - 1) / 2)[inverse]
