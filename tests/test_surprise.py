"""Surprise: closed forms by rank and by spread, tails that do not end, and what few values cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldflow.surprise import Surprise, normal_score, surprise


def test_surprise_is_the_log_of_the_rank_and_goes_on_beyond_it() -> None:
    usual = np.arange(100.0)
    found = surprise(usual, np.array([-1.0, 50.0, 99.0, 99.5]))
    np.testing.assert_allclose(found[:3], [0.0, -np.log(51 / 101), -np.log(2 / 101)])
    # the mean excess of 90 .. 99 over 90 is 4.5
    assert found[3] == pytest.approx(np.log(101) + 0.5 / 4.5)
    assert np.isfinite(surprise(np.zeros(10), np.array([0.0, 1.0]))).all()
    np.testing.assert_array_equal(Surprise(usual[::-1])(np.array([50.0, 99.5])), found[[1, 3]])


def test_few_independent_values_know_no_more_than_students_t() -> None:
    usual = np.random.default_rng(0).standard_normal(100_000)
    usual = (usual - usual.mean()) / usual.std()
    # Student's t of 2 and of 4 degrees of freedom; the fewer, the less exact the transform.
    tails = {
        2: lambda x: 0.5 - x / (2 * np.sqrt(2 + x**2)),
        4: lambda x: 0.5 - 0.375 * x / np.sqrt(1 + x**2 / 4) * (1 - x**2 / (12 + 3 * x**2)),
    }
    for freedom, exact in tails.items():
        spread = np.sqrt(1 + 1 / (freedom + 1))
        for score in (1.0, 4.0, 30.0):
            (found,) = Surprise(usual, independent=freedom + 1.0)(np.array([score * spread]))
            assert found == pytest.approx(-np.log(exact(score)), rel=0.08)
    # Of many it is the normal tail that both ways agree on, where ranks know it.
    for independent in (1e5, None):
        (found,) = Surprise(usual, independent=independent)(np.array([2.5]))
        assert found == pytest.approx(-np.log(0.00621), abs=0.15)


def test_a_heavy_tail_is_known_by_its_ranks() -> None:
    usual = np.random.default_rng(0).standard_t(2, 1000)
    by_rank, lower = Surprise(usual), Surprise(usual, independent=1000)
    values = np.linspace(-5, 400, 50)
    assert (lower(values) <= by_rank(values)).all()
    assert lower(values)[-1] == by_rank(values)[-1]
    assert (Surprise(usual, independent=1000, has_ranks=False)(values[40:]) > by_rank(values[40:])).all()
    assert np.isfinite(Surprise(np.zeros(10), independent=3.0)(np.array([0.0, 1.0]))).all()


def test_normal_score_inverts_the_tail_however_far_out() -> None:
    scores = torch.tensor([-6.0, -1.0, 0.0, 0.3, 2.0, 8.0, 40.0]).double()
    nats = -torch.special.log_ndtr(-scores)
    # At -6 the tail's probability is within 1e-9 of one, so its logarithm has lost nine digits of sixteen.
    np.testing.assert_allclose(normal_score(nats.numpy()), scores.numpy(), rtol=1e-6, atol=1e-9)
    assert np.isfinite(normal_score(np.array([0.0, 1e4]))).all()
