"""Pixel tasks: Gymnasium's own numbers, frames of the right kind, and any other environment as pictures."""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from worldflow.envs import TASKS, PixelObservation, PixelTaskEnv
from worldflow.envs.tasks import resize_frame


@contextmanager
def quiet() -> Iterator[None]:
    """Only what cannot apply is let through, everything else stays an error."""
    with warnings.catch_warnings():
        # The action spaces are those of v5, [-3, 3] and [-2, 2]: other units would be other tasks.
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space.*")
        yield


def pixels(task: str, **options: Any) -> gym.Env[Any, Any]:
    return gym.make(f"worldflow/{task}-v0", **options)


def inside(env: gym.Env[Any, Any]) -> PixelTaskEnv:
    assert isinstance(env.unwrapped, PixelTaskEnv)
    return env.unwrapped


@contextmanager
def own_v5(task: str) -> Iterator[gym.Env[Any, Any]]:
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)  # keeps half_cheetah.xml's deprecation out of a log file
    try:
        yield gym.make(f"{task}-v5")
    finally:
        mujoco.set_mju_user_warning(before)


@pytest.mark.parametrize("task", TASKS)
def test_gymnasiums_checker_has_nothing_to_say(task: str) -> None:
    with quiet():
        check_env(pixels(task, render_mode="rgb_array", render_size=32).unwrapped)


@pytest.mark.parametrize("task", TASKS)
def test_same_numbers_as_the_environment_inside(task: str) -> None:
    env = pixels(task)
    with own_v5(task) as v5:
        assert env.spec is not None
        assert v5.spec is not None
        assert env.spec.max_episode_steps == v5.spec.max_episode_steps
        assert env.action_space == v5.action_space
        v5.action_space.seed(1)
        ends = 0
        for seed in (7, None, 8):
            frame, info = env.reset(seed=seed)
            state, expected = v5.reset(seed=seed)
            assert frame in env.observation_space
            np.testing.assert_array_equal(info.pop("state"), state)
            assert info == expected
            for _ in range(120):
                action = v5.action_space.sample()
                frame, *rest, info = env.step(action)
                state, *expected_rest, expected = v5.step(action)
                assert frame in env.observation_space
                assert info["state"].dtype == np.float64
                np.testing.assert_array_equal(info.pop("state"), state)
                assert info == expected
                assert rest == expected_rest  # reward, terminated, truncated: equal to the last bit
                if rest[1] or rest[2]:
                    ends += 1
                    break
        assert ends == (0 if task == "HalfCheetah" else 3)
        assert env.np_random.bit_generator.state == v5.np_random.bit_generator.state


@pytest.mark.parametrize("task", TASKS)
def test_frames_show_the_state_and_nothing_else(task: str) -> None:
    first, second = pixels(task), pixels(task)
    first.action_space.seed(0)
    a, _ = first.reset(seed=3)
    b, _ = second.reset(seed=3)
    frames = [a]
    np.testing.assert_array_equal(a, b)
    for _ in range(6):
        action = first.action_space.sample()
        a, b = first.step(action)[0], second.step(action)[0]
        np.testing.assert_array_equal(a, b)
        frames.append(a)
    assert all(np.any(before != after) for before, after in pairwise(frames))
    colors = frames[0].reshape(-1, 3).astype(int)
    assert np.ptp(colors, axis=0).max() > 100, "too little contrast to learn from"


def place(env: gym.Env[Any, Any], qpos: dict[int, float]) -> np.ndarray:
    import mujoco

    inner = inside(env)
    inner.data.qpos[:] = 0.0
    for index, value in qpos.items():
        inner.data.qpos[index] = value
    mujoco.mj_forward(inner.model, inner.data)
    return inner.camera.cast(inner.data).geom


def is_whole(mask: np.ndarray) -> bool:
    """Visible, and not cut by the picture's border."""
    return bool(mask.any() and not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()))


def test_the_cart_is_in_sight_all_along_its_rail() -> None:
    env = pixels("InvertedPendulum")
    env.reset(seed=0)
    model = inside(env).model
    for x in (-1.0, 0.0, 1.0):
        for angle in (-0.2, 0.2):
            geoms = place(env, {0: x, 1: angle})
            for name in ("cart", "cpole"):
                assert is_whole(geoms == model.geom(name).id), (name, x, angle)


def test_the_reachers_target_and_reach_are_in_sight() -> None:
    env = pixels("Reacher")
    env.reset(seed=0)
    model = inside(env).model
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        geoms = place(env, {0: angle, 2: 0.2 * np.cos(angle + 0.5), 3: 0.2 * np.sin(angle + 0.5)})
        assert is_whole(geoms == model.geom("fingertip").id)
        target = geoms == model.geom("target").id
        assert is_whole(target)
        assert target.sum() >= 4
        assert not np.isin(geoms, [model.geom(name).id for name in ("sideN", "sideE", "sideS", "sideW")]).any()


