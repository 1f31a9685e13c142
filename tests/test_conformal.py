"""Conformal p-values: counted by hand, and promises kept over many repetitions."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.conformal import Ranks, peaks

REPEATS = 2000


def at_most(count: int, rate: float) -> bool:
    """Whether so many alarms are no more than a rate of at most `rate` gives: one time in 30,000 by chance."""
    return count <= REPEATS * rate + 4 * np.sqrt(REPEATS * rate * (1 - rate))


def test_p_values_and_thresholds_are_counted() -> None:
    ranks = Ranks(np.array([3.0, 1.0, 2.0, 2.0]))
    np.testing.assert_allclose(ranks.p_value(np.array([0.0, 1.0, 2.0, 2.5, 3.0, 4.0])), [1, 1, 0.8, 0.4, 0.4, 0.2])
    assert [ranks.threshold(rate) for rate in (0.1, 0.2, 0.4, 0.8, 1.0)] == [np.inf, 3.0, 2.0, 1.0, -np.inf]
    weighed = Ranks(np.array([3.0, 1.0, 2.0]), np.array([0.5, 1.0, 0.5]))
    np.testing.assert_allclose(weighed.p_value(np.array([2.0, 2.5])), [2 / 3, 1.5 / 3])


def test_thresholds_say_what_p_values_say() -> None:
    random = np.random.default_rng(0)
    values, new = np.round(random.standard_normal(50), 1), np.round(random.standard_normal(300), 1)
    ranks = Ranks(values, random.random(50))
    for rate in (0.02, 0.05, 0.3):
        np.testing.assert_array_equal(ranks.p_value(new) <= rate, new > ranks.threshold(rate))


def test_peaks_are_the_highest_of_each_episode() -> None:
    np.testing.assert_array_equal(peaks(np.array([[1, 5, 2, 0, 7, 3]]), np.array([2, 1, 3])), [[5, 2, 7]])


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_an_exchangeable_value_ranks_low_at_the_promised_rate(rate: float) -> None:
    random = np.random.default_rng(0)
    rang = sum(Ranks(v[1:]).p_value(v[:1])[0] <= rate for v in random.standard_normal((REPEATS, 20)))
    assert at_most(rang, rate)
    assert rang > REPEATS * rate - 4 * np.sqrt(REPEATS * rate * (1 - rate))  # 19 others: attained exactly


def test_weights_by_episode_keep_the_promise_where_transitions_depend() -> None:
    random = np.random.default_rng(0)
    rang = {"by episode": 0, "pooled": 0}
    for _ in range(REPEATS):
        lengths = random.integers(1, 9, 10)
        level = random.standard_normal(10)  # of whole episodes; transitions differ but a little
        values = [a + 0.01 * random.standard_normal(n) for a, n in zip(level, lengths, strict=True)]
        known, weights = np.concatenate(values[1:]), np.repeat(1.0 / lengths[1:], lengths[1:])
        fresh = values[0][:1]
        rang["by episode"] += int(Ranks(known, weights).p_value(fresh)[0] <= 0.1)
        rang["pooled"] += int(Ranks(known).p_value(fresh)[0] <= 0.04)
    assert at_most(rang["by episode"], 0.1)
    assert rang["by episode"] > REPEATS * 0.05
    assert not at_most(rang["pooled"], 0.04)  # about forty transitions that are worth nine
