"""Which combination of statistics finds which anomaly: all of them side by side, on the same episodes.

Normal episodes are split by number: two of three calibrate, the third counts false alarms and stands for what is normal
in areas under ROC curves. Transitions count as anomalous where their label says so; what follows an anomaly is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.calibration import calibrate_scores
from worldflow.combination import COMBINATIONS, CombinationName
from worldflow.detector import Detector
from worldflow.metrics import auroc

if TYPE_CHECKING:
    from worldflow.score_types import EpisodeScores

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What each combination, and each statistic by itself, found.

    Args:
        auroc: Area under the ROC curve over transitions, from combination or statistic to anomaly.
        found: Share of labelled transitions that rang, from combination to anomaly.
        episodes: Share of anomalous episodes that rang as a whole or by drift, from combination to anomaly.
        false_alarms: Share of fresh normal transitions that rang, from combination.
        false_episodes: Share of fresh normal episodes that rang, from combination.
    """

    auroc: dict[str, dict[str, float]]
    found: dict[str, dict[str, float]]
    episodes: dict[str, dict[str, float]]
    false_alarms: dict[str, float]
    false_episodes: dict[str, float]

    @property
    def best(self) -> str:
        """The combination of the highest mean area over all anomalies."""
        return max(self.found, key=lambda name: float(np.mean(list(self.auroc[name].values()))))


def compare(
    normal: Sequence[EpisodeScores],
    anomalous: Mapping[str, Sequence[EpisodeScores]],
    *,
    combinations: Sequence[CombinationName] = COMBINATIONS,
    false_alarm_rate: float = 0.01,
    episode_false_alarm_rate: float = 0.1,
    is_strict: bool = False,
) -> Comparison:
    """Hold combinations side by side.

    Args:
        normal: Scores of normal episodes.
        anomalous: From the name of an anomaly to scores of labelled episodes with it.
        combinations: Which to compare.
        false_alarm_rate: As in `worldflow.calibrate`.
        episode_false_alarm_rate: As in `worldflow.calibrate`.
        is_strict: As in `worldflow.calibrate`.

    Raises:
        ValueError: If there are too few normal episodes, or an anomaly affected no transition.
    """
    labels = {name: _labels(name, scores) for name, scores in anomalous.items()}
    fresh = normal[2::3]
    fitted = [scores for i, scores in enumerate(normal) if i % 3 != 2]
    if not fresh:
        raise ValueError(f"comparing needs at least 3 normal episodes, got {len(normal)}")
    areas: dict[str, dict[str, float]] = {}
    found: dict[str, dict[str, float]] = {}
    episodes: dict[str, dict[str, float]] = {}
    false_alarms: dict[str, float] = {}
    false_episodes: dict[str, float] = {}
    for combination in combinations:
        detector = calibrate_scores(
            fitted,
            false_alarm_rate=false_alarm_rate,
            episode_false_alarm_rate=episode_false_alarm_rate,
            combination=combination,
            is_strict=is_strict,
        )
        if not areas:
            areas |= _single(detector, fresh, anomalous, labels)
        usual = np.concatenate([detector.oddness(s) for s in fresh])
        alarms = detector(fresh)
        false_alarms[combination] = float(np.concatenate([a.transition for a in alarms]).mean())
        false_episodes[combination] = float(np.mean([a.rings for a in alarms]))
        areas[combination], found[combination], episodes[combination] = {}, {}, {}
        for name, scores in anomalous.items():
            odd = np.concatenate([detector.oddness(s) for s in scores])
            alarms = detector(scores)
            rang = np.concatenate([a.transition for a in alarms])
            areas[combination][name] = auroc(usual, odd[labels[name]])
            found[combination][name] = float(rang[labels[name]].mean())
            episodes[combination][name] = float(np.mean([a.rings for a in alarms]))
    return Comparison(
        auroc=areas, found=found, episodes=episodes, false_alarms=false_alarms, false_episodes=false_episodes
    )


def _labels(name: str, scores: Sequence[EpisodeScores]) -> np.ndarray:
    if any(s.anomaly is None for s in scores):
        raise ValueError(f"episodes of {name!r} have no labels; record them with worldflow.envs.Perturb")
    labels = np.concatenate([s.anomaly for s in scores if s.anomaly is not None])
    if not labels.any():
        raise ValueError(f"no transition is labelled anomalous in {name!r}; record longer episodes")
    return labels


def _single(
    detector: Detector,
    fresh: Sequence[EpisodeScores],
    anomalous: Mapping[str, Sequence[EpisodeScores]],
    labels: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Areas of each statistic by itself."""

    def gathered(scores: Sequence[EpisodeScores]) -> np.ndarray:
        return np.concatenate([detector.watched(s) for s in scores], axis=1)

    usual, odd = gathered(fresh), {name: gathered(scores) for name, scores in anomalous.items()}
    return {
        statistic: {name: auroc(usual[row], odd[name][row][labels[name]]) for name in anomalous}
        for row, statistic in enumerate(detector.names)
    }
