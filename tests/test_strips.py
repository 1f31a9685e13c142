from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from worldflow.strips import imagined_figure, strip_figure

REAL = np.random.default_rng(0).integers(0, 256, (3, 20, 8, 10, 3), dtype=np.uint8)
IMAGINED = np.random.default_rng(1).integers(0, 256, (3, 20, 8, 10, 3), dtype=np.uint8)


def picture(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].get_images()[0].get_array())[::2, ::2]  # drawn twice as large


def labels(figure: Figure) -> tuple[list[str], list[str]]:
    axes = figure.axes[0]
    return [t.get_text() for t in axes.get_yticklabels()], [t.get_text() for t in axes.get_xticklabels()]


def test_one_rollout_shows_real_imagined_and_their_difference() -> None:
    figure = imagined_figure(torch.from_numpy(REAL[0]), torch.from_numpy(IMAGINED[0]), context=3)
    assert labels(figure) == (["real", "imagined", "difference"], [str(1 + t) for t in range(0, 20, 2)])
    shown = picture(figure)
    for column, time in enumerate(range(0, 20, 2)):
        np.testing.assert_array_equal(shown[:8, column * 12 : column * 12 + 10], REAL[0, time])
        np.testing.assert_array_equal(shown[10:18, column * 12 : column * 12 + 10], IMAGINED[0, time])
    (border,) = figure.axes[0].lines
    assert list(np.asarray(border.get_xdata())) == [
        23.0,
        23.0,
    ]  # after frames 0 and 2: two of 12 pixels, less half a gap


def test_several_rollouts_are_pairs() -> None:
    figure = imagined_figure(REAL, IMAGINED, every=5, first=0)
    assert labels(figure) == (["real", "imagined"] * 3, ["0", "5", "10", "15"])
    shown = picture(figure)
    assert shown.shape[0] == 3 * 18 + 2 * 10
    np.testing.assert_array_equal(shown[56 + 10 : 56 + 18, 12:22], IMAGINED[2, 5])
    ticks = figure.axes[0].get_yticks()
    np.testing.assert_allclose(ticks, [4, 14, 32, 42, 60, 70])  # the middle of each row


def test_strips_by_name_keep_square_pixels() -> None:
    figure = strip_figure({"a": REAL[0], "b": REAL[1], "c": REAL[2]}, every=4, title="Rollouts")
    assert labels(figure)[0] == ["a", "b", "c"]
    figure.draw_without_rendering()
    place, (width, height), shown = (
        figure.axes[0].get_position(original=True),
        figure.get_size_inches(),
        picture(figure),
    )
    ratio = place.width * width / (place.height * height)  # of the place reserved for the picture
    assert ratio == pytest.approx(shown.shape[1] / shown.shape[0], rel=1e-9)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got \(20, 8, 10, 3\) and \(19, 8, 10, 3\)"):
        imagined_figure(REAL[0], IMAGINED[0, 1:])
    with pytest.raises(TypeError, match="uint8"):
        imagined_figure(REAL / 255, IMAGINED / 255)
    with pytest.raises(ValueError, match="at least one entry"):
        strip_figure({})
    with pytest.raises(ValueError, match="every must be at least 1"):
        strip_figure({"a": REAL[0]}, every=0)
