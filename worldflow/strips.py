"""Film strips as figures: real frames above imagined ones, time above the columns.

As all figures here they belong to no window and to no pyplot; `worldflow.figures.save_figure` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from worldflow.look import ANOMALY, INK, WIDTH, style
from worldflow.video import difference, film_strip, upscale

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

__all__ = ["imagined_figure", "strip_figure"]


def strip_figure(
    clips: Mapping[str, ArrayLike | torch.Tensor],
    *,
    every: int = 1,
    first: int = 0,
    context: int = 0,
    title: str | None = None,
) -> Figure:
    """Draw clips as rows of frames, with the time above.

    Args:
        clips: From a row's name to frames `uint8 (time, row, column, channel)`, one length and size for all.
        every: Show frames 0, `every`, `2 every`, ...
        first: Time of the clips' first frame.
        context: Number of first frames that were given; a line parts them from the imagined ones.
        title: Above the figure.

    Returns:
        The figure.
    """
    if not clips:
        raise ValueError("clips must hold at least one entry, got none")
    return _strips([clips], every=every, first=first, context=context, title=title)


def imagined_figure(
    real: ArrayLike | torch.Tensor,
    imagined: ArrayLike | torch.Tensor,
    *,
    every: int | None = None,
    first: int = 1,
    context: int = 0,
    title: str | None = None,
) -> Figure:
    """Draw real frames above imagined ones; for a single clip also where they differ.

    Args:
        real: Frames `uint8 (time, row, column, channel)`, or `(clip, time, row, column, channel)` for several.
        imagined: Frames of the same shape.
        every: Show every frame so many apart; by default at most ten.
        first: Time of the clips' first frame; 1 for the first imagined one.
        context: Number of first frames that were given.
        title: Above the figure.

    Returns:
        The figure.

    Raises:
        TypeError: If frames are not `uint8`.
        ValueError: If shapes differ or do not fit.
    """
    if len(np.shape(real)) not in (4, 5) or np.shape(real) != np.shape(imagined):
        raise ValueError(
            "real and imagined must both have shape (time, row, column, channel) or (clip, time, row, column, channel),"
            f" got {tuple(np.shape(real))} and {tuple(np.shape(imagined))}"
        )
    if len(np.shape(real)) == 4:
        groups = [{"real": real, "imagined": imagined, "difference": difference(real, imagined)}]
    else:
        groups = [{"real": a, "imagined": b} for a, b in zip(real, imagined, strict=True)]  # pyright: ignore
    apart = -(-np.shape(real)[-4] // 10) if every is None else every
    return _strips(groups, every=apart, first=first, context=context, title=title)


def _strips(groups: Sequence[Mapping[str, Any]], *, every: int, first: int, context: int, title: str | None) -> Figure:
    """Film strips in one picture, groups a little apart."""
    gap, group_gap = 2, 10
    sheets, centers, names, top = [], [], [], 0
    for group in groups:
        sheet = film_strip(*group.values(), every=every, gap=gap, scale=1)
        if sheets and sheet.shape[1] != sheets[0].shape[1]:
            raise ValueError(f"strips must be equally wide, got {sheets[0].shape[1]} and {sheet.shape[1]} pixels")
        if sheets:
            sheets.append(np.full((group_gap, sheet.shape[1], 3), 255, np.uint8))
            top += group_gap
        height = (sheet.shape[0] + gap) / len(group)
        centers += [top + (k + 0.5) * height - gap / 2 for k in range(len(group))]
        names += group
        sheets.append(sheet)
        top += sheet.shape[0]
    picture = np.concatenate(sheets)
    rows, columns = picture.shape[:2]
    times = np.arange(0, len(next(iter(groups[0].values()))), every)
    width = (columns + gap) / len(times)
    # Placed by hand, in inches: the automatic layout does not know that a picture keeps its proportions.
    left, right, above, below = 0.15 + 0.08 * max(map(len, names)), 0.05, 0.55 if title else 0.25, 0.05
    inches = (WIDTH - left - right) * rows / columns
    with style():
        figure = Figure(figsize=(WIDTH, above + inches + below))
        total = above + inches + below
        axes = figure.add_axes((left / WIDTH, below / total, 1 - (left + right) / WIDTH, inches / total))
        if title:
            figure.text(0.08 / WIDTH, 1 - 0.08 / total, title, fontsize=11, fontweight="bold", va="top")
        axes.imshow(upscale(picture, 2), interpolation="nearest", extent=(0, columns, rows, 0))
        axes.set_xticks((np.arange(len(times)) + 0.5) * width - gap / 2, [str(first + time) for time in times])
        axes.set_yticks(centers, names)
        axes.tick_params(length=0, pad=3, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.tick_params(axis="y", colors=INK)
        num_given = int(np.sum(times < context))
        if 0 < num_given < len(times):
            axes.axvline(num_given * width - gap / 2, color=ANOMALY, linewidth=1.5)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return figure
