"""Labelled anomalies: they act when and only when they say so, and leave nothing behind."""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import worldflow.envs
from worldflow.envs import ANOMALIES, Perturb, PixelTaskEnv

PHYSICAL = [name for name, kind in ANOMALIES.items() if kind.needs_physics]
SENSING = [name for name, kind in ANOMALIES.items() if kind.acts_on == "picture"]
TASKS = ("InvertedPendulum", "Reacher", "HalfCheetah")
CANNOT = {("gravity", "Reacher"), ("friction", "Reacher"), ("friction", "InvertedPendulum")}
CANNOT |= {("swapped_axes", "InvertedPendulum")}
CASES = [(name, task) for name in ANOMALIES for task in TASKS if (name, task) not in CANNOT]


def make(task: str = "Reacher", **options: Any) -> gym.Env[Any, Any]:
    return gym.make(f"worldflow/{task}-v0", **{"size": 16, **options})


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
    return next(task for name, task in reversed(CASES) if name == anomaly)


@pytest.mark.parametrize(("anomaly", "task"), CASES)
def test_nothing_changes_at_the_neutral_strength(anomaly: str, task: str) -> None:
    neutral = ANOMALIES[anomaly].neutral
    off: dict[str, Any] = {"duration": 0} if neutral is None else {"strength": neutral}
    perturbed, plain = Perturb(make(task), anomaly, start=(1, 5), **off), make(task)
    for seed in (0, None):  # the second reset goes on with the environment's own stream
        for row, expected in zip(rollout(perturbed, seed=seed), rollout(plain, seed=seed), strict=True):
            assert same(row, expected)
            assert row[3] is False


@pytest.mark.parametrize(("anomaly", "task"), CASES)
def test_labels_tell_when_it_acts(anomaly: str, task: str) -> None:
    kind = ANOMALIES[anomaly]
    rows = rollout(Perturb(make(task, size=32), anomaly, strength="strong", start=4, duration=3))
    plain = rollout(make(task, size=32))
    assert [row[3] for row in rows] == [False] * 5 + [True] * 3 + [False] * 5
    assert all(type(row[3]) is bool for row in rows)
    assert all(same(a, b) for a, b in zip(rows[:5], plain[:5], strict=True)), "before its time"
    in_time, expected = rows[5:8], plain[5:8]
    if kind.acts_on == "reward":
        assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(rows, plain, strict=True))
        assert all(a[2] == b[2] + kind.levels["strong"].strength for a, b in zip(in_time, expected, strict=True))
        assert all(same(a, b) for a, b in zip(rows[8:], plain[8:], strict=True))
    elif kind.acts_on == "picture" or anomaly == "object_gone":
        # Only what is seen is wrong: the state goes on, and so do the frames after it.
        assert any(not np.array_equal(a[0], b[0]) for a, b in zip(in_time, expected, strict=True))
        assert all(np.array_equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(rows, plain, strict=True))
        assert all(same(a, b) for a, b in zip(rows[8:], plain[8:], strict=True))
    elif anomaly == "friction":  # acts through contacts, which an episode of HalfCheetah begins with
        assert not np.array_equal(rows[7][1], plain[7][1])
    else:
        assert not np.array_equal(rows[5][1], plain[5][1])


@pytest.mark.parametrize(("anomaly", "task"), sorted(CANNOT))
def test_what_cannot_act_says_why(anomaly: str, task: str) -> None:
    reason = {"gravity": "across it", "friction": "touch", "swapped_axes": "at least two action components"}
    with pytest.raises(ValueError, match=reason[anomaly]):
        Perturb(make(task), anomaly)


@pytest.mark.parametrize("task", TASKS)
def test_possible_anomalies_are_those_that_can_be_made(task: str) -> None:
    assert worldflow.envs.possible_anomalies(make(task)) == tuple(n for n in ANOMALIES if (n, task) in CASES)


def parameters(model: Any, data: Any) -> dict[str, np.ndarray]:
    """All numbers of a model, and what acts on its bodies from outside."""
    arrays = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    found = {name: value.copy() for name, value in arrays.items() if isinstance(value, np.ndarray)}
    return found | {"gravity": model.opt.gravity.copy(), "xfrc_applied": data.xfrc_applied.copy()}


