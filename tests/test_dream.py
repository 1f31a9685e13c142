"""Policies trained in dreams: they learn, act for real as they dreamed, and nothing that was learned is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends, write_dataset
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from test_acting import Glow

from worldflow import cli
from worldflow.checkpoint import save
from worldflow.data import Dataset
from worldflow.envs.collect import collect, record_episode
from worldflow.envs.dreamed_policy import DreamRecord, Evaluation
from worldflow.envs.latent import LatentObservation
from worldflow.envs.policies import make_policy

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor  # noqa: E402

from worldflow.agents import dream as dreaming  # noqa: E402
from worldflow.agents import dream_envs  # noqa: E402
from worldflow.agents.dream import DreamConfig, DreamedPolicy, dream  # noqa: E402
from worldflow.agents.dream_config import is_deceived  # noqa: E402
from worldflow.envs.saved_agent import open_agent  # noqa: E402

SMALL: dict[str, Any] = {"steps": 64, "num_envs": 4, "horizon": 4, "stack": 2, "eval_every": 32, "eval_episodes": 2}
PPO: dict[str, Any] = {"settings": {"n_steps": 8, "batch_size": 32, "n_epochs": 1}}


def small(**options: Any) -> DreamConfig:
    return DreamConfig(**{**SMALL, **PPO, **options})


def at(step: int, imagined: float, real: float | None, horizon: int = 10) -> Evaluation:
    return Evaluation(step=step, horizon=horizon, imagined_return=imagined, imagined_length=1.0, real_return=real)


@pytest.mark.parametrize(
    ("algorithm", "action", "settings"),
    [
        ("ppo", "box", PPO["settings"]),
        ("ppo", "discrete", PPO["settings"]),
        ("sac", "box", {"learning_starts": 16, "batch_size": 16}),
        ("dqn", "discrete", {"learning_starts": 16, "batch_size": 16}),
    ],
)
def test_an_algorithm_trains_is_saved_loaded_and_acts(
    algorithm: Any, action: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    world, path = world_that_ends(0.1, action=action, shown=True), tmp_path / "agent.zip"
    before = torch.random.get_rng_state()
    result = dream(world, path, config=small(algorithm=algorithm, settings=settings), progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result.record.steps == 64 and not result.is_deceived
    assert [one.step for one in result.record.history] == [32, 64]
    assert all(one.imagined_length is not None and 1 <= one.imagined_length <= 4 for one in result.record.history)
    assert DreamRecord.read(path) == result.record
    policy = DreamedPolicy.load(path, world)
    space = spaces.Discrete(4) if action == "discrete" else spaces.Box(-1.0, 1.0, (2,), np.float32)
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    acts = [policy(frame, {}, np.random.default_rng(0)) for frame in frames]
    assert all(space.contains(np.asarray(act)[()] if action == "discrete" else act) for act in acts)
    policy.reset(np.random.default_rng(0))
    again = [policy(frame, {}, np.random.default_rng(0)) for frame in frames]
    np.testing.assert_array_equal(acts, again)


@pytest.mark.parametrize("shown", [True, False])
def test_it_acts_as_an_agent_that_observes_tokens(shown: bool, tmp_path: Path) -> None:
    world, path = tiny_world(shown=shown, noise_std=0.3 if shown else 1e-9), tmp_path / "agent.zip"
    dream(world, path, config=small(steps=32), progress=False)
    _, agent = open_agent(path)
    policy, env = DreamedPolicy.load(path, world), LatentObservation(Glow(), world, stack=2)
    for seed in (3, 4):
        episode = record_episode(Glow(), policy, seed=seed)
        observation, _ = env.reset(seed=seed)
        for action in episode.actions:
            expected = agent.predict(observation, deterministic=True)[0]
            np.testing.assert_allclose(action, expected, atol=1e-6)
            observation = env.step(action)[0]


def test_an_agent_of_pixels_needs_no_world_to_act(tmp_path: Path) -> None:
    world, path = tiny_world(size=48, patch_size=24), tmp_path / "agent.zip"
    dream(world, path, config=small(steps=32, observation="pixels"), env=Glow(size=48), progress=False)
    policy = make_policy(str(path), observation_space=Glow(size=48).observation_space, action_space=Glow().action_space)
    assert isinstance(policy, DreamedPolicy) and policy.world is None
    assert len(record_episode(Glow(size=48), policy, seed=0)) == 4


class Cue(gym.Env[np.ndarray, np.int64]):
    """Shows one of four cues and pays 1 for the action of the same number; one step."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(0.0, 1.0, (4,), np.float32), spaces.Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.cue], {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(4, np.float32), float(action == self.cue), True, False, {}


