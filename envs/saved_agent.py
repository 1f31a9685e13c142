"""Agents that Stable-Baselines3 trained and saved, as policies that record data.

Stable-Baselines3 is imported when a file is opened, not before. A saved file does not name its algorithm; the
settings that only one algorithm has tell it.
"""

from __future__ import annotations

import importlib
import json
import random
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

__all__ = ["SavedAgent", "open_agent", "predicted", "randomness_put_back"]


class SavedAgent:
    """An agent trained and saved by Stable-Baselines3.

    Actions are drawn from the agent's own distribution where it has one (PPO, A2C, SAC), by a generator of their
    own, and are its best ones otherwise (DQN, TD3, DDPG). An agent trained on the state vector finds it in
    `info["state"]`.

    Args:
        path: The file `model.save` wrote.
        observation_space: The recorded observations.
        action_space: The action space.

    Raises:
        FileNotFoundError, ImportError, ValueError: The file is not there, Stable-Baselines3 is not installed, or
            the file is no saved agent for this task.
    """

    def __init__(
        self, path: str | Path, *, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        name, self._agent = open_agent(path)
        self._is_stochastic = name in ("PPO", "A2C", "SAC")
        if self._agent.action_space != action_space:
            raise ValueError(f"{path} acts in {self._agent.action_space}, the environment in {action_space}")
        shape, pixels = self._agent.observation_space.shape, observation_space.shape or ()
        # Of a Dict, an agent sees all that it was trained on, or nothing but the state.
        is_dict = isinstance(observation_space, spaces.Dict) and self._agent.observation_space == observation_space
        self._sees_pixels = is_dict or shape in (pixels, (*pixels[2:], *pixels[:2]))
        if not self._sees_pixels and (shape is None or len(shape) != 1):
            raise ValueError(
                f"{path} observes {self._agent.observation_space}, but the environment returns frames of shape "
                f"{pixels}; make the environment with the size that the agent was trained on"
            )

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        """The agent's action."""
        expected = self._agent.observation_space.shape
        seen = observation if self._sees_pixels else np.asarray(info.get("state", ()))
        if not self._sees_pixels and seen.shape != expected:
            raise ValueError(f'the agent needs a state of shape {expected} in info["state"], got {seen.shape}')
        return predicted(self._agent, seen, generator if self._is_stochastic else None)


def open_agent(path: str | Path) -> tuple[str, Any]:
    """The name of an agent's algorithm, and the agent; all global generators stay as they are.

    Raises:
        FileNotFoundError, ImportError, ValueError: The file is not there, Stable-Baselines3 is not installed, or it
            did not save the file.
    """
    name = _algorithm(Path(path))
    try:
        algorithms = importlib.import_module("stable_baselines3")
    except ImportError as error:
        raise ImportError(
            f"{path} was saved by Stable-Baselines3, which is not installed; run `pip install 'worldflow[agents]'`"
        ) from error
    with randomness_put_back():
        return name, getattr(algorithms, name).load(path, device="cpu")


def predicted(agent: Any, observation: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
    """An agent's action: drawn as `generator` says, or the best one without.

    Agents draw from torch's own generator, which is put back as it was.
    """
    if generator is None:
        return agent.predict(observation, deterministic=True)[0]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(generator.integers(2**63)))
        return agent.predict(observation, deterministic=False)[0]


@contextmanager
def randomness_put_back() -> Iterator[None]:
    """Leave all global generators as they were.

    Making or loading an agent initializes networks, and seeds every global generator where it has a seed.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=()):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _algorithm(path: Path) -> str:
    """Name of the algorithm that saved a file, told by the settings that only it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"policy {str(path)!r}: there is no such file") from error
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"policy {str(path)!r} was not saved by Stable-Baselines3 ({error})") from error
    marks = {
        "PPO": "clip_range_vf",
        "SAC": "target_entropy",
        "TD3": "policy_delay",
        "DQN": "exploration_fraction",
        "A2C": "gae_lambda",
    }
    for name, mark in marks.items():
        if mark in settings:
            return name
    raise ValueError(f"policy {str(path)!r} was saved by none of the algorithms known here: {', '.join(marks)}")
