"""Areas and delays have their closed forms, on windows that are what they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldflow.anomaly_measures import delay, judged, labeled, separation, thresholds


def test_windows_begin_at_the_onset_and_are_labeled_by_any_transition() -> None:
    assert judged(10, onset=4, window=1).tolist() == [4, 5, 6, 7, 8, 9]
    assert judged(10, onset=4, window=3).tolist() == [6, 7, 8, 9]
    assert judged(10, onset=4, window=50).tolist() == [9]  # it ended before: what there is
    labels = np.array([False, False, True, False, False, False])
    assert labeled(labels, window=1).tolist() == labels.tolist()
    assert labeled(labels, window=3).tolist() == [False, False, True, True, True, False]


def test_areas_of_shifted_normal_numbers() -> None:
    random, shift = np.random.default_rng(0), 1.5
    normal = list(random.standard_normal((40, 60)))
    odd = list(random.standard_normal((40, 60)) + shift * (np.arange(60) >= 20))
    labels = [np.arange(60) >= 20] * 40
    found = separation(normal, odd, labels, window=1, onset=5)
    assert found is not None and (found.windows, found.episodes) == (1600, 40)
    # Phi(shift / sqrt 2); the standard error of an area from 2200 against 1600 numbers is below 0.007
    expected = 0.5 * (1 + math.erf(shift / 2))
    assert found.auroc == pytest.approx(expected, abs=0.025)
    assert separation(normal, odd, [np.zeros(60, bool)] * 40, window=1, onset=5) is None
    # Only what is labeled counts: before it begins nothing differs.
    first = separation(normal, odd, [np.arange(60) < 20] * 40, window=1, onset=0)
    assert first is not None and first.auroc == pytest.approx(0.5, abs=0.05)


def test_delays_of_series_by_hand() -> None:
    labels = np.arange(8) >= 3
    late = np.array([0, 9, 0, 0, 0, 9, 0, 9.0])  # the alarm before the onset does not count
    soon = np.array([0, 0, 0, 9, 9, 9, 9, 9.0])
    never = np.zeros(8)
    found = delay([late, soon, soon], [labels] * 3, threshold=5.0)
    assert found is not None and (found.median, found.ever) == (0.0, 1.0)
    assert found.found == pytest.approx((2 + 5 + 5) / 15)
    found = delay([late, late, never], [labels] * 3, threshold=5.0)
    assert found is not None and (found.median, found.ever) == (2.0, pytest.approx(2 / 3))
    found = delay([late, never, never], [labels] * 3, threshold=5.0)
    assert found is not None and math.isinf(found.median)
    assert delay([late], [np.zeros(8, bool)], threshold=5.0) is None


def test_a_threshold_lets_one_in_a_hundred_ring() -> None:
    values = np.random.default_rng(0).permutation(1000.0 * np.arange(1, 1002))
    limit = thresholds({"a": [np.concatenate((np.full(7, 1e9), values))]}, onset=7)["a"]
    assert (values > limit).sum() == 10