def test_the_pushers_object_and_goal_are_in_sight() -> None:
    env = pixels("Pusher")
    env.reset(seed=0)
    model = inside(env).model
    for y in (-0.3, 0.0):
        for x in (-0.2, 0.2):
            geoms = place(env, {7: y, 8: x, 9: 0.0, 10: 0.0})
            for body in ("object", "goal"):
                mask = np.isin(geoms, np.flatnonzero(model.geom_bodyid == model.body(body).id))
                assert is_whole(mask) or body == "goal", (body, x, y)
                assert mask.sum() >= 6, (body, x, y)


def test_the_cheetah_stays_in_the_middle_while_the_floor_moves() -> None:
    env = pixels("HalfCheetah")
    env.reset(seed=0)
    inner = inside(env)
    here = place(env, {0: 0.0})
    frame = inner.camera.render(inner.data)
    there = place(env, {0: 12.3})
    moved = inner.camera.render(inner.data)
    is_cheetah = here > 0
    assert is_whole(is_cheetah)
    assert (is_cheetah != (there > 0)).sum() <= 4  # rays that graze its outline
    assert abs(np.argwhere(is_cheetah)[:, 1].mean() - 31.5) < 4
    on_floor = (here == 0) & (there == 0)
    assert (np.abs(frame.astype(int) - moved)[on_floor].max(axis=-1) > 30).mean() > 0.2
    place(env, {0: 2 * 80 / 60})  # two squares of the floor's 120 on 80 m: the same floor again
    again = inner.camera.render(inner.data)
    assert (np.abs(frame.astype(int) - again).max(axis=-1) > 8).sum() <= 8


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    one, four = pixels("InvertedPendulum"), pixels("InvertedPendulum", action_repeat=4)
    one.reset(seed=0)
    four.reset(seed=0)
    action = np.array([0.4], np.float32)
    lengths = []
    while True:
        frame, reward, terminated, _, info = four.step(action)
        single, total = [one.step(action)], 0.0
        while len(single) < 4 and not single[-1][2]:
            single.append(one.step(action))
        total = sum(float(step[1]) for step in single)
        lengths.append(len(single))
        assert reward == total
        assert terminated == single[-1][2]
        np.testing.assert_array_equal(frame, single[-1][0])
        np.testing.assert_array_equal(info["state"], single[-1][4]["state"])
        if terminated:
            break
    assert lengths[0] == 4
    assert lengths[-1] < 4, "the episode must end within the repeats for the test to show it"
    assert four.metadata["render_fps"] == round(one.metadata["render_fps"] / 4)


def test_sizes_and_rendering_from_the_same_camera() -> None:
    env = pixels("InvertedPendulum", size=32, render_mode="rgb_array", render_size=96)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 32, 3)
    assert env.observation_space.shape == (32, 32, 3)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (96, 96, 3)
    # the same scene: averaging 3 x 3 pixels gives the small frame up to the sampling of outlines
    assert np.abs(resize_frame(picture, 32).astype(int) - frame).mean() < 1.0
    inner = inside(env)
    np.testing.assert_array_equal(frame, inner.camera.render(inner.data))


def test_rendering_without_a_mode_says_so() -> None:
    env = pixels("InvertedPendulum").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


