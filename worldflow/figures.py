"""Figures: curves over the horizon, score timelines, detection, training; film strips are in `worldflow.strips`.

Every function returns a `matplotlib.figure.Figure` and touches nothing else: no pyplot, no current figure, no window,
no setting that outlives the call. In a notebook, `%matplotlib inline` makes returned figures show themselves.

One look (`worldflow.look`): what the model did is colored, what it is compared with is gray, an anomaly is shaded
orange, and lines carry their names at their ends instead of in a legend.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from worldflow.atomic import write_bytes
from worldflow.hints import did_you_mean
from worldflow.look import (
    ANOMALY,
    COLORS,
    FAINT,
    GRID,
    INK,
    WIDTH,
    encode_figure,
    line_looks,
    name_ends,
    new_figure,
    settled,
    style,
)
from worldflow.metrics import auroc, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = [
    "auroc_figure",
    "horizon_figure",
    "roc_figure",
    "save_figure",
    "timeline_figure",
    "training_figure",
]


def horizon_figure(
    curves: Mapping[str, ArrayLike],
    *,
    intervals: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    baselines: Collection[str] = ("copy last",),
    first: int = 1,
    title: str | None = None,
    xlabel: str = "horizon (steps)",
    ylabel: str = "PSNR (dB)",
) -> Figure:
    """Draw a measure over the horizon, one line a predictor.

    Args:
        curves: From name to values over the horizon.
        intervals: From name to the low and high end of an interval, as `metrics.Curve` holds them.
        baselines: Names drawn gray and dashed.
        first: Horizon of the curves' first value.
        title: Above the figure.
        xlabel: Of the horizon.
        ylabel: Of the measure, with its unit.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no curve, one is not finite, or an interval has no curve.
    """
    lines = {name: _line(values, name=name) for name, values in _some(curves, "curves").items()}
    for name in intervals or {}:
        _known(name, lines, "intervals")
    with style():
        figure, axes = new_figure(WIDTH, 3.6, title=title)
        looks = line_looks(lines, baselines)
        ends = []
        for name, values in lines.items():
            horizon = first + np.arange(len(values))
            axes.plot(horizon, values, zorder=2 if name in baselines else 3, **looks[name])
            if intervals and name in intervals:
                low, high = (_line(end, name=f"interval of {name}") for end in intervals[name])
                axes.fill_between(horizon, low, high, color=looks[name]["color"], alpha=0.15, linewidth=0)
            ends.append((float(horizon[-1]), float(values[-1]), name, looks[name]["color"]))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        name_ends(figure, axes, ends)
        return settled(figure)


def timeline_figure(
    scores: Mapping[str, ArrayLike],
    *,
    active: Mapping[str, ArrayLike] | None = None,
    threshold: float | None = None,
    is_compressed: bool = False,
    title: str | None = None,
    xlabel: str = "step",
    ylabel: str = "score",
) -> Figure:
    """Draw the score of episodes over time, a panel each, one scale for all; anomalies are shaded.

    Args:
        scores: From the episode's name to a score per transition, higher for more anomalous.
        active: From the episode's name to whether an anomaly was active, per transition.
        threshold: Score above which a detector raises an alarm; such points are marked.
        is_compressed: Draw `asinh` of the score: linear near 0, logarithmic beyond the typical score. For anomalies
            so large that they would flatten everything else.
        title: Above the figure.
        xlabel: Of time.
        ylabel: Of the score, with its unit.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no episode, a score is not finite, or `active` does not fit the scores.
    """
    lines = {name: _line(values, name=name) for name, values in _some(scores, "scores").items()}
    spans = {}
    for name, flags in (active or {}).items():
        _known(name, lines, "active")
        spans[name] = np.asarray(flags, dtype=bool)
        if spans[name].shape != lines[name].shape:
            raise ValueError(f"active[{name!r}] must have shape {lines[name].shape}, got {spans[name].shape}")
    with style():
        figure = Figure(figsize=(WIDTH, 0.75 + 1.05 * len(lines)), layout="constrained")
        panels = figure.subplots(len(lines), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(panels, lines.items(), strict=True):
            time = np.arange(len(values))
            for start, stop in _runs(spans.get(name, np.zeros(len(values), bool))):
                axes.axvspan(start - 0.5, stop - 0.5, color=ANOMALY, alpha=0.16, linewidth=0)
            axes.plot(time, values, color=COLORS[0], linewidth=1.3)
            if threshold is not None:
                axes.axhline(threshold, color=FAINT, linewidth=0.9, dashes=(4, 3))
                alarms = values > threshold
                axes.plot(time[alarms], values[alarms], "o", color=ANOMALY, markersize=3, markeredgewidth=0)
            axes.set_title(name, fontsize=9.5, fontweight="normal", pad=4)
            axes.grid(visible=False, axis="x")
            axes.margins(x=0.01)
        if is_compressed:
            _compress(panels[0], np.concatenate(list(lines.values())))
        else:
            panels[0].yaxis.set_major_locator(MaxNLocator(3))
        panels[-1].set_xlabel(xlabel)
        figure.supylabel(ylabel, fontsize=9.5, color=INK)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, name in zip(panels, lines, strict=True):
            if name in spans and spans[name].any():
                axes.set_title("anomaly", fontsize=8, color=ANOMALY, loc="right", pad=4)  # never on the panel's name
        if threshold is not None:
            panels[0].annotate(
                "alarm above", (1, threshold), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                textcoords="offset points", ha="right", va="bottom", fontsize=8, color=FAINT,
            )  # fmt: skip
        return settled(figure)


def roc_figure(
    scores: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    baselines: Collection[str] = ("frame difference",),
    title: str | None = None,
) -> Figure:
    """Draw detections against false alarms at every threshold, one curve a statistic, with the area under each.

    Args:
        scores: From the statistic's name to the scores of normal and of anomalous transitions.
        baselines: Names drawn gray and dashed.
        title: Above the figure.

    Returns:
        The figure.
    """
    pairs = _some(scores, "scores")
    with style():
        figure, axes = new_figure(4.3, 4.1, title=title)
        looks = line_looks(pairs, baselines)
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        for name, (normal, anomalous) in pairs.items():
            curve, area = roc_curve(normal, anomalous), auroc(normal, anomalous)
            axes.plot(curve.false_alarms, curve.detections, label=f"{name}  {area:.3f}", clip_on=False, **looks[name])
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="false alarm rate", ylabel="detection rate", aspect="equal")
        legend = axes.legend(loc="lower right", frameon=False, title="area under the curve", alignment="left")
        legend.get_title().set_fontsize(8.5)
        return settled(figure)


def auroc_figure(
    table: Mapping[str, Mapping[str, float | None]],
    *,
    baselines: Collection[str] = ("frame difference",),
    title: str | None = None,
) -> Figure:
    """Draw a table of AUROC, perturbations by statistics; blue detects, orange is worse than chance, best in bold.

    Args:
        table: From perturbation to statistic to AUROC; None or NaN where it was not measured.
        baselines: Statistics set apart at the right.
        title: Above the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If the table is empty or a value is not between 0 and 1.
    """
    rows = list(_some(table, "table"))
    found = list(dict.fromkeys(statistic for row in table.values() for statistic in row))
    columns = [name for name in found if name not in baselines] + [name for name in found if name in baselines]
    values = np.array([[_number(table[row].get(column)) for column in columns] for row in rows])
    if not columns or np.any((values < 0) | (values > 1)):
        raise ValueError("table must hold an AUROC between 0 and 1 for each perturbation and statistic")
    with style():
        # As much as fits over a cell.
        heads = [textwrap.fill(name, 14 if len(columns) <= 8 else 11, break_long_words=False) for name in columns]
        height = 0.15 + 0.17 * max(head.count("\n") + 1 for head in heads) + (0.35 if title else 0.0)
        figure, axes = new_figure(min(WIDTH, 1.9 + 1.15 * len(columns)), height + 0.42 * len(rows), title=title)
        color_map = LinearSegmentedColormap.from_list("detects", ["#E8963C", "#FFFFFF", "#0072B2"])
        axes.imshow(np.ma.masked_invalid(values), cmap=color_map, vmin=0.0, vmax=1.0, aspect="auto")
        for i, j in np.ndindex(*values.shape):
            known = values[i][np.isfinite(values[i])]
            is_best = bool(known.size) and bool(np.round(values[i, j], 2) == np.round(known.max(), 2))
            axes.text(
                j, i, f"{values[i, j]:.2f}" if np.isfinite(values[i, j]) else "-", ha="center", va="center",
                color="white" if values[i, j] > 0.85 else INK, fontweight="bold" if is_best else "normal",
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), heads, fontsize=9 if len(columns) <= 8 else 7)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, colors=INK)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for edge in np.arange(0.5, len(rows) - 1):
            axes.axhline(edge, color="white", linewidth=2)
        for edge in np.arange(0.5, len(columns) - 1):
            is_border = columns[int(edge + 0.5)] in baselines and columns[int(edge - 0.5)] not in baselines
            axes.axvline(edge, color="white", linewidth=8 if is_border else 2)
        return settled(figure)


def training_figure(
    history: Sequence[Mapping[str, Any]],
    *,
    lines: Mapping[str, str] | None = None,
    step: str = "step",
    smoothing: float = 0.05,
    title: str | None = None,
    ylabel: str = "NLL above noise floor (nats / dim)",
) -> Figure:
    """Draw what training logged, as it lies in the JSONL log.

    Keys with many values are drawn faintly, with their running mean on top; keys with at most 50 as points on a line.
    A value that is not finite, None in the log, leaves a gap.

    Args:
        history: Records of the log; a record without a key says nothing about it.
        lines: From key to the name shown; by default the flow's NLL above the noise floor, training and held out.
        step: Key of the horizontal axis.
        smoothing: Width of the running mean's window, as a share of all steps.
        title: Above the figure.
        ylabel: Of the values, with their unit.

    Returns:
        The figure.

    Raises:
        ValueError: If no record has any of the keys.
    """
    names = {"flow/above_floor": "training", "held_out/above_floor": "held out"} if lines is None else lines
    series = {}
    for key, name in names.items():
        points = [(record[step], _number(record[key])) for record in history if step in record and key in record]
        if points:
            series[name] = np.array(points, dtype=np.float64).T
    if not series:
        seen = sorted({key for record in history for key in record})
        raise ValueError(f"no record of the history has {step!r} and one of {list(names)}; it has {seen}")
    with style():
        figure, axes = new_figure(WIDTH, 3.6, title=title)
        ends = []
        for color, (name, (steps, values)) in zip(COLORS * len(series), series.items(), strict=False):
            if len(values) > 50:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                values = _running_mean(values, window=max(1, round(smoothing * len(values))))
                axes.plot(steps, values, color=color)
            else:
                axes.plot(steps, values, color=color, marker="o", markersize=3.5, markeredgewidth=0)
            finite = np.flatnonzero(np.isfinite(values))
            if finite.size:
                ends.append((float(steps[finite[-1]]), float(values[finite[-1]]), name, color))
        late = np.concatenate([values[len(values) // 20 :] for _, values in series.values()])
        late = late[np.isfinite(late)]
        if late.size and np.ptp(late) > 0:  # the first steps are off any useful scale
            axes.set_ylim(late.min() - 0.05 * np.ptp(late), late.max() + 0.05 * np.ptp(late))
        axes.set(xlabel="step", ylabel=ylabel)
        axes.grid(visible=False, axis="x")
        name_ends(figure, axes, ends)
        return settled(figure)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as SVG, PNG or PDF, chosen by the suffix, whole or not at all.

    Args:
        figure: The figure.
        path: Ends in `.svg`, `.png` or `.pdf`; missing parent folders are made.

    Returns:
        `path` as a `Path`.

    Raises:
        ValueError: If the suffix is another one.
    """
    return write_bytes(path, encode_figure(figure, suffix=Path(path).suffix))