def test_ppo_learns_what_there_is_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dream_envs, "dream_envs", lambda world, **options: VecMonitor(DummyVecEnv([Cue] * 8)))
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 5}
    config = small(steps=3072, eval_every=1024, num_envs=8, learning_rate=3e-3, settings=settings)
    result = dream(tiny_world(action="discrete"), tmp_path / "agent.zip", config=config, progress=False)
    first, *_, last = (one.imagined_return or 0.0 for one in result.record.history)
    assert last > 0.9 > first + 0.2  # chance is 0.25
    _, agent = open_agent(tmp_path / "agent.zip")
    assert agent.predict(np.eye(4, dtype=np.float32), deterministic=True)[0].tolist() == [0, 1, 2, 3]


# -- the course of a training -------------------------------------------------------------------------------------


def test_the_horizon_grows_linearly() -> None:
    config = DreamConfig(steps=1000, first_horizon=10, horizon=50, curriculum=0.5)
    assert [config.horizon_at(step) for step in (0, 125, 250, 500, 1000)] == [10, 20, 30, 50, 50]
    assert DreamConfig(horizon=50).horizon_at(0) == 50
    assert DreamConfig(steps=1000, first_horizon=10, horizon=50, curriculum=0.0).horizon_at(0) == 50


def test_episodes_grow_with_the_horizon(tmp_path: Path) -> None:
    config = small(steps=256, first_horizon=1, horizon=9, curriculum=0.5)
    history = dream(world_that_ends(1e-9), tmp_path / "agent.zip", config=config, progress=False).record.history
    assert [one.horizon for one in history] == [config.horizon_at(one.step) for one in history]
    assert history[0].horizon < 4 and history[-1].horizon == 9
    lengths = [one.imagined_length or 0.0 for one in history]
    assert lengths[0] < 4 and lengths[-1] == 9


def test_a_policy_is_deceived_if_dreams_rise_while_the_real_falls() -> None:
    rise = [at(1, 1.0, 10.0), at(2, 2.0, 9.0), at(3, 3.0, 8.0)]
    assert is_deceived(rise, patience=2) and not is_deceived(rise, patience=3) and not is_deceived(rise, patience=0)
    assert not is_deceived([at(1, 1.0, 10.0), at(2, 0.5, 9.0), at(3, 0.7, 8.0)], patience=2)  # worse in dreams, too
    assert not is_deceived([*rise, at(4, 4.0, 11.0)], patience=2)  # better than ever
    assert not is_deceived([at(1, 1.0, 10.0), at(2, 2.0, 9.0, 20), at(3, 3.0, 8.0, 30)], patience=2)  # longer dreams
    assert not is_deceived([at(1, 1.0, None), at(2, 2.0, None)], patience=1)
    assert not is_deceived([], patience=1)


def scripted(monkeypatch: pytest.MonkeyPatch, returns: Sequence[float]) -> None:
    told = iter(returns)
    monkeypatch.setattr(dreaming, "real_returns", lambda *args, **options: [next(told)])


