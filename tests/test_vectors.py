"""Vectors all the way: recorded, read, learned, stepped, scored and planned with, as pictures are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from builders import random_actions, random_episode, tiny_spec, tiny_world, write_vectors
from gymnasium.utils.env_checker import check_env

from worldflow.agents import ICEM, Differentiable, GoalLikelihood, Return
from worldflow.cli import main
from worldflow.data import Dataset, gather, windows
from worldflow.envs.collect import collect
from worldflow.envs.learned import LearnedEnv, LearnedVectorEnv
from worldflow.episodes import as_episode
from worldflow.fidelity import evaluate
from worldflow.fingerprint import episode_hash, episode_hashes
from worldflow.generate import generate
from worldflow.monitor import Monitor
from worldflow.score import score
from worldflow.spaces import frame_shape
from worldflow.train import train

LENGTHS = [12, 9, 12, 8, 12, 12]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A few pushed masses."""
    return Dataset(write_vectors(tmp_path_factory.mktemp("data") / "mass", lengths=LENGTHS))


def test_reads_what_was_written(dataset: Dataset) -> None:
    assert dataset.spec.frame_shape == (3,) and dataset.spec.is_vector
    episode = dataset.episode(1)
    assert episode.frames.dtype == np.float32 and episode.frames.shape == (10, 3)
    place, speed, push = episode.frames[:, 0], episode.frames[:, 1], episode.actions[:, 0]
    np.testing.assert_allclose(np.diff(place), speed[1:], atol=1e-6)
    np.testing.assert_allclose(speed[1:], 0.9 * speed[:-1] + 0.1 * push, atol=1e-6)
    np.testing.assert_array_equal(dataset.frames(1, 2, 5), episode.frames[2:5])
    clip = gather(dataset, np.array([[1, 7]]), 4)  # past the episode's end
    assert clip.frames.dtype == torch.float32
    np.testing.assert_array_equal(clip.frames[0], episode.frames[[7, 8, 9, 9, 9]])
    assert next(windows(dataset, 4, batch_size=2)).frames.shape == (2, 5, 3)
    assert episode_hash(episode) == episode_hashes(dataset)[1]


def test_takes_episodes_of_others_and_refuses_what_is_not_finite(dataset: Dataset) -> None:
    theirs = next(iter(minari.MinariDataset(dataset.path / "data").iterate_episodes()))
    np.testing.assert_array_equal(as_episode(theirs).frames, dataset.episode(0).frames)
    theirs.observations[3, 1] = math.nan
    with pytest.raises(ValueError, match="observations must be finite"):
        as_episode(theirs)


def test_records_what_an_environment_observes(tmp_path: Path) -> None:
    out = collect("Pendulum-v1", out=tmp_path / "data", episodes=2, max_steps=5, observation="vector", progress=False)
    dataset = Dataset(out)
    env = gym.make("Pendulum-v1")
    seed = int(next(iter(minari.MinariDataset(out / "data").storage.get_episode_metadata([0])))["seed"])
    seen = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in dataset.episode(0).actions)]
    np.testing.assert_array_equal(dataset.episode(0).frames, np.stack(seen))
    with pytest.raises(ValueError, match="not a vector"):
        collect("FrozenLake-v1", out=tmp_path / "lake", episodes=1, observation="vector", progress=False)


def test_command_line_records_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "data")
    record = ["collect", "Pendulum-v1", "--out", data, "--episodes", "3", "--max-steps", "6"]
    assert main([*record, "--observation", "vector", "--json"]) == 0
    assert '"frame_shape": [3]' in capsys.readouterr().out
    assert main([*record, "--observation", "vector", "--size", "32"]) == 1
    assert "--size is that of pictures" in capsys.readouterr().err
    options = ["--preset", "tiny", "--steps", "2", "--length", "3", "--batch", "2"]
    assert main(["train", data, "--out", str(tmp_path / "run"), *options]) == 0
    assert not (tmp_path / "run" / "imagined.png").exists()
    env = LearnedEnv(str(tmp_path / "run"))
    assert env.observation_space == gym.make("Pendulum-v1").observation_space
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_learns_a_mass_that_is_pushed(tmp_path: Path) -> None:
    dataset = Dataset(write_vectors(tmp_path / "data", lengths=[40] * 6))
    world = train(dataset, out=tmp_path / "run", preset="tiny", steps=40, batch=8, length=3, progress=False)
    clip = next(iter(windows(dataset, 4, batch_size=16, split="held_out")))
    codes = world.codes(clip.frames)
    with torch.no_grad():
        out = world.flow(world.with_noise(codes), world.leading(clip.actions, len(codes), 5), shown=codes)
    assert out.draft is not None
    off, moved = out.draft[:, -1] - codes[:, -1], codes[:, -2] - codes[:, -1]
    assert float(off.square().mean()) < 0.3 * float(moved.square().mean())
    dream = world.imagine(clip.frames[:, :3], clip.actions[:, :2], clip.actions[:, 2:], num_samples=2)
    assert dream.frames.dtype == torch.float32 and dream.frames.shape == (2, 16, 2, 3)


