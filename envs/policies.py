"""Policies that record data: random, smooth, a trained agent's, or anybody's function.

A policy is anything that maps `(observation, info, generator)` to an action. All of its randomness comes from
`generator`, so the same seed records the same episode. One that remembers something has a `reset(generator)`,
called before each episode.

A policy has a name, for the command line and for the record:

- `random`: every action uniform in its bounds.
- `smooth`: every action uniform in its bounds too, but neighbors are correlated over a time drawn per episode.
- `MODULE:CALLABLE`: a function `(observation, info, generator) -> action`, or a class that is called with the
  action space and gives such an object. Modules in the working folder are found.
- `FILE.zip`: an agent saved by Stable-Baselines3, from images or from the state vector in `info["state"]`; or one
  that `worldflow dream` trained, which its side file `FILE.json` tells.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces

from worldflow.envs.dreamed_policy import DreamedPolicy, is_dreamed
from worldflow.envs.saved_agent import SavedAgent
from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Mixed",
    "PendulumSwayer",
    "Policy",
    "Random",
    "Smooth",
    "make_policy",
    "start_episode",
    "valid_action",
]


@runtime_checkable
class Policy(Protocol):
    """Whatever picks actions."""

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator, /) -> Any:
        """Pick an action, drawing from `generator` only."""
        ...


class Random:
    """Uniform actions; an unbounded component is standard normal.

    Args:
        space: The action space.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = _supported(space)

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        """Draw an action."""
        match self.space:
            case spaces.Box():
                return _from_normal(self.space, generator.standard_normal(self.space.shape))
            case spaces.Discrete(n=n, start=start):
                return start + generator.integers(n)
            case spaces.MultiDiscrete(nvec=nvec, start=start):
                return start + generator.integers(nvec)
            case _:
                return generator.integers(2, size=self.space.shape)


class Smooth:
    """Random actions that stay a while, as exploration of anything with inertia needs.

    Each component of a continuous action follows the stationary process

        x[t + 1] = a x[t] + sqrt(1 - a^2) n[t],    a = exp(-1 / tau),    n[t] ~ Normal(0, 1)

    and the action is the place of `x[t]` in the bounds by its rank, `low + (high - low) Phi(x[t])`. So a single
    action is uniform in its bounds, as under `Random`, and only their order in time differs. A discrete action
    is kept with probability `a` and drawn anew otherwise. `tau`, in steps, is drawn log-uniformly from `times`
    at the start of each episode, to move on several time scales.

    Args:
        space: The action space.
        times: Shortest and longest correlation time, steps.
    """

    def __init__(self, space: spaces.Space[Any], *, times: tuple[float, float] = (2.0, 30.0)) -> None:
        if not 0.0 < times[0] <= times[1]:
            raise ValueError(f"times must be positive and in order, got {times}")
        self.space = _supported(space)
        self.times = times
        self._random = Random(space)
        self._keep = math.exp(-1.0 / times[0])
        self._last: Any = None

    def reset(self, generator: np.random.Generator) -> None:
        """Forget the last action and draw a correlation time."""
        shortest, longest = np.log(self.times)
        self._keep = math.exp(-1.0 / math.exp(generator.uniform(shortest, longest)))
        self._last = None

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        """Draw an action near the last one."""
        keep = self._keep
        if isinstance(self.space, spaces.Box):
            noise = generator.standard_normal(self.space.shape)
            self._last = noise if self._last is None else keep * self._last + math.sqrt(1.0 - keep**2) * noise
            return _from_normal(self.space, self._last)
        drawn = self._random(observation, info, generator)
        stays = generator.random(self.space.shape) < keep
        self._last = drawn if self._last is None else np.where(stays, self._last, drawn)
        return self._last


class Mixed:
    """Another policy, with a random action in its place now and then.

    Args:
        policy: The policy.
        space: The action space.
        random_fraction: Probability of a random action at each step.
    """

    def __init__(self, policy: Policy, space: spaces.Space[Any], *, random_fraction: float) -> None:
        if not 0.0 <= random_fraction <= 1.0:
            raise ValueError(f"random_fraction must be from 0 to 1, got {random_fraction}")
        self.policy, self.random_fraction = policy, random_fraction
        self._random = Random(space)

    def reset(self, generator: np.random.Generator) -> None:
        """Start an episode of the policy inside."""
        start_episode(self.policy, generator)

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        """Pick the policy's action, which it always computes, or a random one."""
        action = self.policy(observation, info, generator)
        if generator.random() < self.random_fraction:
            return self._random(observation, info, generator)
        return action