def test_the_best_policy_is_kept_and_training_goes_on_from_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, path = tiny_world(shown=True), tmp_path / "agent.zip"
    scripted(monkeypatch, [1.0, 5.0, 3.0])
    result = dream(world, path, config=small(steps=96), env=Glow(), progress=False)
    assert [one.real_return for one in result.record.history] == [1.0, 5.0, 3.0]
    assert (result.record.best_step, result.record.steps) == (64, 96)
    latest = path.with_name("agent.latest.zip")
    assert [open_agent(file)[1].num_timesteps for file in (path, latest)] == [64, 96]
    scripted(monkeypatch, [6.0])
    result = dream(world, path, config=small(steps=128), env=Glow(), resume=True, progress=False)
    assert [one.step for one in result.record.history] == [32, 64, 96, 128]
    assert (result.record.best_step, open_agent(path)[1].num_timesteps) == (128, 128)
    done = dream(world, path, config=small(steps=128), env=Glow(), resume=True, progress=False)
    assert done.record.history == result.record.history


def test_training_stops_once_deceived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dreaming, "is_deceived", lambda history, patience: len(history) == 2)
    result = dream(tiny_world(), tmp_path / "agent.zip", config=small(steps=320), progress=False)
    assert result.is_deceived and [one.step for one in result.record.history] == [32, 64]