@pytest.mark.parametrize("shown", [False, True])
def test_environment_observes_the_recorded_space(shown: bool) -> None:
    world = tiny_world(numbers=4, latent_dim=2, shown=shown, shallow=not shown)
    env = LearnedEnv(world, horizon=4)
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-50.0, 50.0, (4,), np.float64)
    both = LearnedVectorEnv(world, num_envs=2, horizon=4, observation="dict")
    seen, _ = both.reset(seed=3)
    alone, _ = env.reset(seed=3)
    assert set(seen) == {"vector", "latent"}
    np.testing.assert_allclose(seen["vector"][0], alone)
    action = env.action_space.sample()
    moved, _, _, _, info = env.step(action)
    moved_both, *_ = both.step(np.stack((action, action)))
    np.testing.assert_allclose(moved_both["vector"][0], moved, rtol=1e-4, atol=1e-4)
    assert np.isfinite(info["log_prob"])
    later = env.restore(env.snapshot())
    np.testing.assert_array_equal(later, moved)
    with pytest.raises(ValueError, match="no picture to render"):
        LearnedEnv(world, render_mode="rgb_array")


def test_starts_from_given_vectors_episodes_and_a_real_environment() -> None:
    world = tiny_world(numbers=4, latent_dim=2)
    env = LearnedEnv(world)
    frames = np.random.default_rng(0).normal(size=(3, 4))
    actions = random_actions(world.config.data.action, (2,), generator=torch.Generator()).numpy()
    observation, _ = env.reset(seed=0, options={"frames": frames, "past_actions": actions})
    np.testing.assert_allclose(observation, frames[-1], rtol=1e-6)
    episode = random_episode(world, 6)
    observation, _ = env.reset(options={"episode": episode, "past": 2})
    np.testing.assert_allclose(observation, episode.frames[2])
    with pytest.raises(TypeError, match="must be finite numbers"):
        env.reset(options={"frames": np.full((1, 4), np.nan)})
    with pytest.raises(ValueError, match=r"must have shape \(past \+ 1, 4\)"):
        env.reset(options={"frames": np.zeros((3, 5)), "past_actions": actions})

    class Real(gym.Env[np.ndarray, np.ndarray]):
        observation_space = env.observation_space
        action_space = env.action_space

        def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
            return np.arange(4.0), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            return np.arange(4.0) + 1, 0.0, False, False, {}

    observation, _ = LearnedEnv(world, real_env=Real(), real_steps=2).reset(seed=0)
    np.testing.assert_array_equal(observation, np.arange(4.0) + 1)


def test_scores_offline_and_as_they_come() -> None:
    world = tiny_world(numbers=4, latent_dim=2, shallow=False, shown=True)
    episode = random_episode(world, 5)
    (scores,) = score(world, [episode], progress=False)
    assert scores.pixel_bits is None
    np.testing.assert_allclose(scores.reconstruction, 0, atol=1e-10)
    monitor = Monitor(world)
    monitor.reset(episode.frames[0].astype(np.float64), number=0)
    for t in range(5):
        step = monitor.step(
            episode.frames[t + 1],
            episode.actions[t],
            float(episode.rewards[t]),
            terminated=bool(episode.terminated[t]),
        )
        assert step.log_prob[0] == pytest.approx(scores.log_prob[t], rel=1e-4)
    with pytest.raises(ValueError, match=r"frame must be float32 of shape \(4,\), got uint8"):
        monitor.reset(np.zeros(4, np.uint8))


def test_plans_for_reward_and_for_a_goal_and_through_gradients() -> None:
    world = tiny_world(numbers=4, latent_dim=2, shallow=False, shown=True)
    assert world.contexts is not None
    generator = torch.Generator().manual_seed(0)
    state = world.start(world.contexts.frames[:1], world.contexts.actions[:1], generator=generator)
    planner = ICEM(world, world.config.data.action, num_candidates=6, num_elites=2, num_iterations=2)
    goal = GoalLikelihood(world, torch.zeros(1, 4))
    for objective in (Return(), goal):
        assert planner.plan(state, objective, 3, generator=generator).actions.shape == (1, 3, 2)
    action = torch.zeros(1, 2, requires_grad=True)
    once, after = Differentiable(world).step(state, action, generator=torch.Generator().manual_seed(1), decode=True)
    plain, _ = world.step(state, action.detach(), generator=torch.Generator().manual_seed(1))
    assert once.frame is not None and plain.frame is not None
    torch.testing.assert_close(once.frame, plain.frame, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(after.latents[:, 1].sum(), action)
    assert bool((gradient != 0).all())


def test_what_needs_pictures_says_so(dataset: Dataset, tmp_path: Path) -> None:
    world = tiny_world(numbers=3, latent_dim=3)
    with pytest.raises(ValueError, match="an evaluation measures pictures"):
        evaluate(world, dataset, progress=False)
    with pytest.raises(ValueError, match="needs pictures, but the observations are vectors of 3 numbers"):
        generate(world, frames=2)
    refused: list[dict[str, Any]] = [{"codec": "patch"}, {"symmetry": "mirror"}, {"joint": True}]
    for options in refused:
        with pytest.raises(ValueError, match=f"{next(iter(options))} is about pictures"):
            train(dataset, out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"got a Box of int64 and shape \(3,\)"):
        frame_shape(tiny_spec(numbers=3).observation_space.replace("float64", "int64"))