@pytest.mark.parametrize("anomaly", [name for name in PHYSICAL if name != "teleport"])
def test_changed_physics_is_put_back_even_after_an_error(anomaly: str) -> None:
    env = Perturb(make("HalfCheetah"), anomaly, strength="strong", start=0)
    inner = physics(env)
    before = parameters(inner.model, inner.data)
    seen: list[set[str]] = []
    step = inner.simulator.step

    def watched(action: np.ndarray) -> Any:
        now = parameters(inner.model, inner.data)
        seen.append({name for name, value in now.items() if not np.array_equal(value, before[name])})
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
    changed = {
        "gravity": {"gravity"},
        "mass": {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0"},
        "friction": {"geom_friction"},
        "damping": {"dof_damping"},
        "actuator_gain": {"actuator_gainprm"},
        "wind": {"xfrc_applied"},
        "object_gone": {"geom_rgba"},
    }
    assert seen == [changed[anomaly]] * 3
    after = parameters(inner.model, inner.data)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


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


def test_wind_pushes_as_gravity_would_that_is_tilted() -> None:
    speeds = {}
    for seed in range(6):
        env = Perturb(make("HalfCheetah", reset_noise_scale=0.0), "wind", strength=2.0)
        env.reset(seed=seed)
        inner = physics(env)
        inner.data.qpos[1] = 5.0  # high above the floor
        env.step(np.zeros(6, np.float32))
        mujoco.mj_forward(inner.model, inner.data)  # velocities of bodies are those before the last substep
        mass = inner.model.body_mass
        speeds[seed] = float((mass * inner.data.cvel[:, 3]).sum() / mass.sum())
    # 0.05 s of 2 m/s^2 to one side or the other
    np.testing.assert_allclose(np.abs(list(speeds.values())), 0.1, rtol=1e-6)
    assert {np.sign(v) for v in speeds.values()} == {-1.0, 1.0}


def test_mass_slows_what_a_motor_moves() -> None:
    moved = {}
    for scale in (1.0, 4.0):
        env = Perturb(make("InvertedPendulum", reset_noise_scale=0.0), "mass", strength=scale)
        env.reset(seed=0)
        moved[scale] = env.step(np.ones(1, np.float32))[4]["state"][2]
    # The cart starts from rest under one force against inertia and a damping that has hardly begun to act.
    assert moved[1.0] / moved[4.0] == pytest.approx(4.0, rel=0.1)


class Listening(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the actions that were carried out."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.heard: list[np.ndarray] = []

    def step(self, action: Any) -> Any:
        self.heard.append(np.array(action))
        return self.env.step(action)


def carried_out(anomaly: str, asked: np.ndarray, **options: Any) -> tuple[np.ndarray, list[bool]]:
    """What was done when `asked` was asked for in a Reacher, and its labels."""
    inner = Listening(make())
    env = Perturb(inner, anomaly, **options)
    env.reset(seed=0)
    labels = [env.step(action)[4]["anomaly"] for action in asked]
    return np.array(inner.heard), labels


def test_late_lost_biased_and_swapped_actions() -> None:
    asked = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    done, labels = carried_out("action_delay", asked, strength=2, start=1, duration=5)
    np.testing.assert_array_equal(done, np.stack([asked[0], 0 * asked[0], *asked[:4], *asked[6:]]))
    assert labels == [False] + [True] * 5 + [False] * 2

    done, labels = carried_out("action_bias", asked, strength=0.5)
    np.testing.assert_allclose(done, np.clip(asked + 0.5, -1, 1), rtol=1e-6)

    done, _ = carried_out("swapped_axes", asked, strength="strong")
    np.testing.assert_array_equal(done, asked[:, ::-1])
    done, _ = carried_out("swapped_axes", asked, strength=0.5)
    np.testing.assert_allclose(done, np.repeat(asked.mean(1, keepdims=True), 2, axis=1), rtol=1e-5, atol=1e-7)

    asked = np.ones((200, 2), np.float32)
    done, labels = carried_out("action_drop", asked[:40], strength=0.5)
    assert [bool(label) for label in labels] == [not row.any() for row in done]
    assert 8 < sum(labels) < 32  # 20 are expected, 12 are four standard deviations


def test_an_action_that_comes_out_as_asked_is_not_labelled() -> None:
    still = np.zeros((4, 2), np.float32)
    assert carried_out("action_drop", still, strength=1.0)[1] == [False] * 4
    assert carried_out("action_delay", still, strength=1)[1] == [False] * 4
    assert carried_out("action_bias", still + 1, strength=0.5)[1] == [False] * 4  # already at its bound


def shown(anomaly: str, picture: np.ndarray, *, seed: int = 0, **options: Any) -> np.ndarray:
    """One affected frame of an environment that always shows `picture`."""
    env = Perturb(Gray(spaces.Box(0, 255, picture.shape, np.uint8), picture), anomaly, **options)
    env.reset(seed=seed)
    return env.step(0)[0]


def test_pictures_are_spoiled_as_described() -> None:
    point = np.zeros((15, 15, 3), np.uint8)
    point[7, 7] = 255
    blurred = shown("blur", point, strength=1.0)[..., 0]
    assert blurred[7, 7] == round(255 * 0.3991**2)  # a normal density at 0, in two directions
    assert blurred[7, 8] == round(255 * 0.3991**2 * np.exp(-0.5))
    np.testing.assert_array_equal(blurred, blurred.T)

    white = np.full((20, 10, 3), 255, np.uint8)
    places = set()
    for seed in range(8):
        hidden = shown("occlusion", white, seed=seed, strength=0.3)[..., 0] == 0
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden.sum() == 9 and len(rows) == len(columns) == 3
        places.add((rows[0], columns[0]))
    assert len(places) > 2

    gray = np.full((4, 4, 3), 100, np.uint8)
    assert shown("color", gray, strength=0.3)[0, 0].tolist() == [130, 100, 70]
    assert not shown("dropped_frame", gray, strength=1.0).any()

    ramp = np.tile(np.arange(10, dtype=np.uint8)[:, None, None], (1, 10, 3))
    moved = {tuple(shown("camera_shift", ramp, seed=seed, strength=0.2)[:, 0, 0].tolist()) for seed in range(12)}
    assert moved == {(2, 3, 4, 5, 6, 7, 8, 9, 9, 9), (0, 0, 0, 1, 2, 3, 4, 5, 6, 7)}


def test_every_level_is_named_and_within_bounds() -> None:
    for name, kind in ANOMALIES.items():
        assert list(kind.levels) == ["weak", "middle", "strong"]
        env = make(task_of(name))
        distances = []
        for level in kind.levels.values():
            assert level.strength is None or kind.bounds[0] <= level.strength <= kind.bounds[1]
            assert level.strength is None or level.strength != kind.neutral
            far = level.strength - (kind.neutral or 0.0) if level.strength is not None else level.duration
            distances.append(np.inf if far is None else abs(far))
        assert distances == sorted(set(distances)), "each level is farther from normal than the one before"
        assert Perturb(env, name).strength == Perturb(env, name, strength="middle").strength == kind.strength
        assert Perturb(env, name, strength="weak").duration == kind.levels["weak"].duration
    with pytest.raises(ValueError, match="did you mean 'strong'"):
        Perturb(make(), "blur", strength="stron")


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

    def __init__(self, observation_space: spaces.Space[Any], picture: np.ndarray | None = None) -> None:
        self.observation_space = observation_space
        self.picture = np.full((8, 8, 3), 128, np.uint8) if picture is None else picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.picture.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.picture.copy(), 0.0, False, False, {}


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
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, got 1\.5"):
        Perturb(env, "action_drop", strength=1.5)
    with pytest.raises(ValueError, match="whole number of steps"):
        Perturb(env, "action_delay", strength=1.5)
    with pytest.raises(ValueError, match="float Box"):
        Perturb(Gray(spaces.Box(0, 255, (8, 8, 3), np.uint8)), "action_drop")
    with pytest.raises(ValueError, match="three channels"):
        Perturb(Gray(spaces.Box(0, 255, (8, 8, 1), np.uint8)), "color")
    with pytest.raises(ValueError, match="gravity is zero"):
        Perturb(make("Pusher"), "gravity")
    with pytest.raises(gym.error.ResetNeeded):
        Perturb(make(), "damping").step(np.zeros(2, np.float32))


def test_anomalies_are_described() -> None:
    assert len(ANOMALIES) == 20
    assert worldflow.envs.Anomaly is type(ANOMALIES["gravity"])
    assert all(kind.description for kind in ANOMALIES.values())
