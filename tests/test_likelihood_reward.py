"""Rewards by likelihood: exactly what the world says of the whole episode, scaled as told."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world
from test_latent import STILL, Replay, some_frames

from worldflow.agents.likelihood_reward import LikelihoodReward, demonstrated
from worldflow.types import Episode
from worldflow.world import WorldModel


def offline(world: WorldModel, frames: np.ndarray, seed: int) -> np.ndarray:
    """Scores of all frames but the first, from one pass over the episode that reads the same noise."""
    batch = torch.from_numpy(frames[None])
    generator = torch.Generator().manual_seed(seed)
    codes = world.codes(batch)
    x = torch.cat([world.with_noise(codes[:, t : t + 1], generator=generator) for t in range(len(frames))], dim=1)
    nothing = torch.zeros(1, len(frames) - 1, 2)
    log_prob = world.log_prob_latents(x, nothing, codes=codes, hide_actions=True).frame[0]
    return -world.above_floor(log_prob).numpy()


@pytest.mark.parametrize("shown", [False, True])
def test_the_reward_is_the_density_of_the_frame_given_the_frames_before(shown: bool) -> None:
    world, frames = tiny_world(shown=shown, dtype=torch.float64), some_frames(8)
    env = LikelihoodReward(Replay(frames), world, mean=0.5, std=2.0, seed=3)
    expected = offline(world, frames, seed=3)
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, frames[0])
    for t in range(7):
        observation, reward, terminated, _, info = env.step(STILL)
        np.testing.assert_array_equal(observation, frames[t + 1])
        assert reward == pytest.approx((expected[t] - 0.5) / 2.0, rel=1e-6)
        assert info["log_prob"] == pytest.approx(expected[t] * world.config.flow.frame_dim, rel=1e-6)
        assert info["reward"] == t + 1 and info["kept"] == 4 and terminated == (t == 6)
    assert np.std(expected) > 0.01


def test_actions_are_not_seen_and_a_seed_repeats_the_noise() -> None:
    env = LikelihoodReward(Replay(some_frames(4)), tiny_world(), mean=0.0, std=1.0)
    found: dict[str, list[float]] = {}
    for name, seed, action in (("a", 1, STILL), ("b", 1, STILL + 1), ("c", 2, STILL)):
        env.reset(seed=seed)
        found[name] = [env.step(action)[1] for _ in range(3)]
    assert found["a"] == found["b"] != found["c"]


def test_running_scales_are_those_of_all_steps_so_far() -> None:
    env = LikelihoodReward(Replay(some_frames(5)), tiny_world())
    scores = list[float]()
    for _ in range(3):
        env.reset()
        for _ in range(4):
            _, reward, _, _, info = env.step(STILL)
            scores.append(info["log_prob"] / env.world.config.flow.frame_dim)
            assert env.mean == pytest.approx(np.mean(scores))
            assert env.std == pytest.approx(np.std(scores) if len(scores) > 1 else 1.0)
            assert reward == pytest.approx((scores[-1] - env.mean) / env.std)


def test_what_was_demonstrated_gives_the_scale() -> None:
    world, frames = tiny_world(), some_frames(6)
    nothing = np.zeros(5, bool)
    actions, rewards = np.zeros((5, 2), np.float32), np.zeros(5, np.float32)
    episode = Episode(frames=frames, actions=actions, rewards=rewards, terminated=nothing, truncated=nothing)
    expected = offline(world, frames, seed=4)
    assert demonstrated(world, [episode], seed=4) == pytest.approx((expected.mean(), expected.std()), rel=1e-4)
    with pytest.raises(ValueError, match="no transitions"):
        demonstrated(world, [])


def test_what_is_wrong_is_said() -> None:
    world, frames = tiny_world(), some_frames(3)
    with pytest.raises(ValueError, match=r"frames: expected shape \(16, 16, 3\), got \(8, 8, 3\)"):
        LikelihoodReward(Replay(frames[:, :8, :8]), world)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mean": 1.0}, "give both or neither"),
        ({"mean": math.nan, "std": 1.0}, "must be finite"),
        ({"mean": 0.0, "std": 0.0}, "positive"),
    )
    for options, match in wrong:
        with pytest.raises(ValueError, match=match):
            LikelihoodReward(Replay(frames), world, **options)
    with pytest.raises(gym.error.ResetNeeded):
        LikelihoodReward(Replay(frames), world).step(STILL)
