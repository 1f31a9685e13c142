"""Labelled anomalies: one thing goes wrong in an environment, and every step says whether it did.

A detector is judged against these labels. The transition `frames[t], actions[t] -> frames[t + 1]` is labelled where
the fault acts on it: the step in which gravity differs, the step that starts from a displaced state, the step whose
frame is noisy or not the real one. `info["anomaly"]` is False after a reset and a plain bool after each step, so a
recorder stores it like any other number.

Changed physics is put back before `step` returns, whatever happens inside: nothing leaks into another episode,
another wrapper or whoever reads the model.
"""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ANOMALIES", "Anomaly", "Perturb"]


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A kind of fault.

    Args:
        description: What happens, and what `strength` means.
        strength: Used when none is given; None where the fault has no strength.
        neutral: Strength at which nothing happens, None where there is none.
        start: First step affected, or a range `(low, high)` to draw it from, both included.
        duration: Number of steps affected, None for the rest of the episode.
        needs_physics: Whether it acts on a MuJoCo model; otherwise it acts on `uint8` pictures.
    """

    description: str
    strength: float | None
    neutral: float | None
    start: int | tuple[int, int]
    duration: int | None
    needs_physics: bool


ANOMALIES: Mapping[str, Anomaly] = {
    "gravity": Anomaly(
        description="Gravity is multiplied by strength.",
        strength=3.0,
        neutral=1.0,
        start=0,
        duration=None,
        needs_physics=True,
    ),
    "actuator_gain": Anomaly(
        description="The gain of every actuator is multiplied by strength; negative values reverse them.",
        strength=0.2,
        neutral=1.0,
        start=0,
        duration=None,
        needs_physics=True,
    ),
    "teleport": Anomaly(
        description="Before the step, joints jump by strength (m, rad) in a random direction, within their limits.",
        strength=0.3,
        neutral=0.0,
        start=(4, 16),
        duration=1,
        needs_physics=True,
    ),
    "sensor_noise": Anomaly(
        description="Gaussian noise of standard deviation strength, in levels of 255, is added to the frame.",
        strength=25.0,
        neutral=0.0,
        start=0,
        duration=None,
        needs_physics=False,
    ),
    "frozen_frame": Anomaly(
        description="The frame before the first affected step is observed again and again.",
        strength=None,
        neutral=None,
        start=(4, 16),
        duration=8,
        needs_physics=False,
    ),
}
"""Every anomaly `Perturb` makes, by name."""


class Perturb(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Makes one kind of anomaly in each episode and labels the transitions it affects.

    At the neutral strength, or with `duration=0`, episodes are those of the environment inside, bit for bit, and no
    transition is labelled. Draws come from a generator spawned from the environment's own at each seeded reset, so a
    seed fixes them and the environment's own stream is untouched.

    Args:
        env: Environment to disturb.
        anomaly: Name in `ANOMALIES`.
        strength: See the anomaly's description; its own default if None.
        start: First affected step, counted from 0 in each episode, or a range `(low, high)` to draw it from, both
            included; the anomaly's default if None.
        duration: Number of affected steps; the anomaly's default if None.

    Raises:
        ValueError: An unknown name, a number out of range, or an environment on which the anomaly cannot act.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        anomaly: str,
        *,
        strength: float | None = None,
        start: int | Sequence[int] | None = None,
        duration: int | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(self, anomaly=anomaly, strength=strength, start=start, duration=duration)
        gym.Wrapper.__init__(self, env)
        if anomaly not in ANOMALIES:
            raise ValueError(f"unknown anomaly {anomaly!r}{did_you_mean(anomaly, ANOMALIES)}")
        kind = ANOMALIES[anomaly]
        if strength is not None and kind.strength is None:
            raise ValueError(f"{anomaly} has no strength, got {strength}; give its duration instead")
        self.anomaly = anomaly
        self.strength = kind.strength if strength is None else float(strength)
        if self.strength is not None and not np.isfinite(self.strength):
            raise ValueError(f"strength must be finite, got {strength}")
        if self.strength is not None and self.strength < 0 and kind.neutral == 0.0:
            raise ValueError(f"strength of {anomaly} must not be negative, got {strength}")
        self.start = _start_range(kind.start if start is None else start)
        self.duration = kind.duration if duration is None else duration
        if self.duration is not None and self.duration < 0:
            raise ValueError(f"duration must not be negative, got {duration}")
        if kind.needs_physics:
            _check_physics(env, anomaly)
        elif not (isinstance(env.observation_space, spaces.Box) and env.observation_space.dtype == np.uint8):
            raise ValueError(
                f"{anomaly} acts on uint8 pictures, this environment observes {env.observation_space}; "
                "wrap it in worldflow.envs.PixelObservation first"
            )
        self._is_neutral = self.strength is not None and self.strength == kind.neutral
        self._generator: np.random.Generator | None = None
        self._step = 0
        self._first = 0
        self._frame: NDArray[np.uint8] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an undisturbed episode and draw where its anomaly begins."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or self._generator is None:
            self._generator = self.env.np_random.spawn(1)[0]
        low, high = self.start
        self._first = int(self._generator.integers(low, high + 1))
        self._step = 0
        if self.anomaly == "frozen_frame":
            self._frame = np.array(observation)
        return observation, {**info, "anomaly": False}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, under the anomaly if it is its time."""
        if self._generator is None:
            raise gym.error.ResetNeeded("call reset before step")
        is_over = self.duration is not None and self._step >= self._first + self.duration
        is_affected = self._step >= self._first and not is_over and not self._is_neutral
        self._step += 1
        if is_affected:
            with self._disturbed(self._generator):
                observation, reward, terminated, truncated, info = self.env.step(action)
        else:
            observation, reward, terminated, truncated, info = self.env.step(action)
        if is_affected and self.anomaly == "sensor_noise":
            noise = self._generator.normal(0.0, self.strength or 0.0, np.shape(observation))
            observation = np.clip(np.rint(observation + noise), 0, 255).astype(np.uint8)
        elif self.anomaly == "frozen_frame":
            if is_affected:
                observation = np.array(self._frame)
            else:
                self._frame = np.array(observation)
        return observation, reward, terminated, truncated, {**info, "anomaly": is_affected}

    @contextmanager
    def _disturbed(self, generator: np.random.Generator) -> Iterator[None]:
        """The physics of one affected step; parameters are put back at the end."""
        if self.anomaly == "teleport":
            self._teleport(generator)
        scaled = {"gravity": _gravity, "actuator_gain": _actuator_gain}.get(self.anomaly)
        if scaled is None:
            yield
            return
        values = scaled(self.env)
        before = values.copy()
        try:
            values *= self.strength or 0.0
            yield
        finally:
            values[:] = before

    def _teleport(self, generator: np.random.Generator) -> None:
        import mujoco

        model, data = _physics(self.env)
        jump = generator.normal(size=model.nv)
        jump *= (self.strength or 0.0) / np.linalg.norm(jump)
        position = data.qpos.copy()
        mujoco.mj_integratePos(model, position, jump, 1.0)  # joints with quaternions turn, they are not added to
        limits = mujoco.mjtJoint
        for joint in np.flatnonzero(model.jnt_limited):
            if model.jnt_type[joint] in (int(limits.mjJNT_HINGE), int(limits.mjJNT_SLIDE)):
                at = model.jnt_qposadr[joint]
                position[at] = np.clip(position[at], *model.jnt_range[joint])
        data.qpos[:] = position
        mujoco.mj_forward(model, data)


