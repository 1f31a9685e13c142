"""The comparison counts what was labelled, on episodes that calibrated nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import some_scores

from worldflow.comparison import compare
from worldflow.score_types import EpisodeScores


def episodes(num: int, *, seed: int, shift: float = 0.0) -> list[EpisodeScores]:
    """Episodes of 20 transitions with noise in two statistics; the actions of the last five stand out by `shift`."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        reward, action = random.standard_normal((2, 20))
        labels = np.arange(20) >= 15
        found.append(some_scores(reward=reward, action_ratio=action - shift * labels, anomaly=labels))
    return found


def test_each_way_is_held_against_each_anomaly() -> None:
    normal = [replace(s, anomaly=None) for s in episodes(60, seed=0)]
    ways = ("highest", "mahalanobis")
    found = compare(normal, {"far": episodes(6, seed=1, shift=12.0), "none": episodes(6, seed=2)}, combinations=ways)
    assert set(found.found) == set(found.false_alarms) == set(ways)
    assert {"action", "reward", *ways} <= set(found.auroc)
    for name in ("action", *ways):
        assert found.auroc[name]["far"] > 0.99
        assert 0.3 < found.auroc[name]["none"] < 0.7  # 30 against 400: a standard deviation of 0.055
    assert 0.3 < found.auroc["reward"]["far"] < 0.7
    for name in ways:
        assert found.found[name]["far"] == found.episodes[name]["far"] == 1.0
        assert found.found[name]["none"] < 0.2
        assert found.false_alarms[name] < 0.04 and found.false_episodes[name] < 0.5
    assert found.best in ways


def test_what_cannot_be_compared_is_refused() -> None:
    normal = episodes(60, seed=0)
    with pytest.raises(ValueError, match="have no labels"):
        compare(normal, {"odd": [replace(s, anomaly=None) for s in normal]})
    with pytest.raises(ValueError, match="no transition is labelled"):
        compare(normal, {"odd": [replace(s, anomaly=np.zeros(20, bool)) for s in normal]})
    with pytest.raises(ValueError, match="at least 3"):
        compare(normal[:2], {"odd": normal})
