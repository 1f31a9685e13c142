"""Figures of an evaluation: a measure over the horizon with its intervals, ranks of the truth, clips to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from worldflow.fidelity_types import COPY, DETERMINISTIC, REAL, Measure, Pictures
from worldflow.look import COLORS, FAINT, INK, WIDTH, line_looks, name_ends, new_figure, settled, style
from worldflow.strips import strip_figure
from worldflow.video import beside

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

__all__ = ["clip_figure", "long_figure", "measure_figure", "moving_clips", "rank_figure"]

BASELINES = (DETERMINISTIC, COPY, "mean reward", "base rate", "other clip's actions")


def measure_figure(measure: Measure, *, title: str | None = None, xlabel: str = "horizon (steps)") -> Figure:
    """Draw a measure over the horizon: predictors colored, baselines gray, real frames black, intervals shaded.

    Args:
        measure: The measure.
        title: Above the figure.
        xlabel: Of the horizon.

    Returns:
        The figure.
    """
    baselines = [name for name in BASELINES if name in measure.curves]
    with style():
        figure, axes = new_figure(WIDTH, 3.4, title=title)
        looks = line_looks([name for name in measure.curves if name != REAL], baselines)
        looks[REAL] = {"color": INK, "linewidth": 1.2, "linestyle": (0, (1, 1))}
        ends, horizons = [], np.array(measure.horizons)
        if measure.ideal is not None:
            axes.axhline(measure.ideal, color=FAINT, linewidth=0.9)
        for name, curve in measure.curves.items():
            look = looks[name] | ({"marker": "o", "markersize": 3.5} if len(horizons) < 12 else {})
            axes.plot(horizons, curve.mean, zorder=2 if name in baselines else 3, **look)
            axes.fill_between(horizons, curve.low, curve.high, color=look["color"], alpha=0.13, linewidth=0)
            ends.append((float(horizons[-1]), float(curve.mean[-1]), name, look["color"]))
        axes.set(xlabel=xlabel, ylabel=f"{measure.unit}" or measure.title)
        if measure.unit == "share":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        name_ends(figure, axes, ends)
        return settled(figure)


def rank_figure(histograms: Mapping[str, Float64[np.ndarray, " rank"]]) -> Figure:
    """Draw where the truth ranks among the futures, a panel a stretch of the horizon; flat is calibrated.

    Args:
        histograms: From the stretch's name to the share of each rank.

    Returns:
        The figure.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, len(histograms), sharey=True, squeeze=False)[0]
        for axes, (name, shares) in zip(panels, histograms.items(), strict=True):
            axes.bar(np.arange(len(shares)), shares, width=0.9, color=COLORS[0], linewidth=0)
            axes.axhline(1 / len(shares), color=FAINT, linewidth=1.2, dashes=(4, 3))
            axes.set_title(name, fontsize=9.5, fontweight="normal", pad=4)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(visible=False, axis="x")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0].set_ylabel("share of frames")
        figure.supxlabel("futures below the truth", fontsize=9.5, color=INK)
        return settled(figure)


def clip_figure(pictures: Pictures, clip: int, *, columns: int = 10) -> Figure:
    """Draw one clip as a film strip: real, two futures, their mean, the deterministic predictor's.

    Args:
        pictures: The clips.
        clip: Which.
        columns: How many frames.
    """
    rows = _rows(pictures, clip)
    time = len(pictures.real[clip])
    return strip_figure(rows, every=max(1, -(-time // columns)), first=1)


def long_figure(pictures: Pictures, *, columns: int = 10) -> Figure | None:
    """Draw long rollouts as film strips, a row each; None where there are none."""
    if pictures.long is None or pictures.long.shape[1] == 0:
        return None
    every = max(1, -(-pictures.long.shape[1] // columns))
    kept = pictures.long[:, every - 1 :: every]
    return _relabeled(
        {f"rollout {k + 1}": frames for k, frames in enumerate(kept[:2])}, step=every * pictures.long_every
    )


def moving_clips(pictures: Pictures, *, count: int = 2) -> UInt8[np.ndarray, "time row column 3"]:
    """Clips as one moving picture: side by side real, futures, their mean, the deterministic predictor's; a row a clip.

    Args:
        pictures: The clips.
        count: How many of them.
    """
    rows = []
    for clip in range(min(count, len(pictures.real))):
        panels = _rows(pictures, clip)
        scale = max(1, round(128 / pictures.real.shape[2]))
        labels = list(panels) if clip == 0 else None
        rows.append(beside(*panels.values(), labels=labels, scale=scale))
        rows.append(np.full((len(rows[-1]), 8, rows[-1].shape[2], 3), 255, np.uint8))
    return np.concatenate(rows[:-1], axis=1)


def _rows(pictures: Pictures, clip: int) -> dict[str, np.ndarray]:
    rows = {"real": pictures.real[clip]}
    rows |= {f"future {k + 1}": sample[clip] for k, sample in enumerate(pictures.samples)}
    if len(pictures.samples) > 1:
        rows["mean"] = pictures.mean[clip]
    if pictures.deterministic is not None:
        rows[DETERMINISTIC] = pictures.deterministic[clip]
    return rows


def _relabeled(rows: Mapping[str, np.ndarray], *, step: int) -> Figure:
    """Film strips whose columns are `step` steps apart."""
    figure = strip_figure(rows, first=1)
    axes = figure.axes[0]
    axes.set_xticks(axes.get_xticks(), [str(step * (k + 1)) for k in range(len(axes.get_xticks()))])
    return figure
