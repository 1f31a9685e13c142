"""Where and when a recording is surprising: a meter burnt into its frames, and maps of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from worldflow.video import upscale

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from matplotlib.figure import Figure

__all__ = ["surprise_meter", "token_figure", "token_heat"]

BAR, CALM, RINGING, SCALE = 10, (13, 110, 140), (220, 60, 40), (229, 231, 235)


def surprise_meter(
    frames: UInt8[np.ndarray, "time+1 row column channel"],
    surprise: Float[np.ndarray, " time"],
    *,
    full: float,
    rings: Bool[np.ndarray, " time"] | None = None,
    height: int = 192,
) -> UInt8[np.ndarray, "time+1 row column 3"]:
    """Burn a bar into the right edge of every frame: how surprising it was, and red where it rang.

    Args:
        frames: The recording; its first frame has an empty bar.
        surprise: Of each transition, 0 for none.
        full: Surprise at which the bar is full.
        rings: Whether each transition rings; None never.
        height: Rows that frames are enlarged to at least, by a whole factor.

    Returns:
        The clip.

    Raises:
        ValueError: If the numbers are not one a transition, or `full` is not above 0.
    """
    if len(frames) != len(surprise) + 1 or (rings is not None and len(rings) != len(surprise)):
        raise ValueError(f"{len(frames)} frames need {len(frames) - 1} numbers, got {len(surprise)}")
    if not full > 0:
        raise ValueError(f"full must be above 0, got {full}")
    clip = upscale(frames, max(1, -(-height // frames.shape[1])))
    if clip.shape[-1] == 1:
        clip = clip.repeat(3, axis=-1)
    rows = clip.shape[1]
    clip = np.concatenate((clip, np.empty((len(clip), rows, BAR, 3), np.uint8)), axis=2)
    clip[:, :, -BAR:] = SCALE
    filled = np.rint(rows * np.clip(np.nan_to_num(surprise) / full, 0, 1)).astype(int)
    for t, rise in enumerate(filled.tolist(), start=1):
        clip[t, rows - rise :, -BAR:] = RINGING if rings is not None and rings[t - 1] else CALM
    return clip


def token_heat(
    frames: UInt8[np.ndarray, "time+1 row column channel"],
    token: Float[np.ndarray, "time token"],
    *,
    grid: tuple[int, int],
    low: float,
    high: float,
) -> UInt8[np.ndarray, "time+1 row column 3"]:
    """Lay what tokens cost over the frames themselves, as red light: none at `low`, half of the picture from `high` on.

    Args:
        frames: The recording; nothing is said about its first frame.
        token: Negative log-likelihood of every token, nats (`EpisodeScores.token`).
        grid: Rows and columns of tokens.
        low: Nats where the heat begins, such as the median of normal tokens.
        high: Nats from which on it is full, such as the highest of the episode.

    Returns:
        The frames, in color.

    Raises:
        ValueError: If tokens are not those of the grid, or `high` is not above `low`.
    """
    if token.shape != (len(frames) - 1, grid[0] * grid[1]):
        raise ValueError(f"token must have shape {(len(frames) - 1, grid[0] * grid[1])}, got {token.shape}")
    if not high > low:
        raise ValueError(f"high must be above low, got {high} and {low}")
    rows, columns = frames.shape[1:3]
    share = 0.5 * np.clip((token.reshape(-1, *grid) - low) / (high - low), 0, 1)
    share = share[:, np.arange(rows) * grid[0] // rows][:, :, np.arange(columns) * grid[1] // columns]
    color = np.broadcast_to(frames, (*frames.shape[:3], 3)).astype(np.float64)
    color[1:] += share[..., None] * (np.array(RINGING) - color[1:])
    return np.rint(color).astype(np.uint8)


def token_figure(
    frames: UInt8[np.ndarray, "time+1 row column channel"],
    token: Float[np.ndarray, "time token"],
    *,
    grid: tuple[int, int],
    transitions: Sequence[int],
    title: str | None = None,
) -> Figure:
    """Draw what tokens of some frames cost, under the frames themselves.

    Args:
        frames: The recording.
        token: Negative log-likelihood of every token, nats (`EpisodeScores.token`).
        grid: Rows and columns of tokens.
        transitions: Which to show; each is the frame it led to.
        title: Above the figure.

    Returns:
        The figure; one color scale for all maps.

    Raises:
        ValueError: If a transition does not exist, or tokens are not those of the grid.
    """
    if token.shape != (len(frames) - 1, grid[0] * grid[1]):
        raise ValueError(f"token must have shape {(len(frames) - 1, grid[0] * grid[1])}, got {token.shape}")
    if not transitions or not all(0 <= t < len(token) for t in transitions):
        raise ValueError(f"transitions must be numbers from 0 to {len(token) - 1}, got {list(transitions)}")
    from matplotlib.figure import Figure

    from worldflow.look import WIDTH, settled, style

    shown = list(transitions)
    maps = token[shown].reshape(-1, *grid)
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + 2 * WIDTH / (len(shown) + 1)), layout="constrained")
        axes = figure.subplots(2, len(shown), squeeze=False)
        if title:
            figure.suptitle(title)
        for column, t in enumerate(shown):
            above, below = axes[:, column]
            above.imshow(frames[t + 1], cmap="gray", interpolation="nearest")
            image = below.imshow(maps[column], vmin=maps.min(), vmax=maps.max(), interpolation="nearest")
            above.set_title(f"t = {t}", fontsize=9)
            for axis in (above, below):
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
            if column == len(shown) - 1:
                figure.colorbar(image, ax=list(axes[1]), label="nats a token")
        return settled(figure)
