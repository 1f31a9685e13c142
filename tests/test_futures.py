"""Sets of futures: calibrated ones look calibrated for any number of them, others are told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldflow import futures


def calibrated(num: int, *, cases: int = 20_000, spread: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(num)
    center = 3 * generator.normal(size=cases)
    return center + shift + spread * generator.normal(size=(num, cases)), center + generator.normal(size=cases)


def test_ranks_count_futures_below_and_break_ties_evenly() -> None:
    drawn = np.array([[0.0, 5.0], [2.0, 6.0], [1.0, 7.0]])
    assert futures.ranks(drawn, np.array([1.5, 9.0])).tolist() == [2, 3]
    tied = futures.ranks(np.zeros((3, 4000)), np.zeros(4000), generator=torch.Generator().manual_seed(1))
    # 4 equally likely ranks: a count is 1000 with standard deviation 27
    assert np.abs(np.bincount(tied, minlength=4) - 1000).max() < 5 * 27


@pytest.mark.parametrize("num", [2, 5, 16])
def test_calibrated_futures_have_flat_ranks_exact_coverage_and_ratio_one(num: int) -> None:
    drawn, truth = calibrated(num)
    found = futures.ranks(drawn, truth)
    histogram = futures.rank_histogram(found, num_futures=num)
    assert histogram.shape == (num + 1,)
    # 20,000 cases: a share p has standard deviation sqrt(p / 20000); five of these for at most 17 bins
    np.testing.assert_allclose(histogram, 1 / (num + 1), atol=5 * (1 / (num + 1) / 20_000) ** 0.5)
    for level in (0.5, 0.9):
        assert futures.coverage(found, num_futures=num, level=level).mean() == pytest.approx(level, abs=0.018)
    spread = futures.spread_variance(drawn).mean()
    error = np.square(drawn.mean(axis=0) - truth).mean()
    # a mean of 20,000 squares of normal numbers is known to 1 %, of N = 2 the variance to 1 % too
    assert spread / error == pytest.approx(1.0, abs=0.06)
    # CRPS of a standard normal forecast of a standard normal truth: 1 / sqrt(pi), whatever N is
    assert futures.fair_crps(drawn, truth).mean() == pytest.approx(np.pi**-0.5, abs=0.03)


def test_too_sure_and_too_vague_futures_are_told_apart() -> None:
    outer = []
    for spread in (0.4, 1.0, 2.5):
        drawn, truth = calibrated(9, spread=spread)
        found = futures.ranks(drawn, truth)
        histogram = futures.rank_histogram(found, num_futures=9)
        outer.append((histogram[[0, -1]].sum(), futures.coverage(found, num_futures=9, level=0.5).mean()))
    (sure_ends, sure), (even_ends, even), (vague_ends, vague) = outer
    assert sure_ends > 1.5 * even_ends > 3 * vague_ends
    assert sure < 0.7 * even < even < 0.8 * vague


def test_coverage_of_every_rank_is_the_overlap() -> None:
    found = np.arange(4)  # 3 futures: cells [0, 1/4], [1/4, 1/2], ...; the central 60 % are [0.2, 0.8]
    np.testing.assert_allclose(futures.coverage(found, num_futures=3, level=0.6), [0.2, 1, 1, 0.2], atol=1e-12)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 90"):
        futures.coverage(found, num_futures=3, level=90)


def test_crps_is_its_double_sum_and_prefers_the_right_spread() -> None:
    generator = np.random.default_rng(0)
    drawn, truth = generator.normal(size=(5, 3, 2)), generator.normal(size=(3, 2))
    pairs = np.abs(drawn[:, None] - drawn[None]).sum(axis=(0, 1)) / (2 * 5 * 4)
    np.testing.assert_allclose(futures.fair_crps(drawn, truth), np.abs(drawn - truth).mean(axis=0) - pairs, rtol=1e-12)
    np.testing.assert_allclose(futures.fair_crps(drawn[:1], truth), np.abs(drawn[0] - truth), rtol=1e-12)
    scores = [
        futures.fair_crps(*calibrated(8, spread=s, shift=b)).mean() for s, b in ((1, 0), (0.3, 0), (3, 0), (1, 2))
    ]
    assert min(scores) == scores[0]


def test_brier_does_not_depend_on_the_number_of_futures() -> None:
    generator = np.random.default_rng(1)
    chance = generator.uniform(size=40_000)
    truth = generator.uniform(size=chance.shape) < chance
    for num in (2, 8):
        events = generator.uniform(size=(num, *chance.shape)) < chance
        # E p (1 - p) = 1/6 of a uniform chance; the plain score would be 1/6 (1 + 1 / N)
        assert futures.fair_brier(events, truth).mean() == pytest.approx(1 / 6, abs=0.01)


def test_shapes_and_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match=r"the truth's \(3,\), got \(2, 4\)"):
        futures.ranks(np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="must be finite"):
        futures.fair_crps(np.full((2, 3), np.nan), np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 futures"):
        futures.fair_brier(np.zeros((1, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 futures, got 1"):
        futures.spread_variance(np.zeros((1, 3)))
