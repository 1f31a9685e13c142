"""What a clip of `worldflow.shapes` shows, read by arithmetic: nothing is learned, and what cannot be told is None.

With `b` the median pixel of the clip, a shape is what stands out from it most, by more than `CONTRAST` levels in the
mean over a small square; `c` is that mean. Then in every frame

    alpha = <frame - b, c> / <c, c>        1 on the shape, 0 on the background
    color = the name in `COLORS` with the hue nearest to that of b + c
    x, y  = mean place of the pixels around the shape, weighted by alpha where it is clearly above 0
    x(t)  = x + v t                        by least squares over the frames in which the shape was found

The direction is the one along which `v` points, the speed the one nearest to `|v|` by ratio, and the shape the one
whose outline, drawn at every `(x, y)` in about the size that is seen, sharp and blurred, correlates best with `alpha`.

Frames need not come from the environment: those of a model that learned from it are read as well, blurred and noisy as
they are. A part of the reading is None where there is nothing, or more than one thing; where colors lie between two
names; where a track is not straight, not along an axis, or too short for its scatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.shapes import COLORS, DIRECTIONS, RADIUS, SHAPES, SPEEDS, caption_of, coverage

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, UInt8

__all__ = ["ShapesReading", "read_clip"]

CONTRAST = 70.0
"""Levels, as a distance of colors, by which a shape stands out at least; those of `COLORS` do by 150 or more."""
SATURATION = 0.35
"""Of a color that has a name: below, it counts as gray."""
HUE_ERROR = 25.0
"""Degrees between a hue and the one it is taken for, at most; half of the least distance of two hues in `COLORS`."""
AGREEMENT = 0.75
"""Share of the frames that must show the shape, and its color, for the clip to show them."""
CONFIDENCE = 0.6
"""Below this, nothing is told: the clip shows something else than one shape. Two of a size explain a half each."""
SHAPE_FIT = 0.92
"""Correlation with an outline, at least, of a shape that has a name; white noise of 20 dB leaves 0.96."""
SHAPE_MARGIN = 0.004
"""By which the best outline's correlation must exceed the next one's."""
REACH = 1.8 * RADIUS
"""Sides of the frame around a center, along both axes, in which the shape is looked for."""
SCATTER = 0.04
"""Sides of the frame by which places may lie off a straight line, as the root of a mean square."""


@dataclass(frozen=True, kw_only=True)
class ShapesReading:
    """What a clip shows; None where it cannot be told.

    Args:
        color: A name in `COLORS`.
        shape: A name in `SHAPES`.
        direction: A name in `DIRECTIONS`.
        speed: A name in `SPEEDS`; told only with a direction.
        x, y: Center in every frame in sides of the frame, from left to right and from top to bottom; NaN in frames in
            which nothing stands out.
        velocity: Of the straight line through the centers, `(x, y)` in sides of the frame per step; NaN where fewer
            than three frames show something.
        confidence: How much of what stands out is the shape: the pixels that both hold, as a share of those that
            either holds, times the share of frames in which something stands out. In [0, 1]; about 0.9 for the
            environment's own frames.
    """

    color: str | None = None
    shape: str | None = None
    direction: str | None = None
    speed: str | None = None
    x: Float64[np.ndarray, " time"]
    y: Float64[np.ndarray, " time"]
    velocity: tuple[float, float]
    confidence: float

    @property
    def caption(self) -> str | None:
        """The caption of the clip, or None where a part of it is not told."""
        if self.color is None or self.shape is None or self.direction is None or self.speed is None:
            return None
        return caption_of(color=self.color, shape=self.shape, direction=self.direction, speed=self.speed)


def read_clip(frames: UInt8[np.ndarray, "time row column channel"]) -> ShapesReading:
    """Tell what a clip shows.

    Args:
        frames: `uint8 (time, row, column, 3)`, square, with at least 16 rows; one step apart. A still picture has a
            color and a shape, but neither direction nor speed.

    Raises:
        ValueError: These are no such frames.

    Example:
        >>> frames = np.full((9, 32, 32, 3), 30, np.uint8)
        >>> for step in range(9):
        ...     frames[step, 10:17, 4 + step : 11 + step] = (230, 50, 50)
        >>> read_clip(frames).caption
        'a red square moves right quickly'
    """
    pixels = _reduced(_checked(frames))
    background = np.median(pixels, axis=(0, 1, 2))
    contrast = pixels - background
    place, color = _most_distinct(contrast)
    is_seen = np.linalg.norm(color, axis=-1) > CONTRAST
    if is_seen.mean() < AGREEMENT:
        unknown = np.full(len(frames), np.nan)
        return ShapesReading(x=unknown, y=unknown, velocity=(np.nan, np.nan), confidence=0.0)
    alpha = np.einsum("trcd,td->trc", contrast, color / np.maximum(np.square(color).sum(-1, keepdims=True), 1.0))
    x, y = np.where(is_seen, _centers(alpha, place), np.nan)
    line = _line(x, y)
    shape, drawn = _outline(alpha[is_seen], x[is_seen], y[is_seen])
    confidence = _explained(contrast[is_seen], color[is_seen], drawn) * float(is_seen.mean())
    if confidence < CONFIDENCE:
        return ShapesReading(x=x, y=y, velocity=line.velocity, confidence=confidence)
    direction = _direction(line)
    return ShapesReading(
        color=_color_name(background + color[is_seen]),
        shape=shape,
        direction=direction,
        speed=None if direction is None else _speed(line),
        x=x,
        y=y,
        velocity=line.velocity,
        confidence=confidence,
    )


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A straight line through places: `scatter` is the root mean square off it, `error` that of each velocity."""

    velocity: tuple[float, float]
    scatter: float
    error: float
    num_steps: int


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[0] < 1
        or frames.shape[1] != frames.shape[2]
        or frames.shape[1] < 16
        or frames.shape[3] != 3
    ):
        raise ValueError(
            "frames must be uint8 of shape (time, row, column, 3), square, with at least 16 rows, "
            f"got {frames.dtype} of shape {frames.shape}"
        )
    return frames


