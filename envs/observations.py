"""What is observed of an imagined episode: its frame, the flow's tokens of it, or both.

A frame is what was recorded: a picture, or a vector, which is kept inside the bounds of its recorded space, or a
dictionary of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from worldflow.frames import Frames
from worldflow.spaces import data_spec, differences
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
        recorded, latent = _recorded_space(data.observation_space), token_space(episodes.world)
        self._is_dict = isinstance(recorded, gym.spaces.Dict)
        name = "vector" if data.is_vector else "pixels"
        self._recorded: dict[str, Any] = {name: recorded}
        if isinstance(recorded, gym.spaces.Dict):
            self._recorded = dict(recorded.spaces)
        if self._kind == "dict" and "latent" in self._recorded:
            raise ValueError(
                "the recorded observations have a part named 'latent' themselves: observe 'pixels', as they are"
            )
        both = gym.spaces.Dict({**self._recorded, "latent": latent})
        self.space: gym.Space[Any] = {"pixels": recorded, "latent": latent, "dict": both}[self._kind]

    def all(self) -> Any:
        """A copy of every row's observation, one behind the other."""
        if self._kind == "latent":
            return self._episodes.latents.copy()
        frames = self._episodes.frames
        parts = frames.parts if isinstance(frames, Frames) else dict.fromkeys(self._recorded, frames)
        seen = {name: _inside(parts[name], space) for name, space in self._recorded.items()}
        if self._kind == "dict":
            return {**seen, "latent": self._episodes.latents.copy()}
        return seen if self._is_dict else next(iter(seen.values()))

    def row(self, index: int) -> Any:
        """One row's observation."""
        seen = self.all()
        return {name: part[index] for name, part in seen.items()} if isinstance(seen, dict) else seen[index]


def _inside(frames: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """A copy of frames as elements of the space: pictures in its shape, vectors in its type and bounds."""
    if frames.dtype == np.uint8:
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
        spec = data_spec(observation_space, action_space)
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
