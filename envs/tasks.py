"""Pixel tasks: Gymnasium's own MuJoCo environments, seen through a `RayCamera`.

Physics, reward, termination and seeding are those of the v5 environment, which runs inside and is only looked at:
the same seed and the same actions give the same numbers as `gym.make("InvertedPendulum-v5")`. The observation is
the camera's frame and what v5 observes arrives in `info["state"]`.

`PixelObservation` does the same for any other environment that renders `rgb_array` or already observes an image.
"""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle, RecordConstructorArgs

from worldflow.envs.camera import Look, RayCamera, View
from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from mujoco import MjData, MjModel
    from numpy.typing import NDArray

__all__ = ["TASKS", "PixelObservation", "PixelTask", "PixelTaskEnv", "resize_frame"]


@dataclass(frozen=True, kw_only=True)
class PixelTask:
    """A Gymnasium MuJoCo environment and the camera that shows it.

    Args:
        env_id: Registered id of the environment inside.
        view: Where the camera stands.
        look: Light and colors.
        max_episode_steps: Time limit of the registered pixel task, that of `env_id`.
    """

    env_id: str
    view: View
    max_episode_steps: int
    look: Look = field(default_factory=Look)


TASKS: Mapping[str, PixelTask] = {
    "InvertedPendulum": PixelTask(
        env_id="InvertedPendulum-v5",
        # The rail, 2 m and its round ends, fills the width; the pole stays in sight down to the rail.
        view=View(position=(0.0, -3.0, 0.3), target=(0.0, 0.0, 0.25), fovy=45.0),
        look=Look(colors={"cart": (0.95, 0.6, 0.1), "cpole": (0.05, 0.5, 0.65), "rail": (0.35, 0.35, 0.55)}),
        max_episode_steps=1000,
    ),
    "Reacher": PixelTask(
        env_id="Reacher-v5",
        # Straight from above. The arm reaches 0.22 m and targets lie within 0.2 m: no room is left for the walls.
        view=View(position=(0.0, 0.0, 1.0), target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0), fovy=25.5),
        look=Look(colors={"fingertip": (0.0, 0.75, 0.35), "root": (0.25, 0.25, 0.3), "target": (0.95, 0.1, 0.1)}),
        max_episode_steps=50,
    ),
    "Pusher": PixelTask(
        env_id="Pusher-v5",
        # From across the table, so that the arm does not hide the object it pushes.
        view=View(position=(0.3, 1.0, 1.3), target=(0.3, -0.3, -0.15), fovy=50.0),
        look=Look(
            colors={
                "table": (0.78, 0.72, 0.62),
                "object": (0.15, 0.4, 0.95),
                "goal": (0.9, 0.15, 0.1),
                **dict.fromkeys(("sp", "sl", "uar", "ua", "ef", "fr", "fa", "wf"), (0.42, 0.46, 0.55)),
                "r_wrist_roll_link": (0.95, 0.75, 0.1),
                "tips_arm": (0.95, 0.75, 0.1),
            }
        ),
        max_episode_steps=100,
    ),
    "HalfCheetah": PixelTask(
        env_id="HalfCheetah-v5",
        view=View(
            position=(0.0, -3.0, 0.7),
            target=(0.0, 0.0, 0.7),
            fovy=48.0,
            body="torso",
            follow=(True, False, False),
        ),
        look=Look(haze=10.0),
        max_episode_steps=1000,
    ),
}


class PixelTaskEnv(gym.Env["NDArray[np.uint8]", "NDArray[np.float32]"], EzPickle):
    """A MuJoCo task that is observed as frames.

    Args:
        task: Name in `TASKS`.
        size: Rows and columns of the observed frame.
        action_repeat: Simulator steps per step. Rewards are summed; a termination or truncation ends the repeats.
            The registered time limit counts steps, not repeats.
        render_mode: `"rgb_array"` or None.
        render_size: Rows and columns of what `render` returns.
        **options: Passed to the environment inside, such as `reset_noise_scale`.

    `info["state"]` holds the observation of the environment inside, `float64`, after every reset and step.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by gymnasium.Env

    def __init__(
        self,
        *,
        task: str,
        size: int = 64,
        action_repeat: int = 1,
        render_mode: str | None = None,
        render_size: int = 480,
        **options: Any,
    ) -> None:
        EzPickle.__init__(
            self,
            task=task,
            size=size,
            action_repeat=action_repeat,
            render_mode=render_mode,
            render_size=render_size,
            **options,
        )
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}{did_you_mean(task, TASKS)}")
        for name, value in (("size", size), ("action_repeat", action_repeat), ("render_size", render_size)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.task = TASKS[task]
        with _without_deprecation_note():
            self.simulator: Any = gym.make(self.task.env_id, **options).unwrapped
        self.action_repeat = int(action_repeat)
        self.render_mode = render_mode
        self.render_size = int(render_size)
        self.camera = self._camera(int(size))
        self._render_camera: RayCamera | None = None
        self.action_space = self.simulator.action_space
        self.observation_space = spaces.Box(0, 255, (int(size), int(size), 3), np.uint8)
        fps = round(1.0 / (self.simulator.dt * self.action_repeat))
        self.metadata = {**type(self).metadata, "render_fps": max(1, fps)}

    @property
    def model(self) -> MjModel:
        """The simulated model."""
        return self.simulator.model

    @property
    def data(self) -> MjData:
        """The simulator's current state."""
        return self.simulator.data

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; `seed` and `options` mean what they mean to the environment inside."""
        state, info = self.simulator.reset(seed=seed, options=options)
        self._np_random, self._np_random_seed = self.simulator.np_random, self.simulator.np_random_seed
        return self.camera.render(self.data), {**info, "state": np.array(state, np.float64)}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Apply `action` for `action_repeat` simulator steps."""
        state, reward, terminated, truncated, info = self.simulator.step(action)
        total = float(reward)
        for _ in range(self.action_repeat - 1):
            if terminated or truncated:
                break
            state, reward, terminated, truncated, info = self.simulator.step(action)
            total += float(reward)
        info = {**info, "state": np.array(state, np.float64)}
        return self.camera.render(self.data), total, bool(terminated), bool(truncated), info

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The current state at `render_size`, from the same camera."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to gymnasium.make")
            return None
        if self._render_camera is None:
            self._render_camera = self._camera(self.render_size)
        return self._render_camera.render(self.data)

    def close(self) -> None:
        """Close the environment inside."""
        self.simulator.close()

    def _camera(self, size: int) -> RayCamera:
        return RayCamera(self.model, view=self.task.view, look=self.task.look, height=size, width=size)


