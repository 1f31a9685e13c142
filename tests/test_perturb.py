"""Labelled anomalies: they act when and only when they say so, and leave nothing behind."""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import worldflow.envs
from worldflow.envs import ANOMALIES, Perturb, PixelTaskEnv

PHYSICAL = [name for name, kind in ANOMALIES.items() if kind.needs_physics]


def make(task: str = "Reacher", **options: Any) -> gym.Env[Any, Any]:
    return gym.make(f"worldflow/{task}-v0", size=16, **options)


def physics(env: gym.Env[Any, Any]) -> PixelTaskEnv:
    assert isinstance(env.unwrapped, PixelTaskEnv)
    return env.unwrapped


def rollout(env: gym.Env[Any, Any], *, steps: int = 12, seed: int | None = 0) -> list[tuple[Any, ...]]:
    """Frame, state, reward and label of a reset and `steps` steps with fixed actions."""
    frame, info = env.reset(seed=seed)
    rows = [(frame, info["state"], 0.0, info.get("anomaly"))]
    generator = np.random.default_rng(0)
    for _ in range(steps):
        assert env.action_space.shape is not None
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        frame, reward, _, _, info = env.step(action)
        rows.append((frame, info["state"], float(reward), info.get("anomaly")))
    return rows


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return bool(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2])


def task_of(anomaly: str) -> str:
    return "HalfCheetah" if anomaly == "gravity" else "Reacher"  # a Reacher moves across gravity and never feels it


@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_nothing_changes_at_the_neutral_strength(anomaly: str) -> None:
    task, neutral = task_of(anomaly), ANOMALIES[anomaly].neutral
    off: dict[str, Any] = {"duration": 0} if neutral is None else {"strength": neutral}
    perturbed, plain = Perturb(make(task), anomaly, start=(1, 5), **off), make(task)
    for seed in (0, None):  # the second reset goes on with the environment's own stream
        for row, expected in zip(rollout(perturbed, seed=seed), rollout(plain, seed=seed), strict=True):
            assert same(row, expected)
            assert row[3] is False


@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_labels_tell_when_it_acts(anomaly: str) -> None:
    task = task_of(anomaly)
    rows = rollout(Perturb(make(task), anomaly, start=4, duration=3))
    plain = rollout(make(task))
    assert [row[3] for row in rows] == [False] * 5 + [True] * 3 + [False] * 5
    assert all(type(row[3]) is bool for row in rows)
    assert all(same(a, b) for a, b in zip(rows[:5], plain[:5], strict=True)), "before its time"
    assert all(not np.array_equal(a[0], b[0]) for a, b in zip(rows[6:8], plain[6:8], strict=True)), "in its time"
    if anomaly in PHYSICAL:
        assert not np.array_equal(rows[5][1], plain[5][1])
    else:  # only what is seen is wrong: the state goes on, and so do the frames after it
        assert all(np.array_equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(rows, plain, strict=True))
        assert all(same(a, b) for a, b in zip(rows[8:], plain[8:], strict=True))


@pytest.mark.parametrize("anomaly", ["gravity", "actuator_gain"])
def test_changed_physics_is_put_back_even_after_an_error(anomaly: str) -> None:
    env = Perturb(make("HalfCheetah"), anomaly, strength=5.0)
    inner = physics(env)
    before = inner.model.opt.gravity.copy(), inner.model.actuator_gainprm.copy()
    seen: list[float] = []
    step = inner.simulator.step

    def watched(action: np.ndarray) -> Any:
        values = inner.model.opt.gravity[2] if anomaly == "gravity" else inner.model.actuator_gainprm[0, 0]
        seen.append(float(values))
        if len(seen) == 3:
            raise RuntimeError("stop")
        return step(action)

    inner.simulator.step = watched
    env.reset(seed=0)
    action = np.zeros(6, np.float32)
    for _ in range(2):
        env.step(action)
    with pytest.raises(RuntimeError, match="stop"):
        env.step(action)
    expected = 5 * (before[0][2] if anomaly == "gravity" else before[1][0, 0])
    assert seen == [expected] * 3
    np.testing.assert_array_equal(inner.model.opt.gravity, before[0])
    np.testing.assert_array_equal(inner.model.actuator_gainprm, before[1])


def test_gravity_scales_free_fall() -> None:
    heights = {}
    for scale in (1.0, 2.0, 0.0):
        env = Perturb(make("HalfCheetah", reset_noise_scale=0.0), "gravity", strength=scale)
        env.reset(seed=0)
        inner = physics(env)
        inner.data.qpos[1] = 5.0  # high above the floor
        env.step(np.zeros(6, np.float32))
        heights[scale] = inner.data.qvel[1]
    # 0.05 s of fall; the torso alone does not fall exactly as the center of mass does, so within a tenth
    assert heights[0.0] == pytest.approx(0.0, abs=1e-3)
    assert heights[1.0] == pytest.approx(-9.81 * 0.05, rel=0.1)
    assert heights[2.0] == pytest.approx(2 * heights[1.0], rel=1e-2)


def test_gain_zero_is_no_action_at_all() -> None:
    dead, plain = Perturb(make(), "actuator_gain", strength=0.0), make()
    dead.reset(seed=0)
    plain.reset(seed=0)
    for _ in range(5):
        state = dead.step(np.ones(2, np.float32))[4]["state"]
        expected = plain.step(np.zeros(2, np.float32))[4]["state"]
        np.testing.assert_array_equal(state, expected)


