"""How well numbers tell anomalous transitions from normal ones, over windows, and how soon.

A number of a window of `n` transitions stands at its last one. Windows count that begin at the onset or later, in
normal episodes at the earliest onset or later; of an episode that ends before a window is full, its last transition
counts. A window is anomalous if any of its transitions is labeled.

The delay is that of a threshold which 1 % of normal transitions exceed: the number of transitions from the first
labeled one to the first alarm. Where the median episode never rings, the delay is infinite. So many transitions are
asked that even numbers which say nothing ring at last; `ever` stands beside the share of normal episodes that ring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.metrics import auprc, auroc

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

__all__ = [
    "FALSE_ALARMS",
    "Delay",
    "Separation",
    "delay",
    "judged",
    "lower_median",
    "separation",
    "thresholds",
    "waits",
]

FALSE_ALARMS = 0.01
"""Share of normal transitions that may ring where delays are measured."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well numbers tell anomalous windows from normal ones.

    Args:
        auroc: Area under the ROC curve.
        auprc: Average precision, with as many anomalous windows and normal ones as there are.
        windows: Anomalous windows.
        episodes: Episodes that they are from.
    """

    auroc: float
    auprc: float
    windows: int
    episodes: int


@dataclass(frozen=True, kw_only=True)
class Delay:
    """How soon numbers ring.

    Args:
        median: Transitions from the first labeled one to the first alarm, infinite if the median episode never rings.
        found: Share of labeled transitions that ring.
        ever: Share of anomalous episodes that ring at or after the onset.
    """

    median: float
    found: float
    ever: float


def judged(length: int, *, onset: int, window: int) -> Int64[np.ndarray, " end"]:
    """Where windows end that begin at the onset or later.

    Args:
        length: Transitions of the episode.
        onset: The first that counts.
        window: Transitions of a window.
    """
    ends = np.arange(onset + window - 1, length)
    return ends if len(ends) else np.array([length - 1])


def labeled(labels: Bool[np.ndarray, " time"], *, window: int) -> Bool[np.ndarray, " time"]:
    """Whether the window that ends at each transition holds a labeled one."""
    counts = np.concatenate(([0], np.cumsum(labels)))
    ends = np.arange(1, len(labels) + 1)
    return counts[ends] > counts[np.maximum(ends - window, 0)]


def separation(
    normal: Sequence[Float[np.ndarray, " time"]],
    anomalous: Sequence[Float[np.ndarray, " time"]],
    labels: Sequence[Bool[np.ndarray, " time"]],
    *,
    window: int,
    onset: int,
) -> Separation | None:
    """Areas under curves; None if no window is labeled.

    Args:
        normal: A number of each transition of normal episodes, higher for more anomalous.
        anomalous: The same of anomalous ones.
        labels: Which of their transitions are labeled.
        window: Transitions of a window; numbers are of windows already.
        onset: Where normal episodes begin to count, and anomalous ones at the earliest.
    """
    usual = np.concatenate([v[judged(len(v), onset=onset, window=window)] for v in normal])
    found = []
    for values, label in zip(anomalous, labels, strict=True):
        if not label.any():
            continue
        ends = judged(len(values), onset=max(onset, int(label.argmax())), window=window)
        found.append(values[ends[labeled(label, window=window)[ends]]])
    found = [values for values in found if len(values)]
    if not found:
        return None
    odd = np.concatenate(found)
    return Separation(auroc=auroc(usual, odd), auprc=auprc(usual, odd), windows=len(odd), episodes=len(found))


def delay(
    anomalous: Sequence[Float[np.ndarray, " time"]], labels: Sequence[Bool[np.ndarray, " time"]], *, threshold: float
) -> Delay | None:
    """How soon numbers exceed a threshold; None if no transition is labeled."""
    rings = [values > threshold for values in anomalous]
    found = waits(rings, labels)
    if not len(found):
        return None
    rang = [ring[label] for ring, label in zip(rings, labels, strict=True) if label.any()]
    return Delay(
        median=lower_median(found),
        found=float(np.concatenate(rang).mean()),
        ever=float(np.isfinite(found).mean()),
    )


def waits(
    rings: Sequence[Bool[np.ndarray, " time"]], labels: Sequence[Bool[np.ndarray, " time"]]
) -> Float[np.ndarray, " episode"]:
    """Transitions from the first labeled one to the first that rings, infinite where none does, in order.

    Args:
        rings: Which transitions ring.
        labels: Which are labeled; episodes without any are left out.
    """
    after = [ring[label.argmax() :] for ring, label in zip(rings, labels, strict=True) if label.any()]
    return np.sort([float(ring.argmax()) if ring.any() else np.inf for ring in after])


def lower_median(ordered: Float[np.ndarray, " episode"]) -> float:
    """The middle of ordered numbers, the lower of two: halves of infinity are not asked for."""
    return float(ordered[(len(ordered) - 1) // 2])


def thresholds(normal: Mapping[str, Sequence[Float[np.ndarray, " time"]]], *, onset: int) -> dict[str, float]:
    """The threshold of every number that so few normal transitions exceed.

    Args:
        normal: From the name of a number to its values on normal episodes.
        onset: Where they begin to count.
    """
    return {
        name: float(np.quantile(np.concatenate([v[onset:] for v in values]), 1 - FALSE_ALARMS, method="higher"))
        for name, values in normal.items()
    }
