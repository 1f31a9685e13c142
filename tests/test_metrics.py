from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from worldflow import metrics


def noise(seed: int, shape: tuple[int, ...], low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


# -- PSNR --------------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_difference() -> None:
    black = np.zeros((2, 8, 6, 3), np.uint8)
    gray = np.full((2, 8, 6, 3), [[[[5]]], [[[255]]]], np.uint8)
    # closed form: 20 log10(255 / difference); uint8 arithmetic would wrap 0 - 5 to 251
    np.testing.assert_allclose(metrics.psnr(black, gray), [20 * math.log10(51), 0.0], atol=1e-12)
    np.testing.assert_allclose(metrics.psnr(gray, black), metrics.psnr(black, gray), atol=0)


def test_identical_frames_reach_the_cap_and_nothing_exceeds_it() -> None:
    frames = noise(0, (3, 8, 8, 3))
    assert np.all(metrics.psnr(frames, frames) == metrics.PSNR_CAP)
    assert np.all(metrics.psnr(frames, frames, cap=80.0) == 80.0)
    nearly = frames.copy()
    nearly[0, 0, 0, 0] ^= 1  # mean squared error 1 / 192, 70.96 dB
    assert metrics.psnr(frames, nearly)[0] == metrics.PSNR_CAP
    assert metrics.psnr(frames, nearly, cap=80.0)[0] == pytest.approx(10 * math.log10(255**2 * 192), abs=1e-12)


def test_averages_are_taken_of_the_error() -> None:
    real = np.zeros((2, 1, 4, 4, 1), np.uint8)
    predicted = np.zeros_like(real)
    predicted[1] = 20
    over = metrics.psnr(real, predicted, over=0)
    assert over.shape == (1,)
    assert over[0] == pytest.approx(10 * math.log10(255**2 / 200), abs=1e-12)  # mean of 0 and 400
    assert over[0] != pytest.approx(metrics.psnr(real, predicted).mean(), abs=1.0)


def test_psnr_curve_averages_samples_and_rollouts_and_broadcasts_a_copied_frame() -> None:
    real, last = noise(1, (5, 4, 8, 8, 3)), noise(2, (5, 1, 8, 8, 3))
    copied = metrics.psnr_curve(real, last)
    np.testing.assert_allclose(copied.mean, metrics.psnr(real, np.repeat(last, 4, axis=1), over=0), rtol=1e-12)
    samples = np.stack([np.repeat(last, 4, axis=1), real])
    halved = metrics.psnr_curve(real, torch.from_numpy(samples))
    np.testing.assert_allclose(halved.mean, copied.mean + 10 * math.log10(2), rtol=1e-12)
    for curve in (copied, halved):
        assert curve.mean.shape == curve.low.shape == curve.high.shape == (4,)
        assert np.all(curve.low < curve.mean) and np.all(curve.mean < curve.high)
    # samples of a rollout are resampled with it: the interval is no narrower than that of one sample
    np.testing.assert_allclose(halved.high - halved.low, copied.high - copied.low, rtol=1e-9)


# -- SSIM --------------------------------------------------------------------------------------------------------------


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al., pixel by pixel: one channel, 11 x 11 window of standard deviation 1.5, places inside the frame."""
    window = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i, j in itertools.product(range(a.shape[0] - 10), range(a.shape[1] - 10)):
        x, y = (z[i : i + 11, j : j + 11].astype(np.float64) for z in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        c = (window * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + c1) * (2 * c + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_is_the_naive_sum() -> None:
    a = noise(3, (2, 14, 17, 3))
    b = np.clip(a.astype(int) + np.random.default_rng(4).integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    expected = [np.mean([naive_ssim(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(a, b, strict=True)]
    # E[x^2] - E[x]^2 against E[(x - m)^2]: float64 of values up to 255^2 loses about 1e-11
    np.testing.assert_allclose(metrics.ssim(a, b), expected, atol=1e-10)


def test_ssim_of_flat_frames_compares_only_their_means() -> None:
    a, b = np.full((11, 11, 1), 100, np.uint8), np.full((11, 11, 1), 150, np.uint8)
    c1 = 2.55**2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-10)
    assert metrics.ssim(a, a) == pytest.approx(1.0, abs=1e-12)


# -- detection ---------------------------------------------------------------------------------------------------------


def test_auroc_counts_pairs_and_halves_ties() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        normal, anomalous = generator.integers(0, 6, 13).astype(float), generator.integers(2, 8, 9).astype(float)
        pairs = [(b > a) + 0.5 * (b == a) for a in normal for b in anomalous]
        assert metrics.auroc(normal, anomalous) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_extremes() -> None:
    assert metrics.auroc([1, 2], [3, np.inf]) == 1.0
    assert metrics.auroc([3, 4], [1, 2]) == 0.0
    assert metrics.auroc([1, 1], [1, 1, 1]) == 0.5


def test_auprc_walks_down_the_thresholds() -> None:
    generator = np.random.default_rng(6)
    normal, anomalous = generator.integers(0, 6, 30).astype(float), generator.integers(2, 8, 11).astype(float)
    area, recall = 0.0, 0.0
    for threshold in sorted({*normal, *anomalous}, reverse=True):
        true, false = np.sum(anomalous >= threshold), np.sum(normal >= threshold)
        area += (true / 11 - recall) * true / (true + false)
        recall = true / 11
    assert metrics.auprc(normal, anomalous) == pytest.approx(area, abs=1e-12)
    assert metrics.auprc(np.zeros(30), np.zeros(10)) == pytest.approx(0.25)  # tells nothing: the share of anomalies


def test_roc_curve_by_hand() -> None:
    curve = metrics.roc_curve([0.0, 1.0, 1.0, 2.0], [1.0, 3.0])
    np.testing.assert_allclose(curve.false_alarms, [0, 0, 0.25, 0.75, 1])  # thresholds 3, 2, 1, 0
    np.testing.assert_allclose(curve.detections, [0, 0.5, 0.5, 1, 1])


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = np.random.default_rng(7).normal(size=(400, 2)) * [1.0, 3.0]
    low, high = metrics.bootstrap_interval(values, num_resamples=2000)
    expected = 2 * 1.96 * values.std(axis=0) / math.sqrt(400)
    # The ends' own bootstrap error is about 1.96 * sqrt(2 / 2000) / 1.96 = 3 % each; four of these, and two columns.
    np.testing.assert_allclose(high - low, expected, rtol=0.12)
    assert np.all((low < values.mean(axis=0)) & (values.mean(axis=0) < high))


def test_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(8)
    covered = 0
    for _ in range(200):
        low, high = metrics.bootstrap_interval(generator.normal(size=60), level=0.8, num_resamples=200)
        covered += bool(low <= 0 <= high)
    # Binomial(200, 0.8): mean 160, standard deviation 5.7. Four of these, and 3 for the percentile method's known
    # undercoverage at 60 rows: a false alarm in 10,000 seeds.
    assert abs(covered - 160) <= 4 * 5.7 + 3


def test_bootstrap_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    values = np.arange(10.0)
    state = torch.get_rng_state()
    first, again = metrics.bootstrap_interval(values), metrics.bootstrap_interval(values)
    other = metrics.bootstrap_interval(values, generator=torch.Generator().manual_seed(1), num_resamples=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again and first != other


def test_bootstrap_keeps_rows_together() -> None:
    column = np.random.default_rng(9).normal(size=50)
    paired = np.stack([column, column + 1.0], axis=1)
    low, high = metrics.bootstrap_interval(paired, statistic=lambda v: v[:, 1].mean() - v[:, 0].mean())
    assert low == pytest.approx(1.0, abs=1e-12) and high == pytest.approx(1.0, abs=1e-12)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_frames_that_do_not_fit_are_named() -> None:
    good = np.zeros((2, 12, 12, 3), np.uint8)
    with pytest.raises(TypeError, match=r"a must hold uint8 frames, got float64; scale to 0\.\.255"):
        metrics.psnr(good / 255, good)
    with pytest.raises(ValueError, match=r"\(12, 12, 3\) against \(12, 12, 1\)"):
        metrics.psnr(good, good[..., :1])
    with pytest.raises(ValueError, match="do not broadcast"):
        metrics.ssim(good, np.zeros((3, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="not empty"):
        metrics.psnr(good[:0], good[:0])
    with pytest.raises(ValueError, match="window must be odd"):
        metrics.ssim(good[:, :8], good[:, :8])
    with pytest.raises(ValueError, match="rollout, time, row, column, channel"):
        metrics.psnr_curve(good, good)


def test_scores_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="normal scores are empty"):
        metrics.auroc([], [1.0])
    with pytest.raises(ValueError, match="anomalous scores hold 1 NaN of 2"):
        metrics.auprc([1.0], torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="values must be finite, got 1 NaN or inf of 2"):
        metrics.bootstrap_interval([1.0, np.inf])
    with pytest.raises(ValueError, match="values must not be empty"):
        metrics.bootstrap_interval([])
    with pytest.raises(ValueError, match="a single number"):
        metrics.bootstrap_interval(1.0)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        metrics.bootstrap_interval([1.0], level=95)
    with pytest.raises(ValueError, match="cannot be negative"):
        metrics.decibels([-1.0])