def _reduced(frames: UInt8[np.ndarray, "time row column 3"]) -> Float64[np.ndarray, "time row column 3"]:
    """Large frames as means over squares of pixels, so that at least 32 rows are left: faster, and less noisy."""
    T, S, *_ = frames.shape
    width = max(width for width in range(1, max(1, S // 32) + 1) if S % width == 0)
    return frames.reshape(T, S // width, width, S // width, width, 3).mean((2, 4))


def _most_distinct(
    contrast: Float64[np.ndarray, "time row column channel"],
) -> tuple[Float64[np.ndarray, "2 time"], Float64[np.ndarray, "time channel"]]:
    """Where the mean contrast over a square that fits into any shape is largest, in sides `(x, y)`, and that mean."""
    T, S, *_ = contrast.shape
    width = 2 * round(0.06 * S) + 1
    mean = _box_mean(contrast, width)
    best = np.argmax(np.square(mean).sum(-1).reshape(T, -1), axis=1)
    row, column = np.divmod(best, mean.shape[2])
    return np.stack([column + width / 2, row + width / 2]) / S, mean[np.arange(T), row, column]


def _box_mean(values: Float64[np.ndarray, "time row column channel"], width: int) -> np.ndarray:
    """Means over squares of `width` pixels that lie within the frame, from differences of the integral image."""
    total = np.pad(values, ((0, 0), (1, 0), (1, 0), (0, 0))).cumsum(axis=1).cumsum(axis=2)
    rows = total[:, width:] - total[:, :-width]
    return (rows[:, :, width:] - rows[:, :, :-width]) / width**2


def _centers(
    alpha: Float64[np.ndarray, "time row column"], place: Float64[np.ndarray, "2 time"]
) -> Float64[np.ndarray, "2 time"]:
    """Mean places, in sides `(x, y)`, of what is clearly shape around the places where it stands out most."""
    at = (np.arange(alpha.shape[1]) + 0.5) / alpha.shape[1]
    weight = np.clip(alpha - 0.3, 0.0, 0.7)
    x, y = place
    for _ in range(3):  # the window follows the center until it holds the whole shape
        is_near = [np.abs(at - place[:, None]) < REACH for place in (x, y)]
        window = weight * (is_near[0][:, None, :] & is_near[1][:, :, None])
        total = np.maximum(window.sum((1, 2)), 1e-9)
        x, y = (window.sum(1) * at).sum(1) / total, (window.sum(2) * at).sum(1) / total
    return np.stack([x, y])


def _line(x: Float64[np.ndarray, " time"], y: Float64[np.ndarray, " time"]) -> _Line:
    steps = np.flatnonzero(np.isfinite(x))
    if len(steps) < 3:  # any two places lie on a line
        return _Line(velocity=(np.nan, np.nan), scatter=np.nan, error=np.nan, num_steps=0)
    time = steps - steps.mean()
    spread = np.square(time).sum()
    places = np.stack([x[steps], y[steps]])
    places = places - places.mean(axis=1, keepdims=True)
    velocity = places @ time / spread
    scatter = np.sqrt(np.square(places - velocity[:, None] * time).sum() / (2 * len(steps) - 4))
    return _Line(
        velocity=(float(velocity[0]), float(velocity[1])),
        scatter=float(scatter),
        error=float(scatter / np.sqrt(spread)),
        num_steps=int(steps[-1] - steps[0]),
    )


def _direction(line: _Line) -> str | None:
    """The axis along which the line runs, if it runs far enough: a pixel of 32, and four standard errors."""
    x, y = line.velocity
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    is_long = along * line.num_steps > 1 / 32 and along > 4 * line.error
    if not is_long or not line.scatter < SCATTER or along < 2 * across:
        return None
    moved = (int(np.sign(x)), 0) if abs(x) > abs(y) else (0, int(np.sign(y)))
    return next(name for name, unit in DIRECTIONS.items() if unit == moved)


def _speed(line: _Line) -> str | None:
    """The nearest speed by ratio: of two that differ by a factor of 3, off by 1.5 at most, and by errors to spare."""
    speed = float(np.hypot(*line.velocity))
    off = {name: abs(np.log(speed / known)) for name, known in SPEEDS.items()}
    name = min(off, key=lambda each: off[each])
    if off[name] > np.log(1.5) or 2 * line.error > speed * (np.log(np.sqrt(3)) - off[name]):
        return None
    return name


def _color_name(colors: Float64[np.ndarray, "time channel"]) -> str | None:
    """The name that most frames' colors have, None where too few agree."""
    names = list(COLORS)
    known = _hue(np.array(list(COLORS.values()), np.float64))
    off = np.abs((_hue(colors)[:, None] - known + 180.0) % 360.0 - 180.0)
    nearest = np.argmin(off, axis=1)
    saturation = 1.0 - colors.min(-1) / np.maximum(colors.max(-1), 1.0)
    has_name = (off.min(axis=1) <= HUE_ERROR) & (saturation >= SATURATION)
    votes = np.bincount(nearest[has_name], minlength=len(names))
    return names[int(np.argmax(votes))] if votes.max() >= AGREEMENT * len(colors) else None


def _hue(colors: Float64[np.ndarray, "color channel"]) -> Float64[np.ndarray, " color"]:
    """Hue in degrees: red 0, green 120, blue 240."""
    red, green, blue = np.moveaxis(colors, -1, 0)
    return np.degrees(np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) % 360.0


def _outline(
    alpha: Float64[np.ndarray, "time row column"], x: Float64[np.ndarray, " time"], y: Float64[np.ndarray, " time"]
) -> tuple[str | None, Float64[np.ndarray, "time row column"]]:
    """The shape that fits best and its picture; the name is None where it fits badly, or the next one about as well."""
    size = alpha.shape[1]
    patch, at_x, at_y = _patches(alpha, x, y)
    part = patch.shape[1] / size  # sides of a patch per side of the frame
    area = np.median((patch > 0.5).sum((1, 2))) / size**2
    patch = patch / np.linalg.norm(patch)
    radius = np.clip(np.sqrt(area / np.pi), 0.5 * RADIUS, 1.5 * RADIUS)
    best: dict[str, tuple[float, float, float]] = {}
    for shape in SHAPES:
        for scale in (0.94, 1.0, 1.06):
            for softness in (1.0, 2.5):
                drawn = coverage(
                    shape, at_x, at_y, size=patch.shape[1], radius=scale * radius / part, softness=softness
                )
                fit = float(np.vdot(drawn, patch) / np.linalg.norm(drawn))
                best[shape] = max(best.get(shape, (0.0, 0.0, 0.0)), (fit, scale * radius, softness))
    first, second, *_ = sorted(best, key=lambda name: -best[name][0])
    fit, radius, softness = best[first]
    is_clear = fit > max(SHAPE_FIT, best[second][0] + SHAPE_MARGIN)
    return first if is_clear else None, coverage(first, x, y, size=size, radius=radius, softness=softness)


def _patches(
    alpha: Float64[np.ndarray, "time row column"], x: Float64[np.ndarray, " time"], y: Float64[np.ndarray, " time"]
) -> tuple[Float64[np.ndarray, "time row column"], Float64[np.ndarray, " time"], Float64[np.ndarray, " time"]]:
    """The surroundings of every `(x, y)` alone, 0 outside the frame, and where `x` and `y` are in them."""
    size = alpha.shape[1]
    half = int(np.ceil(REACH * size))
    left, top = (np.round(place * size).astype(int) for place in (x, y))  # in a frame with a border of `half` pixels
    steps = np.arange(2 * half)
    rows, columns = top[:, None, None] + steps[:, None], left[:, None, None] + steps
    padded = np.pad(alpha, ((0, 0), (half, half), (half, half)))
    patch = padded[np.arange(len(alpha))[:, None, None], rows, columns]
    return patch, *((place * size - (start - half)) / (2 * half) for place, start in ((x, left), (y, top)))


def _explained(
    contrast: Float64[np.ndarray, "time row column channel"],
    color: Float64[np.ndarray, "time channel"],
    drawn: Float64[np.ndarray, "time row column"],
) -> float:
    """The pixels that stand out and are drawn, as a share of those that stand out or are drawn."""
    padded = np.pad(contrast, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    strength = np.linalg.norm(_box_mean(padded, 3), axis=-1)  # of three by three pixels: noise stands out less
    stands_out: Bool[np.ndarray, "time row column"] = strength > 0.5 * np.linalg.norm(color, axis=-1)[:, None, None]
    is_drawn = drawn > 0.5
    return float((stands_out & is_drawn).sum() / max(1, (stands_out | is_drawn).sum()))