def test_options_reach_the_environment_inside() -> None:
    env = pixels("InvertedPendulum", reset_noise_scale=0.0)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["state"], np.zeros(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a whole number of at least 1, got 0"),
        ({"size": 64.0}, "size must be a whole number"),
        ({"action_repeat": 0}, "action_repeat must be a whole number"),
        ({"render_size": -1}, "render_size must be a whole number"),
        ({"render_mode": "depth"}, "render_mode must be 'rgb_array' or None"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelTaskEnv(task="InvertedPendulum", **options)


def test_unknown_task_lists_the_close_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'Reacher'"):
        PixelTaskEnv(task="Reach")


def test_copies_by_pickle_and_by_spec_behave_alike() -> None:
    env = pixels("Reacher", size=16, action_repeat=2)
    assert env.spec is not None
    copies = [pickle.loads(pickle.dumps(env.unwrapped)), gym.make(env.spec)]
    env.reset(seed=5)
    action = np.array([0.3, -0.7], np.float32)
    frame, *_, info = env.step(action)
    for other in copies:
        other.reset(seed=5)
        again, *_, same = other.step(action)
        np.testing.assert_array_equal(frame, again)
        np.testing.assert_array_equal(info["state"], same["state"])


def test_vector_environments_give_the_single_ones_frames() -> None:
    single = pixels("InvertedPendulum", size=16)
    frame, info = single.reset(seed=1)
    after = single.step(np.array([0.5], np.float32))
    for mode in ("sync", "async"):
        envs = gym.make_vec(
            "worldflow.envs:worldflow/InvertedPendulum-v0", num_envs=2, vectorization_mode=mode, size=16
        )
        try:
            frames, infos = envs.reset(seed=0)
            np.testing.assert_array_equal(frames[1], frame)
            np.testing.assert_array_equal(infos["state"][1], info["state"])
            frames, rewards, *_ = envs.step(np.array([[0.5], [0.5]], np.float32))
            np.testing.assert_array_equal(frames[1], after[0])
            assert rewards[1] == after[1]
        finally:
            envs.close()


def test_every_registered_id_has_its_entry_points_as_strings() -> None:
    own = [spec for name, spec in gym.registry.items() if name.startswith("worldflow/")]
    others = {"worldflow/Learned-v0", "worldflow/MovingShapes-v0"}
    assert {f"worldflow/{task}-v0" for task in TASKS} | others <= {spec.id for spec in own}
    assert all(isinstance(spec.entry_point, str) for spec in own)
    learned = gym.spec("worldflow/Learned-v0")
    assert learned.entry_point == "worldflow.envs.learned:LearnedEnv"
    assert learned.vector_entry_point == "worldflow.envs.learned:LearnedVectorEnv"


@pytest.mark.slow
def test_a_thousand_frames_a_second() -> None:
    import time

    env = pixels("InvertedPendulum")
    env.reset(seed=0)
    best = np.inf
    for _ in range(5):  # the best of several, for the machine may be busy
        began = time.process_time()
        for _ in range(200):
            if env.step(np.zeros(1, np.float32))[2]:
                env.reset()
        best = min(best, (time.process_time() - began) / 200)
    assert best < 1e-3


class Painter(gym.Env[Any, Any]):
    """Observes a counter and renders it as a gray picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as gymnasium declares it
    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space[Any], *, render_mode: str | None = "rgb_array") -> None:
        self.observation_space, self.render_mode = observation_space, render_mode
        self.count = 0

    def _observation(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"count": np.array([self.count], np.float32)}
        shape = self.observation_space.shape or ()
        return np.full(shape, self.count, self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 10
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 10
        return self._observation(), 1.0, self.count >= 40, False, {"deep": self.count}

    def render(self) -> Any:
        return np.full((40, 60, 3), self.count, np.uint8)


def test_any_rendering_environment_becomes_pictures() -> None:
    env = PixelObservation(Painter(spaces.Box(0, 99, (2,), np.float32)), size=16)
    frame, info = env.reset(seed=0)
    assert frame in env.observation_space
    assert np.all(frame == 10)
    np.testing.assert_array_equal(info["state"], np.array([10, 10], np.float32))
    frame, reward, terminated, truncated, info = env.step(0)
    assert np.all(frame == 20)
    assert (reward, terminated, truncated) == (1.0, False, False)
    np.testing.assert_array_equal(info["state"], np.array([20, 20], np.float32))
    assert info["deep"] == 20


def test_pictures_pass_through() -> None:
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    env = PixelObservation(Painter(space, render_mode=None), size=16)
    frame, info = env.reset(seed=0)
    assert env.observation_space == space
    assert np.all(frame == 10)
    assert "state" not in info
    smaller = PixelObservation(Painter(space, render_mode=None), size=8)
    assert smaller.reset(seed=0)[0].shape == (8, 8, 3)


def test_wrapped_task_passes_gymnasiums_checker() -> None:
    with warnings.catch_warnings():
        # check_env asks for the bare environment; a wrapper is what is under test
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(PixelObservation(Painter(spaces.Box(0, 99, (2,), np.float32)), size=16), skip_render_check=True)


def test_environments_without_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        PixelObservation(Painter(spaces.Box(0, 99, (2,), np.float32), render_mode=None))
    space = spaces.Dict({"count": spaces.Box(0, 99, (1,), np.float32)})
    with pytest.raises(ValueError, match="FlattenObservation"):
        PixelObservation(Painter(space))
    with pytest.raises(ValueError, match="size must be at least 1"):
        PixelObservation(Painter(spaces.Box(0, 99, (2,), np.float32)), size=0)


def test_resizing_keeps_areas() -> None:
    generator = np.random.default_rng(0)
    frame = generator.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    blocks = frame[:, :, :].reshape(4, 3, 4, 5, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_frame(frame, 4), np.floor(blocks + 0.5))  # whole blocks: plain means
    uneven = resize_frame(frame, 7).astype(float)
    assert abs(uneven.mean() - frame.mean()) < 0.5  # the mean survives up to rounding to levels
    larger = resize_frame(frame, 60)
    np.testing.assert_array_equal(larger, frame.repeat(5, axis=0).repeat(3, axis=1))
