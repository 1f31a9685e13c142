"""How soon an episode rings once something is wrong, against how often episodes ring in which nothing is.

Three alarms of whole episodes, each ringing where its number falls to the promised rate or below:

    transitions   one transition alone: its rank among the oddest ones of normal episodes
    drift         cumulative sums of every statistic, ranked likewise (`Alarms.drift_p_value`)
    e-process     1 / E of the transitions' p-values (`worldflow.drift`): a promise that holds at any time and needs no
                  ranks of episodes, as far as p-values are uniform given the ones before. Those of neighbors are
                  alike, and it rings more often than promised: how much more is what `kept` shows

The rate that was kept is the share of fresh normal episodes that ever ring; the delay counts transitions from the first
labeled one to the first alarm there or later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.anomaly_measures import lower_median, waits
from worldflow.drift import e_process

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from worldflow.detector import Alarms

__all__ = ["ALARMS", "DelayCurve", "delay_curve", "delay_curves"]

ALARMS = ("transitions", "drift", "e-process")


@dataclass(frozen=True, kw_only=True)
class DelayCurve:
    """One alarm at several promised rates.

    Args:
        kept: Share of normal episodes that ring.
        median: Transitions to the first alarm, infinite where the median episode never rings.
        found: Share of anomalous episodes that ring.
    """

    kept: tuple[float, ...]
    median: tuple[float, ...]
    found: tuple[float, ...]


def _paths(alarms: Alarms) -> dict[str, Float[np.ndarray, " time"]]:
    """For each of `ALARMS` what rings where it falls to the promised rate."""
    return {
        "transitions": alarms.peak_p_value,
        "drift": alarms.drift_p_value,
        "e-process": 1 / np.maximum(e_process(alarms.p_value), 1.0),
    }


def delay_curve(
    normal: Sequence[Float[np.ndarray, " time"]],
    anomalous: Sequence[Float[np.ndarray, " time"]],
    labels: Sequence[Bool[np.ndarray, " time"]],
    *,
    promised: Sequence[float],
) -> DelayCurve | None:
    """What one alarm comes to; None if nothing is labeled.

    Args:
        normal: Its numbers in normal episodes.
        anomalous: Its numbers in anomalous ones.
        labels: Which of their transitions are labeled; episodes without any are left out.
        promised: Rates at which episodes may ring.
    """
    if not any(label.any() for label in labels):
        return None
    lowest = np.array([values.min() for values in normal])
    kept, median, found = [], [], []
    for rate in promised:
        waited = waits([values <= rate for values in anomalous], labels)
        kept.append(float((lowest <= rate).mean()))
        median.append(lower_median(waited))
        found.append(float(np.isfinite(waited).mean()))
    return DelayCurve(kept=tuple(kept), median=tuple(median), found=tuple(found))


def delay_curves(
    normal: Sequence[Alarms],
    anomalous: Sequence[Alarms],
    labels: Sequence[Bool[np.ndarray, " time"]],
    *,
    promised: Sequence[float],
) -> Mapping[str, DelayCurve]:
    """The curve of every alarm that has one."""
    usual, odd = [_paths(a) for a in normal], [_paths(a) for a in anomalous]
    made = {
        name: delay_curve([p[name] for p in usual], [p[name] for p in odd], labels, promised=promised)
        for name in ALARMS
    }
    return {name: curve for name, curve in made.items() if curve is not None}
