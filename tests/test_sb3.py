"""Learned environments behind Stable-Baselines3's own interface: what its own vector form of single ones returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_world, world_that_ends

from worldflow.envs import LearnedEnv, LearnedVectorEnv

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, is_vecenv_wrapped  # noqa: E402

from worldflow.envs.sb3 import SB3VecEnv  # noqa: E402


def assert_close(mine: Any, other: Any) -> None:
    """Up to the rounding of sums of a batch."""
    if isinstance(other, dict):
        assert set(mine) == set(other)
        for name in other:
            assert_close(mine[name], other[name])
    else:
        assert np.asarray(mine).dtype == np.asarray(other).dtype
        is_pixels = np.asarray(other).dtype == np.uint8
        np.testing.assert_allclose(np.asarray(mine, float), other, rtol=1e-3, atol=1 if is_pixels else 1e-3)


@pytest.mark.parametrize("observation", ["pixels", "dict"])
def test_it_is_sb3s_own_vector_form_of_single_environments(observation: str) -> None:
    world, options = world_that_ends(0.2), {"horizon": 4, "observation": observation}
    ours = SB3VecEnv(LearnedVectorEnv(world, num_envs=3, autoreset_mode="SameStep", **options))
    theirs = DummyVecEnv([lambda: LearnedEnv(world, **options)] * 3)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ours.seed(5)
    theirs.seed(5)
    assert_close(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    random, ends = np.random.default_rng(0), {"terminated": 0, "truncated": 0}
    for _ in range(12):
        actions = random.uniform(-1, 1, (3, 2)).astype(np.float32)
        mine, other = ours.step(actions), theirs.step(actions)
        assert_close(mine[0], other[0])
        assert mine[1].dtype == other[1].dtype
        np.testing.assert_allclose(mine[1], other[1], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(mine[2], other[2])
        for one, reference in zip(mine[3], other[3], strict=True):
            assert_close(one, reference)
            if "terminal_observation" in one:
                ends["truncated" if one["TimeLimit.truncated"] else "terminated"] += 1
        assert ours.reset_infos == theirs.reset_infos
    assert min(ends.values()) >= 1  # else nothing was shown
    ours.close()
    ours.close()


@pytest.mark.parametrize(("observation", "policy"), [("latent", "MlpPolicy"), ("dict", "MultiInputPolicy")])
def test_ppo_learns_in_it(observation: str, policy: str) -> None:
    world = tiny_world() if observation == "latent" else tiny_world(size=48, patch_size=24)  # its CNN wants 36 pixels
    envs = LearnedVectorEnv(world, num_envs=4, horizon=8, observation=observation, autoreset_mode="SameStep")
    monitored = VecMonitor(SB3VecEnv(envs))
    agent = sb3.PPO(policy, monitored, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.learn(192)
    assert agent.num_timesteps == 192
    assert len(agent.ep_info_buffer or ()) >= 10
    after = agent.policy.parameters()
    assert any((old != new.detach()).any() for old, new in zip(before, after, strict=True))


def test_attributes_and_methods_are_shared() -> None:
    envs = LearnedVectorEnv(tiny_world(), num_envs=2, autoreset_mode="SameStep", render_mode="rgb_array")
    ours = SB3VecEnv(envs)
    ours.set_options({"context": 1})
    ours.reset()
    assert [info["context"] for info in ours.reset_infos] == [1, 1]
    assert ours.get_attr("horizon") == [200, 200] and ours.get_attr("horizon", 1) == [200]
    assert len(ours.env_method("snapshot", indices=[0])[0]) == 2
    assert not is_vecenv_wrapped(ours, VecMonitor) and ours.env_is_wrapped(object) == [False, False]  # pyright: ignore
    assert [image.shape for image in ours.get_images() if image is not None] == [(256, 256, 3)] * 2
    ours.set_attr("spec", None)
    with pytest.raises(ValueError, match="for all of them"):
        ours.set_attr("spec", None, indices=[0])
    with pytest.raises(ValueError, match="step_async"):
        ours.step_wait()
    ours.set_options([{"context": 0}, {"context": 1}])
    with pytest.raises(ValueError, match="same options"):
        ours.reset()


def test_environments_that_start_anew_later_are_refused() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        SB3VecEnv(LearnedVectorEnv(tiny_world(), num_envs=2))