def _some(mapping: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    if not mapping:
        raise ValueError(f"{what} must hold at least one entry, got none")
    return mapping


def _known(name: str, names: Collection[str], what: str) -> None:
    if name not in names:
        hint = did_you_mean(name, names, otherwise="")
        raise ValueError(f"{what} names {name!r}, which is none of {list(names)}{hint}")


def _line(values: ArrayLike, *, name: str) -> np.ndarray:
    line = np.asarray(values, dtype=np.float64)
    if line.ndim != 1 or line.size == 0:
        raise ValueError(f"{name!r} must have shape (time,), not empty, got {line.shape}")
    if not np.isfinite(line).all():
        raise ValueError(f"{name!r} must be finite, got {int((~np.isfinite(line)).sum())} NaN or inf of {line.size}")
    return line


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where flags are up: `[start, stop)` of each stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _running_mean(values: np.ndarray, *, window: int) -> np.ndarray:
    """Mean of the finite values within half a window on both sides, NaN where there is none."""
    is_finite = np.isfinite(values)
    total = np.append(0.0, np.cumsum(np.where(is_finite, values, 0.0)))
    count = np.append(0.0, np.cumsum(is_finite))
    place = np.arange(len(values))
    start, stop = np.maximum(place - window // 2, 0), np.minimum(place + window // 2 + 1, len(values))
    total, count = total[stop] - total[start], count[stop] - count[start]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _compress(axes: Axes, values: np.ndarray) -> None:
    """Scale the vertical axis by `asinh`, with ticks at 0 and at few enough powers of ten to be read."""
    typical = max(float(np.median(np.abs(values))), 1e-12)
    axes.set_yscale("asinh", linear_width=typical)
    largest = max(float(np.abs(values).max()), typical)
    powers = np.arange(math.ceil(math.log10(typical)), math.floor(math.log10(largest)) + 1)
    ticks = 10.0 ** powers[:: max(1, math.ceil(len(powers) / 3))]
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in (*-ticks[::-1], 0.0, *ticks) if low <= tick <= high])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}" if abs(tick) >= 1 else f"{tick:g}"))