class Unplugged(Glow):
    """Raises what it is given in its third episode."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 3:
            raise self.error
        return super().step(action)


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        (OSError("the cable is loose"), RuntimeError, "OSError: the cable is loose; the policy after 64 imagined"),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted; the policy after 64 imagined steps is kept"),
    ],
)
def test_what_was_learned_is_kept(error: BaseException, raised: Any, match: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    with pytest.raises(raised, match=match):
        dream(tiny_world(), path, config=small(steps=96), env=Unplugged(error), progress=False)
    record = DreamRecord.read(path)
    assert (record.steps, [one.step for one in record.history]) == (64, [32])
    assert open_agent(path.with_name("agent.latest.zip"))[1].num_timesteps == 64
    assert open_agent(path)[1].num_timesteps == 32  # the best so far
    done = dream(tiny_world(), path, config=small(steps=96), env=Glow(), resume=True, progress=False)
    assert done.record.steps == 96


def test_an_interrupt_before_anything_is_learned_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sb3.PPO, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt, match="nothing was learned yet"):
        dream(tiny_world(), tmp_path / "agent.zip", config=small(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_dreams_start_in_training_episodes_and_go_on_elsewhere_when_resumed(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", lengths=[3, 9, 4, 7, 8, 6, 5, 9])
    config = small(starts=str(data), num_starts=1000)
    world, dataset = tiny_world(), Dataset(data)
    bank = dreaming._starts(world, config)
    assert bank.frames.shape[1] == 3 and bank.actions.shape[1] == 2
    expected = [
        (dataset.frames(number, start, start + 3), dataset.outcomes(number)[0][start : start + 2])
        for number in dataset.episodes("train").tolist()
        for start in range(int(dataset.lengths[number]) - 2)
    ]
    assert len(bank) == len(expected)
    for frames, actions in expected:
        fits = (bank.frames.numpy() == frames).all((1, 2, 3, 4)) & np.isclose(bank.actions, actions).all((1, 2))
        assert fits.any()
    assert len(dreaming._starts(world, small(starts=str(data), num_starts=2))) == 2
    seeds = list[int]()
    path = tmp_path / "agent.zip"
    for steps in (32, 64):
        dream(world, path, config=small(starts=str(data), steps=steps), resume=steps > 32, progress=False)
        seeds.append(open_agent(path)[1].seed)
    assert seeds == [0, 32]
    with pytest.raises(ValueError, match="other spaces than expected"):
        dreaming._starts(tiny_world(action="discrete"), config)


# -- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "options", "match"),
    [
        ({}, {"algorithm": "dqn"}, r"dqn is for one choice among some; .*the world's actions are Box"),
        ({"action": "discrete"}, {"algorithm": "sac"}, "sac is for continuous actions; .*are Discrete"),
        ({"action": "multi_discrete"}, {}, "choices that count from 0"),
        ({}, {"settings": {"n_stepps": 3}}, "ppo does not take the settings"),
        ({}, {"text": "a red circle"}, "reads no text"),
        ({"contexts": 0}, {"likelihood_penalty": 1.0}, "name a data set to start from"),
        ({"paid": False}, {}, "nothing to learn in its dreams"),
    ],
)
def test_a_world_that_does_not_fit_is_refused(
    world: dict[str, Any], options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        dream(tiny_world(**world), tmp_path / "agent.zip", config=small(**options), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_settings_out_of_range_are_refused() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"steps": 0}, "steps must be at least 1"),
        ({"first_horizon": 200}, "first_horizon must be at most the horizon 60"),
        ({"curriculum": 1.5}, "curriculum must be a share"),
        ({"entropy_penalty": -1.0}, "entropy_penalty must be finite and at least 0"),
        ({"discount": 1.0}, "discount must lie between 0 and 1"),
        ({"patience": -1}, "patience must be at least 0"),
        ({"algorithm": "a2c"}, r"algorithm must be one of \['ppo', 'sac', 'dqn'\]"),
    )
    for options, match in wrong:
        with pytest.raises(ValueError, match=match):
            DreamConfig(**options)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    world, path = tiny_world(), tmp_path / "agent.zip"
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        dream(world, tmp_path / "agent.pt", config=small())
    with pytest.raises(ValueError, match="does not fit the world"):
        dream(world, path, config=small(), env=Glow(size=8))
    with pytest.raises(FileNotFoundError, match=r"no .*agent\.json"):
        dream(world, path, config=small(), resume=True)
    assert dream(world, tmp_path / "agent", config=small(steps=32), progress=False).agent == path
    with pytest.raises(FileExistsError, match="resume it, remove it"):
        dream(world, path, config=small())
    with pytest.raises(ValueError, match="trained with stack 2, which cannot change in between; got 3"):
        dream(world, path, config=small(stack=3), resume=True)
    with pytest.raises(ValueError, match=r"fingerprint .*; restore the world that it was trained in"):
        DreamedPolicy.load(path, tiny_world(seed=1))
    with pytest.raises(ValueError, match="whose name it does not know"):
        DreamedPolicy.load(path)
    policy = DreamedPolicy.load(path, world)
    with pytest.raises(ValueError, match=r"frames of shape \(16, 16, 3\), got \(8, 8, 3\)"):
        policy(np.zeros((8, 8, 3), np.uint8), {}, np.random.default_rng(0))
    frames, box = spaces.Box(0, 255, (16, 16, 3), np.uint8), spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy.check_fits(frames, box)
    with pytest.raises(ValueError, match=r"the policy acts in Box.*the environment in Discrete"):
        policy.check_fits(frames, spaces.Discrete(4))
    with pytest.raises(ValueError, match="make it with the size that was recorded"):
        policy.check_fits(spaces.Box(0, 255, (8, 8, 3), np.uint8), box)
    path.with_suffix(".json").write_text('{"format": 1, "fingerprint": "f"}')
    with pytest.raises(ValueError, match=r"cannot read .*agent\.json"):
        DreamedPolicy.load(path, world)


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_trains_goes_on_and_its_policy_collects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Glow-v0", EnvSpec("Glow-v0", entry_point="test_acting:Glow"))
    save(tiny_world(), tmp_path / "run")
    agent = tmp_path / "agent.zip"
    words = ["dream", str(tmp_path / "run"), "--out", str(agent), "--env", "Glow-v0", "--json"]
    numbers = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more = [*numbers, "--settings", json.dumps(PPO["settings"]), "--tensorboard", str(tmp_path / "curves")]
    assert cli.main([*words, *more, "--steps", "32"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["agent"], result["steps"], result["best_step"]) == (str(agent), 32, 32)
    assert len(result["history"][0]["real_returns"]) == 2
    assert list((tmp_path / "curves").rglob("events*"))
    assert cli.main([*words, *more]) == 1 and "resume it" in capsys.readouterr().err
    assert cli.main([*words, *more, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 64
    collect("Glow-v0", out=tmp_path / "data", episodes=2, policy=str(agent), size=16, progress=False)
    assert cli.main([*words, *more[:-4], "--settings", "n_steps"]) == 1
    assert "--settings must be a JSON object" in capsys.readouterr().err
