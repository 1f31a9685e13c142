"""Averages remember what they should, and no more than that."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.watched import WINDOWS, Averages, watched_names


def test_averages_are_means_over_what_came_last_and_what_is_usual_before() -> None:
    usual = np.stack((np.linspace(-1.0, 3.0, 101), np.linspace(0.0, 10.0, 101)))
    averages = Averages.of(usual)
    values = np.random.default_rng(0).uniform(0, 3, (2, 70))
    found, past = averages(values)
    assert watched_names(["a", "b"]) == ("a", "b", "a_8", "b_8", "a_50", "b_50")
    for row, window in enumerate(WINDOWS):
        for t in (0, 3, 20, 69):
            held = np.concatenate((np.repeat([[1.0], [5.0]], 100, axis=1), values[:, : t + 1]), axis=1)
            np.testing.assert_allclose(found[2 * row : 2 * row + 2, t], held[:, -window:].mean(1))
    np.testing.assert_array_equal(past, values[:, -49:])


def test_an_outlier_counts_in_full_once_and_then_as_the_most_unusual_normal_one() -> None:
    averages = Averages.of(np.array([[-2.0, 2.0]]))
    found, _ = averages(np.array([[0.0, 1000.0, 0.0, 0.0]]))
    assert found[0, 1] == 1000
    assert found[1].tolist() == pytest.approx([0, 2 / 8, 2 / 8, 2 / 8])


def test_parts_give_the_bits_of_the_whole() -> None:
    random = np.random.default_rng(0)
    averages, values = Averages.of(random.standard_normal((3, 50))), random.standard_normal((3, 40))
    whole, _ = averages(values)
    past, parts = None, []
    for part in np.split(values, (1, 2, 30), axis=1):
        found, past = averages(part, past)
        parts.append(found)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
