"""The learned environments: Gymnasium's contract, seeds, batches, ends of episodes, and bad input."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import box_space, tiny_world, world_that_ends
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import worldflow.envs
from worldflow.checkpoint import save
from worldflow.envs import LearnedEnv, LearnedVectorEnv
from worldflow.world import Contexts, WorldModel

ID = "worldflow/Learned-v0"
STEP_INFO = {
    "log_prob",
    "log_prob_frame",
    "log_prob_reward",
    "log_prob_terminated",
    "entropy_frame",
    "reward_mean",
    "termination_prob",
}
# Alone and in a batch, sums are rounded differently (1e-7), which may move a pixel over a rounding edge, and the Jacobi
# inverse may stop a sweep earlier or later (1e-4 of the latents). Seen over 4 worlds x 500 steps: 1 level, 1.4e-5.
LEVELS, NATS = 1, 1e-3


def endless(**options: Any) -> WorldModel:
    return world_that_ends(1e-9, **options)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return endless()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: WorldModel) -> str:
    return str(save(world, tmp_path_factory.mktemp("runs") / "run"))


def bank(world: WorldModel) -> Contexts:
    assert world.contexts is not None
    return world.contexts


# -- Gymnasium's contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["box", "discrete", "multi_discrete"])
def test_check_env_passes_without_a_warning(action: Any) -> None:
    env = gym.make(ID, world=tiny_world(action=action), render_mode="rgb_array")
    check_env(env.unwrapped)  # a random world, so this holds its draws to its seeds; warnings are errors


def test_makes_from_a_run_in_a_process_that_imported_nothing(run: str, world: WorldModel) -> None:
    code = (
        "import sys, gymnasium as gym\n"
        "env = gym.make('worldflow.envs:worldflow/Learned-v0', world=sys.argv[1])\n"
        "obs, info = env.reset(seed=5)\n"
        "out = env.step(env.action_space.high)\n"
        "print(info['context'], int(obs.sum()), round(out[4]['log_prob'], 3))\n"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code, run], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    env = LearnedEnv(world)
    obs, info = env.reset(seed=5)
    log_prob = env.step(np.ones(2, np.float32))[4]["log_prob"]
    context, total, other = out.stdout.split()
    assert (int(context), int(total)) == (info["context"], int(obs.sum()))
    assert float(other) == pytest.approx(log_prob, rel=NATS)  # another process may use more threads


def test_spec_and_pickle_make_the_same_environment_again(run: str) -> None:
    env = gym.make(ID, world=run, horizon=3)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    frame = env.reset(seed=4)[0]
    for other in (again, twin):
        assert isinstance(other.unwrapped, LearnedEnv) and other.unwrapped.horizon == 3
        np.testing.assert_array_equal(other.reset(seed=4)[0], frame)


def test_make_vec_takes_the_vector_entry_point(run: str) -> None:
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", world=run, max_episode_steps=7)
    assert isinstance(envs, LearnedVectorEnv) and envs.horizon == 7
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert envs.step(envs.action_space.sample())[0] in envs.observation_space


def test_spaces_are_the_recorded_ones() -> None:
    env = LearnedEnv(tiny_world(action="multi_discrete"))
    assert env.action_space == gym.spaces.MultiDiscrete([3, 2], start=[0, 1])
    assert env.observation_space == gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)


def test_a_gray_recording_without_a_channel_axis_is_observed_without() -> None:
    world = endless(channels=1)
    data = dataclasses.replace(world.config.data, observation_space=box_space(0, 255, (16, 16), "uint8"))
    world.config = dataclasses.replace(world.config, data=data)
    env = LearnedEnv(world, render_mode="rgb_array")
    check_env(env, skip_render_check=True, skip_close_check=True)
    frames, actions = bank(world).frames[1, ..., 0], bank(world).actions[1]
    obs, _ = env.reset(options={"frames": frames, "past_actions": actions})
    np.testing.assert_array_equal(obs, frames[-1])
    assert env.step(env.action_space.sample())[0].shape == (16, 16)
    picture = env.render()
    assert picture is not None and picture.shape == (256, 256, 3)
    assert LearnedVectorEnv(world, num_envs=2).reset()[0].shape == (2, 16, 16)


def test_render_enlarges_the_last_frame(world: WorldModel) -> None:
    env, envs = LearnedEnv(world, render_mode="rgb_array"), LearnedVectorEnv(world, num_envs=2, render_mode="rgb_array")
    env.reset(seed=0)
    obs, *_ = env.step(np.zeros(2, np.float32))
    picture = env.render()
    assert picture is not None and picture.shape == (256, 256, 3)
    np.testing.assert_array_equal(picture[::16, ::16], obs)
    np.testing.assert_array_equal(picture[15::16, 15::16], obs)
    observations, _ = envs.reset(seed=0)
    pictures = envs.render()
    assert pictures is not None
    np.testing.assert_array_equal(np.stack(pictures)[:, ::16, ::16], observations)


# -- what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_step_is_the_worlds_own_with_its_exact_likelihood(temperature: float) -> None:
    world = tiny_world()
    env = LearnedEnv(world, temperature=temperature)
    numbers, _ = seeding.np_random(9)
    generator = torch.Generator().manual_seed(int(numbers.integers(2**63)))
    clip = int(numbers.integers(4))
    state = world.start(bank(world).frames[[clip]], bank(world).actions[[clip]], generator=[generator])
    obs, info = env.reset(seed=9)
    assert info == {"context": clip}
    np.testing.assert_array_equal(obs, bank(world).frames[clip, -1])
    action = np.array([0.3, -0.9], np.float32)
    is_ended = False
    while not is_ended:
        transition, state = world.step(state, action[None], generator=[generator], temperature=temperature)
        obs, reward, is_ended, _, info = env.step(action)
        assert transition.frame is not None
        np.testing.assert_array_equal(obs, transition.frame[0])
        assert (reward, is_ended) == (float(transition.reward), bool(transition.terminated))
        assert info["log_prob_frame"] == float(transition.log_prob.frame)
        assert info["log_prob_reward"] == float(transition.log_prob.reward)
        assert info["log_prob_terminated"] == float(transition.log_prob.terminated)
        assert transition.entropy is not None and info["entropy_frame"] == float(transition.entropy)
        assert info["termination_prob"] == float(transition.termination_prob)
        assert info["reward_mean"] == float(transition.reward_mean)
        # a float32 sum of three: a few units in the last place
        parts = info["log_prob_frame"] + info["log_prob_reward"] + info["log_prob_terminated"]
        assert info["log_prob"] == pytest.approx(parts, rel=1e-6)
        assert set(info) == STEP_INFO
    assert torch.equal(env.state.latents, state.latents)


def test_terminations_come_as_often_as_the_world_says() -> None:
    envs = LearnedVectorEnv(world_that_ends(0.3), num_envs=600)
    envs.reset(seed=0)
    _, _, terminated, truncated, infos = envs.step(envs.action_space.sample())
    np.testing.assert_allclose(infos["termination_prob"], 0.3, rtol=1e-5)  # float32 sigmoid
    assert terminated.mean() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 600) ** 0.5)  # five standard errors
    assert not truncated.any()
    log_prob = np.where(terminated, np.log(0.3), np.log(0.7))
    np.testing.assert_allclose(infos["log_prob_terminated"], log_prob, rtol=1e-5)


def test_episodes_are_truncated_at_the_horizon(world: WorldModel) -> None:
    action = np.zeros(2, np.float32)
    env, envs = LearnedEnv(world, horizon=2), LearnedVectorEnv(world, num_envs=2, horizon=2)
    for _ in range(2):  # the count starts anew
        env.reset()
        assert [env.step(action)[2:4] for _ in range(2)] == [(False, False), (False, True)]
        envs.reset()
        ends = [envs.step(np.stack([action] * 2))[2:4] for _ in range(2)]
        np.testing.assert_array_equal(ends, [[[False] * 2] * 2, [[False] * 2, [True] * 2]])


def test_the_default_horizon_is_the_recorded_environments(world: WorldModel) -> None:
    assert LearnedEnv(world).horizon == 200
    recorded = endless()
    data = dataclasses.replace(recorded.config.data, env_spec=json.dumps({"id": "X-v0", "max_episode_steps": 50}))
    recorded.config = dataclasses.replace(recorded.config, data=data)
    assert LearnedEnv(recorded).horizon == 50
    assert LearnedEnv(recorded, horizon=8).horizon == 8
    assert LearnedVectorEnv(recorded, max_episode_steps=60).horizon == 50
    assert LearnedVectorEnv(recorded, max_episode_steps=40).horizon == 40


# -- seeds --------------------------------------------------------------------------------------------------------


def rollout(env: LearnedEnv, seed: int | None, steps: int = 3) -> list[np.ndarray]:
    frames = [env.reset(seed=seed)[0]]
    return frames + [env.step(np.full(2, 0.5, np.float32))[0] for _ in range(steps)]


def test_a_seed_gives_its_episode_again_and_no_seed_goes_on(world: WorldModel) -> None:
    env, other = LearnedEnv(world), LearnedEnv(world)
    first = [*rollout(env, 1), *rollout(env, None)]
    np.testing.assert_array_equal(first, [*rollout(other, 1), *rollout(other, None)])
    np.testing.assert_array_equal(first[:4], rollout(env, 1))
    assert not np.array_equal(first[1:4], first[5:])
    assert not np.array_equal(first[1:4], rollout(env, 2)[1:])
    assert not np.array_equal(rollout(LearnedEnv(world), None)[1:], rollout(LearnedEnv(world), None)[1:])


@pytest.mark.parametrize("make", [LearnedEnv, lambda world: LearnedVectorEnv(world, num_envs=2, horizon=1)])
def test_the_global_generators_and_threads_are_left_alone(world: WorldModel, make: Any) -> None:
    def globals_() -> tuple[Any, ...]:
        legacy = np.random.get_state()
        return random.getstate(), str(legacy), bytes(torch.get_rng_state().numpy()), torch.get_num_threads()

    before = globals_()
    env = make(world)
    env.reset(seed=0)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(env.action_space.shape, np.float32))
    assert globals_() == before


# -- the vector form ----------------------------------------------------------------------------------------------


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, dict):
            assert_same_infos(ours[name], value)
        elif name == "final_obs":
            for mine, other in zip(ours[name], value, strict=True):
                assert (mine is None) == (other is None)
                if other is not None:
                    np.testing.assert_allclose(mine.astype(int), other, rtol=0, atol=LEVELS)
        else:
            assert ours[name].dtype == value.dtype, name
            np.testing.assert_allclose(ours[name], value, rtol=NATS, atol=NATS, err_msg=name)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("action", ["box", "multi_discrete"])
def test_the_vector_form_is_gymnasiums_own_of_single_environments(mode: AutoresetMode, action: Any) -> None:
    world = world_that_ends(0.2, action=action)
    ours = LearnedVectorEnv(world, num_envs=3, horizon=4, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: LearnedEnv(world, horizon=4)] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ours.action_space.seed(0)
    (observation, infos), (other, other_infos) = ours.reset(seed=[5, 8, 6]), theirs.reset(seed=[5, 8, 6])
    np.testing.assert_array_equal(observation, other)
    assert_same_infos(infos, other_infos)
    assert ours.np_random_seed == theirs.np_random_seed
    ends = 0
    for _ in range(10):
        actions = ours.action_space.sample()
        mine, other = ours.step(actions), theirs.step(actions)
        np.testing.assert_allclose(mine[0].astype(int), other[0], rtol=0, atol=LEVELS)
        np.testing.assert_allclose(mine[1], other[1], rtol=NATS, atol=NATS)
        for i in (2, 3):
            np.testing.assert_array_equal(mine[i], other[i])
        assert [part.dtype for part in mine[:4]] == [part.dtype for part in other[:4]]
        assert_same_infos(mine[4], other[4])
        ended = mine[2] | mine[3]
        ends += int(ended.sum())
        if mode is AutoresetMode.DISABLED and ended.any():
            (observation, infos) = ours.reset(options={"reset_mask": ended})
            other, other_infos = theirs.reset(options={"reset_mask": ended})
            np.testing.assert_allclose(observation.astype(int), other, rtol=0, atol=LEVELS)
            assert_same_infos(infos, other_infos)
    assert ends >= 3  # else nothing was shown


def test_int_seeds_count_up(world: WorldModel) -> None:
    envs, env = LearnedVectorEnv(world, num_envs=2), LearnedEnv(world)
    actions = np.full((2, 2), 0.5, np.float32)
    envs.reset(seed=6)
    stepped = [envs.step(actions)[0] for _ in range(3)]
    expected = rollout(env, 7)[1:]
    np.testing.assert_allclose(np.stack(stepped)[:, 1].astype(int), expected, rtol=0, atol=LEVELS)
    assert envs.np_random_seed == (6, 7)


def test_one_model_call_steps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world, calls = endless(), []
    for name in ("start", "step"):
        inner = getattr(world, name)
        monkeypatch.setattr(
            world,
            name,
            lambda *args, inner=inner, name=name, **kw: calls.append((name, len(args[1]))) or inner(*args, **kw),
        )
    envs = LearnedVectorEnv(world, num_envs=5, horizon=2)
    actions = np.zeros((5, 2), np.float32)
    envs.reset(seed=0)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([True, False, False, False, False])})
    envs.step(actions)
    assert calls == [("start", 5), ("step", 5), ("start", 1), ("step", 5)]
    calls.clear()
    actions[1:] = np.nan  # these four are about to start anew: their actions are not looked at
    _, rewards, *_, infos = envs.step(actions)
    assert calls == [("step", 1), ("start", 4)]
    np.testing.assert_array_equal(infos["_log_prob"], [True, False, False, False, False])
    np.testing.assert_array_equal(infos["_context"], [False, True, True, True, True])
    np.testing.assert_array_equal(rewards[1:], 0.0)


# -- pasts --------------------------------------------------------------------------------------------------------


def test_episodes_start_at_the_end_of_every_past_of_the_bank(world: WorldModel) -> None:
    envs = LearnedVectorEnv(world, num_envs=64)
    observations, infos = envs.reset(seed=0)
    assert set(infos["context"]) == {0, 1, 2, 3}  # one is missed with a chance of 4 * 0.75**64 = 4e-8
    np.testing.assert_array_equal(observations, bank(world).frames[infos["context"], -1])


def test_a_past_can_be_named_or_given(world: WorldModel) -> None:
    env, frames, actions = LearnedEnv(world), bank(world).frames, bank(world).actions
    obs, info = env.reset(seed=3, options={"context": 2})
    assert info == {"context": 2}
    named = env.state
    given, info = env.reset(seed=3, options={"frames": frames[2].numpy(), "past_actions": actions[2].numpy()})
    assert info == {}
    np.testing.assert_array_equal(obs, given)
    assert all(torch.equal(a, b) for a, b in zip(named.tensors().values(), env.state.tensors().values(), strict=True))
    obs, _ = env.reset(options={"frames": frames[1, :1]})
    np.testing.assert_array_equal(obs, frames[1, 0])
    assert int(env.state.count) == 1

    envs = LearnedVectorEnv(world, num_envs=2)
    for options in ({"context": [3, 1]}, {"frames": frames[[3, 1]], "past_actions": actions[[3, 1]]}):
        np.testing.assert_array_equal(envs.reset(options=options)[0], frames[[3, 1], -1])
    for options in ({"context": 2}, {"frames": frames[2], "past_actions": actions[2]}):
        np.testing.assert_array_equal(envs.reset(options=options)[0], frames[[2, 2], -1])
    envs.reset(options={"context": 0})
    options = {"context": [3, 1], "reset_mask": np.array([False, True])}
    np.testing.assert_array_equal(envs.reset(options=options)[0], frames[[0, 1], -1])
    assert "reset_mask" in options  # the caller's own
    options = {"frames": frames[[3, 2]], "past_actions": actions[[3, 2]], "reset_mask": np.array([False, True])}
    np.testing.assert_array_equal(envs.reset(options=options)[0], frames[[0, 2], -1])


def test_a_bank_can_be_given() -> None:
    world = endless(contexts=0)
    with pytest.raises(ValueError, match="contexts="):
        LearnedEnv(world).reset()
    other = bank(endless(seed=1, contexts=1))
    obs, info = LearnedEnv(world, contexts=other).reset()
    assert info == {"context": 0}
    np.testing.assert_array_equal(obs, other.frames[0, -1])
    with pytest.raises(
        ValueError, match=r"frames \(clip, past \+ 1, 16, 16, 3\).*got \(1, 3, 16, 16, 3\) and \(1, 3, 2\)"
    ):
        LearnedEnv(world, contexts=dataclasses.replace(other, actions=torch.zeros(1, 3, 2)))
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 16, 3\)"):
        LearnedEnv(world, contexts=dataclasses.replace(other, frames=other.frames[:, :, :8]))


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("box", np.zeros(3, np.float32), r"shape \(1, 2\), got float32 of shape \(1, 3\)"),
        ("box", np.array([0.0, np.nan]), "finite"),
        ("box", np.array([0.0, 1.5]), r"lie in \[-1.0, -1.0\]..\[1.0, 1.0\], got"),
        ("box", np.array([0.0, 1e300]), "finite"),
        ("box", None, "numbers"),
        ("box", ["left", "right"], "numbers"),
        ("discrete", 4, r"lie in 0..3, got \[4\]"),
        ("discrete", 1.0, "whole numbers"),
        ("discrete", [1], r"shape \(1,\), got int64 of shape \(1, 1\)"),
        ("multi_discrete", [0, 0], r"lie in \[0, 1\]..\[2, 2\]"),
    ],
)
def test_bad_actions_are_named_and_move_nothing(kind: Any, action: Any, message: str) -> None:
    env = LearnedEnv(tiny_world(action=kind))
    env.reset(seed=0)
    before = env.snapshot().to_bytes()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.snapshot().to_bytes() == before


def test_actions_of_another_number_type_are_taken(world: WorldModel) -> None:
    env = LearnedEnv(world)
    outcomes = []
    for action in ([1, 0], np.array([1.0, 0.0]), np.array([1, 0], np.float16)):
        env.reset(seed=0)
        outcomes.append(env.step(action)[1])
    assert outcomes == outcomes[:1] * 3


def test_steps_before_and_after_an_episode_are_refused(world: WorldModel) -> None:
    action = np.zeros(2, np.float32)
    env = LearnedEnv(world, horizon=1, render_mode="rgb_array")
    for call in (lambda: env.step(action), env.render, lambda: env.state):
        with pytest.raises(ResetNeeded, match=r"reset\(\)"):
            call()
    env.reset()
    env.step(action)
    with pytest.raises(ResetNeeded, match="has ended"):
        env.step(action)
    envs = LearnedVectorEnv(world, num_envs=2, horizon=1, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="reset"):
        envs.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ResetNeeded, match="first reset must start all 2"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()
    envs.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ResetNeeded, match="has ended"):
        envs.step(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"contexts": 1}, ValueError, r"no options \['contexts'\]; it takes \['context'"),
        ({"context": 4}, ValueError, r"0\.\.3"),
        ({"context": -1}, ValueError, r"0\.\.3"),
        ({"context": True}, ValueError, "index"),
        ({"context": [0, 1]}, ValueError, "index"),
        ({"context": 0, "frames": np.zeros((1, 16, 16, 3), np.uint8)}, ValueError, "twice"),
        ({"past_actions": np.zeros((1, 2))}, ValueError, "without 'frames'"),
        ({"frames": np.zeros((1, 8, 16, 3), np.uint8)}, ValueError, r"\(past \+ 1, 16, 16, 3\).*got \(1, 8, 16, 3\)"),
        ({"frames": np.zeros((1, 16, 16, 3))}, TypeError, "uint8"),
        ({"frames": np.zeros((2, 16, 16, 3), np.uint8)}, ValueError, "1 past actions"),
        (
            {"frames": np.zeros((2, 16, 16, 3), np.uint8), "past_actions": np.zeros((2, 2))},
            ValueError,
            r"shape \(1, 2\).*got float64 of shape \(2, 2\)",
        ),
        ({"frames": np.zeros((2, 16, 16, 3), np.uint8), "past_actions": np.full((1, 2), np.nan)}, ValueError, "NaN"),
        ({"reset_mask": np.array([True])}, ValueError, "reset_mask"),
    ],
)
def test_bad_pasts_are_named(world: WorldModel, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LearnedEnv(world).reset(options=options)


@pytest.mark.parametrize(
    ("reset", "error", "message"),
    [
        ({"seed": [1, 2, 3]}, ValueError, "one seed or 2"),
        ({"options": {"reset_mask": [True, False]}}, TypeError, "NumPy array of bool, got list"),
        ({"options": {"reset_mask": np.array([1, 0])}}, TypeError, "int64"),
        ({"options": {"reset_mask": np.array([True])}}, ValueError, "2 bools"),
        ({"options": {"reset_mask": np.array([False, False])}}, ValueError, "at least one"),
        ({"options": {"context": [0, 1, 2]}}, ValueError, "or 2 of them"),
    ],
)
def test_bad_vector_resets_are_named(
    world: WorldModel, reset: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LearnedVectorEnv(world, num_envs=2).reset(**reset)


def test_vector_actions_must_be_one_for_each(world: WorldModel) -> None:
    envs = LearnedVectorEnv(world, num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 2\), got \(3, 2\)"):
        envs.step(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
        ({"horizon": 2.5}, "horizon"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"render_mode": "human"}, "render_mode"),
        ({"device": "meta"}, "given world is on cpu"),
    ],
)
def test_bad_arguments_are_named(world: WorldModel, arguments: dict[str, Any], message: str) -> None:
    for kind in (LearnedEnv, LearnedVectorEnv):
        with pytest.raises(ValueError, match=message):
            kind(world, **arguments)


def test_other_bad_arguments_are_named(world: WorldModel) -> None:
    with pytest.raises(ValueError, match="num_envs"):
        LearnedVectorEnv(world, num_envs=0)
    with pytest.raises(ValueError, match="max_episode_steps"):
        LearnedVectorEnv(world, max_episode_steps=0)
    with pytest.raises(ValueError, match=r"autoreset_mode must be one of .*'NextStep'"):
        LearnedVectorEnv(world, autoreset_mode="next")
    with pytest.raises(ValueError, match="training mode"):
        LearnedEnv(tiny_world().train())
    with pytest.raises(AttributeError, match="LearntEnv"):
        _ = worldflow.envs.LearntEnv  # pyright: ignore[reportAttributeAccessIssue]


def test_missing_and_damaged_runs_are_told(tmp_path: Path, world: WorldModel) -> None:
    with pytest.raises(FileNotFoundError, match="worldflow train"):
        gym.make(ID, world=str(tmp_path / "nowhere"))
    folder = save(world, tmp_path / "run")
    (folder / "world.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        gym.make_vec(ID, num_envs=2, world=str(folder))
