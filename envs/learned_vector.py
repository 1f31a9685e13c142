"""Many episodes of a learned world in one model call, as a Gymnasium vector environment."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldflow.envs.display import METADATA, checked_render_mode, enlarged
from worldflow.envs.imagined import ImaginedEpisodes, Outcome
from worldflow.envs.observations import Observer, recorded_action_space
from worldflow.envs.options import EpisodeOptions, whole
from worldflow.envs.snapshots import Snapshot
from worldflow.frames import picture
from worldflow.state import WorldState
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, UInt8

__all__ = ["LearnedVectorEnv"]


class LearnedVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """Many episodes of a learned simulator; one model call steps them all.

    Environment `i` of `reset(seed=s)` runs the episode of `LearnedEnv.reset(seed=s + i)`.

    Args:
        world: A run's folder, or a world in evaluation mode.
        num_envs: Episodes side by side.
        device, render_mode: As for `LearnedEnv`.
        max_episode_steps: The name `gymnasium.make` gives to a time limit; the smaller one of the two counts.
        autoreset_mode: What follows an episode's end, see `gymnasium.vector.AutoresetMode`. Under `NEXT_STEP` an
            environment that ended starts anew in the next `step`, which ignores its action and leaves its generators
            to the new episode; `SAME_STEP` does so at once and keeps the end in `final_obs` and `final_info`;
            `DISABLED` waits for `reset(options={"reset_mask": ...})`.
        options: Fields of `worldflow.envs.options.EpisodeOptions`, as for `LearnedEnv`; or one of these as `options`.

    `options` of `reset` are those of `LearnedEnv`, for all environments alike or, with one more axis in front, for each
    its own; `reset_mask`, a boolean array, names the environments to reset.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read or an argument is out of range.
        MemoryError: If so many environments will not fit; nothing has been allocated then.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        *,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        options: EpisodeOptions | None = None,
        **named: Any,
    ) -> None:
        super().__init__()
        self.num_envs = whole("num_envs", num_envs)
        self.autoreset_mode = _checked_autoreset_mode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        chosen = EpisodeOptions(**named) if options is None else replace(options, **named)
        self._episodes = ImaginedEpisodes(world, self.num_envs, chosen, device=device)
        self.render_mode = checked_render_mode(render_mode, self.world.config.data)
        if max_episode_steps is not None:
            self._episodes.horizon = min(self._episodes.horizon, whole("max_episode_steps", max_episode_steps))
        self._observer = Observer(self._episodes)
        self.single_observation_space = self._observer.space
        self.single_action_space = recorded_action_space(self.world)
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

    @horizon.setter
    def horizon(self, steps: int) -> None:
        """Episodes that start from now on take that many; those that have begun keep theirs."""
        self._episodes.horizon = whole("horizon", steps)

    @property
    def contexts(self) -> Contexts | None:
        """The bank of pasts that episodes start after, or None where they start from something else."""
        return self._episodes.contexts

    @property
    def state(self) -> WorldState:
        """What the world remembers of each environment, a value: later steps leave it as it is."""
        return self._episodes.state

    @property
    def memory_bytes_per_env(self) -> int:
        """Bytes that stay occupied from step to step for each environment, however long its episode."""
        return self._episodes.bytes_per_row

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
    ) -> tuple[Any, dict[str, Any]]:
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
        return self._observer.all(), infos

    def step(
        self, actions: Any
    ) -> tuple[
        Any,
        Float64[np.ndarray, " num_envs"],
        Bool[np.ndarray, " num_envs"],
        Bool[np.ndarray, " num_envs"],
        dict[str, Any],
    ]:
        """Draw the next transition of every environment.

        Raises:
            ValueError: If an action is not in the action space; nothing has moved then.
            ResetNeeded: Before the first `reset`, and after an episode's end without autoreset.
            NonFiniteError: If the world draws what is no number; it names the environments, which must be reset then,
                and the others are where they were.
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
        return self._observer.all(), rewards, terminated, truncated, infos

    def render(self) -> tuple[UInt8[np.ndarray, "row column 3"], ...] | None:
        """The last frame of each environment, enlarged by a whole number to about 256 pixels."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to make_vec")
            return None
        return tuple(enlarged(frame) for frame in picture(self._episodes.frames))

    def snapshot(self) -> Snapshot:
        """The moment of all environments, see `LearnedEnv.snapshot`; index it to pick some."""
        return self._episodes.snapshot(self._random)

    def restore(self, snapshot: Snapshot) -> Any:
        """Put every environment where a snapshot saw one; it may be several environments' snapshots joined.

        Returns:
            The observations of that moment.

        Raises:
            ValueError: If there is not one row an environment, or it is another world's.
        """
        self._random = self._episodes.restore(snapshot)
        self._seeds = [-1] * self.num_envs
        return self._observer.all()

    def branch(
        self, k: int, *, seed: int | None = None, autoreset_mode: str | AutoresetMode | None = None
    ) -> LearnedVectorEnv:
        """`k` futures of each environment, side by side, see `LearnedEnv.branch`; these ones stay as they are."""
        branches = LearnedVectorEnv(
            self.world,
            num_envs=self.num_envs * whole("k", k),
            options=replace(self._episodes.options, compile=False),
            autoreset_mode=self.autoreset_mode if autoreset_mode is None else autoreset_mode,
        )
        branches.restore(self.snapshot().branched(k, seed=seed))
        return branches

    def close_extras(self, **kwargs: Any) -> None:
        """Close a real environment that was made for pasts."""
        self._episodes.close()

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
            observations[i] = self._observer.row(i)
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


def _checked_mask(mask: Any, num_envs: int) -> Bool[np.ndarray, " num_envs"]:
    if mask is None:
        return np.ones(num_envs, bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"options['reset_mask'] must be a NumPy array of bool, got {kind}")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] must be {num_envs} bools, at least one of them True, got {mask}")
    return mask


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
