"""The Fréchet distance against its closed form, and an encoder that sees looks, motion and order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldflow.frechet import ClipEncoder, frechet_distance


def moving_squares(num: int, *, seed: int, speed: float = 1.5, order: str = "forward", gray: int = 220) -> torch.Tensor:
    """Clips of 8 frames in which a square of 5 pixels moves at a random direction over a dim background."""
    generator = np.random.default_rng(seed)
    clips = np.full((num, 8, 24, 24, 3), 30, np.uint8)
    for clip in clips:
        place, angle = generator.uniform(4, 15, 2), generator.uniform(0, 2 * np.pi)
        steps = range(8) if order == "forward" else generator.permutation(8)
        for t, k in enumerate(steps):
            r, c = np.clip(place + k * speed * np.array([np.sin(angle), np.cos(angle)]), 0, 19).astype(int)
            clip[t, r : r + 5, c : c + 5] = gray
    return torch.from_numpy(clips)


def test_distance_of_given_means_and_covariances_is_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)  # mean 0, covariance 1, exactly
    shift, stretch = np.array([1.0, -2.0, 0.5]), np.array([2.0, 1.0, 0.5])
    expected = np.square(shift).sum() + np.square(stretch - 1).sum()  # of covariances that commute
    assert frechet_distance(x, x * stretch + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    tilted = (x * stretch) @ turn
    root = np.linalg.eigvals(np.cov(x * [1, 2, 3], rowvar=False) @ np.cov(tilted, rowvar=False))
    expected = 14 + np.square(stretch).sum() - 2 * np.sqrt(root.real).sum()  # of any two covariances
    assert frechet_distance(x * [1, 2, 3], tilted) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(tilted, x * [1, 2, 3]) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(moving_squares(160, seed=0), num_features=12)


def test_what_looks_or_moves_otherwise_is_farther_than_real_clips_are(encoder: ClipEncoder) -> None:
    real = encoder(moving_squares(128, seed=1)).numpy()
    floor = frechet_distance(real, encoder(moving_squares(128, seed=2)).numpy())
    still = frechet_distance(real, encoder(moving_squares(128, seed=2, speed=0.0)).numpy())
    jumpy = frechet_distance(real, encoder(moving_squares(128, seed=2, order="shuffled")).numpy())
    dim = frechet_distance(real, encoder(moving_squares(128, seed=2, gray=150)).numpy())
    # 128 clips, 12 features: 12 x 2 / 128 for the means and 12 x 13 / 4 x 2 / 128 for the covariances, if normal
    assert 0.3 < floor < 1.2
    assert min(still, jumpy, dim) > 2 * floor


def test_features_are_the_same_every_time_and_whitened(encoder: ClipEncoder) -> None:
    state = torch.get_rng_state()
    clips = moving_squares(160, seed=0)
    again = ClipEncoder(clips, num_features=12)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.num_features == 12
    features = encoder(clips, chunk=7)
    # chunks change the order of float32 sums only
    torch.testing.assert_close(again(clips), features, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.cov(features.T), torch.eye(12), atol=2e-3, rtol=0)


def test_sets_that_do_not_fit_are_named(encoder: ClipEncoder) -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows, got \(1, 3\) and \(4, 3\)"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"clips must have shape \(clip, \(8, 24, 24, 3\)\)"):
        encoder(moving_squares(2, seed=0)[:, :4])
    with pytest.raises(ValueError, match="at least 8 clips of 4 frames"):
        ClipEncoder(moving_squares(4, seed=0))
    with pytest.raises(ValueError, match="all clips are the same"):
        ClipEncoder(torch.zeros(16, 8, 24, 24, 3, dtype=torch.uint8))
