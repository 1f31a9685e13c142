"""A small world of words and pictures: one colored shape that moves straight on, and the sentence that says so.

    a {color} {shape} moves {direction} {speed}           "a red circle moves left slowly"

Six colors, three shapes, four directions and two speeds make 144 captions. `worldflow.envs.shapes` draws what they say
and `worldflow.shapes_reader` reads it from frames; both take their words and their outlines from here.

Places and lengths are in sides of the square frame, so that they mean the same at every size: `x` from left to right,
`y` from top to bottom, both in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float64

__all__ = [
    "COLORS",
    "DIRECTIONS",
    "RADIUS",
    "SHAPES",
    "SPEEDS",
    "ShapesCaption",
    "caption_of",
    "captions",
    "coverage",
    "extent",
    "parse_caption",
]

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (226, 52, 48),
    "yellow": (236, 214, 48),
    "green": (58, 190, 70),
    "cyan": (52, 206, 212),
    "blue": (72, 80, 238),
    "magenta": (216, 72, 208),
}
"""From a color's name to its levels of red, green and blue. Hues are at least 50 degrees apart."""
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
"""All of the same area; the triangle is equilateral and points up."""
DIRECTIONS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""From a direction's name to its unit vector `(x, y)`, with `y` pointing down."""
SPEEDS: Mapping[str, float] = {"slowly": 0.012, "quickly": 0.035}
"""From a speed's name to sides of the frame per step: 0.38 and 1.12 of 32 pixels."""
RADIUS = 0.125
"""Of the circle, in sides of the frame; the other shapes have its area."""

_PATTERN = "'a COLOR SHAPE moves DIRECTION SPEED', such as 'a red circle moves left slowly'"


@dataclass(frozen=True, kw_only=True)
class ShapesCaption:
    """What a caption says, word by word; `str` makes it a sentence again.

    Args:
        color: One of `COLORS`.
        shape: One of `SHAPES`.
        direction: One of `DIRECTIONS`.
        speed: One of `SPEEDS`.

    Raises:
        ValueError: A word is unknown.
    """

    color: str
    shape: str
    direction: str
    speed: str

    def __post_init__(self) -> None:
        for part, known in _WORDS.items():
            _check_word(part, getattr(self, part), known)

    def __str__(self) -> str:
        return f"a {self.color} {self.shape} moves {self.direction} {self.speed}"


def captions() -> tuple[str, ...]:
    """All 144 captions, colors first, then shapes, directions and speeds, in the order of their tables.

    Example:
        >>> captions()[0], len(captions())
        ('a red circle moves left slowly', 144)
    """
    words = (_WORDS[part] for part in ("color", "shape", "direction", "speed"))
    return tuple(
        caption_of(color=color, shape=shape, direction=direction, speed=speed)
        for color, shape, direction, speed in itertools.product(*words)
    )


def caption_of(*, color: str, shape: str, direction: str, speed: str) -> str:
    """The caption of what is seen.

    Args:
        color: One of `COLORS`.
        shape: One of `SHAPES`.
        direction: One of `DIRECTIONS`.
        speed: One of `SPEEDS`.

    Raises:
        ValueError: A word is unknown.
    """
    return str(ShapesCaption(color=color, shape=shape, direction=direction, speed=speed))


def parse_caption(caption: str) -> ShapesCaption:
    """Take a caption apart.

    Args:
        caption: A sentence as `caption_of` makes it; spaces around and between the words, capitals, and a period at the
            end do not matter.

    Raises:
        ValueError: It is another sentence, or one of its words is unknown.

    Example:
        >>> parse_caption("A red circle moves left slowly.").direction
        'left'
    """
    words = caption.lower().strip().removesuffix(".").split()
    if len(words) != 6 or words[0] != "a" or words[3] != "moves":
        raise ValueError(f"expected a caption like {_PATTERN}; got {caption!r}")
    return ShapesCaption(color=words[1], shape=words[2], direction=words[4], speed=words[5])


def extent(shape: str) -> tuple[float, float, float, float]:
    """How far a shape reaches from its center of area: left, right, up and down, in sides of the frame.

    Args:
        shape: One of `SHAPES`.
    """
    _check_word("shape", shape, SHAPES)
    if shape == "circle":
        return RADIUS, RADIUS, RADIUS, RADIUS
    inner = RADIUS * _INNER[shape]
    if shape == "square":
        return inner, inner, inner, inner
    half = np.sqrt(3) * inner  # of the triangle's base
    return half, half, 2 * inner, inner


def coverage(
    shape: str, x: ArrayLike, y: ArrayLike, *, size: int, radius: float = RADIUS, softness: float = 1.0
) -> Float64[np.ndarray, "*batch row column"]:
    """The share of each pixel that a shape covers.

    With `d` the distance of a pixel's center from an edge, in pixels, positive outside, the edge leaves the share
    `1/2 - d`, cut off at 0 and 1; a polygon's share is the product over its edges. That is exact for edges along the
    axes, right in mean and variance for slanted ones, and continuous in `x` and `y`, so that motion by a fraction of a
    pixel is even.

    Args:
        shape: One of `SHAPES`.
        x: Center of area in sides of the frame, from the left, of shape `batch`.
        y: The same from the top.
        size: Rows and columns of the frame.
        radius: Of the circle with the shape's area, in sides of the frame.
        softness: Width of the outline in pixels: 1 in a sharp picture, more in a blurred one.
    """
    _check_word("shape", shape, SHAPES)
    center = (np.arange(size) + 0.5) / size
    dx = (center - np.asarray(x, dtype=np.float64)[..., None])[..., None, :] * size
    dy = (center - np.asarray(y, dtype=np.float64)[..., None])[..., :, None] * size
    if shape == "circle":
        return _covered(np.hypot(dx, dy) - radius * size, softness)
    inner = radius * _INNER[shape] * size
    share = np.ones(())
    for nx, ny in _NORMALS[shape]:
        share = share * _covered(nx * dx + ny * dy - inner, softness)
    return share


_WORDS: Mapping[str, Iterable[str]] = {"color": COLORS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}

# Distance of the edges from the center, of a polygon with the area of a unit circle: pi = 4 r^2 = 3 sqrt(3) r^2.
_INNER = {"square": np.sqrt(np.pi / 4), "triangle": np.sqrt(np.pi / np.sqrt(27))}
_SLANT = np.sqrt(0.75)
_NORMALS = {
    "square": ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)),
    "triangle": ((0.0, 1.0), (-_SLANT, -0.5), (_SLANT, -0.5)),
}


def _covered(distance: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 - distance / width, 0.0, 1.0)


def _check_word(part: str, word: str, known: Iterable[str]) -> None:
    if not isinstance(word, str) or word not in known:
        raise ValueError(f"unknown {part} {word!r}{did_you_mean(str(word), known)}")
