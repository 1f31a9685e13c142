"""Surprise that is seen: bars as high as they should be, maps where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.surprise_views import BAR, CALM, RINGING, SCALE, surprise_meter, token_figure, token_heat


def test_the_meter_is_as_high_as_the_surprise_and_red_where_it_rings() -> None:
    frames = np.full((5, 8, 6, 1), 50, np.uint8)
    surprise, rings = np.array([0.0, 1.0, 2.0, 9.0]), np.array([False, False, True, False])
    clip = surprise_meter(frames, surprise, full=4.0, rings=rings, height=16)
    assert clip.shape == (5, 16, 12 + BAR, 3)
    assert (clip[:, :, :-BAR] == 50).all()
    bars = clip[:, :, -1]
    for t, (height, color) in enumerate(((0, CALM), (0, CALM), (4, CALM), (8, RINGING), (16, CALM))):
        np.testing.assert_array_equal(bars[t, 16 - height :], np.broadcast_to(color, (height, 3)))
        np.testing.assert_array_equal(bars[t, : 16 - height], np.broadcast_to(SCALE, (16 - height, 3)))
    with pytest.raises(ValueError, match="5 frames need 4 numbers, got 3"):
        surprise_meter(frames, surprise[1:], full=4.0)
    with pytest.raises(ValueError, match="full must be above 0"):
        surprise_meter(frames, surprise, full=0.0)


def test_maps_of_tokens_stand_under_their_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    token = np.arange(18.0).reshape(3, 6)
    figure = token_figure(frames, token, grid=(2, 3), transitions=[0, 2], title="tokens")
    above, below = figure.axes[:2], figure.axes[2:4]
    for column, t in enumerate((0, 2)):
        np.testing.assert_array_equal(above[column].images[0].get_array(), frames[t + 1])
        np.testing.assert_array_equal(below[column].images[0].get_array(), token[t].reshape(2, 3))
        assert below[column].images[0].get_clim() == (0.0, 17.0)
    with pytest.raises(ValueError, match=r"token must have shape \(3, 6\)"):
        token_figure(frames, token[:, :4], grid=(2, 3), transitions=[0])
    with pytest.raises(ValueError, match="from 0 to 2"):
        token_figure(frames, token, grid=(2, 3), transitions=[3])


def test_heat_lies_over_the_tokens_that_cost_more() -> None:
    frames = np.full((3, 4, 6, 3), 100, np.uint8)
    token = np.array([[0.0, 1.0, 2.0, 3.0], [9.0, 0.0, 0.0, -5.0]])
    hot = token_heat(frames, token, grid=(2, 2), low=1.0, high=3.0)
    assert (hot[0] == 100).all()  # nothing is said about the first frame
    red = hot[..., 0].astype(int) - 100
    # RINGING's red is 220: half of the way from 100 where the heat is full, a quarter where it is half
    np.testing.assert_array_equal(red[1], np.repeat(np.repeat([[0, 0], [30, 60]], 2, 0), 3, 1))
    np.testing.assert_array_equal(red[2], np.repeat(np.repeat([[60, 0], [0, 0]], 2, 0), 3, 1))
    assert token_heat(frames[..., :1], token, grid=(2, 2), low=1.0, high=3.0).shape == frames.shape
    with pytest.raises(ValueError, match=r"token must have shape \(2, 9\)"):
        token_heat(frames, token, grid=(3, 3), low=0.0, high=1.0)
    with pytest.raises(ValueError, match="high must be above low"):
        token_heat(frames, token, grid=(2, 2), low=1.0, high=1.0)
