"""How well a statistic tells anomalous transitions from normal ones: areas under ROC curves, beside a baseline.

A transition counts as anomalous where its label says so, and as normal only in episodes in which nothing was done:
what follows an anomaly is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.metrics import auroc

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from worldflow.score import EpisodeScores
    from worldflow.types import Episode

__all__ = [
    "BASELINE",
    "SMOOTHING",
    "DetectionTable",
    "anomaly_labels",
    "detection_table",
    "frame_difference",
    "statistics",
    "trailing_mean",
]

BASELINE = "frame difference"
SMOOTHING = 8
"""Transitions of a trailing mean."""


@dataclass(frozen=True, kw_only=True)
class DetectionTable:
    """AUROC over transitions, from anomaly to statistic."""

    auroc: dict[str, dict[str, float]]


def frame_difference(episode: Episode) -> Float[np.ndarray, " time"]:
    """Mean absolute difference between a frame and the one before it, in levels of 255: what needs no model."""
    frames = episode.frames.astype(np.float32)
    return np.abs(frames[1:] - frames[:-1]).mean((1, 2, 3))


def trailing_mean(values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    """Mean over the last `SMOOTHING` values, or all so far."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTHING, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def statistics(scores: EpisodeScores, episode: Episode) -> dict[str, Float[np.ndarray, " time"]]:
    """What may tell an anomaly, a number a transition, higher for more anomalous.

    - `surprise`: NLL of frame, reward and termination together, nats;
    - `frame`: NLL of the frame above the noise floor, nats per dimension;
    - `frame, 8-step mean`: the same, averaged over the last eight transitions;
    - `action`: `log p(x | past) - log p(x | past, a)`, nats: the action made the frame less likely;
    - `reward`: NLL of the reward, nats;
    - `reconstruction`: how badly the codec draws the frame, squared error;
    - `frame difference`: the baseline.
    """
    return {
        "surprise": -scores.log_prob,
        "frame": scores.above_floor,
        f"frame, {SMOOTHING}-step mean": trailing_mean(scores.above_floor),
        "action": -scores.action_ratio,
        "reward": -scores.reward,
        "reconstruction": scores.reconstruction,
        BASELINE: frame_difference(episode),
    }


def anomaly_labels(episode: Episode) -> Bool[np.ndarray, " time"]:
    """Which transitions an anomaly affected; none where the episode has no labels."""
    if "anomaly" not in episode.infos:
        return np.zeros(len(episode), dtype=bool)
    return np.asarray(episode.infos["anomaly"])[1:].astype(bool)  # its first row is the reset's


def detection_table(
    scores: Mapping[str, Sequence[EpisodeScores]], episodes: Mapping[str, Sequence[Episode]], *, normal: str
) -> DetectionTable:
    """Areas under the ROC curve of every statistic for every anomaly.

    Args:
        scores: From a name to the scores of its episodes; one name is the normal episodes'.
        episodes: From the same names to the episodes themselves.
        normal: That name.

    Raises:
        ValueError: If an anomaly affected no transition.
    """

    def gathered(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rows = [statistics(s, e) for s, e in zip(scores[name], episodes[name], strict=True)]
        labels = np.concatenate([anomaly_labels(e) for e in episodes[name]])
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, labels

    usual, _ = gathered(normal)
    table = {}
    for name in scores:
        if name == normal:
            continue
        values, labels = gathered(name)
        if not labels.any():
            raise ValueError(f"no transition is labelled anomalous in {name!r}; record longer episodes")
        table[name] = {key: round(auroc(usual[key], values[key][labels]), 4) for key in usual}
    return DetectionTable(auroc=table)
