"""The look of every figure: colors, fonts, lines named at their ends; and a figure's bytes.

What the model did is colored, what it is compared with is gray, an anomaly is orange. Colors are those of Okabe and
Ito, which stay apart for color-blind readers, and baselines differ in dashes too.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ANOMALY",
    "COLORS",
    "FAINT",
    "GRID",
    "INK",
    "encode_figure",
    "line_looks",
    "name_ends",
    "new_figure",
    "style",
]

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
ANOMALY = "#D55E00"
WIDTH = 9.2  # inches: a report's whole page
_DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "worldflow",  # the same figure gives the same bytes
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelsize": 9,
    "ytick.color": FAINT,
    "ytick.labelsize": 9,
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, from matplotlib's own defaults, whatever the caller has set; undone at the end."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield


def new_figure(width: float, height: float, *, title: str | None) -> tuple[Figure, Axes]:
    """A figure of one axes, in inches, with its title; belongs to no window and to no pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    if title:
        axes.set_title(title)
    return figure, axes


def settled(figure: Figure) -> Figure:
    """The same figure, laid out once and for all; the automatic layout would move it a little at every drawing."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def line_looks(names: Collection[str], baselines: Collection[str]) -> dict[str, dict[str, Any]]:
    """How each line is drawn: colored and solid, or gray and dashed for a baseline."""
    looks: dict[str, dict[str, Any]] = {}
    num_baselines = 0
    for name in names:
        if name in baselines:
            dashes = _DASHES[num_baselines % len(_DASHES)]
            looks[name] = {"color": FAINT, "linestyle": dashes, "linewidth": 1.5}
            num_baselines += 1
        else:
            looks[name] = {"color": COLORS[(len(looks) - num_baselines) % len(COLORS)]}
    return looks


def name_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names at the ends of lines, apart from each other, in the room right of the axes.

    Args:
        figure: Holds the axes, and only these.
        axes: Their vertical limits are final after this.
        ends: Of each line: where it ends, its name and its color.
    """
    bottom, top = axes.get_ylim()
    height = figure.get_size_inches()[1] * 72 * 0.75  # of the axes in points, nearly
    apart = 12 * (top - bottom) / height
    ordered = sorted(ends, key=lambda end: end[1])
    places = np.array([end[1] for end in ordered])
    for _ in range(100):  # push overlapping neighbors apart, by halves, until none overlap
        overlap = apart - np.diff(places)
        if not np.any(overlap > 1e-9):
            break
        push = np.maximum(overlap, 0) / 2
        places[:-1] -= push
        places[1:] += push
    for (x, _, name, color), y in zip(ordered, places, strict=True):
        axes.annotate(
            name, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=color,
            fontweight="bold", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(bottom, top)


def encode_figure(figure: Figure, *, suffix: str) -> bytes:
    """The bytes of a figure's file: `.svg`, `.png` or `.pdf`, the same bytes for the same figure."""
    suffixes = (".svg", ".png", ".pdf")
    if suffix.lower() not in suffixes:
        hint = did_you_mean(suffix, suffixes, otherwise="")
        raise ValueError(f"a figure's suffix must be one of {', '.join(suffixes)}, got {suffix!r}{hint}")
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # a date would make every file another
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=suffix.lower()[1:], metadata=dates.get(suffix.lower()))
    return buffer.getvalue()
