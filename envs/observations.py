"""What is observed of an imagined episode: its frame, the flow's tokens of it, or both.

A frame is what was recorded: a picture, or a vector, which is kept inside the bounds of its recorded space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from worldflow.spaces import action_spec, differences, frame_shape
from worldflow.types import DataSpec

if TYPE_CHECKING:
    from worldflow.envs.imagined import ImaginedEpisodes
    from worldflow.world import WorldModel

__all__ = ["Observer", "check_fits", "recorded_action_space", "token_space"]


class Observer:
    """Observations of episodes, as their options say.

    Tokens are what the flow goes on from: `u` of the last frame, or the codes of what was shown of it where the world
    reads those (`FlowConfig.has_shown`). They are unbounded, so that their space is all finite float32 numbers.

    Args:
        episodes: The episodes.

    Attributes:
        space: The space of one observation.
    """

    def __init__(self, episodes: ImaginedEpisodes) -> None:
        self._episodes = episodes
        self._kind = episodes.options.observation
        data = episodes.world.config.data
        recorded = _recorded_space(data.observation_space)
        assert isinstance(recorded, gym.spaces.Box)
        self._recorded, self._name = recorded, "vector" if data.is_vector else "pixels"
        latent = token_space(episodes.world)
        both = gym.spaces.Dict({self._name: recorded, "latent": latent})
        self.space: gym.Space[Any] = {"pixels": recorded, "latent": latent, "dict": both}[self._kind]

    def all(self) -> Any:
        """A copy of every row's observation, one behind the other."""
        if self._kind == "pixels":
            return self._seen()
        if self._kind == "latent":
            return self._episodes.latents.copy()
        return {self._name: self._seen(), "latent": self._episodes.latents.copy()}

    def row(self, index: int) -> Any:
        """One row's observation."""
        seen = self.all()
        return {name: part[index] for name, part in seen.items()} if isinstance(seen, dict) else seen[index]

    def _seen(self) -> np.ndarray:
        frames, space = self._episodes.frames, self._recorded
        if self._name == "pixels":
            return frames.reshape(len(frames), *space.shape).copy()
        return np.clip(frames.astype(space.dtype), space.low, space.high)


def recorded_action_space(world: WorldModel) -> gym.Space[Any]:
    """The action space of the environment that a world was learned from."""
    return _recorded_space(world.config.data.action_space)


def token_space(world: WorldModel) -> gym.spaces.Box:
    """The space of a frame's tokens, which are unbounded: all finite float32 numbers."""
    flow, most = world.config.flow, np.finfo(np.float32).max
    return gym.spaces.Box(-most, most, (flow.num_tokens, flow.latent_dim), np.float32)


def check_fits(data: DataSpec, env: gym.Env[Any, Any]) -> None:
    """Refuse an environment that shows or takes something else than a world knows.

    Raises:
        ValueError: If its frames or actions differ; the message names every difference.
    """
    from minari.serialization import serialize_space

    try:
        observation_space, action_space = (str(serialize_space(s)) for s in (env.observation_space, env.action_space))
        spec = DataSpec(
            frame_shape=frame_shape(observation_space),
            action=action_spec(action_space),
            observation_space=observation_space,
            action_space=action_space,
        )
    except NotImplementedError as error:
        raise ValueError(f"an environment must have plain spaces: {error}") from error
    if found := differences(data, spec):
        raise ValueError(
            f"the environment does not fit the world: {'; '.join(found)}; make it as the recorded one was, "
            "or learn a world from recordings of this one"
        )


def _recorded_space(text: str) -> gym.Space[Any]:
    from minari.serialization import deserialize_space  # the inverse of what wrote it

    return deserialize_space(text)