class PendulumSwayer:
    """Drives the inverted pendulum about its rail, balancing it for a while, then lets it fall.

    A proportional-derivative law holds the pole and pulls the cart to a target that jumps along the rail; noise
    correlated in time shakes it. After a time drawn per episode it pushes one way until the pole is down. So the
    data show the whole rail, both directions, and falls to both sides, which balancing or chance alone do not.

    Args:
        space: The action space, the force on the cart.

    Reads `info["state"]`: cart position (m), pole angle (rad) and their velocities, as InvertedPendulum observes.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        if not isinstance(space, spaces.Box) or space.shape != (1,):
            raise ValueError(f"PendulumSwayer drives a cart with one force, a Box of shape (1,), got {space}")
        self._noise = Smooth(space, times=(3.0, 3.0))
        self._limit = float(space.high[0])
        self._step, self._balanced, self._push, self._target = 0, 0, 0.0, 0.0

    def reset(self, generator: np.random.Generator) -> None:
        """Draw how long to balance and where to go first."""
        self._noise.reset(generator)
        self._step, self._balanced = 0, int(generator.integers(15, 100))
        self._push = float(generator.choice([-1.0, 1.0]) * generator.uniform(0.0, 0.5) * self._limit)
        self._target = float(generator.choice([-1.0, 1.0]) * generator.uniform(0.4, 0.9))

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        """The force for one step."""
        if np.shape(info.get("state", ())) != (4,):
            raise ValueError('PendulumSwayer needs the four numbers of InvertedPendulum in info["state"]')
        position, angle, speed, spin = info["state"]
        self._step += 1
        noise = 0.2 * self._noise(observation, info, generator)
        if self._step > self._balanced:
            return self._push + noise
        if generator.random() < 1.0 / 20.0:
            self._target = float(generator.uniform(-0.9, 0.9))
        lean = np.clip(0.25 * (self._target - position) - 0.18 * speed, -0.15, 0.15)
        return 25.0 * (angle - lean) + 3.0 * spin + noise


def make_policy(
    policy: str | Policy, *, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Policy:
    """Find a policy by its name.

    Args:
        policy: `random`, `smooth`, `MODULE:CALLABLE`, `FILE.zip`, or a policy itself, which is returned as it is.
        observation_space: Of the environment.
        action_space: Of the environment.

    Raises:
        ValueError: No policy has this name, or it is of no use for this environment.
    """
    if not isinstance(policy, str):
        if not callable(policy):
            raise TypeError(f"a policy must be a name or callable, got {type(policy).__name__}")
        return _instance(policy, action_space)
    builtin = {"random": Random, "smooth": Smooth}
    if policy in builtin:
        return builtin[policy](action_space)
    if policy.endswith(".zip") and is_dreamed(policy):
        dreamed = DreamedPolicy.load(policy, is_deterministic=False)
        dreamed.check_fits(observation_space, action_space)
        return dreamed
    if policy.endswith(".zip"):
        return SavedAgent(policy, observation_space=observation_space, action_space=action_space)
    if ":" in policy:
        return _instance(_imported(policy), action_space)
    hint = did_you_mean(policy, builtin, otherwise=f"use {', '.join(builtin)}, MODULE:CALLABLE or FILE.zip")
    raise ValueError(f"unknown policy {policy!r}{hint}")


def start_episode(policy: Policy, generator: np.random.Generator) -> None:
    """Reset a policy that remembers something."""
    reset = getattr(policy, "reset", None)
    if reset is not None:
        reset(generator)


def valid_action(action: Any, space: spaces.Space[Any]) -> Any:
    """The action as the environment gets it: of the space's type and shape, clipped to its bounds.

    Raises:
        ValueError: It is of another shape, not finite, or none of the choices.
    """
    values = np.asarray(action)
    if values.shape != space.shape:
        raise ValueError(f"the policy must return actions of shape {space.shape}, got {values.shape}")
    if isinstance(space, spaces.Box):
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise ValueError(f"the policy must return finite numbers, got {action!r}")
        return np.asarray(np.clip(values, space.low, space.high), dtype=space.dtype)
    if values.dtype.kind not in "iub":
        raise ValueError(f"the policy must return whole numbers for {space}, got {action!r}")
    values = values.astype(space.dtype)
    chosen = values[()] if isinstance(space, spaces.Discrete) else values
    if not space.contains(chosen):
        raise ValueError(f"the policy must return an action of {space}, got {action!r}")
    return chosen


def _instance(policy: Any, space: spaces.Space[Any]) -> Policy:
    if isinstance(policy, type):
        make: Callable[[spaces.Space[Any]], Policy] = policy
        return make(space)
    return policy


def _supported(space: spaces.Space[Any]) -> Any:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(f"actions must come from a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}")
    return space


def _from_normal(space: spaces.Box, normal: np.ndarray) -> np.ndarray:
    """Standard normal numbers put in the bounds by rank; kept as they are, or folded, where there are none."""
    low, high = space.low.astype(float), space.high.astype(float)
    below, above = np.isfinite(low), np.isfinite(high)
    rank = torch.special.ndtr(torch.from_numpy(np.asarray(normal))).numpy()
    start = np.where(below, low, 0.0)
    width = np.where(below & above, high, 0.0) - np.where(below & above, low, 0.0)
    inside = start + width * rank
    folded = np.where(below, start + np.abs(normal), np.where(above, high, 0.0) - np.abs(normal))
    return np.where(below & above, inside, np.where(below | above, folded, normal))


def _imported(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    with _working_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            raise ValueError(f"policy {name!r}: there is no module {module_name!r} here or installed") from error
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        hint = did_you_mean(attribute, dir(module), otherwise="")
        raise ValueError(f"policy {name!r}: module {module_name!r} has no {attribute!r}{hint}") from error
    if not callable(found):
        raise ValueError(f"policy {name!r} must be a function or a class, got {type(found).__name__}")
    return found


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
