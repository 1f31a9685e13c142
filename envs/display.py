"""A learned environment on a screen: frames that can be seen, and keys that act.

`gymnasium.make(..., render_mode="human")` puts Gymnasium's `HumanRendering` around an environment that renders
`rgb_array`, and `gymnasium.utils.play.play` asks it for its keys. Both need pygame, which is not imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from worldflow.types import DataSpec

__all__ = ["METADATA", "checked_render_mode", "enlarged", "keys_to_action", "neutral_action"]

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}
_KEYS = ("da", "ws", "kj", "li", "om", "un")  # up and down of each component


def checked_render_mode(mode: str | None, data: DataSpec) -> str | None:
    """The mode, if it is one, and a world of such data has pictures for it.

    Raises:
        ValueError: If it is not.
    """
    if mode not in (None, *METADATA["render_modes"]):
        hint = "; gymnasium.make(..., render_mode='human') shows a window" if mode == "human" else ""
        raise ValueError(f"render_mode must be 'rgb_array' or None, got {mode!r}{hint}")
    if mode is not None and data.is_vector:
        raise ValueError("a world of vectors has no picture to render; leave out render_mode")
    return mode


def enlarged(frame: UInt8[np.ndarray, "row column channel"]) -> UInt8[np.ndarray, "row column 3"]:
    """A frame in color, enlarged by a whole number to about 256 pixels."""
    factor = max(1, round(256 / max(frame.shape[:2])))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.broadcast_to(large, (*large.shape[:2], 3)).copy() if frame.shape[2] == 1 else large


def neutral_action(space: gym.Space[Any]) -> Any:
    """The action that does least: zero, or the nearest to it in the bounds; the first choice."""
    match space:
        case spaces.Box():
            return np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
        case spaces.Discrete(start=start):
            return start
        case spaces.MultiDiscrete(start=start):
            return np.array(start)
        case _:
            return np.zeros(space.shape or (), space.dtype)


def keys_to_action(space: gym.Space[Any]) -> dict[str, Any]:
    """Which key does what: `d` and `a`, `w` and `s`, ... push a component to its bounds, digits are choices."""
    neutral = neutral_action(space)
    if isinstance(space, spaces.Discrete):
        return {str(i): neutral + i for i in range(min(int(space.n), 10))}
    if isinstance(space, spaces.Box):
        ends = [(high, low) for low, high in zip(space.low.flat, space.high.flat, strict=True)]
    elif isinstance(space, spaces.MultiDiscrete):
        first = np.ravel(space.start)
        ends = list(zip(first + np.ravel(space.nvec) - 1, first, strict=True))
    else:
        ends = [(1, 0)] * np.size(neutral)
    keys = {}
    for i, (letters, values) in enumerate(zip(_KEYS, ends, strict=False)):
        for letter, value in zip(letters, values, strict=True):
            action = np.array(neutral)
            action.flat[i] = value
            keys[letter] = action
    return keys
