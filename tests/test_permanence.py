"""Still objects are found without being told, and lost, moved or hidden ones are noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldflow.permanence import find_object, follow_object, permanent_coordinates

BACKGROUND = np.full((24, 24, 3), 60, np.float32)
ROW, COLUMN = 9, 13


def episode(*, row: float = ROW, column: float = COLUMN, target: int = 200, length: int = 20) -> np.ndarray:
    """A target of 3 pixels that stands still, and a bar that sweeps over the rows below and right of it."""
    frames = np.full((length, 24, 24, 3), 60, np.uint8)
    frames[:, int(row) : int(row) + 3, int(column) : int(column) + 3] = target
    for t in range(length):
        frames[t, 18:20, t : t + 4] = 255
    return frames


def test_the_still_object_is_found_and_the_moving_one_is_not() -> None:
    found = find_object(episode(), BACKGROUND)
    assert found is not None
    expected = np.zeros((24, 24), bool)
    expected[ROW : ROW + 3, COLUMN : COLUMN + 3] = True
    np.testing.assert_array_equal(found.mask, expected)
    assert find_object(episode(target=60), BACKGROUND) is None


def test_presence_and_displacement_are_exact() -> None:
    found = find_object(episode(), BACKGROUND)
    assert found is not None
    for frames, presence, displacement in (
        (episode(), 1.0, 0.0),
        (episode(row=ROW + 3, column=COLUMN + 4), 0.0, 5.0),
        (episode(row=ROW + 1), 2 / 3, 1.0),
        (episode(target=130), 0.5, 0.0),
    ):
        seen, moved = follow_object(found, torch.from_numpy(frames), BACKGROUND)
        np.testing.assert_allclose(seen, presence, atol=1e-5)
        # the parabola through three sums of squares may shift the lowest one by a fraction where they are uneven
        np.testing.assert_allclose(moved, displacement, atol=0.25)


def test_an_object_at_the_edge_of_the_frame_is_followed() -> None:
    frames = episode(row=0, column=21)
    found = find_object(frames, BACKGROUND)
    assert found is not None
    seen, moved = follow_object(found, torch.from_numpy(frames), BACKGROUND)
    np.testing.assert_allclose(seen, 1.0, atol=1e-5)
    np.testing.assert_allclose(moved, 0.0, atol=0.25)


def test_permanent_coordinates_are_constant_within_and_different_between() -> None:
    generator = np.random.default_rng(0)
    states = []
    for _ in range(4):
        moving = generator.normal(size=(10, 1))
        states.append(np.concatenate([moving, np.full((10, 1), generator.normal()), np.ones((10, 1))], axis=1))
    assert permanent_coordinates(states).tolist() == [False, True, False]
    states[2][5, 1] += 1e-3
    assert permanent_coordinates(states).tolist() == [False, False, False]


@pytest.mark.parametrize("shift", [0.25, -0.4])
def test_displacement_is_finer_than_a_pixel(shift: float) -> None:
    place = np.arange(24)

    def blob(row: float) -> np.ndarray:
        gray = 140 * np.exp(-((place[:, None] - row) ** 2 + (place - 12) ** 2) / (2 * 2.0**2))
        return np.broadcast_to((60 + gray)[None, :, :, None], (8, 24, 24, 3)).round().astype(np.uint8)

    found = find_object(blob(12), BACKGROUND)
    assert found is not None
    _, moved = follow_object(found, torch.from_numpy(blob(12 + shift)), BACKGROUND)
    np.testing.assert_allclose(moved, abs(shift), atol=0.1)
