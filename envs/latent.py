"""What a policy that was trained in a learned world sees of the real one: the world's tokens of the last frames.

    env = LatentObservation(gym.make("worldflow/InvertedPendulum-v0"), world, stack=3)

A frame's tokens are those that `LearnedVectorEnv(observation="latent")` tells of the same frame: its codes where the
world goes on from the codes of what was shown (`FlowConfig.has_shown`), and noisy codes behind the shallow blocks
elsewhere, with noise drawn anew for every frame, as in a dream. One frame is encoded a step.

A velocity needs two frames and an acceleration three, so that `stack` of them stand one behind the other, the oldest
first. An episode begins with its first frame repeated. Dreams are stacked by the same `LatentStack`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldflow.envs.imagined import opened
from worldflow.envs.observations import check_fits
from worldflow.envs.options import whole
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

__all__ = ["FrameReader", "LatentObservation", "LatentStack", "latent_space"]


class LatentStack:
    """The last tokens of episodes side by side.

    Args:
        num_rows: Episodes.
        stack: Frames that are remembered of each.
        size: Numbers in a frame's tokens.
    """

    def __init__(self, num_rows: int, stack: int, size: int) -> None:
        self._seen = np.zeros((num_rows, whole("stack", stack), size), np.float32)

    def start(self, rows: Sequence[int], latents: Float32[np.ndarray, "row *token"]) -> None:
        """Begin episodes in some rows: their first frame, repeated."""
        self._seen[list(rows)] = latents.reshape(len(rows), 1, -1)

    def push(self, latents: Float32[np.ndarray, "episode *token"]) -> None:
        """Remember the next frame of every row, and forget the oldest."""
        self._seen[:, :-1] = self._seen[:, 1:]
        self._seen[:, -1] = latents.reshape(len(self._seen), -1)

    def all(self) -> Float32[np.ndarray, "episode stack*token*latent"]:
        """A copy of what is remembered, the oldest frame first."""
        return self._seen.reshape(len(self._seen), -1).copy()


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
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).reshape(1, 1, *world.config.data.frame_shape)
        tokens = world.codes(pixels)
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
        self.observation_space = latent_space(self.world, stack)
        flow = self.world.config.flow
        self._stack, self._reader = LatentStack(1, stack, flow.frame_dim), FrameReader(self.world)
        self._is_seeded = False
        self.frame: UInt8[np.ndarray, "row column channel"] = np.zeros(self.world.config.data.frame_shape, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; a seed starts the noise of the tokens anew, too, where they have any."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or not self._is_seeded:
            self._reader.seed(int(np.random.default_rng(seed).integers(2**62)))
            self._is_seeded = True
        self._stack.start([0], self._read(observation)[None])
        return self._stack.all()[0], info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Do it, and see what comes of it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._stack.push(self._read(observation)[None])
        return self._stack.all()[0], reward, terminated, truncated, info

    def _read(self, observation: np.ndarray) -> Float32[np.ndarray, "token latent"]:
        self.frame = np.array(observation).reshape(self.world.config.data.frame_shape)
        return self._reader(self.frame)


def latent_space(world: WorldModel, stack: int) -> gym.spaces.Box:
    """The space of `stack` frames' tokens, one behind the other: all finite float32 numbers."""
    most = np.finfo(np.float32).max
    return gym.spaces.Box(-most, most, (whole("stack", stack) * world.config.flow.frame_dim,), np.float32)
