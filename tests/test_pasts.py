"""Where episodes start: real environments, recorded episodes, texts (the bank and given frames: test_learned.py)."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends

from worldflow.envs import LearnedEnv, LearnedVectorEnv
from worldflow.types import Episode
from worldflow.world import WorldModel

ACTION = np.array([0.5, -0.5], np.float32)


class Counter(gym.Env[np.ndarray, np.ndarray]):
    """Frames of one gray level: the seed's, and one more for each step; it ends after `length` steps."""

    def __init__(self, length: int = 100, choices: int | None = None) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: Any = box if choices is None else gym.spaces.Discrete(choices)
        self.length, self.closed, self.actions = length, 0, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.level, self.steps = int(self.np_random.integers(200)), 0
        return self._frame(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.actions.append(action)
        return self._frame(), 0.0, self.steps >= self.length, False, {}

    def close(self) -> None:
        self.closed += 1

    def _frame(self) -> np.ndarray:
        return np.full((16, 16, 3), self.level + self.steps, np.uint8)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return world_that_ends(1e-9, contexts=0)


def episode(length: int, *, seed: int = 0) -> Episode:
    random = np.random.default_rng(seed)
    return Episode(
        frames=random.integers(0, 256, (length + 1, 16, 16, 3), np.uint8),
        actions=random.uniform(-1, 1, (length, 2)).astype(np.float32),
        rewards=np.zeros(length, np.float32),
        terminated=np.zeros(length, bool),
        truncated=np.zeros(length, bool),
    )


# -- a real environment -------------------------------------------------------------------------------------------


def test_episodes_go_on_from_a_real_environment(world: WorldModel) -> None:
    real = Counter()
    env = LearnedEnv(world, real_env=real, real_steps=3)
    obs, info = env.reset(seed=1)
    assert info == {}
    assert obs.min() == obs.max() == real.level + 3
    np.testing.assert_array_equal(real.actions, np.zeros((3, 2)))  # the neutral action is held
    frames = np.stack([np.full((16, 16, 3), real.level + t, np.uint8) for t in range(4)])
    start = env.snapshot()
    env.reset(seed=1, options={"frames": frames, "past_actions": np.zeros((3, 2), np.float32)})
    assert torch.equal(env.state.deep_keys, start.state.deep_keys)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(again, obs)
    assert not np.array_equal(env.reset()[0], obs)
    env.close()
    assert real.closed == 0  # it is the caller's


def test_each_of_many_has_its_own_real_past(world: WorldModel) -> None:
    envs = LearnedVectorEnv(world, num_envs=3, real_env=Counter(), real_policy="random")
    env = LearnedEnv(world, real_env=Counter(), real_policy="random")
    observations, _ = envs.reset(seed=4)
    singles = [env.reset(seed=4 + i)[0] for i in range(3)]
    np.testing.assert_array_equal(observations, singles)
    assert len({int(frame[0, 0, 0]) for frame in singles}) > 1


def test_real_episodes_that_end_too_early_are_played_again(world: WorldModel) -> None:
    class Sometimes(Counter):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            obs, info = super().reset(seed=seed)
            self.length = 2 if self.level < 150 else 100
            return obs, info

    env = LearnedEnv(world, real_env=Sometimes(), real_steps=2)
    assert all(env.reset(seed=seed)[0].min() >= 152 for seed in range(5))
    with pytest.raises(ValueError, match="real_env ended within 2 steps in each of 100"):
        LearnedEnv(world, real_env=Counter(length=2), real_steps=2).reset()


def test_a_real_environment_by_its_id_is_made_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counter] = []
    monkeypatch.setattr("worldflow.envs.making.make_pixel_env", lambda env, **_: made.append(Counter()) or made[-1])
    env = LearnedEnv(tiny_world(), real_env="Counter-v0")
    env.reset(seed=0)
    env.close()
    env.close()
    assert [real.closed for real in made] == [1]


def test_a_real_environment_of_other_spaces_is_refused(world: WorldModel) -> None:
    with pytest.raises(ValueError, match="expected continuous ones, got discrete"):
        LearnedEnv(world, real_env=Counter(choices=3))
    with pytest.raises(ValueError, match="unknown environment 'Nowhere-v0'"):
        LearnedEnv(world, real_env="Nowhere-v0")
    bank = tiny_world().contexts
    with pytest.raises(ValueError, match="either from contexts or from real_env"):
        LearnedEnv(world, real_env=Counter(), contexts=bank)


# -- a recorded episode -------------------------------------------------------------------------------------------


def test_a_recorded_episode_says_where_to_start_and_when_to_end(world: WorldModel) -> None:
    env, recorded = LearnedEnv(world), episode(7)
    obs, _ = env.reset(seed=0, options={"episode": recorded, "past": 4})
    np.testing.assert_array_equal(obs, recorded.frames[4])
    given = env.snapshot()
    ends = [env.step(action)[3] for action in recorded.actions[4:]]
    assert ends == [False, False, True]
    env.reset(seed=0, options={"frames": recorded.frames[:5], "past_actions": recorded.actions[:4]})
    assert torch.equal(env.state.deep_keys, given.state.deep_keys)
    assert not any(env.step(ACTION)[3] for _ in range(5))  # nothing is known of an end now
    obs, _ = env.reset(options={"episode": recorded})
    np.testing.assert_array_equal(obs, recorded.frames[2])  # the window's


