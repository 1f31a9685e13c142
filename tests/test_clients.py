"""Code that we did not write runs on learned worlds as on any other: Gymnasium's wrappers, CleanRL's loop, workers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import FrameStackObservation, HumanRendering, RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from torch import nn
from torch.distributions import Normal

from worldflow.checkpoint import save
from worldflow.envs import LearnedEnv, LearnedVectorEnv
from worldflow.envs.display import keys_to_action, neutral_action
from worldflow.world import WorldModel

ID = "worldflow/Learned-v0"
ACTION = np.array([0.3, -0.3], np.float32)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return world_that_ends(1e-9)


# -- Gymnasium's wrappers -----------------------------------------------------------------------------------------


def test_episode_statistics_add_up(world: WorldModel) -> None:
    env = RecordEpisodeStatistics(gym.make(ID, world=world, horizon=3))
    env.reset(seed=0)
    steps = [env.step(ACTION) for _ in range(3)]
    episode = steps[-1][4]["episode"]
    assert episode["l"] == 3 and episode["r"] == pytest.approx(sum(float(step[1]) for step in steps))


def test_vector_episode_statistics_add_up(world: WorldModel) -> None:
    envs = VectorStatistics(LearnedVectorEnv(world, num_envs=2, horizon=3))
    envs.reset(seed=0)
    steps = [envs.step(np.stack([ACTION] * 2)) for _ in range(3)]
    episode = steps[-1][4]["episode"]
    np.testing.assert_array_equal(episode["l"], [3, 3])
    np.testing.assert_allclose(episode["r"], np.sum([step[1] for step in steps], axis=0), rtol=1e-6)


@pytest.mark.parametrize(("observation", "shape"), [("pixels", (4, 16, 16, 3)), ("latent", (4, 4, 3))])
def test_frames_are_stacked(world: WorldModel, observation: str, shape: tuple[int, ...]) -> None:
    env = FrameStackObservation(gym.make(ID, world=world, observation=observation), 4)
    env.reset(seed=0)
    stacks = [env.step(ACTION)[0] for _ in range(5)]
    assert stacks[-1].shape == shape and stacks[-1] in env.observation_space
    np.testing.assert_array_equal(stacks[-1][:-1], stacks[-2][1:])


def test_videos_are_recorded(world: WorldModel, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = gym.make(ID, world=world, horizon=3, render_mode="rgb_array")
    env = RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda episode: episode == 0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(ACTION)
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 1000


def test_a_window_is_gymnasiums_own(world: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = gym.make(ID, world=world, render_mode="human")
    assert isinstance(env, HumanRendering)
    env.reset(seed=0)
    env.step(ACTION)
    assert env.screen_size == (256, 256)
    env.close()


def test_without_pygame_a_window_says_what_is_missing(world: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = gym.make(ID, world=world, render_mode="human")
    with pytest.raises(gym.error.DependencyNotInstalled, match="pygame is not installed"):
        env.reset(seed=0)


def test_gymnasium_plays_it(world: WorldModel, tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    code = (
        "import sys, numpy as np, pygame, gymnasium as gym\n"
        "from gymnasium.utils.play import play\n"
        "import worldflow.envs\n"
        "env = gym.make('worldflow/Learned-v0', world=sys.argv[1], horizon=4, render_mode='rgb_array')\n"
        "seen = []\n"
        "def callback(before, after, action, *outcome):\n"
        "    seen.append(action.tolist())\n"
        "    key = pygame.KEYDOWN if len(seen) == 2 else pygame.KEYUP\n"
        "    if len(seen) in (2, 4): pygame.event.post(pygame.event.Event(key, key=ord('d')))\n"
        "    if len(seen) == 6: pygame.event.post(pygame.event.Event(pygame.QUIT))\n"
        "play(env, fps=1000, seed=0, noop=np.zeros(2, np.float32), callback=callback)\n"
        "print(seen)\n"
    )
    run = str(save(world, tmp_path / "run"))
    environ = os.environ | {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    done = subprocess.run([sys.executable, "-c", code, run], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pushed, still = [1.0, 0.0], [0.0, 0.0]
    assert done.stdout.strip() == str([still, still, pushed, pushed, still, still])


def test_keys_push_components_to_their_bounds_and_pick_choices() -> None:
    box = gym.spaces.Box(np.array([-1, 2], np.float32), np.array([1, 4], np.float32))
    np.testing.assert_array_equal(neutral_action(box), [0, 2])
    keys = keys_to_action(box)
    assert {key: action.tolist() for key, action in keys.items()} == {
        "d": [1, 2], "a": [-1, 2], "w": [0, 4], "s": [0, 2],
    }  # fmt: skip
    assert keys_to_action(gym.spaces.Discrete(3, start=1)) == {"0": 1, "1": 2, "2": 3}
    for space in (box, gym.spaces.MultiDiscrete([3, 2], start=[0, 1]), gym.spaces.MultiBinary(2)):
        assert neutral_action(space) in space
        assert all(action in space for action in keys_to_action(space).values())


# -- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_forked_workers_step_after_the_parent_has_used_its_threads(world: WorldModel) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        big = torch.ones(300, 300)
        assert float((big @ big).sum()) == 300.0**3  # now there are threads that a fork does not copy
        twin = LearnedEnv(world)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 advises against forks
            envs = AsyncVectorEnv([lambda: LearnedEnv(world), lambda: twin], context="fork")
        try:
            envs.reset_async(seed=[0, 1])
            observations, _ = envs.reset_wait(timeout=120)
            envs.step_async(np.stack([ACTION] * 2))
            after, *_ = envs.step_wait(timeout=120)
        finally:
            envs.close(terminate=True)
    finally:
        torch.set_num_threads(num_threads)
    for i in range(2):
        np.testing.assert_array_equal(observations[i], twin.reset(seed=i)[0])
        np.testing.assert_allclose(after[i].astype(int), twin.step(ACTION)[0], rtol=0, atol=1)


# -- CleanRL ------------------------------------------------------------------------------------------------------


def test_a_ppo_loop_in_one_file_learns_something() -> None:
    """CleanRL's loop for continuous actions, short: rewards come from the world, gradients reach both networks."""
    torch.manual_seed(0)
    envs = gym.make_vec(
        ID,
        num_envs=4,
        vectorization_mode="vector_entry_point",
        world=tiny_world(),
        horizon=8,
        observation="latent",
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    envs = VectorStatistics(envs)
    space, actions_space = envs.single_observation_space, envs.single_action_space
    assert isinstance(space, gym.spaces.Box) and isinstance(actions_space, gym.spaces.Box)
    inputs, outputs = int(np.prod(space.shape)), actions_space.shape[0]
    critic = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 1))
    actor = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs))
    log_std = nn.Parameter(torch.zeros(outputs))
    optimizer = torch.optim.Adam([*critic.parameters(), *actor.parameters(), log_std], lr=1e-3)
    before = [parameter.detach().clone() for parameter in (*critic.parameters(), *actor.parameters())]

    episodes, observation = 0, torch.from_numpy(envs.reset(seed=0)[0])
    is_done = torch.zeros(4)
    for _ in range(2):
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("obs", "act", "logp", "rew", "done", "value")}
        for _ in range(16):
            with torch.no_grad():
                policy, value = Normal(actor(observation), log_std.exp()), critic(observation)[:, 0]
                action = policy.sample()
            clipped = action.clamp(-1, 1).numpy()
            after, reward, terminated, truncated, infos = envs.step(clipped)
            episodes += int(infos.get("_episode", np.zeros(4)).sum())
            step = (observation, action, policy.log_prob(action).sum(1), torch.from_numpy(reward).float())
            for name, part in zip(rows, (*step, is_done, value), strict=True):
                rows[name].append(part)
            observation = torch.from_numpy(after)
            is_done = torch.from_numpy(terminated | truncated).float()
        with torch.no_grad():
            following, advantage = critic(observation)[:, 0], torch.zeros(4)
        done, advantages = [*rows["done"], is_done], []
        for t in reversed(range(16)):
            alive = 1 - done[t + 1]
            delta = rows["rew"][t] + 0.99 * following * alive - rows["value"][t]
            advantage = delta + 0.99 * 0.95 * alive * advantage
            advantages.insert(0, advantage)
            following = rows["value"][t]
        batch = {name: torch.cat(part) for name, part in rows.items()} | {"adv": torch.cat(advantages)}
        for index in torch.randperm(64).split(32):
            part = {name: value[index] for name, value in batch.items()}
            policy = Normal(actor(part["obs"]), log_std.exp())
            ratio = (policy.log_prob(part["act"]).sum(1) - part["logp"]).exp()
            surrogate = torch.min(ratio * part["adv"], ratio.clamp(0.8, 1.2) * part["adv"]).mean()
            error = (critic(part["obs"])[:, 0] - part["adv"] - part["value"]).square().mean()
            loss = -surrogate + 0.5 * error - 0.01 * policy.entropy().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert torch.isfinite(loss)
    assert episodes >= 4
    parameters = (*critic.parameters(), *actor.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    envs.close()
