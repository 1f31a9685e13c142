"""A real environment for tests that act: what it shows and what it pays follow from the actions alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["Lamp", "Press", "PressByState"]


class Lamp(gym.Env[np.ndarray, np.ndarray]):
    """A gray frame, as bright as the sum of all first components of actions; pays that component.

    Args:
        size: Rows and columns of the frame.
        limit: Steps of an episode.
        fails_at: Steps in all after which it raises.
        is_random: Whether its first frame depends on more than the seed.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]
    steps_in_all = 0

    def __init__(self, *, size: int = 16, limit: int = 8, fails_at: int | None = None, is_random: bool = False) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.size, self.limit, self.fails_at, self.is_random = size, limit, fails_at, is_random
        self.resets = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        self.count, self.light = 0, float(self.np_random.uniform(-0.5, 0.5)) + 0.1 * self.resets * self.is_random
        return self._frame(), {"state": np.array([self.light])}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.fails_at is not None and Lamp.steps_in_all >= self.fails_at:
            raise OSError("the bulb is broken")
        self.count += 1
        Lamp.steps_in_all += 1
        self.light += float(action[0]) / 10
        return self._frame(), float(action[0]), self.count == self.limit, False, {"state": np.array([self.light])}

    def _frame(self) -> np.ndarray:
        return np.full((self.size, self.size, 3), int(np.clip(128 + 100 * self.light, 0, 255)), np.uint8)


class Press:
    """Does `strength` in its first component, more by 0.1 each time it is asked in an episode."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.reset(np.random.default_rng(0))

    def reset(self, generator: np.random.Generator) -> None:
        self.asked = 0

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        self.asked += 1
        return np.array([self.strength + 0.1 * (self.asked - 1), 0.0], np.float32)


class PressByState(Press):
    """The same, and reads the state."""

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        if "state" not in info:
            raise ValueError('needs info["state"]')
        return super().__call__(observation, info, generator)