def test_a_horizon_beyond_the_recorded_episode_is_refused(world: WorldModel) -> None:
    env, recorded = LearnedEnv(world, horizon=4), episode(7)
    before = env.np_random.bit_generator.state
    with pytest.raises(ValueError, match="horizon is 4, but the recorded episode goes on for 3 steps"):
        env.reset(options={"episode": recorded, "past": 4})
    assert env.np_random.bit_generator.state == before
    env.reset(options={"episode": recorded, "past": 3})
    assert [env.step(ACTION)[3] for _ in range(4)] == [False, False, False, True]


def test_each_of_many_has_its_own_recorded_episode(world: WorldModel) -> None:
    envs = LearnedVectorEnv(world, num_envs=2, autoreset_mode="Disabled")
    recorded = [episode(5, seed=1), episode(6, seed=2)]
    observations, _ = envs.reset(options={"episode": recorded, "past": 3})
    np.testing.assert_array_equal(observations, [one.frames[3] for one in recorded])
    ends = [envs.step(np.stack([ACTION] * 2))[3].tolist() for _ in range(2)]
    assert ends == [[False, False], [True, False]]
    options = {"episode": recorded, "past": 4, "reset_mask": np.array([True, False])}
    observations, _ = envs.reset(options=options)
    np.testing.assert_array_equal(observations[0], recorded[0].frames[4])
    assert envs.step(np.stack([ACTION] * 2))[3].tolist() == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode": [1, 2]}, "must be a worldflow Episode"),
        ({"episode": episode(4), "past": 4}, "must leave a transition"),
        ({"episode": episode(4), "past": 0}, "whole number"),
        ({"past": 1}, "without 'episode'"),
        ({"episode": episode(4), "context": 0}, "as 'context' and as 'episode'"),
        ({"episode": dataclasses.replace(episode(4), frames=np.zeros((5, 8, 16, 3), np.uint8))}, "must have shape"),
    ],
)
def test_bad_episodes_are_named(world: WorldModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedEnv(world).reset(options=options)


# -- a text -------------------------------------------------------------------------------------------------------


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_text_alone_draws_the_first_frame(guidance: float) -> None:
    world = world_that_ends(1e-9, text_dim=6)
    env = LearnedEnv(world, text=prompt(1), guidance=guidance)
    obs, info = env.reset(seed=0)
    assert info == {} and int(env.state.count) == 1
    generator = torch.Generator().manual_seed(int(np.random.default_rng(0).integers(2**63)))
    state = world.begin(1, text=prompt(1)[None])
    for action in (np.zeros(2), ACTION):
        transition, state = world.step(state, action[None], generator=[generator])
        assert transition.frame is not None
        if not guidance:
            np.testing.assert_array_equal(obs, transition.frame[0])
        obs = env.step(ACTION)[0]
    other, _ = env.reset(seed=0, options={"text": prompt(2)})
    assert not np.array_equal(other, env.reset(seed=0)[0])


def test_a_text_goes_with_a_past(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_that_ends(1e-9, text_dim=6)
    read = []

    class Encoder:
        def __call__(self, texts: list[str]) -> Any:
            read.extend(texts)
            return type("Embedded", (), {"tokens": prompt(len(texts[0]))[None]})

    monkeypatch.setattr("worldflow.text_condition.encoder_of", lambda world, encoder: Encoder())
    envs = LearnedVectorEnv(world, num_envs=2)
    observations, infos = envs.reset(seed=0, options={"context": 1, "text": ["up", "down"]})
    np.testing.assert_array_equal(infos["context"], [1, 1])
    np.testing.assert_array_equal(observations[0], observations[1])
    assert not torch.equal(envs.state[0].deep_keys, envs.state[1].deep_keys)
    envs.reset(options={"text": "down"})
    assert read == ["up", "down"]  # each is embedded once
    env = LearnedEnv(world, text=prompt(4))
    env.reset(seed=1, options={"context": 1})
    envs.reset(seed=0, options={"context": 1, "text": ["up", "down"]})
    torch.testing.assert_close(env.state.deep_keys, envs.state[1].deep_keys, rtol=1e-4, atol=1e-5)
    _, info = LearnedEnv(world).reset(seed=0)  # without a text: the bank, and the empty text
    assert "context" in info
    moment = env.snapshot()
    np.testing.assert_array_equal(env.restore(moment), env.restore(moment))


def test_bad_texts_are_named(world: WorldModel) -> None:
    with pytest.raises(ValueError, match="reads no text"):
        LearnedEnv(world, text="up")
    reader = tiny_world(text_dim=6)
    with pytest.raises(ValueError, match=r"\(3, 6\), got .* of shape \(2, 6\)"):
        LearnedEnv(reader, text=prompt(0)[:2])
    with pytest.raises(ValueError, match="one text or 2"):
        LearnedVectorEnv(reader, num_envs=2).reset(options={"text": ["a", "b", "c"]})
