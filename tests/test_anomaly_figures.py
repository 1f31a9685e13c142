"""Figures of alarms show the points that ring and the rates that were kept."""

from __future__ import annotations

import numpy as np
import pytest

from worldflow.anomaly_figures import alarm_figure, calibration_figure


def test_alarms_stand_under_the_film() -> None:
    frames = np.zeros((31, 8, 8, 3), np.uint8)
    p_values = np.where(np.arange(30) == 7, 1e-3, 0.5)
    active = np.arange(30) >= 20
    figure = alarm_figure(frames, p_values, rate=0.01, active=active, title="one")
    *film, below = figure.axes
    assert [axes.get_title() for axes in film][:2] == ["0", "3"] and len(film) == 12
    edged = [axes.spines["top"].get_visible() for axes in film]
    assert edged == [int(axes.get_title()) >= 20 for axes in film]
    points = below.lines[-1]
    assert (np.asarray(points.get_xdata()).tolist(), np.asarray(points.get_ydata()).tolist()) == (
        [7],
        [pytest.approx(3.0)],
    )
    with pytest.raises(ValueError, match="31 frames need 30 p_values, got 29"):
        alarm_figure(frames, p_values[:-1], rate=0.01)


def test_rates_that_were_kept_are_drawn_over_those_that_were_promised() -> None:
    figure = calibration_figure((0.01, 0.1), {"highest": (0.0, 0.2)})
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    diagonal, kept = axes.lines[:2]
    assert np.asarray(diagonal.get_ydata()).tolist() == [0.01, 0.1]
    assert np.asarray(kept.get_ydata()).tolist() == [0.001, 0.2]  # none is drawn at the bottom
