"""What a policy that was trained in a learned world sees of the real one: the world's tokens of the last frames.

    env = LatentObservation(gym.make("worldflow/InvertedPendulum-v0"), world, stack=3)

A frame's tokens are those that `LearnedVectorEnv(observation="latent")` tells of the same frame: its codes where the
world goes on from the codes of what was shown (`FlowConfig.has_shown`), and noisy codes behind the shallow blocks
elsewhere, with noise drawn anew for every frame, as in a dream. One frame is encoded a step.

A velocity needs two frames and an acceleration three, so that `stack` of them stand one behind the other, the oldest
first. An episode begins with its first frame repeated. Dreams are stacked by the same `FrameStack`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldflow.envs.imagined import opened
from worldflow.envs.observations import check_fits, token_space
from worldflow.envs.options import whole
from worldflow.frames import as_tensors, blank_frames, observed_frame
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped, UInt8

__all__ = ["FrameReader", "FrameStack", "LatentObservation"]


class FrameStack:
    """The last frames of episodes side by side, pixels or tokens.

    Args:
        num_rows: Episodes.
        stack: Frames that are remembered of each.
        space: Of one frame: pixels are stacked along their channels, anything else becomes one row of numbers.

    Attributes:
        space: The space of what is remembered of one episode.
    """

    def __init__(self, num_rows: int, stack: int, space: gym.Space[Any]) -> None:
        assert isinstance(space, gym.spaces.Box) and space.dtype is not None
        self._is_pixels = space.dtype == np.uint8
        self._seen = np.zeros((num_rows, whole("stack", stack), *space.shape), space.dtype)
        low, high = space.low.min(), space.high.max()
        self.space = gym.spaces.Box(low, high, self.all().shape[1:], space.dtype.type)

    def start(self, rows: Sequence[int], frames: Shaped[np.ndarray, "row *frame"]) -> None:
        """Begin episodes in some rows: their first frame, repeated."""
        self._seen[list(rows)] = frames[:, None]

    def fill(self, row: int, frames: Shaped[np.ndarray, "past *frame"]) -> None:
        """Put what came before into an episode that has begun, the latest frame last, as far as there is room."""
        room = min(len(frames), self._seen.shape[1] - 1)
        if room:
            self._seen[row, -1 - room : -1] = frames[len(frames) - room :]
            self._seen[row, : -1 - room] = frames[len(frames) - room]

    def push(self, frames: Shaped[np.ndarray, "episode *frame"]) -> None:
        """Remember the next frame of every row, and forget the oldest."""
        self._seen[:, :-1] = self._seen[:, 1:]
        self._seen[:, -1] = frames

    def row(self, index: int) -> np.ndarray:
        """A copy of what is remembered of one episode."""
        return self.all()[index]

    def all(self) -> np.ndarray:
        """A copy of what is remembered, the oldest frame first: `(episode, stack * token * latent)` or pixels."""
        if not self._is_pixels:
            return self._seen.reshape(len(self._seen), -1).copy()
        seen = self._seen if self._seen.ndim == 5 else self._seen[..., None]  # gray ones have no channel axis
        return np.concatenate(list(np.moveaxis(seen, 1, 0)), axis=-1)


class FrameReader:
    """Real frames as a world's tokens, one after the other.

    Args:
        world: The world, in evaluation mode.
    """

    def __init__(self, world: WorldModel) -> None:
        self.world = world
        self._generator = torch.Generator()

    def seed(self, number: int) -> None:
        """Start the noise anew, for a world whose tokens have some."""
        self._generator.manual_seed(number)

    @torch.no_grad()
    def __call__(self, frame: UInt8[np.ndarray, "row column *channel"]) -> Float32[np.ndarray, "token latent"]:
        """Tokens of a frame."""
        world = self.world
        tokens = world.codes(as_tensors(observed_frame(world.config.data, frame))[None, None])
        if not world.config.flow.has_shown:
            tokens, _ = world.flow.to_deep(world.with_noise(tokens, generator=self._generator))
        return tokens[0, 0].float().cpu().numpy()


class LatentObservation(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """A real environment of pixels, observed as a world's tokens of the last frames.

    Args:
        env: An environment that observes frames as the world knows them.
        world: The world, or the folder of its run.
        stack: Frames in an observation.

    Attributes:
        frame: The last frame.

    Raises:
        ValueError: If frames or actions are not the world's.
    """

    def __init__(self, env: gym.Env[Any, Any], world: WorldModel | str | os.PathLike[str], *, stack: int = 3) -> None:
        super().__init__(env)
        self.world = opened(world)
        check_fits(self.world.config.data, env)
        self._stack, self._reader = FrameStack(1, stack, token_space(self.world)), FrameReader(self.world)
        self.observation_space = self._stack.space
        self._is_seeded = False
        self.frame: UInt8[np.ndarray, "row column channel"] = blank_frames(self.world.config.data, ())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; a seed starts the noise of the tokens anew, too, where they have any."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or not self._is_seeded:
            self._reader.seed(int(np.random.default_rng(seed).integers(2**62)))
            self._is_seeded = True
        self._stack.start([0], self._read(observation)[None])
        return self._stack.row(0), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Do it, and see what comes of it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._stack.push(self._read(observation)[None])
        return self._stack.row(0), reward, terminated, truncated, info

    def _read(self, observation: np.ndarray) -> Float32[np.ndarray, "token latent"]:
        self.frame = observed_frame(self.world.config.data, observation)
        return self._reader(self.frame)
