"""Options of learned environments: what is seen, drawn and returned, and how far actions are followed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from gymnasium.utils.env_checker import check_env

from worldflow.envs import LearnedEnv, LearnedVectorEnv
from worldflow.envs.options import EpisodeOptions
from worldflow.flow import Guidance
from worldflow.world import WorldModel

ACTION = np.array([0.4, -0.7], np.float32)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return world_that_ends(1e-9)


@pytest.mark.parametrize("observation", ["latent", "dict"])
@pytest.mark.parametrize("shown", [False, True])
def test_check_env_passes_without_a_warning(observation: str, shown: bool) -> None:
    world = tiny_world(shown=shown)
    env = gym.make("worldflow/Learned-v0", world=world, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)


@pytest.mark.parametrize("options", [{"guidance": 1.5}, {"reward": "mean", "termination": "off"}])
def test_check_env_passes_with_other_draws(options: dict[str, Any]) -> None:
    check_env(gym.make("worldflow/Learned-v0", world=tiny_world(), **options).unwrapped)


@pytest.mark.parametrize("shown", [False, True])
def test_tokens_are_what_the_flow_goes_on_from(shown: bool) -> None:
    world = world_that_ends(1e-9, shown=shown)
    envs = {kind: LearnedEnv(world, observation=kind) for kind in ("pixels", "latent", "dict")}
    seen = {kind: env.reset(seed=3)[0] for kind, env in envs.items()}
    for _ in range(3):
        for kind, env in envs.items():
            assert seen[kind] in env.observation_space
        np.testing.assert_array_equal(seen["latent"], envs["latent"].state.latents[0, 1])
        np.testing.assert_array_equal(seen["dict"]["latent"], seen["latent"])
        np.testing.assert_array_equal(seen["dict"]["pixels"], seen["pixels"])
        if shown:
            np.testing.assert_allclose(
                seen["latent"], world.codes(torch.from_numpy(seen["pixels"])[None])[0], rtol=1e-5
            )
        seen = {kind: env.step(ACTION)[0] for kind, env in envs.items()}


def test_no_frame_is_decoded_before_somebody_looks(world: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    inner = world.codec.decode_checked
    monkeypatch.setattr(world.codec, "decode_checked", lambda x, **kw: decoded.append(len(x)) or inner(x, **kw))
    envs = LearnedVectorEnv(world, num_envs=3, observation="latent", render_mode="rgb_array")
    pixels = LearnedVectorEnv(world, num_envs=3)
    envs.reset(seed=0)
    pixels.reset(seed=0)
    for _ in range(2):
        envs.step(np.stack([ACTION] * 3))
    assert decoded == []
    pictures = envs.render()
    assert pictures is not None and decoded == [3]
    envs.render()
    assert decoded == [3]
    pixels.step(np.stack([ACTION] * 3))
    frames, *_ = pixels.step(np.stack([ACTION] * 3))
    np.testing.assert_array_equal(np.stack(pictures)[:, ::16, ::16], frames)


def test_without_frames_the_density_is_that_of_the_tokens(world: WorldModel) -> None:
    env, latent = LearnedEnv(world), LearnedEnv(world, observation="latent")
    env.reset(seed=1)
    latent.reset(seed=1)
    *_, info = env.step(ACTION)
    *_, other = latent.step(ACTION)
    u = latent.state.latents[:, 1]
    with torch.no_grad():
        _, log_det = world.flow.to_deep(world.flow.from_deep(u)[:, None])
    assert other["log_prob_frame"] + float(log_det.sum()) == pytest.approx(info["log_prob_frame"], rel=1e-5)
    assert other["entropy_frame"] == info["entropy_frame"]


@pytest.mark.parametrize(("patch", "is_constant"), [(16, True), (8, False)])
def test_the_entropy_is_the_mean_of_the_surprise(patch: int, is_constant: bool) -> None:
    """`H = E[-log p]`: exactly the same number for one token, whose scale depends on the past alone."""
    world = world_that_ends(1e-9, patch_size=patch)
    env = LearnedEnv(world, observation="latent")
    env.reset(seed=0)
    branches = env.branch(1000, seed=1)
    *_, infos = branches.step(np.stack([ACTION] * 1000))
    entropy, surprise = infos["entropy_frame"], -infos["log_prob_frame"]
    assert np.ptp(entropy) < 1e-4 if is_constant else np.ptp(entropy) > 0.1
    difference = surprise - entropy
    assert abs(difference.mean()) < 5 * difference.std() / 1000**0.5  # five standard errors
    scale = np.exp(entropy[0] / world.config.flow.frame_dim) / np.sqrt(2 * np.pi * np.e)
    if is_constant:  # the geometric mean of the standard deviations
        spread = branches.state.latents[:, 1].flatten(1).std(0).log().mean().exp()
        assert float(spread) == pytest.approx(scale, rel=0.05)  # 1000 draws of 3 numbers: 1.3 % each


def test_guided_frames_are_the_flows_own(world: WorldModel) -> None:
    env, plain = LearnedEnv(world, guidance=1.5, observation="latent"), LearnedEnv(world, observation="latent")
    env.reset(seed=4, options={"context": 1})
    plain.reset(seed=4, options={"context": 1})
    assert world.contexts is not None
    frames, actions = world.contexts.frames[[1]], world.contexts.actions[[1]]
    generator, states = torch.Generator(), []
    for hide in (True, False):
        numbers = np.random.default_rng(4)  # what Gymnasium's seeding makes
        generator.manual_seed(int(numbers.integers(2**63)))
        states.append(world.start(frames, actions, generator=[generator], hide_actions=hide))
    without, state = states
    torch.testing.assert_close(state.latents, env.state.latents, rtol=0, atol=0)
    guidance = Guidance(weight=1.5, state=without, hide_actions=True)
    for _ in range(3):
        z = torch.randn((4, 3), generator=generator)[None]
        torch.rand(4, generator=generator)
        with torch.no_grad():
            drawn = world.flow.draw(state, world.encode_actions(ACTION[None]), z, guidance=guidance)
        state, guidance = drawn.state, drawn.guidance
        latent, *_, info = env.step(ACTION)
        np.testing.assert_allclose(latent, drawn.u[0], rtol=1e-5, atol=1e-6)
        assert info["log_prob_frame"] == pytest.approx(float(drawn.log_prob), rel=1e-5)
        assert not np.allclose(latent, plain.step(ACTION)[0], atol=1e-2)


def test_guidance_sees_the_past_without_its_actions_through_resets_and_restores(world: WorldModel) -> None:
    env, envs = LearnedEnv(world, guidance=0.7), LearnedVectorEnv(world, num_envs=2, guidance=0.7)
    envs.reset(seed=[1, 2])
    envs.step(np.stack([ACTION] * 2))
    envs.reset(seed=[None, 8], options={"reset_mask": np.array([False, True])})
    frame, _ = env.reset(seed=8)
    moment = envs.snapshot()
    np.testing.assert_array_equal(moment.frames[1], frame)
    steps = [envs.step(np.stack([ACTION] * 2))[0][1] for _ in range(3)]
    np.testing.assert_allclose(np.stack(steps).astype(int), [env.step(ACTION)[0] for _ in range(3)], rtol=0, atol=1)
    envs.restore(moment)
    np.testing.assert_array_equal([envs.step(np.stack([ACTION] * 2))[0][1] for _ in range(3)], steps)
    with pytest.raises(ValueError, match="with guidance"):
        LearnedVectorEnv(world, num_envs=2).restore(moment)


def test_mean_rewards_and_no_terminations() -> None:
    world = world_that_ends(0.9)
    sampled, env = LearnedEnv(world), LearnedEnv(world, reward="mean", termination="off")
    sampled.reset(seed=0)
    env.reset(seed=0)
    frame, reward, terminated, truncated, info = env.step(ACTION)
    other, drawn, *_, drawn_info = sampled.step(ACTION)
    np.testing.assert_array_equal(frame, other)  # the same random numbers are drawn
    assert reward == info["reward_mean"] == drawn_info["reward_mean"] != drawn
    assert info["termination_prob"] == pytest.approx(0.9)
    assert info["log_prob_reward"] == info["log_prob_terminated"] == 0
    assert info["log_prob"] == info["log_prob_frame"] == drawn_info["log_prob_frame"]
    for _ in range(20):  # one ends with a chance of 1 - 1e-21
        assert not terminated and not truncated
        *_, terminated, truncated, _ = env.step(ACTION)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": -1.0}, "guidance"),
        ({"observation": "frames"}, r"observation must be one of \['pixels', 'latent', 'dict'\], got 'frames'"),
        ({"reward": "median"}, "reward must be one of"),
        ({"termination": "on"}, "termination must be one of"),
        ({"real_steps": 3}, "real_env"),
        ({"real_env": "X-v0", "real_steps": 0}, "real_steps"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeOptions(**arguments)


def test_unknown_options_are_named(world: WorldModel) -> None:
    with pytest.raises(TypeError, match="temprature"):
        LearnedEnv(world, temprature=1.0)
