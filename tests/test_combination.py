"""Combinations: closed forms on Gaussian data, tails that do not end, and what each one sees that others do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from worldflow.combination import COMBINATIONS, SHRINKAGE, fit_combination, normal_score, surprise


def test_surprise_is_the_log_of_the_rank_and_goes_on_beyond_it() -> None:
    usual = np.arange(100.0)
    found = surprise(usual, np.array([-1.0, 50.0, 99.0, 99.5]))
    np.testing.assert_allclose(found[:3], [0.0, -np.log(51 / 101), -np.log(2 / 101)])
    # the mean excess of 90 .. 99 over 90 is 4.5
    assert found[3] == pytest.approx(np.log(101) + 0.5 / 4.5)
    assert np.isfinite(surprise(np.zeros(10), np.array([0.0, 1.0]))).all()


def test_normal_score_inverts_the_tail_however_far_out() -> None:
    scores = torch.tensor([-6.0, -1.0, 0.0, 0.3, 2.0, 8.0, 40.0]).double()
    nats = -torch.special.log_ndtr(-scores)
    # At -6 the tail's probability is within 1e-9 of one, so its logarithm has lost nine digits of sixteen.
    np.testing.assert_allclose(normal_score(nats.numpy()), scores.numpy(), rtol=1e-6, atol=1e-9)
    assert np.isfinite(normal_score(np.array([0.0, 1e4]))).all()


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
        found = fit_combination(name, usual)(points)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0.05)


def test_the_copula_does_not_care_about_the_scale_of_a_statistic() -> None:
    usual, points = correlated(500), correlated(40, seed=1)
    warped = np.stack([np.exp(usual[0]), -np.exp(usual[0]), usual[2] ** 3, usual[3]])
    moved = np.stack([np.exp(points[0]), -np.exp(points[0]), points[2] ** 3, points[3]])
    inside = (np.abs(points) < 2.5).all(0)  # beyond the usual values the tail goes on in the statistic's own scale
    expected = fit_combination("copula", usual)(points)[inside]
    np.testing.assert_allclose(fit_combination("copula", warped)(moved)[inside], expected, rtol=1e-9)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_farther_out_is_odder(name: Any) -> None:
    pytest.importorskip("sklearn")
    usual = np.random.default_rng(0).standard_normal((3, 800))
    steps = np.array([0.0, 2.0, 4.0])
    points = np.stack((steps, steps, steps))
    found = fit_combination(name, usual)(points)
    assert found.shape == (3,) and (np.diff(found) > 0).all()


def test_only_what_knows_of_correlation_sees_values_that_do_not_go_together() -> None:
    usual, odd = correlated(4000), np.array([[1.5, -1.5, -1.5, 0.0]]).T  # each by itself is nothing
    higher = {}
    for name in ("highest", "copula", "mahalanobis"):
        combine = fit_combination(name, usual)  # pyright: ignore[reportArgumentType]
        higher[name] = float((combine(usual) >= combine(odd)).mean())
    assert higher["highest"] > 0.1
    assert higher["copula"] < 1e-3 and higher["mahalanobis"] < 1e-3


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'forest'"):
        fit_combination("forrest", np.zeros((1, 2)))  # pyright: ignore[reportArgumentType]
