"""Drift: sums as by hand, bets that are fair, and evidence that keeps Ville's promise."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.drift import cusum, e_process, e_value


def test_cusum_is_the_recursion_and_goes_on_from_where_it_was() -> None:
    scores = np.array([[1.0, 1.0, -3.0, 2.0], [0.0, 0.5, 0.5, 0.0]])
    expected = [[0.5, 1.0, 0.0, 1.5], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(cusum(scores), expected)
    first = cusum(scores[:, :2])
    np.testing.assert_array_equal(cusum(scores[:, 2:], start=first[:, -1]), np.array(expected)[:, 2:])


def test_bets_are_the_integral_and_fair() -> None:
    p = np.array([1e-6, 0.03, 0.5, 0.97, 0.9991, 0.99999, 1.0])
    k = (np.arange(20_000) + 0.5) / 20_000
    expected = [(k * value ** (k - 1)).mean() for value in p]
    np.testing.assert_allclose(e_value(p), expected, rtol=1e-4)
    # The mean over uniform p-values is 1. Of p below d it is 1 / -ln d: with p = exp(-y), on a grid in y.
    y = (np.arange(400_000) + 0.5) / 400_000 * 200
    assert (e_value(np.exp(-y)) * np.exp(-y)).mean() * 200 == pytest.approx(1 - 1 / 200, rel=1e-3)


def test_evidence_is_the_mixture_over_beginnings() -> None:
    p = np.array([0.3, 0.01, 0.9, 0.2])
    e = e_value(p)
    for t in range(1, 5):
        begun = sum(np.prod(e[j - 1 : t]) / (j * (j + 1)) for j in range(1, t + 1))
        assert e_process(p)[t - 1] == pytest.approx(begun + 1 / (t + 1))


def test_evidence_hardly_ever_grows_under_normal_conditions_and_does_after_a_change() -> None:
    random = np.random.default_rng(0)
    repeats, alpha = 500, 0.1
    crossed = sum(e_process(random.random(300)).max() >= 1 / alpha for _ in range(repeats))
    # Ville: at most alpha; four standard deviations above it, one time in 30,000 by chance.
    assert crossed <= repeats * alpha + 4 * np.sqrt(repeats * alpha * (1 - alpha))
    late = np.concatenate((random.random(100), random.random(100) ** 8))
    assert e_process(late)[:100].max() < 100 < e_process(late).max()  # one time in a hundred by chance, and seeded
