"""Numbers of scored cases held against those of normal episodes: areas under curves, delays, false alarms.

Beside the anomalies stand controls: another policy in the same dynamics, and the first normal episodes, in which
nothing was done, against the others. Anomalies are played from the seeds of these few, whose numbers differ from the
others' by chance: what tells an anomaly no better than it tells them does not tell it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.anomaly_baselines import BASELINES, TWO_SIDED, two_sided
from worldflow.anomaly_cases import CALIBRATION, LEVELS, NORMAL, ONSET, Case
from worldflow.anomaly_delays import DelayCurve, delay_curves
from worldflow.anomaly_measures import Delay, Separation, delay, separation, thresholds
from worldflow.anomaly_store import Judged
from worldflow.calibration import calibrate_scores
from worldflow.combination import COMBINATIONS, DEFAULT_COMBINATION, CombinationName
from worldflow.detector import Detector
from worldflow.watched import WINDOWS, Averages, single_names

if TYPE_CHECKING:
    from worldflow.score_types import EpisodeScores

__all__ = ["NOTHING", "Evidence", "Row", "judge"]

NOTHING = "nothing done"
"""Name of the control that shows what chance does with as few episodes as anomalies have."""
READINGS = ("frame_two_sided", "typicality_two_sided")
"""Likelihood and typicality read on both sides."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found about one case.

    Args:
        kind: `"control"`, `"anomaly"` or `"simple"`.
        anomaly: Its name.
        level: Its strength; None of what has none.
        separation: From windows to numbers to how well they tell it.
        delay: From numbers to how soon they ring, as single transitions.
    """

    kind: str
    anomaly: str | None
    level: str | None
    separation: Mapping[int, Mapping[str, Separation]]
    delay: Mapping[str, Delay]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was found.

    Args:
        rows: From cases to what was found.
        statistics, combinations, baselines: Names of numbers.
        false_alarms: From numbers to the share of fresh normal transitions beyond the calibrated threshold.
        promised, kept: Rates of false alarms, promised and found on fresh normal episodes, by combination.
        delays: From strengths to alarms of whole episodes to how soon they ring, over all anomalies, at the promised
            rates, by the default combination (`worldflow.anomaly_delays`).
        protocol: What was done.
    """

    rows: Mapping[str, Row]
    statistics: tuple[str, ...]
    combinations: tuple[str, ...]
    baselines: tuple[str, ...]
    false_alarms: Mapping[str, float]
    promised: tuple[float, ...]
    kept: Mapping[str, tuple[float, ...]]
    delays: Mapping[str, Mapping[str, DelayCurve]]
    protocol: Mapping[str, Any]

    def auroc(self, case: str, name: str, *, window: int) -> float:
        """Area under the ROC curve of a number; NaN where nothing was labeled."""
        found = self.rows[case].separation.get(window, {}).get(name)
        return math.nan if found is None else found.auroc

    def at(self, level: str) -> list[str]:
        """Cases of one strength that labeled anything."""
        return [name for name, row in self.rows.items() if row.level == level and row.separation]

    def best_baseline(self, case: str, *, window: int) -> float:
        """The highest area of a baseline."""
        return max(self.auroc(case, name, window=window) for name in self.baselines)

    def summary(self, combination: str, *, window: int, level: str = "middle") -> dict[str, float]:
        """Mean area of a combination at one strength, and by how much the best baseline beats it at most."""
        found = {case: self.auroc(case, combination, window=window) for case in self.at(level)}
        behind = {case: self.best_baseline(case, window=window) - area for case, area in found.items()}
        return {
            "auroc": float(np.mean(list(found.values()))),
            "lowest": min(found.values()),
            "behind_baseline": max(behind.values()),
        }

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it; infinite delays are None."""
        plain = asdict(self)
        for row in plain["rows"].values():
            for found in row["delay"].values():
                found["median"] = _finite(found["median"])
        for alarms in plain["delays"].values():
            for curve in alarms.values():
                curve["median"] = [_finite(wait) for wait in curve["median"]]
        plain["summary"] = {
            name: {str(window): self.summary(name, window=window) for window in WINDOWS}
            for name in (*self.combinations, *self.statistics, *self.baselines)
        }
        return plain


def judge(
    found: Mapping[str, tuple[Case, Judged]],
    *,
    protocol: Mapping[str, Any],
    combinations: Sequence[CombinationName] | None = None,
) -> tuple[Evidence, dict[str, Detector]]:
    """Hold numbers of all cases against those of normal episodes.

    Args:
        found: From names to cases and what was scored of them; calibration and normal ones among them.
        protocol: What was done, to be noted.
        combinations: Ways to compare; by default all, the forest where scikit-learn is installed.

    Returns:
        The evidence, and the detectors by combination.
    """
    if combinations is None:
        has_forest = importlib.util.find_spec("sklearn") is not None
        combinations = [name for name in COMBINATIONS if name != "forest" or has_forest]
    usual, normal = found[CALIBRATION][1], found[NORMAL][1]
    detectors = {name: calibrate_scores(usual.scores, combination=name) for name in combinations}
    numbers = _Numbers(detectors, usual)
    normal_values = numbers(normal)
    limits = thresholds(numbers(usual.every_second)[1], onset=ONSET[0])  # which no combination is fitted to
    rows = {
        name: _row(case, judged.scores, numbers(judged), normal_values, limits)
        for name, (case, judged) in found.items()
        if case.kind != "normal"
    }
    few = min((len(case.seeds) for case, _ in found.values() if case.kind == "anomaly"), default=0)
    if 0 < few < len(normal.scores):
        nothing = Case(name=NOTHING, kind="control", seeds=found[NORMAL][0].seeds[:few])
        first, others = (
            {window: {key: v[part] for key, v in values.items()} for window, values in normal_values.items()}
            for part in (slice(few), slice(few, None))
        )
        rows[NOTHING] = _row(nothing, normal.scores[:few], first, others, limits)
    beyond = {
        key: float(np.mean(np.concatenate([v[ONSET[0] :] for v in values]) > limits[key]))
        for key, values in normal_values[1].items()
    }
    promised = tuple(float(f"{rate:.4g}") for rate in np.geomspace(0.005, 0.5, 13))
    usual_alarms = {key: detector(normal.scores) for key, detector in detectors.items()}
    p_values = {key: np.concatenate([a.p_value for a in alarms]) for key, alarms in usual_alarms.items()}
    watching = DEFAULT_COMBINATION if DEFAULT_COMBINATION in detectors else next(iter(detectors))
    delays = {}
    for level in [level for level in ("subtle", *LEVELS) if any(case.level == level for case, _ in found.values())]:
        odd = [s for case, one in found.values() if case.level == level for s in one.scores if s.anomaly is not None]
        labels = [s.anomaly for s in odd if s.anomaly is not None]
        delays[level] = delay_curves(usual_alarms[watching], detectors[watching](odd), labels, promised=promised)
    evidence = Evidence(
        rows=rows,
        statistics=numbers.statistics,
        combinations=tuple(detectors),
        baselines=tuple(name for name in BASELINES if name in usual.baselines),
        false_alarms=beyond,
        promised=promised,
        kept={key: tuple(float((p <= rate).mean()) for rate in promised) for key, p in p_values.items()},
        delays=delays,
        protocol=protocol,
    )
    return evidence, detectors


def _finite(wait: float) -> float | None:
    return wait if math.isfinite(wait) else None


Values = Mapping[int, Mapping[str, Sequence[np.ndarray]]]
"""From windows to names of numbers to a number of each transition of each episode."""


def _row(
    case: Case, scores: Sequence[EpisodeScores], values: Values, normal: Values, limits: Mapping[str, float]
) -> Row:
    labels = [_labels(s) for s in scores]
    separations: dict[int, dict[str, Separation]] = {}
    for window in WINDOWS:
        for key, odd in values[window].items():
            one = separation(normal[window][key], odd, labels, window=window, onset=ONSET[0])
            if one is not None:
                separations.setdefault(window, {})[key] = one
    delays = {key: delay(odd, labels, threshold=limits[key]) for key, odd in values[1].items()}
    return Row(
        kind=case.kind,
        anomaly=case.anomaly,
        level=case.level,
        separation=separations,
        delay={key: one for key, one in delays.items() if one is not None},
    )


class _Numbers:
    """Every number of every transition, averaged over windows; combinations are of all that a window holds."""

    def __init__(self, detectors: Mapping[str, Detector], usual: Judged) -> None:
        self.detectors = detectors
        self.any = next(iter(detectors.values()))
        self.singles = single_names(self.any.statistics)
        self.statistics = (*self.singles, *READINGS)
        self.usual = {name: np.concatenate(values) for name, values in usual.baselines.items()}
        self.above = np.concatenate([s.above_floor for s in usual.scores])
        self.typicality = np.concatenate([s.typicality for s in usual.scores])
        stacked = [self._others(judged_scores, usual, i) for i, judged_scores in enumerate(usual.scores)]
        self.averages = Averages.of(stacked)

    def __call__(self, judged: Judged) -> dict[int, dict[str, list[np.ndarray]]]:
        """From windows to names to values on each episode."""
        result: dict[int, dict[str, list[np.ndarray]]] = {window: {} for window in WINDOWS}
        for i, scores in enumerate(judged.scores):
            watched = self.any.watched(scores).reshape(len(WINDOWS), -1, len(scores))
            others = self.averages(self._others(scores, judged, i))[0].reshape(len(WINDOWS), -1, len(scores))
            odd = {name: detector.oddness_by_window(scores) for name, detector in self.detectors.items()}
            for row, window in enumerate(WINDOWS):
                values = dict(zip(self.singles, watched[row], strict=True))
                values |= dict(zip((*READINGS, *self.usual), others[row], strict=True))
                values |= {name: by_window[row] for name, by_window in odd.items()}
                for name, value in values.items():
                    result[window].setdefault(name, []).append(value)
        return result

    def _others(self, scores: EpisodeScores, judged: Judged, number: int) -> np.ndarray:
        """What no detector watches: both sides of likelihood, and baselines."""
        rows = [two_sided(self.above, scores.above_floor), two_sided(self.typicality, scores.typicality)]
        for name, usual in self.usual.items():
            values = judged.baselines[name][number]
            rows.append(two_sided(usual, values) if name in TWO_SIDED else values)
        return np.stack(rows)


def _labels(scores: EpisodeScores) -> np.ndarray:
    """Which transitions are labeled; in controls all from the first onset on."""
    return np.arange(len(scores)) >= ONSET[0] if scores.anomaly is None else scores.anomaly
