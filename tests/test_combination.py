"""Combinations: closed forms on Gaussian data, and what each one sees that others do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worldflow.combination import COMBINATIONS, SHRINKAGE, Group, Grouped, fit_combination
from worldflow.surprise import Surprise


def combined(name: Any, usual: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How odd points are, each statistic a part of its own and known by its ranks."""
    surprises = [Surprise(row) for row in usual]
    nats, others = (np.stack([s(row) for s, row in zip(surprises, v, strict=True)]) for v in (usual, points))
    groups = [Group(rows=[i]) for i in range(len(usual))]
    return fit_combination(name, usual, nats, groups=groups)(points, others)


def correlated(num: int, *, seed: int = 0) -> np.ndarray:
    """Two standard normal statistics of correlation 0.9, the first one's negative, and a constant."""
    first, second = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], num).T
    return np.stack((first, -first, second, np.zeros(num)))


def test_mahalanobis_and_copula_are_the_closed_form_on_gaussian_data() -> None:
    usual, points = (
        correlated(20_000),
        np.array([[2.0, -2.0, 2.0, 0.0], [2.0, -2.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).T,
    )
    correlation = 0.9 * (1 - SHRINKAGE)
    # x' C^-1 x for C = [[1, r], [r, 1]]: 2 x^2 / (1 + r) along the ridge, 2 x^2 / (1 - r) across it.
    expected = [8 / (1 + correlation), 8 / (1 - correlation), 0.0]
    for name, tolerance in (("mahalanobis", 0.05), ("copula", 0.15)):  # ranks of 20,000 know the tail at 2 to 5 %
        found = combined(name, usual, points)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0.05)


def test_the_copula_does_not_care_about_the_scale_of_a_statistic() -> None:
    usual, points = correlated(500), correlated(40, seed=1)
    warped = np.stack([np.exp(usual[0]), -np.exp(usual[0]), usual[2] ** 3, usual[3]])
    moved = np.stack([np.exp(points[0]), -np.exp(points[0]), points[2] ** 3, points[3]])
    inside = (np.abs(points) < 2.5).all(0)  # beyond the usual values the tail goes on in the statistic's own scale
    expected = combined("copula", usual, points)[inside]
    np.testing.assert_allclose(combined("copula", warped, moved)[inside], expected, rtol=1e-9)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_farther_out_is_odder(name: Any) -> None:
    pytest.importorskip("sklearn")
    usual = np.random.default_rng(0).standard_normal((3, 800))
    steps = np.array([0.0, 2.0, 4.0])
    points = np.stack((steps, steps, steps))
    found = combined(name, usual, points)
    assert found.shape == (3,) and (np.diff(found) > 0).all()


def test_only_what_knows_of_correlation_sees_values_that_do_not_go_together() -> None:
    usual, odd = correlated(4000), np.array([[1.5, -1.5, -1.5, 0.0]]).T  # each by itself is nothing
    higher = {}
    for name in ("highest", "copula", "mahalanobis"):
        higher[name] = float((combined(name, usual, usual) >= combined(name, usual, odd)).mean())
    assert higher["highest"] > 0.1
    assert higher["copula"] < 1e-3 and higher["mahalanobis"] < 1e-3


def test_many_statistics_of_one_part_do_not_drown_another() -> None:
    random = np.random.default_rng(0)
    usual, fresh, odd = (random.standard_normal((41, n)) for n in (4000, 4000, 400))
    odd[40] += 5.0
    surprises = [Surprise(row) for row in usual]
    nats, others, odds = (np.stack([s(row) for s, row in zip(surprises, v, strict=True)]) for v in (usual, fresh, odd))
    groups = [Group(rows=range(40), independent=4000.0), Group(rows=[40], independent=4000.0)]
    missed = {}
    for name in ("fisher", "parts"):
        combine = fit_combination(name, usual, nats, groups=groups)
        missed[name] = float((combine(odd, odds) <= np.quantile(combine(fresh, others), 0.99)).mean())
    assert missed["parts"] < 0.2 < 0.5 < missed["fisher"]


def test_a_group_is_as_surprising_as_its_sum() -> None:
    usual = np.random.default_rng(0).exponential(size=(3, 500))
    groups = [Group(rows=[0, 2], independent=20.0), Group(rows=[1])]
    found = Grouped(usual, groups)(np.array([[4.0], [2.0], [3.0]]))
    assert found[0, 0] == Surprise(usual[0] + usual[2], independent=20.0, has_ranks=False)(np.array([7.0]))[0]
    assert found[1, 0] == 2.0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'forest'"):
        combined("forrest", np.zeros((1, 2)), np.zeros((1, 2)))
