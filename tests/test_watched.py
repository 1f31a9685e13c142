"""Averages remember what they should, and no more than that."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.watched import SHRINKAGE, WINDOWS, Averages, left_out, watched_names


def naive(values: np.ndarray, mean: np.ndarray, t: int, window: int) -> np.ndarray:
    held = values[:, max(0, t + 1 - window) : t + 1] - mean[:, None]
    return mean + held.sum(1) / np.sqrt(window * held.shape[1])


def test_averages_are_means_over_what_came_last_and_as_wild_early_as_late() -> None:
    usual = np.stack((np.linspace(-1.0, 3.0, 101), np.linspace(0.0, 10.0, 101)))
    averages = Averages.of([usual[:, :40], usual[:, 40:]])
    values = np.random.default_rng(0).uniform(0, 3, (2, 70))
    found, past = averages(values)
    assert watched_names(["a", "b"]) == ("a", "b", "a_8", "b_8", "a_50", "b_50")
    for row, window in enumerate(WINDOWS):
        for t in (0, 3, 20, 69):
            expected = naive(values, usual.mean(1), t, window) if window > 1 else values[:, t]
            np.testing.assert_allclose(found[2 * row : 2 * row + 2, t], expected)
    np.testing.assert_allclose(found[4:, 69], values[:, -50:].mean(1))
    np.testing.assert_array_equal(past.values, values[:, -49:])
    assert past.count == 70
    noise = np.random.default_rng(1).uniform(-1, 1, (1, 2000, 60))
    many = Averages.of([noise[:, :, 0]])
    wild = np.std([many(noise[:, i])[0] for i in range(2000)], axis=0)
    np.testing.assert_allclose(wild[1], wild[0] / np.sqrt(8), rtol=0.1)  # 2000 values: 1.6 % each
    np.testing.assert_allclose(wild[2], wild[0] / np.sqrt(50), rtol=0.1)


def test_an_outlier_counts_in_full_once_and_then_as_the_most_unusual_normal_one() -> None:
    averages = Averages.of([np.array([[-2.0, 2.0]])])
    found, _ = averages(np.array([[0.0, 1000.0, 0.0, 0.0]]))
    assert found[0, 1] == 1000
    assert found[1].tolist() == pytest.approx([0, *(2 / np.sqrt(8 * n) for n in (2, 3, 4))])


def test_a_vector_is_averaged_with_its_sign_before_its_distance_is_taken() -> None:
    random = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.0], [0.9, 0.2]])

    def episode(shift: float) -> np.ndarray:
        return np.concatenate(
            (random.standard_normal((1, 60)), mixing @ random.standard_normal((2, 60)) + [[0], [shift]])
        )

    usual = [episode(0.0) for _ in range(200)]
    averages = Averages.of(usual, directions=2)
    found = averages(episode(0.6))[0]  # less than a standard deviation
    assert found.shape == (3 * len(WINDOWS), 60)
    for row, window in enumerate(WINDOWS):
        rows = averages.averages(usual[0])[0][row][2:] - averages.mean[1:, None]
        every = np.concatenate([averages.averages(e)[0][row][2:] for e in usual], 1) - averages.mean[1:, None]
        covariance = every @ every.T / every.shape[1]
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
        expected = np.sqrt(np.einsum("it,it->t", rows, np.linalg.solve(shrunk, rows)))
        np.testing.assert_allclose(averages(usual[0])[0][3 * row + 2], expected)
        np.testing.assert_allclose(averages(usual[0])[0][3 * row], averages.averages(usual[0])[0][row][0])
        usually = np.concatenate([averages(e)[0][3 * row + 2] for e in usual])
        beyond = (found[3 * row + 2, 49:] > np.quantile(usually, 0.99)).mean()
        assert beyond == 1 if window == 50 else window == 8 or beyond < 0.2


def test_a_vector_that_is_large_wherever_it_points_shows_in_the_average_of_its_size() -> None:
    random = np.random.default_rng(0)

    def episode(scale: float) -> np.ndarray:
        vector = scale * np.array([[1.0], [3.0]]) * random.standard_normal((2, 60))
        vector[:, :8] = 0.0  # nothing was foreseen yet
        return np.concatenate((random.standard_normal((1, 60)), vector))

    usual = [episode(1.0) for _ in range(100)]
    averages = Averages.of(usual, directions=2)
    assert watched_names(["still", "foresight"])[:4] == ("still", "unforeseen", "foresight", "still_8")

    vectors = np.concatenate([e[1:, 8:] for e in usual], axis=1)
    everything = np.concatenate([e[1:] for e in usual], axis=1)
    off = everything - everything.mean(1, keepdims=True)
    covariance = off @ off.T / off.shape[1]
    metric = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)))

    def size(v: np.ndarray) -> np.ndarray:
        off = v - everything.mean(1, keepdims=True)
        return np.log1p(np.sum(off * (metric @ off), axis=0)) / 2

    fresh = episode(1.4)
    found = averages(fresh)[0]
    np.testing.assert_allclose(found[1, 8:], size(fresh[1:, 8:]))
    np.testing.assert_allclose(found[1, :8], size(vectors).mean())
    clipped = np.clip(fresh[1:], everything.min(1)[:, None], everything.max(1)[:, None])
    for window, row in zip(WINDOWS[1:], (4, 7), strict=True):
        np.testing.assert_allclose(found[row, 59], size(clipped[:, 60 - window :]).mean())
    # Energy is what tells them apart: the mean vector stays where it was.
    large, small = ([averages(episode(s))[0][:, 59] for _ in range(200)] for s in (1.4, 1.0))
    beyond = [(np.array(large)[:, row] > np.quantile(np.array(small)[:, row], 0.95)).mean() for row in (7, 8)]
    assert beyond[0] > 0.9
    assert beyond[1] < 0.5


def test_usual_episodes_are_left_out_of_what_judges_them() -> None:
    random = np.random.default_rng(0)
    usual = [random.standard_normal((7, 20)) for _ in range(10)]
    found = left_out(usual, directions=6)
    for i in (0, 8, 9):  # of eight parts the first two hold two episodes
        others = [values for j, values in enumerate(usual) if j % 8 != i % 8]
        np.testing.assert_array_equal(found[i], Averages.of(others, directions=6)(usual[i])[0])
    fresh = [random.standard_normal((7, 20)) for _ in range(400)]
    averages = Averages.of(usual, directions=6)

    def distance(watched: list[np.ndarray]) -> float:
        return float(np.mean([rows[-1, -1] for rows in watched]))

    new = distance([averages(values)[0] for values in fresh])
    assert distance([averages(values)[0] for values in usual]) < 0.85 * new < distance(found) < 1.4 * new
    np.testing.assert_array_equal(left_out(usual[:1])[0], Averages.of(usual[:1])(usual[0])[0])


def test_parts_give_the_bits_of_the_whole() -> None:
    random = np.random.default_rng(0)
    averages = Averages.of([random.standard_normal((5, 50))], directions=2)
    values = random.standard_normal((5, 40))
    whole, _ = averages(values)
    past, parts = None, []
    for part in np.split(values, (1, 2, 30), axis=1):
        found, past = averages(part, past)
        parts.append(found)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-12)
    scalars = [0, 1, 2, 5, 6, 7, 10, 11, 12]  # ties stay ties; sizes and distances are sums in any order
    np.testing.assert_array_equal(np.concatenate(parts, axis=1)[scalars], whole[scalars])
