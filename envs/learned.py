"""A learned world as a Gymnasium environment: one episode at a time, or many in one model call.

An episode starts after a recorded past, whose last frame is the first observation; each step draws the next frame,
reward and termination from the world and tells in `info` the exact likelihood of what it drew:

    log_prob = log_prob_frame + log_prob_reward + log_prob_terminated        nats

Randomness has two streams, both set by `reset(seed=)` and continued by `reset()`: `np_random` picks the past, and a
torch generator that it seeds draws the transitions. Rows of the vector form own both, so that a seed gives the same
episode alone and in a batch of any size, up to the rounding of batched sums; the global generators are not touched.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle, seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldflow.envs.imagined import ImaginedEpisodes, Outcome, whole
from worldflow.state import WorldState
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, UInt8
    from numpy.typing import NDArray

__all__ = ["LearnedEnv", "LearnedVectorEnv"]

_METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}


class LearnedEnv(gym.Env["NDArray[np.uint8]", Any], EzPickle):
    """A learned simulator with the spaces of the environment it was learned from.

    Args:
        world: A run's folder, or a world in evaluation mode.
        contexts: Pasts to start from; by default the bank that the run carries.
        horizon: Steps after which an episode is truncated; by default the recorded environment's own time limit,
            or 200 if it had none.
        temperature: Scale of the frames' noise; below 1 draws nearer to the mode.
        device: Where to put a world that is read from a folder; by default the CPU.
        render_mode: `"rgb_array"` or None.

    `reset` takes `options={"context": index}` to pick a past of the bank, or `options={"frames": ..., "past_actions":
    ...}` to give one: `past + 1` frames, the last of which is observed, and the `past` actions between them. Its info
    tells the index of the past as `context`, if it came from the bank. Info of `step` tells, as floats, `log_prob` and
    its parts in nats, and what reward and termination were drawn from: `reward_mean` and `termination_prob`.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read or an argument is out of range.
    """

    metadata: dict[str, Any] = _METADATA

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        *,
        contexts: Contexts | None = None,
        horizon: int | None = None,
        temperature: float = 1.0,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(
            self,
            world,
            contexts=contexts,
            horizon=horizon,
            temperature=temperature,
            device=device,
            render_mode=render_mode,
        )
        self.render_mode = _checked_render_mode(render_mode)
        self._episodes = ImaginedEpisodes(
            world, 1, contexts=contexts, horizon=horizon, temperature=temperature, device=device
        )
        self.observation_space, self.action_space = _recorded_spaces(self.world)

    @property
    def world(self) -> WorldModel:
        """The model that is stepped."""
        return self._episodes.world

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        return self._episodes.horizon

    @property
    def state(self) -> WorldState:
        """What the world remembers, a value: later steps leave it as it is."""
        return self._episodes.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode after a recorded past.

        Args:
            seed: Restarts both random streams; None continues them.
            options: Which past, see the class.

        Returns:
            The past's last frame, and info.

        Raises:
            ValueError, TypeError: If there is no such past, or it does not fit the world.
        """
        super().reset(seed=seed)
        info = self._episodes.reset([0], random=[self.np_random], is_seeded=[seed is not None], options=options)
        return self._observe(), {name: int(values[0]) for name, values in info.items()}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Draw the next transition.

        Raises:
            ValueError: If the action is not in the action space.
            ResetNeeded: Before the first `reset`, and after an episode's end.
        """
        out = self._episodes.step([0], np.asarray(action)[None])
        info = {name: float(values[0]) for name, values in out.info.items()}
        return self._observe(), float(out.reward[0]), bool(out.terminated[0]), bool(out.truncated[0]), info

    def render(self) -> UInt8[np.ndarray, "row column 3"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last frame, enlarged by a whole number to about 256 pixels."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to gymnasium.make")
            return None
        return _enlarged(self._episodes.observed[0])

    def get_state(self) -> bytes:
        """All that the rest of the episode depends on: memory, frame, both random streams, steps taken.

        The bytes fit any environment of the same world, also on another machine.
        """
        return self._episodes.pack([self.np_random])[0]

    def set_state(self, data: bytes) -> NDArray[np.uint8]:
        """Go back to where `get_state` was called; the same actions then give the same transitions again.

        Returns:
            The observation of that moment.

        Raises:
            ValueError: If the bytes are something else, or another world's.
        """
        (self.np_random,) = self._episodes.unpack([data])
        return self._observe()

    def _observe(self) -> NDArray[np.uint8]:
        return self._episodes.observed[0].reshape(self.observation_space.shape).copy()


class LearnedVectorEnv(VectorEnv["NDArray[np.uint8]", Any, np.ndarray]):
    """Many episodes of a learned simulator; one model call steps them all.

    Environment `i` of `reset(seed=s)` runs the episode of `LearnedEnv.reset(seed=s + i)`.

    Args:
        world: A run's folder, or a world in evaluation mode.
        num_envs: Episodes side by side.
        contexts, horizon, temperature, device, render_mode: As for `LearnedEnv`.
        max_episode_steps: The name `gymnasium.make` gives to a time limit; the smaller one of the two counts.
        autoreset_mode: What follows an episode's end, see `gymnasium.vector.AutoresetMode`. Under `NEXT_STEP` an
            environment that ended starts anew in the next `step`, which ignores its action and leaves its generators
            to the new episode; `SAME_STEP` does so at once and keeps the end in `final_obs` and `final_info`;
            `DISABLED` waits for `reset(options={"reset_mask": ...})`.

    `options` of `reset` are those of `LearnedEnv`, for all environments alike or, with one more axis in front, for each
    its own; `reset_mask`, a boolean array, names the environments to reset.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read or an argument is out of range.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        *,
        num_envs: int = 1,
        contexts: Contexts | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        temperature: float = 1.0,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        super().__init__()
        self.num_envs = whole("num_envs", num_envs)
        self.render_mode = _checked_render_mode(render_mode)
        self.autoreset_mode = _checked_autoreset_mode(autoreset_mode)
        self.metadata = {**_METADATA, "autoreset_mode": self.autoreset_mode}
        self._episodes = ImaginedEpisodes(
            world, self.num_envs, contexts=contexts, horizon=horizon, temperature=temperature, device=device
        )
        if max_episode_steps is not None:
            self._episodes.horizon = min(self._episodes.horizon, whole("max_episode_steps", max_episode_steps))
        self.single_observation_space, self.single_action_space = _recorded_spaces(self.world)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        pairs = [seeding.np_random() for _ in range(self.num_envs)]
        self._random, self._seeds = [random for random, _ in pairs], [seed for _, seed in pairs]

    @property
    def world(self) -> WorldModel:
        """The model that is stepped."""
        return self._episodes.world

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        return self._episodes.horizon

    @property
    def state(self) -> WorldState:
        """What the world remembers of each environment, a value: later steps leave it as it is."""
        return self._episodes.state

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each environment's own generator."""
        return tuple(self._random)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each environment's seed; -1 where it is not known."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start episodes after recorded pasts.

        Args:
            seed: Environment `i` gets `seed + i`, or the `i`-th of a list; None continues the streams.
            options: Which pasts, and which environments; see the class.

        Returns:
            Observations, and info with Gymnasium's masks.

        Raises:
            ValueError, TypeError: If seeds or options do not fit.
            ResetNeeded: If the first call leaves environments out.
        """
        seeds = self._checked_seeds(seed)
        options = dict(options or {})
        mask = _checked_mask(options.pop("reset_mask", None), self.num_envs)
        rows = np.flatnonzero(mask).tolist()
        for i in rows:
            if seeds[i] is not None:
                self._random[i], self._seeds[i] = seeding.np_random(seeds[i])
        infos = self._start(rows, is_seeded=[seeds[i] is not None for i in rows], options=options)
        return self._observe(), infos

    def step(
        self, actions: Any
    ) -> tuple[
        NDArray[np.uint8],
        Float64[np.ndarray, " num_envs"],
        Bool[np.ndarray, " num_envs"],
        Bool[np.ndarray, " num_envs"],
        dict[str, Any],
    ]:
        """Draw the next transition of every environment.

        Raises:
            ValueError: If an action is not in the action space; nothing has moved then.
            ResetNeeded: Before the first `reset`, and after an episode's end without autoreset.
        """
        episodes, num_envs = self._episodes, self.num_envs
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        is_new = episodes.ended.copy() if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros(num_envs, bool)
        rows, new = np.flatnonzero(~is_new).tolist(), np.flatnonzero(is_new).tolist()

        rewards = np.zeros(num_envs)
        terminated, truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        infos: dict[str, Any] = {}
        if rows:
            out = episodes.step(rows, actions[rows])
            rewards[rows], terminated[rows], truncated[rows] = out.reward, out.terminated, out.truncated
            if self.autoreset_mode is AutoresetMode.SAME_STEP and episodes.ended.any():
                new = np.flatnonzero(episodes.ended).tolist()
                infos = self._final(out, new)
                kept = np.flatnonzero(~episodes.ended)
                infos |= _batched({name: values[kept] for name, values in out.info.items()}, kept, num_envs)
            else:
                infos = _batched(out.info, rows, num_envs)
        if new:
            infos |= self._start(new, is_seeded=[False] * len(new))
        return self._observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[UInt8[np.ndarray, "row column 3"], ...] | None:
        """The last frame of each environment, enlarged by a whole number to about 256 pixels."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to make_vec")
            return None
        return tuple(_enlarged(frame) for frame in self._episodes.observed)

    def get_state(self) -> list[bytes]:
        """Each environment's `LearnedEnv.get_state`."""
        return self._episodes.pack(self._random)

    def set_state(self, data: Sequence[bytes]) -> NDArray[np.uint8]:
        """Put every environment where `get_state` of this class or of `LearnedEnv` was called.

        Returns:
            The observations of that moment.

        Raises:
            ValueError: If there is not one state an environment, or one is something else or another world's.
        """
        self._random = self._episodes.unpack(data)
        self._seeds = [-1] * self.num_envs
        return self._observe()

    def _start(
        self, rows: Sequence[int], *, is_seeded: Sequence[bool], options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        random = [self._random[i] for i in rows]
        info = self._episodes.reset(rows, random=random, is_seeded=is_seeded, options=options)
        return _batched(info, rows, self.num_envs)

    def _final(self, out: Outcome, rows: Sequence[int]) -> dict[str, Any]:
        """How episodes ended that start anew in the same step; all rows were stepped."""
        is_final = np.zeros(self.num_envs, bool)
        is_final[rows] = True
        observations = np.full(self.num_envs, None, dtype=object)
        for i in rows:
            observations[i] = self._episodes.observed[i].reshape(self._observation_shape).copy()
        info = _batched({name: values[rows] for name, values in out.info.items()}, rows, self.num_envs)
        return {"final_obs": observations, "_final_obs": is_final, "final_info": info, "_final_info": is_final.copy()}

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence | np.ndarray):
            if len(seed) != self.num_envs:
                raise ValueError(f"expected one seed or {self.num_envs}, one an environment, got {len(seed)}")
            return [None if one is None else operator.index(one) for one in seed]
        return [operator.index(seed) + i for i in range(self.num_envs)]

    @property
    def _observation_shape(self) -> tuple[int, ...]:
        shape = self.single_observation_space.shape
        assert shape is not None
        return shape

    def _observe(self) -> NDArray[np.uint8]:
        return self._episodes.observed.reshape(self.num_envs, *self._observation_shape).copy()