def _physics(env: gym.Env[Any, Any]) -> tuple[Any, Any]:
    """The MuJoCo model and data of an environment."""
    return env.unwrapped.model, env.unwrapped.data


def _gravity(env: gym.Env[Any, Any]) -> NDArray[np.float64]:
    return _physics(env)[0].opt.gravity


def _actuator_gain(env: gym.Env[Any, Any]) -> NDArray[np.float64]:
    return _physics(env)[0].actuator_gainprm


def _check_physics(env: gym.Env[Any, Any], anomaly: str) -> None:
    if not all(hasattr(env.unwrapped, name) for name in ("model", "data")):
        raise ValueError(
            f"{anomaly} needs a MuJoCo environment with model and data, got {env.unwrapped}; "
            "sensor_noise and frozen_frame work on any pictures"
        )
    import mujoco

    model, data = _physics(env)
    if not isinstance(model, mujoco.MjModel) or not isinstance(data, mujoco.MjData):
        raise ValueError(f"{anomaly} needs MuJoCo's own model and data, got {type(model)} and {type(data)}")
    if anomaly == "gravity" and not np.any(model.opt.gravity):
        raise ValueError("gravity is zero in this model, so scaling it changes nothing; choose another anomaly")
    linear = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
    if anomaly == "actuator_gain" and (model.nu == 0 or not np.isin(model.actuator_gaintype, linear).all()):
        raise ValueError("actuator_gain needs actuators of fixed or affine gain; choose another anomaly")


def _start_range(start: int | Sequence[int]) -> tuple[int, int]:
    low, high = (start, start) if isinstance(start, int | np.integer) else tuple(start)
    if not 0 <= low <= high:
        raise ValueError(f"start must be a step from 0 on or a range (low, high), got {start}")
    return int(low), int(high)
