"""Captioned video made on the fly: a colored shape that moves straight on over a dark background.

Each episode shows one of the 144 captions of `worldflow.shapes`, drawn with equal probability, from a place and over a
background of its own. Frames are drawn by NumPy alone: a pixel is the mean of shape and background by the share of it
that the shape covers,

    frame = background + coverage (color - background)

so that motion by a fraction of a pixel is seen. The background stands still: a dark level with a tint, and on it
nothing, a slope, or a texture of a few waves.

There is nothing to do but wait: the one action changes nothing and is never rewarded. What is learned from these
episodes is to draw what a sentence says, and `worldflow.shapes_reader.read_clip` tells whether it was drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from worldflow.hints import did_you_mean
from worldflow.shapes import (
    COLORS,
    DIRECTIONS,
    SHAPES,
    SPEEDS,
    ShapesCaption,
    caption_of,
    captions,
    coverage,
    extent,
    parse_caption,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EPISODE_STEPS", "MovingShapesEnv", "caption_of", "captions", "parse_caption"]

EPISODE_STEPS = 16
"""Steps of an episode, which has one frame more."""
MIN_SIZE = 16
"""Rows and columns of the smallest frame in which the shapes can be told apart."""


class MovingShapesEnv(gym.Env["NDArray[np.uint8]", np.int64], EzPickle):
    """One shape moves at a constant speed; the caption says which, where to, and how fast.

    Episodes of `gymnasium.make("worldflow/MovingShapes-v0")` are truncated after 16 steps, and the start is placed so
    that the shape stays in view for as long. For other lengths give `num_steps` and `max_episode_steps` alike; a shape
    that is stepped on for longer stops before it would leave. Rewards are 0 and nothing terminates.

    `info["caption"]` holds the caption, and `info["state"]` six `float64` numbers: indices into `COLORS`, `SHAPES`,
    `DIRECTIONS` and `SPEEDS`, and the center's `x` and `y` in sides of the frame, from left to right and from top to
    bottom.

    Args:
        size: Rows and columns of the observed frame, at least 16.
        num_steps: Steps for which the shape keeps moving in view. A quick one has room for 17, a slow one for 50.
        render_mode: `"rgb_array"` or None.
        render_size: Rows and columns of what `render` returns.

    Example:
        >>> env = MovingShapesEnv(size=64)
        >>> frame, info = env.reset(seed=0, options={"color": "blue", "direction": "up"})
        >>> frame.shape, info["caption"]
        ((64, 64, 3), 'a blue square moves up slowly')
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - as gymnasium.Env

    def __init__(
        self,
        *,
        size: int = 32,
        num_steps: int = EPISODE_STEPS,
        render_mode: str | None = None,
        render_size: int = 256,
    ) -> None:
        EzPickle.__init__(self, size=size, num_steps=num_steps, render_mode=render_mode, render_size=render_size)
        for name, value, least in (
            ("size", size, MIN_SIZE),
            ("num_steps", num_steps, 1),
            ("render_size", render_size, 1),
        ):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.size, self.num_steps = int(size), int(num_steps)
        self.render_mode, self.render_size = render_mode, int(render_size)
        self.action_space = spaces.Discrete(1)
        self.observation_space = spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)
        self._scene: _Scene | None = None
        self._step_count = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Decides everything that `options` do not.
            options: What to show: words for any of `"color"`, `"shape"`, `"direction"` and `"speed"`. The rest is
                drawn, and drawn the same whatever is asked for. `dataclasses.asdict(parse_caption(...))` asks for all
                that a caption says.

        Raises:
            ValueError: There is no such option or no such word, or `num_steps` are so many that the shape could leave.
        """
        super().reset(seed=seed)
        draw = self.np_random
        words = {
            name: str(list(known)[draw.integers(len(known))])
            for name, known in (("color", COLORS), ("shape", SHAPES), ("direction", DIRECTIONS), ("speed", SPEEDS))
        }
        asked = dict(options or {})
        for name in asked:
            if name not in words:
                raise ValueError(f"unknown option {name!r} at reset{did_you_mean(str(name), words)}")
        shown = ShapesCaption(**{**words, **asked})
        self._check_room(asked)
        start = _start(shown, draw.random(2), num_steps=self.num_steps)
        self._scene = _Scene(shown=shown, start=start, background=_Background.drawn(draw))
        self._step_count = 0
        self._base = self._scene.background.levels(self.size)
        return self._observe()

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Wait for one step; `action` is 0, the only one there is."""
        if self._scene is None:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        self._step_count += 1
        frame, info = self._observe()
        return frame, 0.0, False, False, info

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same scene, drawn at `render_size`."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to gymnasium.make")
            return None
        if self._scene is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self._scene.frame(self._step_count, self._scene.background.levels(self.render_size))

    def _observe(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        assert self._scene is not None
        shown = self._scene.shown
        words = ((COLORS, shown.color), (SHAPES, shown.shape), (DIRECTIONS, shown.direction), (SPEEDS, shown.speed))
        indices = [list(known).index(word) for known, word in words]
        state = np.array([*indices, *self._scene.position(self._step_count)], np.float64)
        return self._scene.frame(self._step_count, self._base), {"caption": str(shown), "state": state}

    def _check_room(self, asked: Mapping[str, str]) -> None:
        """Whatever may be drawn must have room, not only what was: an error must not depend on luck."""
        tables = {"shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}
        choices = [[asked[name]] if name in asked else list(known) for name, known in tables.items()]
        longest, *words = min((_num_steps_in_view(*words), *words) for words in itertools.product(*choices))
        if self.num_steps > longest:
            raise ValueError(
                f"a {words[0]} that moves {words[1]} {words[2]} stays in view for {longest} steps, got num_steps="
                f'{self.num_steps}; make the environment with fewer, or reset it with options={{"speed": "slowly"}}'
            )


@dataclass(frozen=True, kw_only=True)
class _Background:
    """Levels of a still background as a function of the place, so that it can be drawn at any size."""

    base: NDArray[np.float64]  # (channel,)
    slope: NDArray[np.float64]  # (x and y,): levels per side
    waves: NDArray[np.float64]  # (wave, 4): cycles per side along x and along y, phase, amplitude

    @staticmethod
    def drawn(draw: np.random.Generator) -> _Background:
        is_sloped, is_textured = draw.integers(3) == np.array([1, 2])
        base = draw.uniform(18.0, 46.0) + draw.uniform(-6.0, 6.0, 3)
        angle, rise = draw.uniform(0.0, 2.0 * np.pi), draw.uniform(12.0, 28.0)
        cycles, phase = draw.uniform(-7.0, 7.0, (6, 2)), draw.uniform(0.0, 2.0 * np.pi, 6)
        return _Background(
            base=base,
            slope=is_sloped * rise * np.array([np.cos(angle), np.sin(angle)]),
            waves=np.column_stack([cycles, phase, np.full(6, 2.0 * is_textured)]),
        )

    def levels(self, size: int) -> NDArray[np.float64]:
        """The background as `(row, column, channel)`."""
        y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
        shade = self.slope[0] * (x - 0.5) + self.slope[1] * (y - 0.5)
        for along_x, along_y, phase, amplitude in self.waves:
            if amplitude:
                shade = shade + amplitude * np.cos(2.0 * np.pi * (along_x * x + along_y * y) + phase)
        return np.clip(self.base + shade[..., None], 0.0, 255.0)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Everything an episode shows."""

    shown: ShapesCaption
    start: NDArray[np.float64]  # (x and y,)
    background: _Background

    def position(self, step: int) -> NDArray[np.float64]:
        moved = self.start + step * SPEEDS[self.shown.speed] * np.array(DIRECTIONS[self.shown.direction])
        return np.clip(moved, *_room(self.shown.shape))

    def frame(self, step: int, base: NDArray[np.float64]) -> NDArray[np.uint8]:
        x, y = self.position(step)
        share = coverage(self.shown.shape, x, y, size=len(base))[..., None]
        return (base + share * (np.array(COLORS[self.shown.color]) - base) + 0.5).astype(np.uint8)


def _room(shape: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest place `(x, y)` of the center at which a shape is fully in view."""
    left, right, up, down = extent(shape)
    edge = 0.5 / MIN_SIZE  # half a pixel of the smallest frame, for the outline
    return np.array([left, up]) + edge, 1.0 - edge - np.array([right, down])


@cache
def _num_steps_in_view(shape: str, direction: str, speed: str) -> int:
    low, high = _room(shape)
    return int((high - low) @ np.abs(DIRECTIONS[direction]) / SPEEDS[speed])


def _start(shown: ShapesCaption, place: NDArray[np.float64], *, num_steps: int) -> NDArray[np.float64]:
    """Where to start: at `place` in [0, 1] of the room that `num_steps` of motion leave."""
    low, high = _room(shown.shape)
    way = num_steps * SPEEDS[shown.speed] * np.array(DIRECTIONS[shown.direction])
    low, high = low - np.minimum(way, 0.0), high - np.maximum(way, 0.0)
    return low + place * (high - low)