def _recorded_spaces(world: WorldModel) -> tuple[gym.Space[Any], gym.Space[Any]]:
    from minari.serialization import deserialize_space  # the inverse of what wrote them

    return deserialize_space(world.config.data.observation_space), deserialize_space(world.config.data.action_space)


def _checked_mask(mask: Any, num_envs: int) -> Bool[np.ndarray, " num_envs"]:
    if mask is None:
        return np.ones(num_envs, bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"options['reset_mask'] must be a NumPy array of bool, got {kind}")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] must be {num_envs} bools, at least one of them True, got {mask}")
    return mask


def _checked_render_mode(mode: str | None) -> str | None:
    if mode not in (None, *_METADATA["render_modes"]):
        raise ValueError(f"render_mode must be 'rgb_array' or None, got {mode!r}")
    return mode


def _checked_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        names = [one.value for one in AutoresetMode]
        raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}") from None


def _batched(info: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray, num_envs: int) -> dict[str, Any]:
    """Values of some rows, each with Gymnasium's mask `_name` of the rows that have it; nothing for no rows."""
    infos: dict[str, Any] = {}
    if len(rows):
        for name, values in info.items():
            infos[name], infos[f"_{name}"] = np.zeros(num_envs, values.dtype), np.zeros(num_envs, bool)
            infos[name][rows], infos[f"_{name}"][rows] = values, True
    return infos


def _enlarged(frame: UInt8[np.ndarray, "row column channel"]) -> UInt8[np.ndarray, "row column 3"]:
    factor = max(1, round(256 / max(frame.shape[:2])))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.broadcast_to(large, (*large.shape[:2], 3)).copy() if frame.shape[2] == 1 else large
