"""Figures of what detectors say: alarms in time under the film that they are about, and whether rates were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from worldflow.look import ANOMALY, COLORS, FAINT, WIDTH, line_looks, name_ends, new_figure, settled, style

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

    from worldflow.anomaly_delays import DelayCurve

__all__ = ["alarm_figure", "calibration_figure", "delay_figure"]

SHOWN = 12
"""Frames of a film strip."""


def alarm_figure(
    frames: UInt8[np.ndarray, "time+1 row column channel"],
    p_values: Float[np.ndarray, " time"],
    *,
    rate: float,
    active: Bool[np.ndarray, " time"] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw an episode as a film strip, and below it how small p-values became.

    Args:
        frames: The episode.
        p_values: Of each transition.
        rate: Where transitions ring; such points are marked.
        active: Whether an anomaly was active; shaded, and framed in the strip.
        title: Above the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If the numbers are not one a transition.
    """
    for name, values in (("p_values", p_values), ("active", active)):
        if values is not None and len(values) != len(frames) - 1:
            raise ValueError(f"{len(frames)} frames need {len(frames) - 1} {name}, got {len(values)}")
    active = np.zeros(len(p_values), bool) if active is None else active
    shown = np.unique(np.linspace(0, len(p_values) - 1, SHOWN).round().astype(int))
    with style():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        grid = figure.add_gridspec(2, len(shown), height_ratios=(1, 1.6))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for column, t in enumerate(shown.tolist()):
            axes = figure.add_subplot(grid[0, column])
            axes.imshow(frames[t + 1], cmap="gray", interpolation="nearest")
            axes.set_title(str(t), fontsize=8, fontweight="normal", pad=2, loc="center")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set(visible=bool(active[t]), color=ANOMALY, linewidth=2)
        axes = figure.add_subplot(grid[1, :])
        time, nats = np.arange(len(p_values)), -np.log10(p_values)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False]))))
        for start, stop in edges.reshape(-1, 2):
            axes.axvspan(start - 0.5, stop - 0.5, color=ANOMALY, alpha=0.16, linewidth=0)
        axes.plot(time, nats, color=COLORS[0], linewidth=1.3)
        axes.axhline(-np.log10(rate), color=FAINT, linewidth=0.9, dashes=(4, 3))
        rings = p_values <= rate
        axes.plot(time[rings], nats[rings], "o", color=ANOMALY, markersize=3.5, markeredgewidth=0)
        axes.set(xlabel="transition", ylabel="-log10 p")
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
        return settled(figure)


def calibration_figure(
    promised: Sequence[float], kept: Mapping[str, Sequence[float]], *, title: str | None = None
) -> Figure:
    """Draw the rate of false alarms on fresh normal episodes over the promised one; the diagonal is what was promised.

    Args:
        promised: Rates.
        kept: From a detector's name to what it came to.
        title: Above the figure.

    Returns:
        The figure; both axes are logarithmic.
    """
    lines = {"promised": tuple(promised), **kept}
    with style():
        figure, axes = new_figure(WIDTH * 0.6, 3.4, title=title)
        looks = line_looks(lines, ("promised",))
        ends = []
        least = min(promised) / 10
        for name, values in lines.items():
            axes.plot(promised, np.maximum(values, least), **looks[name])
            ends.append((float(promised[-1]), float(max(values[-1], least)), name, looks[name]["color"]))
        axes.set(xscale="log", yscale="log", xlabel="promised rate of false alarms", ylabel="on fresh normal episodes")
        name_ends(figure, axes, ends)
        return settled(figure)


def delay_figure(delays: Mapping[str, Mapping[str, DelayCurve]]) -> Figure:
    """Draw how soon the median episode rings over how many normal ones do, a panel for each strength.

    Args:
        delays: From strengths to alarms to their curves; where the median episode never rings a line begins later.

    Returns:
        The figure; both axes are logarithmic, and no delay is drawn as half a transition.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        panels = figure.subplots(1, len(delays), sharex=True, sharey=True, squeeze=False)[0]
        for panel, (level, alarms) in zip(panels, delays.items(), strict=True):
            for color, (name, curve) in zip(COLORS, alarms.items(), strict=False):
                rings = np.isfinite(curve.median)
                kept, waits = np.array(curve.kept)[rings], np.array(curve.median)[rings]
                look = {"color": color, "linewidth": 1.3, "marker": "o", "markersize": 3}
                panel.plot(np.maximum(kept, 0.01), np.maximum(waits, 0.5), label=name, **look)
            panel.set(xscale="log", yscale="log", title=level, xlabel="normal ones that ring")
            panel.set_xticks((0.01, 0.1, 1.0), ("1 %", "10 %", "100 %"))
            panel.set_yticks((0.5, 1, 3, 10, 30, 100), ("0", "1", "3", "10", "30", "100"))
            panel.minorticks_off()
        panels[0].set_ylabel("transitions to the alarm")
        panels[0].legend(frameon=False, fontsize=8)
        return settled(figure)
