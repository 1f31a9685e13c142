"""Rewards from a world that has seen demonstrations: what is likely there is good.

    env = LikelihoodReward(gym.make("worldflow/Reacher-v0"), "runs/experts", mean=-0.2, std=0.3)

The reward of a step is the exact log-density of the frame that it led to, given the frames before it alone, in nats per
dimension above what the codes' noise costs:

    s_t = 1/D log p(x~_t | x~_<t) + floor,    r_t = (s_t - mean) / std

Actions are hidden, so that an agent is paid for what comes of what it does, and needs not act by the means of those who
were recorded. Where frames are certain and as demonstrated, `s` is 0 on average over the noise of the codes. It costs
one pass of the flow a step.

With `mean` and `std` left out, both are those of all steps so far: rewards then have mean 0 and variance 1, but drift
as the agent gets better. Given ones, such as `demonstrated` measures, stay. Either way rewards have both signs: where
an episode can end early, ending it may pay; let episodes take a fixed time, or give a lower `mean`.

Reference: Escontrela et al., 2023, "Video Prediction Models as Rewards for Reinforcement Learning", arXiv 2305.14343.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldflow.data import read_episodes
from worldflow.envs.imagined import opened
from worldflow.envs.observations import check_fits
from worldflow.frames import as_tensors, observed_frame
from worldflow.state import WorldState
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["LikelihoodReward", "demonstrated"]


class LikelihoodReward(gym.Wrapper[Any, Any, Any, Any]):
    """A real environment of pixels that pays for what a world finds likely.

    `info` holds the environment's own reward as `reward`, and `log_prob`, nats above the floor, before it is scaled:
    `s` times the number of dimensions.

    Args:
        env: An environment that observes frames as the world knows them.
        world: The world, trained on demonstrations with actions hidden now and then, as `worldflow.train` does; or the
            folder of its run.
        mean: Score that pays nothing, nats per dimension; with `std`, or neither.
        std: Difference of scores that pays 1.
        seed: Of the codes' noise until the first reset with a seed.

    Attributes:
        mean, std: What rewards are scaled by now.

    Raises:
        ValueError: If frames or actions are not the world's, or only one of `mean` and `std` is given.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        world: WorldModel | str | os.PathLike[str],
        *,
        mean: float | None = None,
        std: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        self.world = opened(world)
        check_fits(self.world.config.data, env)
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std scale rewards together: give both or neither, got {mean} and {std}")
        if mean is not None and std is not None and not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean must be finite and std finite and positive, got {mean} and {std}")
        self._is_running = mean is None or std is None
        self.mean, self.std = (0.0, 1.0) if mean is None or std is None else (mean, std)
        self._count, self._squares = 0, 0.0
        self._scorer = _Scorer(self.world)
        self._scorer.generator.manual_seed(seed)
        self._has_begun = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed starts the codes' noise anew, too."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._scorer.generator.manual_seed(int(np.random.default_rng([seed, 2]).integers(2**62)))
        self._scorer.start(observation)
        self._has_begun = True
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do it, and be paid for how likely it looks.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if not self._has_begun:
            raise gym.error.ResetNeeded("no episode has started yet; call reset() first")
        observation, own, terminated, truncated, info = self.env.step(action)
        score = self._scorer(observation)
        if self._is_running:
            self._follow(score)
        told = {**info, "reward": own, "log_prob": score * self.world.config.flow.frame_dim}
        return observation, (score - self.mean) / self.std, terminated, truncated, told

    def _follow(self, score: float) -> None:
        """Mean and standard deviation of all scores so far; 1 before there are two."""
        self._count += 1
        before = score - self.mean if self._count > 1 else 0.0
        self.mean = score if self._count == 1 else self.mean + before / self._count
        self._squares += before * (score - self.mean)
        self.std = max(1e-6, math.sqrt(self._squares / self._count)) if self._count > 1 else 1.0


def demonstrated(
    world: WorldModel, episodes: str | os.PathLike[str] | Iterable[object], *, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the scores of recorded episodes: a scale for `LikelihoodReward` that stays.

    Args:
        world: The world.
        episodes: A data set's folder, or episodes; better held-out ones, which the world has not learned by heart.
        seed: Of the codes' noise.

    Raises:
        ValueError: If there are no transitions.
    """
    found, scorer = list[float](), _Scorer(world)
    scorer.generator.manual_seed(seed)
    for episode in read_episodes(episodes):
        scorer.start(episode.frames[0])
        found += [scorer(frame) for frame in episode.frames[1:]]
    if not found:
        raise ValueError("there are no transitions to measure; give episodes of at least one step")
    return float(np.mean(found)), max(1e-6, float(np.std(found)))


class _Scorer:
    """Log-density of frames as they come, actions hidden, in nats per dimension above the floor."""

    def __init__(self, world: WorldModel) -> None:
        self._world = world
        self.generator = torch.Generator()
        self._state: WorldState | None = None

    def start(self, frame: UInt8[np.ndarray, "row column *channel"]) -> None:
        """Read an episode's first frame, which nothing is said about."""
        self._state = self._world.begin(1)
        self(frame)

    @torch.no_grad()
    def __call__(self, frame: UInt8[np.ndarray, "row column *channel"]) -> float:
        """Score of the next frame."""
        world = self._world
        codes = world.codes(as_tensors(observed_frame(world.config.data, frame))[None, None])
        x = world.with_noise(codes, generator=self.generator)
        out = world.flow(
            x,
            x.new_zeros(1, 1, world.config.flow.action_dim),
            shown=codes if world.config.flow.has_shown else None,
            hide_actions=torch.ones(1, dtype=torch.bool, device=x.device),
            state=self._state,
        )
        self._state = out.state
        score = -float(world.above_floor(out.log_prob[0, 0].double()))
        if not math.isfinite(score):
            raise ValueError("the density of a frame is not finite; the world is damaged: train it again")
        return score
