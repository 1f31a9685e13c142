"""A learned world as a Gymnasium environment.

An episode starts after a recorded past, whose last frame is the first observation; each step draws the next frame,
reward and termination from the world and tells in `info` the exact likelihood of what it drew:

    log_prob = log_prob_frame + log_prob_reward + log_prob_terminated        nats

Randomness has two streams, both set by `reset(seed=)` and continued by `reset()`: `np_random` picks the past, and a
torch generator that it seeds draws the transitions. Rows of the vector form own both, so that a seed gives the same
episode alone and in a batch of any size, up to the rounding of batched sums; the global generators are not touched.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode

from worldflow.envs.display import METADATA, checked_render_mode, enlarged, keys_to_action
from worldflow.envs.imagined import ImaginedEpisodes, NonFiniteError
from worldflow.envs.learned_vector import LearnedVectorEnv
from worldflow.envs.observations import Observer, recorded_action_space
from worldflow.envs.options import EpisodeOptions
from worldflow.envs.snapshots import Snapshot
from worldflow.frames import picture
from worldflow.state import WorldState
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["LearnedEnv", "LearnedVectorEnv", "NonFiniteError", "Snapshot"]


class LearnedEnv(gym.Env[Any, Any], EzPickle):
    """A learned simulator with the spaces of the environment it was learned from.

    Args:
        world: A run's folder, or a world in evaluation mode.
        device: Where to put a world that is read from a folder; by default the CPU.
        render_mode: `"rgb_array"` or None; `gymnasium.make` takes `"human"`, too, and shows a window (needs pygame).
        options: What `worldflow.envs.options.EpisodeOptions` explains: `horizon`, `temperature`, `guidance`,
            `observation`, `reward`, `termination`, and where episodes start: `contexts`, `real_env` with `real_policy`
            and `real_steps`, `text` with `encoder`.

    `reset` takes options, too. `{"context": index}` picks a past of the bank; `{"frames": ..., "past_actions": ...}`
    gives one, `past + 1` frames, the last of which is observed, and the `past` actions between them; `{"episode":
    Episode, "past": n}` starts after the first `n` transitions of a recorded episode and ends no later than it did, so
    that both can be held against each other; `{"text": ...}` is another prompt.

    Its info tells the index of the past as `context`, if it came from the bank. Info of `step` tells, as floats:

    - `log_prob` and its parts, in nats: the exact density of the frame's noisy code, and of what else was drawn (zero
      for a reward that is the mean, and for terminations that are off). With `observation="latent"` frames are not
      decoded, and it is the density of the tokens `u`: the same, for worlds without shallow blocks.
    - `entropy_frame`, in nats: how unsure the world was of this frame. In closed form, `sum ln sigma + D/2 (1 + ln 2
      pi)` of the deep block: the exact conditional entropies of its `D` numbers, each given those drawn before it;
      that is the entropy of `u` where no scale depends on those, and its unbiased estimate elsewhere. Of a world with
      shallow blocks it is the entropy of `u` still: that of the code differs by their mean log-determinant, which has
      no closed form.
    - `reward_mean` and `termination_prob`: what reward and termination were drawn from.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read or an argument is out of range.
    """

    metadata: dict[str, Any] = METADATA

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        *,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        EzPickle.__init__(self, world, device=device, render_mode=render_mode, **options)
        self._episodes = ImaginedEpisodes(world, 1, EpisodeOptions(**options), device=device)
        self.render_mode = checked_render_mode(render_mode, self.world.config.data)
        self._observer = Observer(self._episodes)
        self.observation_space = self._observer.space
        self.action_space = recorded_action_space(self.world)

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

    @property
    def memory_bytes_per_env(self) -> int:
        """Bytes that stay occupied from step to step, however long the episode."""
        return self._episodes.bytes_per_row

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode after a past.

        Args:
            seed: Restarts both random streams; None continues them.
            options: Which past, see the class.

        Returns:
            The observation of the past's last frame, and info.

        Raises:
            ValueError, TypeError: If there is no such past, or it does not fit the world.
            NonFiniteError: If the world makes no numbers of it.
        """
        super().reset(seed=seed)
        info = self._episodes.reset([0], random=[self.np_random], is_seeded=[seed is not None], options=options)
        return self._observer.row(0), {name: int(values[0]) for name, values in info.items()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Draw the next transition.

        Raises:
            ValueError: If the action is not in the action space; nothing has moved then.
            ResetNeeded: Before the first `reset`, and after an episode's end.
            NonFiniteError: If the world draws what is no number; the episode must be reset then.
        """
        out = self._episodes.step([0], np.asarray(action)[None])
        info = {name: float(values[0]) for name, values in out.info.items()}
        return self._observer.row(0), float(out.reward[0]), bool(out.terminated[0]), bool(out.truncated[0]), info

    def render(self) -> UInt8[np.ndarray, "row column 3"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last frame, enlarged by a whole number to about 256 pixels."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render mode; pass render_mode='rgb_array' to gymnasium.make")
            return None
        return enlarged(picture(self._episodes.frames)[0])

    def get_keys_to_action(self) -> dict[str, Any]:
        """Keys for `gymnasium.utils.play.play`, see `worldflow.envs.display.keys_to_action`."""
        return keys_to_action(self.action_space)

    def snapshot(self) -> Snapshot:
        """All that the rest of the episode depends on: memory, frame, both random streams, steps taken.

        It fits any environment of the same world that is made with the same options, also in another process.
        """
        return self._episodes.snapshot([self.np_random])

    def restore(self, snapshot: Snapshot) -> Any:
        """Go back to a moment; the same actions then give the same transitions again, bit for bit.

        Returns:
            The observation of that moment.

        Raises:
            ValueError: If it holds another number of environments, or is another world's.
        """
        (self.np_random,) = self._episodes.restore(snapshot)
        return self._observer.row(0)

    def branch(
        self, k: int, *, seed: int | None = None, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP
    ) -> LearnedVectorEnv:
        """`k` futures of this moment, as environments side by side; this one stays as it is.

        They share the memory of the past until they are stepped.

        Args:
            k: How many.
            seed: Of their random streams; None derives them from this one's, the same each time. For branches that
                share this one's stream, restore `snapshot().repeat(k)` in a `LearnedVectorEnv`.
            autoreset_mode: What follows an episode's end.
        """
        options = replace(
            self._episodes.options, compile=False
        )  # it would take a minute; see `WorldModel.compile_step`
        branches = LearnedVectorEnv(self.world, num_envs=k, options=options, autoreset_mode=autoreset_mode)
        branches.restore(self.snapshot().branched(k, seed=seed))
        return branches

    def close(self) -> None:
        """Close a real environment that was made for pasts; closing twice does no harm."""
        self._episodes.close()
