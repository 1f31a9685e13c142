"""Policies: their stated distributions, their names, and actions that fit whatever space."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldflow.data import Dataset
from worldflow.envs.collect import collect
from worldflow.envs.policies import (
    Mixed,
    PendulumSwayer,
    Policy,
    Random,
    Smooth,
    make_policy,
    start_episode,
    valid_action,
)

FRAME = np.zeros((8, 8, 3), np.uint8)
PIXELS = spaces.Box(0, 255, (8, 8, 3), np.uint8)
BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32))
SPACES = [
    BOX,
    spaces.Box(-2.0, 2.0, (), np.float64),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 5], start=[0, 3]),
    spaces.MultiBinary([2, 2]),
]


def play(policy: Policy, seed: int, num: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    start_episode(policy, generator)
    return [policy(FRAME, {}, generator) for _ in range(num)]


@pytest.mark.parametrize("make", [Random, Smooth])
@pytest.mark.parametrize("space", SPACES)
def test_actions_fit_the_space_and_follow_the_seed(make: type[Random | Smooth], space: spaces.Space[Any]) -> None:
    policy = make(space)
    played = [np.asarray(action) for action in play(policy, 0, 40)]
    for action in played:
        assert space.contains(valid_action(action, space))
    np.testing.assert_array_equal(played, play(policy, 0, 40))
    assert not np.array_equal(played, play(policy, 1, 40))


@pytest.mark.parametrize("make", [Random, Smooth])
@pytest.mark.parametrize("step", [0, 7])
def test_actions_are_uniform_in_their_bounds(make: type[Random | Smooth], step: int) -> None:
    num = 1500
    found = np.array([play(make(BOX), seed, step + 1)[-1] for seed in range(num)])
    uniform = (found - BOX.low) / (BOX.high - BOX.low)
    # Kolmogorov-Smirnov: 1.95 is the quantile of a false alarm in a thousand, and there are two components.
    rank = (np.arange(num) + 0.5) / num
    assert (np.abs(np.sort(uniform, axis=0) - rank[:, None]).max(axis=0) < 1.95 / math.sqrt(num)).all()


def test_smooth_has_its_correlation() -> None:
    pairs = np.array([play(Smooth(BOX, times=(5.0, 5.0)), seed, 2) for seed in range(1500)])[..., 0]
    found = np.corrcoef(pairs.T)[0, 1]
    # Ranks of two normals with correlation a have correlation 6 / pi asin(a / 2).
    expected = 6 / math.pi * math.asin(math.exp(-1 / 5) / 2)
    assert abs(found - expected) < 4 * (1 - expected**2) / math.sqrt(1500)


def test_smooth_keeps_a_discrete_action() -> None:
    space, keep = spaces.Discrete(4), math.exp(-1 / 5)
    actions = np.array(play(Smooth(space, times=(5.0, 5.0)), 0, 4001))
    stays = (actions[1:] == actions[:-1]).mean()
    expected = keep + (1 - keep) / 4
    assert abs(stays - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_smooth_draws_a_time_for_each_episode() -> None:
    rough = [np.abs(np.diff(play(Smooth(BOX), seed, 200), axis=0)[:, 0]).mean() for seed in range(20)]
    assert max(rough) > 2 * min(rough)


def test_smooth_refuses_times_out_of_order() -> None:
    with pytest.raises(ValueError, match="times"):
        Smooth(BOX, times=(3.0, 2.0))


def test_bounds_that_are_missing() -> None:
    low, high = np.array([-np.inf, 1.0, -np.inf]), np.array([np.inf, np.inf, -2.0])
    space = spaces.Box(low, high, dtype=np.float64)
    actions = np.array(play(Random(space), 0, 400))
    assert actions[:, 0].min() < 0 < actions[:, 0].max()
    assert (actions[:, 1] >= 1).all() and (actions[:, 2] <= -2).all()


def test_mixed_is_random_as_often_as_it_says() -> None:
    def nothing(observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        return np.zeros(2)

    actions = np.array(play(Mixed(nothing, BOX, random_fraction=0.3), 0, 2000))
    assert abs((actions[:, 0] != 0).mean() - 0.3) < 4 * math.sqrt(0.21 / 2000)
    assert (np.array(play(Mixed(nothing, BOX, random_fraction=0.0), 0, 50)) == 0).all()


def test_pendulum_sways_and_falls() -> None:
    env = gym.make("InvertedPendulum-v5")
    policy = PendulumSwayer(env.action_space)
    lengths, ranges, sides = [], [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        start_episode(policy, generator)
        state, _ = env.reset(seed=seed)
        places, is_terminated = [state[0]], False
        while not is_terminated:
            action = valid_action(policy(FRAME, {"state": state}, generator), env.action_space)
            state, _, is_terminated, is_truncated, _ = env.step(action)
            assert not is_truncated
            places.append(state[0])
        lengths.append(len(places) - 1)
        ranges.append(np.ptp(places))
        sides.append(state[1] > 0)
    env.close()
    # Measured over 200 episodes: 21 to 123 steps, median 64; cart travels 0.67 m in the median; half fall right.
    assert 15 <= min(lengths) and max(lengths) <= 200 and 55 <= np.median(lengths) <= 75
    assert np.median(ranges) > 0.5
    assert 10 <= sum(sides) <= 30  # three standard deviations of a fair coin


def test_pendulum_needs_its_state() -> None:
    policy = PendulumSwayer(spaces.Box(-3.0, 3.0, (1,)))
    with pytest.raises(ValueError, match=r'info\["state"\]'):
        play(policy, 0, 1)
    with pytest.raises(ValueError, match="one force"):
        PendulumSwayer(BOX)


class TestValidAction:
    def test_clips_and_casts(self) -> None:
        action = valid_action([9.0, -9], BOX)
        assert action.dtype == np.float32 and action.tolist() == [3.0, 0.0]
        assert valid_action(np.int32(2), spaces.Discrete(3)) == 2

    @pytest.mark.parametrize(
        ("action", "space", "match"),
        [
            (np.zeros(3), BOX, r"shape \(2,\), got \(3,\)"),
            (np.array([np.nan, 0.0]), BOX, "finite"),
            (["a", "b"], BOX, "finite"),
            (3, spaces.Discrete(3), "an action of Discrete"),
            (1.0, spaces.Discrete(3), "whole numbers"),
            (np.array([2, 3]), spaces.MultiDiscrete([2, 5]), "an action of MultiDiscrete"),
        ],
    )
    def test_refuses(self, action: Any, space: spaces.Space[Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            valid_action(action, space)


class TestNames:
    @staticmethod
    def make(policy: Any, space: spaces.Space[Any] = BOX) -> Policy:
        return make_policy(policy, observation_space=PIXELS, action_space=space)

    def test_built_in_ones(self) -> None:
        assert isinstance(self.make("random"), Random)
        assert isinstance(self.make("smooth"), Smooth)

    def test_functions_and_classes_of_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_policies.py").write_text(
            "number = 3\n"
            "def still(observation, info, generator): return [0.0, 0.0]\n"
            "class Same:\n"
            "    def __init__(self, space): self.space = space\n"
            "    def __call__(self, observation, info, generator): return self.space.low\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        before = list(sys.path)
        assert play(self.make("my_policies:still"), 0, 1) == [[0.0, 0.0]]
        np.testing.assert_array_equal(play(self.make("my_policies:Same"), 0, 1), [BOX.low])
        assert sys.path == before
        for name, match in {
            "my_policies:stil": "did you mean 'still'",
            "my_policies:number": "a function or a class",
            "my_polices:still": "no module 'my_polices'",
        }.items():
            with pytest.raises(ValueError, match=match):
                self.make(name)
        del sys.modules["my_policies"]

    def test_policies_themselves(self) -> None:
        policy = Random(BOX)
        assert self.make(policy) is policy
        assert isinstance(self.make(Random), Random)
        with pytest.raises(TypeError, match="a name or callable"):
            self.make(3)

    def test_unknown_names(self) -> None:
        for name, match in {"radnom": "did you mean 'random'", "qqq": "MODULE:CALLABLE or FILE.zip"}.items():
            with pytest.raises(ValueError, match=match):
                self.make(name)

    def test_spaces_without_random_actions(self) -> None:
        with pytest.raises(ValueError, match="got Dict"):
            self.make("random", spaces.Dict({"a": BOX}))


class TestSavedAgents:
    @staticmethod
    def saved(path: Path, settings: Mapping[str, Any]) -> str:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", json.dumps(settings))
        return str(path)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such file"):
            TestNames.make(str(tmp_path / "none.zip"))
        (tmp_path / "text.zip").write_text("not a zip")
        for path in (str(tmp_path / "text.zip"), self.saved(tmp_path / "other.zip", {"a": 1})):
            with pytest.raises(ValueError, match=r"was (not )?saved by"):
                TestNames.make(path)

    def test_library_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "stable_baselines3", None)
        with pytest.raises(ImportError, match=r"pip install 'worldflow\[agents\]'"):
            TestNames.make(self.saved(tmp_path / "ppo.zip", {"clip_range_vf": None}))

    @pytest.mark.filterwarnings("default")  # Stable-Baselines3 and its imports deprecate this and that
    @pytest.mark.parametrize("name", ["PPO", "SAC", "TD3"])
    def test_agent_records_from_its_state(self, tmp_path: Path, name: str) -> None:
        algorithms = pytest.importorskip("stable_baselines3")
        path = str(tmp_path / "agent.zip")
        env = gym.make("InvertedPendulum-v5")
        getattr(algorithms, name)("MlpPolicy", env, device="cpu", seed=0).save(path)
        torch.rand(1)  # away from where the agent's own seed would put it
        np.random.random(3)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # pyright: ignore
        recorded = [
            Dataset(
                collect(
                    "worldflow/InvertedPendulum-v0",
                    out=tmp_path / str(number),
                    episodes=2,
                    policy=path,
                    env_kwargs={"size": 8},
                    max_steps=6,
                    progress=False,
                )
            )
            for number in range(2)
        ]
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()  # pyright: ignore
        for first, second in zip(*recorded, strict=True):
            np.testing.assert_array_equal(first.actions, second.actions)
        agent = getattr(algorithms, name).load(path, device="cpu")
        best = agent.predict(recorded[0][0].infos["state"][:-1], deterministic=True)[0]
        assert np.allclose(best, recorded[0][0].actions, atol=1e-5) == (name == "TD3")
        with pytest.raises(ValueError, match="acts in"):
            TestNames.make(path)
