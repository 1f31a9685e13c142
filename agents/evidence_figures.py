"""Figures of a comparison: returns of contenders, imagined against real returns, the gap by horizon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from worldflow.agents.agreement import Agreement
from worldflow.agents.standings import Standing
from worldflow.figures import horizon_figure
from worldflow.look import COLORS, FAINT, INK, WIDTH, new_figure, settled, style

__all__ = ["gap_figure", "returns_figure", "scatter_figure"]


def returns_figure(standings: Sequence[Standing], *, title: str | None = None) -> Figure:
    """Draw each contender's episodes, faintly, and their mean with its interval.

    Args:
        standings: What contenders reached.
        title: Above the figure.

    Returns:
        The figure.
    """
    with style():
        figure, axes = new_figure(WIDTH, 0.9 + 0.42 * len(standings), title=title)
        for place, one in enumerate(standings):
            spread = np.linspace(-0.16, 0.16, len(one.returns))  # so that equal returns do not hide each other
            axes.plot(one.returns, place + spread, "o", color=FAINT, alpha=0.3, markersize=3.5, markeredgewidth=0)
            mean = one.mean
            if mean.low is not None and mean.high is not None:
                axes.plot([mean.low, mean.high], [place, place], color=COLORS[0], linewidth=2.2)
            axes.plot([mean.value], [place], "o", color=COLORS[0], markersize=7, markeredgewidth=0)
        axes.set_yticks(range(len(standings)), [one.name for one in standings])
        axes.tick_params(axis="y", length=0, colors=INK)
        axes.set(xlabel="return of a real episode", ylim=(len(standings) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        return settled(figure)


def scatter_figure(agreement: Agreement, *, is_penalized: bool = False, title: str | None = None) -> Figure:
    """Draw imagined against real returns: a faint point a policy and start, a strong one a policy's mean.

    Args:
        agreement: What was found.
        is_penalized: Whether imagined returns have the in-distribution term.
        title: Above the figure.

    Returns:
        The figure.
    """
    pairs = [
        (one, one.real[:, -1], (one.penalized(agreement.weight) if is_penalized else one.imagined)[:, -1])
        for one in agreement.policies
    ]
    with style():
        figure, axes = new_figure(4.5, 4.3, title=title)
        means = np.array([(real.mean(), imagined.mean()) for _, real, imagined in pairs])
        every = np.concatenate([np.concatenate((real, imagined)) for _, real, imagined in pairs])
        low, high = float(every.min()), float(every.max())
        axes.plot([low, high], [low, high], color=FAINT, linewidth=0.9, dashes=(4, 3))
        for _, real, imagined in pairs:
            axes.plot(real, imagined, "o", color=FAINT, alpha=0.2, markersize=3, markeredgewidth=0)
        replayed = np.array([one.is_replayed for one, _, _ in pairs])
        axes.plot(*means[~replayed].T, "o", color=COLORS[0], markersize=7, markeredgecolor="white")
        if replayed.any():
            axes.plot(*means[replayed].T, "s", color=COLORS[3], markersize=7, markeredgecolor="white")
        axes.set(
            xlabel="real return", ylabel="imagined return, strange taken off" if is_penalized else "imagined return"
        )
        return settled(figure)


def gap_figure(agreement: Agreement, *, title: str | None = None) -> Figure:
    """Draw imagined minus real return over the horizon, with its sign and without.

    Args:
        agreement: What was found.
        title: Above the figure.

    Returns:
        The figure.
    """
    curves = {"with its sign": agreement.gap, "its size": agreement.gap_size}
    return horizon_figure(
        {name: curve.mean for name, curve in curves.items()},
        intervals={name: (curve.low, curve.high) for name, curve in curves.items()},
        baselines=(),
        title=title,
        ylabel="imagined minus real return",
    )
