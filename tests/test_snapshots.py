"""Snapshots: a moment is a value; it replays bit for bit, branches without copies, and travels."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from worldflow.envs import LearnedEnv, LearnedVectorEnv
from worldflow.envs.snapshots import Snapshot
from worldflow.world import WorldModel

ACTION = np.array([0.1, 0.2], np.float32)
LEVELS = 1  # sums of a batch are rounded differently, see test_learned.py


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return world_that_ends(1e-9)


def future(env: LearnedEnv, steps: int = 6) -> list[Any]:
    """What happens next, new episodes included."""
    seen = []
    for _ in range(steps):
        obs, *rest = env.step(ACTION)
        seen.append((obs.tolist(), *rest))
        if rest[1] or rest[2]:
            obs, info = env.reset()
            seen.append((obs.tolist(), info))
    return seen


def vector_future(envs: LearnedVectorEnv, steps: int = 6) -> list[Any]:
    return [envs.step(np.stack([ACTION] * envs.num_envs)) for _ in range(steps)]


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, whatever is inside what."""
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(one, other)


ELSEWHERE = """
import pickle, sys
import numpy as np
import torch
from worldflow.envs import LearnedEnv

torch.set_num_threads(1)
world, moment = pickle.load(sys.stdin.buffer)
env = LearnedEnv(world, horizon=3)
env.restore(moment)
seen = [env.step(np.array([0.1, 0.2], np.float32)) for _ in range(2)]
pickle.dump((seen, env.snapshot()), sys.stdout.buffer)
"""
"""A program of another process: it goes on from a moment for two steps, to the episode's end."""


@pytest.mark.parametrize("options", [{}, {"observation": "latent"}, {"guidance": 1.0}])
def test_a_moment_replays_exactly_and_continues_its_streams(world: WorldModel, options: dict[str, Any]) -> None:
    env = LearnedEnv(world, horizon=3, **options)
    env.reset(seed=2)
    obs = env.step(ACTION)[0]
    moment, latents = env.snapshot(), env.state.latents.clone()
    expected = future(env)
    assert any(len(seen) == 2 for seen in expected)  # an end among them
    assert torch.equal(moment.state.latents, latents)
    np.testing.assert_array_equal(env.restore(moment), obs)
    assert future(env) == expected
    other = LearnedEnv(world, horizon=3, **options)
    other.restore(pickle.loads(pickle.dumps(moment)))
    assert future(other) == expected


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_batch_replays_exactly(mode: AutoresetMode) -> None:
    envs = LearnedVectorEnv(world_that_ends(0.3), num_envs=3, horizon=3, autoreset_mode=mode)
    envs.reset(seed=0)
    vector_future(envs, 2)
    moment = envs.snapshot()
    expected = vector_future(envs)
    envs.restore(moment)
    assert_equal(vector_future(envs), expected)


def test_a_moment_goes_to_another_process(world: WorldModel) -> None:
    env = LearnedEnv(world, horizon=3)
    env.reset(seed=2)
    env.step(ACTION)
    sent = pickle.dumps((world, env.snapshot()))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=sent, capture_output=True, timeout=300, check=True)
    seen, end = pickle.loads(done.stdout)
    assert_equal(seen, [env.step(ACTION) for _ in range(2)])
    assert seen[-1][3]  # truncated there, too
    assert end.to_bytes() == env.snapshot().to_bytes()


def test_rows_are_picked_repeated_and_joined(world: WorldModel) -> None:
    env, envs = LearnedEnv(world), LearnedVectorEnv(world, num_envs=3)
    envs.reset(seed=5)
    frames = vector_future(envs, 2)[-1][0]
    moment = envs.snapshot()
    assert len(moment) == 3 and len(moment[1]) == len(moment[-1]) == 1 and len(moment[[0, 2]]) == 2
    np.testing.assert_array_equal(env.restore(moment[2]), frames[2])
    assert env.snapshot().to_bytes() == moment[2].to_bytes() == moment[[1, 2]][1].to_bytes()
    assert Snapshot.cat([moment[0], moment[1:]]).to_bytes() == moment.to_bytes()
    twins = LearnedVectorEnv(world, num_envs=6)
    np.testing.assert_array_equal(twins.restore(moment.repeat(2)), frames[[0, 0, 1, 1, 2, 2]])
    for step in vector_future(twins, 3):  # the same random numbers
        np.testing.assert_array_equal(step[0][::2], step[0][1::2])


def test_branches_share_the_past_until_they_step(world: WorldModel) -> None:
    env = LearnedEnv(world)
    env.reset(seed=0)
    obs = env.step(ACTION)[0]
    before = env.snapshot().to_bytes()
    branches = env.branch(50)
    assert branches.num_envs == 50
    for name, tensor in branches.state.tensors().items():
        mine = env.state.tensors()[name]
        assert tensor.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr(), name
        assert tensor.untyped_storage().nbytes() == mine.untyped_storage().nbytes()
    np.testing.assert_array_equal(branches.snapshot().frames, obs[None].repeat(50, 0))
    frames = vector_future(branches, 1)[0][0]
    assert len(np.unique(frames.reshape(50, -1), axis=0)) == 50  # random streams of their own
    assert env.snapshot().to_bytes() == before
    assert_equal(vector_future(env.branch(3), 2), vector_future(env.branch(3), 2))
    different = env.branch(3, seed=1), env.branch(3, seed=2)
    assert not np.array_equal(*(vector_future(one, 1)[0][0] for one in different))


def test_a_branch_runs_as_a_single_environment_would(world: WorldModel) -> None:
    env, alone = LearnedEnv(world, horizon=8), LearnedEnv(world, horizon=8)
    env.reset(seed=0)
    env.step(ACTION)
    branches = env.branch(4, seed=3, autoreset_mode="Disabled")
    alone.restore(branches.snapshot()[2])
    truncated = False
    for step in vector_future(branches, 7):
        obs, _, _, truncated, _ = alone.step(ACTION)
        np.testing.assert_allclose(step[0][2].astype(int), obs, rtol=0, atol=LEVELS)
        assert truncated == step[3][2]
    assert truncated  # its eighth step


def test_branches_of_a_batch_stand_side_by_side(world: WorldModel) -> None:
    envs = LearnedVectorEnv(world, num_envs=2, observation="latent")
    seen, _ = envs.reset(seed=0)
    branches = envs.branch(3)
    np.testing.assert_array_equal(branches.restore(branches.snapshot()), seen[[0, 0, 0, 1, 1, 1]])
    assert branches.single_observation_space == envs.single_observation_space


def test_moments_that_do_not_fit_are_refused(world: WorldModel) -> None:
    env, envs = LearnedEnv(world), LearnedVectorEnv(world, num_envs=2)
    with pytest.raises(ResetNeeded, match="reset"):
        env.snapshot()
    env.reset(seed=0)
    moment = env.snapshot()
    saved = moment.to_bytes()
    for data in (b"", b"junk", saved[: len(saved) // 2], pickle.dumps(1)):
        with pytest.raises(ValueError, match="hold no snapshot"):
            Snapshot.from_bytes(data)
    with pytest.raises(ValueError, match="another world's"):
        LearnedEnv(tiny_world(window=4)).restore(moment)
    with pytest.raises(ValueError, match=r"snapshot of 2 environments, got one of 1; .*repeat"):
        envs.restore(moment)
    with pytest.raises(ValueError, match="3 seeds"):
        moment.repeat(3).reseeded([1])
    assert env.snapshot().to_bytes() == saved
