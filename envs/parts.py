"""A picture and what the environment tells beside it, observed together."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from worldflow.envs.tasks import PixelObservation, PixelTaskEnv

__all__ = ["PixelsAndState"]


class PixelsAndState(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Observes `{"pixels": picture, "state": vector}` of an environment that keeps its vector in `info["state"]`.

    Args:
        env: A pixel task, or any environment in `worldflow.envs.PixelObservation`.

    Raises:
        ValueError: The environment tells no vector beside its picture.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        state = _state_space(env)
        if not isinstance(state, spaces.Box) or len(state.shape) != 1 or state.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"there is no vector to observe beside the picture, a floating Box of one axis, got {state}; record "
                "the picture alone, or wrap the environment so that it observes a Dict of both"
            )
        self._dtype = state.dtype
        self.observation_space = spaces.Dict({"pixels": env.observation_space, "state": state})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        picture, info = self.env.reset(seed=seed, options=options)
        return self._observed(picture, info), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Step, and observe both."""
        picture, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(picture, info), float(reward), terminated, truncated, info

    def _observed(self, picture: np.ndarray, info: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"pixels": picture, "state": np.asarray(info["state"], self._dtype)}


def _state_space(env: gym.Env[Any, Any]) -> gym.Space[Any] | None:
    """The space of what an environment keeps in `info["state"]`, where that is known."""
    if isinstance(env.unwrapped, PixelTaskEnv):
        return env.unwrapped.simulator.observation_space
    while isinstance(env, gym.Wrapper):
        if isinstance(env, PixelObservation):
            return env.env.observation_space
        env = env.env
    return None