def test_teleport_jumps_as_far_as_it_says_and_stays_within_limits() -> None:
    env = Perturb(make("InvertedPendulum"), "teleport", strength=0.15, start=0)
    jumps = []
    for seed in range(20):
        _, info = env.reset(seed=seed)
        before = info["state"][:2]
        after = env.step(np.zeros(1, np.float32))[4]["state"][:2]
        jumps.append(np.linalg.norm(after - before))
    # one step of 0.04 s adds at most the speed it started with, 0.01, and little gravity
    np.testing.assert_allclose(jumps, 0.15, atol=0.02)
    far = Perturb(make("InvertedPendulum"), "teleport", strength=50.0, start=0)
    far.reset(seed=0)
    state = far.step(np.zeros(1, np.float32))[4]["state"]
    assert abs(state[0]) < 1.1  # the rail's end is soft


def test_noise_has_the_standard_deviation_asked_for() -> None:
    env = Perturb(Gray(spaces.Box(0, 255, (8, 8, 3), np.uint8)), "sensor_noise", strength=10.0)
    env.reset(seed=0)
    noise = np.stack([env.step(0)[0] for _ in range(50)]).astype(int) - 128
    # 4 standard errors of the mean and of the deviation of n draws; rounding adds 1/12 to the variance
    assert noise.mean() == pytest.approx(0, abs=4 * 10 / np.sqrt(noise.size))
    assert noise.std() == pytest.approx(np.sqrt(100 + 1 / 12), abs=4 * 10 / np.sqrt(2 * noise.size))


def test_a_frozen_frame_is_the_last_good_one() -> None:
    rows = rollout(Perturb(make(), "frozen_frame", start=3, duration=4))
    for t in range(4, 8):
        np.testing.assert_array_equal(rows[t][0], rows[3][0])
    assert not np.array_equal(rows[8][0], rows[3][0])


@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_a_seed_fixes_everything(anomaly: str) -> None:
    env, other = (Perturb(make(task_of(anomaly)), anomaly, start=(0, 8), duration=2) for _ in range(2))
    rollout(other, seed=5)  # a history that must not matter
    first = [rollout(env, seed=1), rollout(env, seed=None)]
    second = [rollout(other, seed=1), rollout(other, seed=None)]
    for a, b in zip(first, second, strict=True):
        assert all(same(x, y) and x[3] == y[3] for x, y in zip(a, b, strict=True))


def test_starts_are_drawn_from_the_whole_range() -> None:
    env = Perturb(make(), "sensor_noise", start=(2, 5), duration=1)
    starts = [[row[3] for row in rollout(env, steps=8, seed=seed)].index(True) - 1 for seed in range(40)]
    assert set(starts) == {2, 3, 4, 5}  # one is missed with probability 4 (3/4)^40 < 1e-4, and seeds are fixed


def test_a_wrapped_task_passes_gymnasiums_checker() -> None:
    import warnings

    with warnings.catch_warnings():
        # check_env asks for the bare environment; a wrapper is what is under test
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(Perturb(make(), "sensor_noise"), skip_render_check=True)


def test_the_specification_rebuilds_it() -> None:
    env = Perturb(make(), "teleport", strength=0.2, start=(1, 3))
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, Perturb)
    assert all(same(a, b) and a[3] == b[3] for a, b in zip(rollout(env), rollout(again), strict=True))


class Gray(gym.Env[Any, Any]):
    """Pictures without physics."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full((8, 8, 3), 128, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full((8, 8, 3), 128, np.uint8), 0.0, False, False, {}


def test_pictures_of_any_environment_can_be_spoiled() -> None:
    env = Perturb(Gray(spaces.Box(0, 255, (8, 8, 3), np.uint8)), "sensor_noise")
    env.reset(seed=0)
    frame, *_, info = env.step(0)
    assert frame in env.observation_space
    assert frame.std() > 10
    assert info["anomaly"] is True


@pytest.mark.parametrize("anomaly", PHYSICAL)
def test_physics_needs_mujoco(anomaly: str) -> None:
    with pytest.raises(ValueError, match="needs a MuJoCo environment"):
        Perturb(Gray(spaces.Box(0, 255, (8, 8, 3), np.uint8)), anomaly)


def test_wrong_arguments_are_named() -> None:
    env = make()
    with pytest.raises(ValueError, match="did you mean 'sensor_noise'"):
        Perturb(env, "sensor_nois")
    with pytest.raises(ValueError, match="give its duration"):
        Perturb(env, "frozen_frame", strength=2.0)
    with pytest.raises(ValueError, match="start must be"):
        Perturb(env, "gravity", start=(5, 2))
    with pytest.raises(ValueError, match="start must be"):
        Perturb(env, "gravity", start=-1)
    with pytest.raises(ValueError, match="duration must not be negative"):
        Perturb(env, "gravity", duration=-1)
    with pytest.raises(ValueError, match="strength must be finite"):
        Perturb(env, "gravity", strength=float("nan"))
    with pytest.raises(ValueError, match="must not be negative"):
        Perturb(env, "sensor_noise", strength=-1.0)
    with pytest.raises(ValueError, match="uint8 pictures"):
        Perturb(Gray(spaces.Box(0.0, 1.0, (3,), np.float32)), "sensor_noise")
    with pytest.raises(ValueError, match="gravity is zero"):
        Perturb(make("Pusher"), "gravity")
    with pytest.raises(gym.error.ResetNeeded):
        Perturb(make(), "gravity").step(np.zeros(2, np.float32))


def test_anomalies_are_described() -> None:
    assert set(ANOMALIES) == {"gravity", "actuator_gain", "teleport", "sensor_noise", "frozen_frame"}
    assert worldflow.envs.Anomaly is type(ANOMALIES["gravity"])
    assert all(kind.description for kind in ANOMALIES.values())
