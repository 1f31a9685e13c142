"""The detection table: labels aligned with transitions, baselines computed, areas as counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from builders import some_scores

from worldflow.detection import BASELINE, anomaly_labels, detection_table, frame_difference, statistics
from worldflow.score import EpisodeScores
from worldflow.types import Episode


def episode(levels: list[int], anomaly: list[bool] | None = None) -> Episode:
    """One with flat frames of the given levels, and labels row by row as they are recorded (the reset's first)."""
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])
    steps = len(levels) - 1
    return Episode(
        frames=frames,
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps, np.float32),
        terminated=np.zeros(steps, bool),
        truncated=np.zeros(steps, bool),
        infos={} if anomaly is None else {"anomaly": np.array(anomaly)},
    )


def scores(above: list[float]) -> EpisodeScores:
    values = np.array(above)
    return some_scores(frame=-values, above_floor=values)


def test_labels_skip_the_reset() -> None:
    assert anomaly_labels(episode([0, 0, 0], [False, True, False])).tolist() == [True, False]
    assert anomaly_labels(episode([0, 0, 0])).tolist() == [False, False]


def test_frame_difference_is_in_levels() -> None:
    assert frame_difference(episode([10, 13, 8])).tolist() == [3.0, 5.0]  # no wrap-around in uint8


def test_smoothed_statistic_looks_back_eight_transitions() -> None:
    above = [float(i) ** 2 for i in range(12)]
    smooth = statistics(scores(above), episode([0] * 13))["frame, 8-step mean"]
    expected = [np.mean(above[max(0, t - 7) : t + 1]) for t in range(12)]
    np.testing.assert_allclose(smooth, expected, rtol=1e-12)


def test_table_counts_labelled_transitions_against_normal_episodes_only() -> None:
    # Anomalous: 5 and 1 of [5, 1, 9], whose last is not labelled; normal: 0, 2. Pairs won: 5>0, 5>2, 1>0 of 4.
    table = detection_table(
        {"normal": [scores([0.0, 2.0])], "odd": [scores([5.0, 1.0, 9.0])]},
        {"normal": [episode([0, 0, 0])], "odd": [episode([0, 0, 0, 0], [False, True, True, False])]},
        normal="normal",
    )
    assert table.auroc["odd"]["frame"] == 0.75
    assert table.auroc["odd"][BASELINE] == 0.5


def test_unlabelled_anomaly_is_refused() -> None:
    with pytest.raises(ValueError, match="no transition is labelled"):
        detection_table(
            {"normal": [scores([0.0])], "odd": [scores([0.0])]},
            {"normal": [episode([0, 0])], "odd": [episode([0, 0], [False, False])]},
            normal="normal",
        )