@contextmanager
def _without_deprecation_note() -> Iterator[None]:
    """MuJoCo 4 notes on stderr and in a log file that Gymnasium's half_cheetah.xml says `settotalmass`: not here."""
    import mujoco

    before = mujoco.get_mju_user_warning()

    def handle(text: str) -> None:
        if "settotalmass" in text:
            return
        if before is not None:
            before(text)
        else:
            mujoco.mju_writeLog("WARNING", text)

    mujoco.set_mju_user_warning(handle)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class PixelObservation(gym.Wrapper["NDArray[np.uint8]", Any, Any, Any], RecordConstructorArgs):
    """Observes the rendered picture of any environment; its own observation moves to `info["state"]`.

    An environment whose observation already is a `uint8` picture is passed through, only resized if need be.

    Args:
        env: Environment that renders `rgb_array`, or observes a `uint8 (row, column, channel)` picture.
        size: Rows and columns of the observed frame.

    Raises:
        ValueError: The environment offers no picture to observe.
    """

    def __init__(self, env: gym.Env[Any, Any], *, size: int = 64) -> None:
        RecordConstructorArgs.__init__(self, size=size)
        gym.Wrapper.__init__(self, env)
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        inner = env.observation_space
        self._is_picture = (
            isinstance(inner, spaces.Box)
            and inner.dtype == np.uint8
            and len(inner.shape) == 3
            and inner.shape[-1] in (1, 3)
        )
        if isinstance(inner, spaces.Dict | spaces.Tuple):
            raise ValueError(
                f"PixelObservation needs one array as observation to keep in info['state'], got {inner}; "
                "wrap the environment in gymnasium.wrappers.FlattenObservation first"
            )
        if not self._is_picture and env.render_mode != "rgb_array":
            raise ValueError(
                f"PixelObservation needs pictures: observations are {inner} and render_mode is {env.render_mode!r}; "
                "make the environment with render_mode='rgb_array'"
            )
        channels = inner.shape[-1] if self._is_picture and inner.shape is not None else 3
        self.size = size
        self.observation_space = spaces.Box(0, 255, (size, size, channels), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Reset the environment and observe its picture."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observe(observation, info)

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Step the environment and observe its picture."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        frame, info = self._observe(observation, info)
        return frame, float(reward), terminated, truncated, info

    def _observe(self, observation: Any, info: dict[str, Any]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        if self._is_picture:
            return resize_frame(observation, self.size), info
        frame = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(f"render() must return a uint8 (row, column, 3) picture, got {type(frame).__name__}")
        return resize_frame(frame, self.size), {**info, "state": np.array(observation)}


def resize_frame(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A `uint8 (row, column, channel)` picture as `(size, size, channel)`, each pixel the mean of its area."""
    if frame.shape[:2] == (size, size):
        return frame.copy()
    mean = frame.astype(np.float64)
    for axis in (0, 1):
        # The integral along the axis, read between its samples: exact for any ratio, up or down.
        length = mean.shape[axis]
        total = np.insert(np.cumsum(mean, axis=axis), 0, 0.0, axis=axis)
        edge = np.linspace(0.0, length, size + 1)
        index = np.minimum(edge.astype(int), length - 1)
        part = np.expand_dims(edge - index, tuple(i for i in range(mean.ndim) if i != axis))
        at_edge = np.take(total, index, axis=axis) * (1.0 - part) + np.take(total, index + 1, axis=axis) * part
        mean = np.diff(at_edge, axis=axis) * (size / length)
    return (np.clip(mean, 0.0, 255.0) + 0.5).astype(np.uint8)
