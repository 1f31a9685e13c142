"""Labelled anomalies: one thing goes wrong in an environment, and every step says whether it did.

A detector is judged against these labels. The transition `frames[t], actions[t] -> frames[t + 1]` is labelled where
the fault acts on it: the step in which gravity differs, the step that starts from a displaced state, the step whose
action is lost, whose frame is not the real one, or whose reward is. `info["anomaly"]` is False after a reset and a
plain bool after each step, so a recorder stores it like any other number.

Changed physics is put back before `step` returns, whatever happens inside: nothing leaks into another episode,
another wrapper or whoever reads the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from worldflow.envs.action_faults import ActionFault
from worldflow.envs.anomalies import ANOMALIES, Anomaly, Level
from worldflow.envs.physics_faults import PhysicsFault
from worldflow.envs.picture_faults import PictureFault, RewardFault
from worldflow.hints import did_you_mean

__all__ = ["Perturb", "possible_anomalies"]


class _Fault(Protocol):
    """What makes an anomaly."""

    def begin(self, observation: Any, generator: np.random.Generator) -> None:
        """Start an episode."""
        ...

    def step(
        self, inner: Callable[[Any], Any], action: Any, *, is_affected: bool, generator: np.random.Generator
    ) -> tuple[Any, bool]:
        """Step through `inner`, under the fault if it is its time, and say whether it acted."""
        ...


class Perturb(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Makes one kind of anomaly in each episode and labels the transitions it affects.

    At the neutral strength, or with `duration=0`, episodes are those of the environment inside, bit for bit, and no
    transition is labelled. Draws come from a generator spawned from the environment's own at each seeded reset, so a
    seed fixes them and the environment's own stream is untouched.

    Args:
        env: Environment to disturb.
        anomaly: Name in `ANOMALIES`.
        strength: A number, see the anomaly's description, or `"weak"`, `"middle"` or `"strong"`; the middle if None.
        start: First affected step, counted from 0 in each episode, or a range `(low, high)` to draw it from, both
            included; the anomaly's default if None.
        duration: Number of affected steps; the level's if None.

    Raises:
        ValueError: An unknown name, a number out of range, or an environment on which the anomaly cannot act.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        anomaly: str,
        *,
        strength: float | str | None = None,
        start: int | Sequence[int] | None = None,
        duration: int | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(self, anomaly=anomaly, strength=strength, start=start, duration=duration)
        gym.Wrapper.__init__(self, env)
        if anomaly not in ANOMALIES:
            raise ValueError(f"unknown anomaly {anomaly!r}{did_you_mean(anomaly, ANOMALIES)}")
        kind = ANOMALIES[anomaly]
        self.anomaly = anomaly
        self.strength, self.duration = _level(kind, anomaly, strength)
        if duration is not None:
            self.duration = duration
        if self.duration is not None and self.duration < 0:
            raise ValueError(f"duration must not be negative, got {duration}")
        self.start = _start_range(kind.start if start is None else start)
        self._fault = _fault(env, anomaly, kind, self.strength)
        self._is_neutral = self.strength is not None and self.strength == kind.neutral
        self._generator: np.random.Generator | None = None
        self._step = 0
        self._first = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an undisturbed episode and draw where its anomaly begins."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or self._generator is None:
            self._generator = self.env.np_random.spawn(1)[0]
        low, high = self.start
        self._first = int(self._generator.integers(low, high + 1))
        self._step = 0
        self._fault.begin(observation, self._generator)
        return observation, {**info, "anomaly": False}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, under the anomaly if it is its time."""
        if self._generator is None:
            raise gym.error.ResetNeeded("call reset before step")
        is_over = self.duration is not None and self._step >= self._first + self.duration
        is_affected = self._step >= self._first and not is_over and not self._is_neutral
        self._step += 1
        outcome, has_acted = self._fault.step(self.env.step, action, is_affected=is_affected, generator=self._generator)
        observation, reward, terminated, truncated, info = outcome
        return observation, reward, terminated, truncated, {**info, "anomaly": has_acted}


def possible_anomalies(env: gym.Env[Any, Any]) -> tuple[str, ...]:
    """Names of the anomalies that can act on an environment; `Perturb` says of the others why they cannot.

    Args:
        env: The environment.

    Example:
        >>> import gymnasium as gym, worldflow.envs
        >>> names = possible_anomalies(gym.make("worldflow/InvertedPendulum-v0", size=8))
        >>> sorted(set(ANOMALIES) - set(names))  # nothing touches there, and there is one actuator
        ['friction', 'swapped_axes']
    """

    def can_act(name: str, kind: Anomaly) -> bool:
        try:
            _fault(env, name, kind, kind.strength)
        except ValueError:
            return False
        return True

    return tuple(name for name, kind in ANOMALIES.items() if can_act(name, kind))


def _fault(env: gym.Env[Any, Any], anomaly: str, kind: Anomaly, strength: float | None) -> _Fault:
    number = 0.0 if strength is None else strength
    match kind.acts_on:
        case "physics":
            return PhysicsFault(env, anomaly, number)
        case "action":
            return ActionFault(env.action_space, anomaly, number)
        case "picture":
            return PictureFault(env.observation_space, anomaly, number)
        case "reward":
            return RewardFault(number)


def _level(kind: Anomaly, anomaly: str, strength: float | str | None) -> tuple[float | None, int | None]:
    """Strength and duration that were asked for."""
    if strength is None:
        strength = "middle"
    if isinstance(strength, str):
        levels: Mapping[str, Level] = {**kind.levels}
        if strength not in levels:
            hint = did_you_mean(strength, levels, otherwise="give weak, middle, strong or a number")
            raise ValueError(f"unknown strength {strength!r}{hint}")
        level = levels[strength]
        return level.strength, level.duration
    if kind.strength is None:
        raise ValueError(
            f"{anomaly} has no strength, got {strength}; give its duration instead, or weak, middle or strong"
        )
    low, high = kind.bounds
    if not np.isfinite(strength):
        raise ValueError(f"strength must be finite, got {strength}")
    if not low <= strength <= high:
        allowed = "not be negative" if low == 0 and strength < 0 else f"lie between {low:g} and {high:g}"
        raise ValueError(f"strength of {anomaly} must {allowed}, got {strength}")
    return float(strength), kind.duration


def _start_range(start: int | Sequence[int]) -> tuple[int, int]:
    low, high = (start, start) if isinstance(start, int | np.integer) else tuple(start)
    if not 0 <= low <= high:
        raise ValueError(f"start must be a step from 0 on or a range (low, high), got {start}")
    return int(low), int(high)
