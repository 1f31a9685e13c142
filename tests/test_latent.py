"""Real frames seen as a dream shows them: the same tokens, stacked by the same rule."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from gymnasium import spaces

from worldflow.envs import LearnedEnv
from worldflow.envs.latent import FrameReader, FrameStack, LatentObservation


class Replay(gym.Env[np.ndarray, np.ndarray]):
    """Shows given frames one after the other, whatever is done; the last one ends the episode."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, frames: np.ndarray, action_space: spaces.Space[Any] | None = None) -> None:
        self.frames = frames
        self.observation_space = spaces.Box(0, 255, frames.shape[1:], np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if action_space is None else action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown = 0
        return self.frames[0], {"kept": 3}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.shown += 1
        return self.frames[self.shown], float(self.shown), self.shown == len(self.frames) - 1, False, {"kept": 4}


STILL = np.zeros(2, np.float32)


def some_frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_tokens_are_those_of_the_dream_bit_for_bit() -> None:
    world = world_that_ends(1e-9, shown=True)
    dream = LearnedEnv(world, observation="dict")
    seen = [dream.reset(seed=3)[0]]
    for action in np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32):
        seen.append(dream.step(action)[0])
    real = LatentObservation(Replay(np.stack([one["pixels"] for one in seen])), world, stack=1)
    np.testing.assert_allclose(real.reset(seed=0)[0], seen[0]["latent"].reshape(-1), atol=1e-6)  # read in a batch there
    for one in seen[1:]:
        np.testing.assert_array_equal(real.step(STILL)[0], one["latent"].reshape(-1))
    assert np.ptp([one["latent"] for one in seen], axis=0).min() > 0


def test_tokens_with_noise_are_what_the_world_starts_with() -> None:
    world, frames = tiny_world(shown=False), some_frames(3)
    reader = FrameReader(world)
    reader.seed(7)
    tokens = reader(frames[0])
    begun = world.start(torch.from_numpy(frames[None, :1]), generator=torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(tokens, begun.latents[0, 1].numpy())
    assert np.abs(reader(frames[0]) - tokens).max() > 1e-3  # another draw

    env = LatentObservation(Replay(frames), world, stack=1)
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(env.reset()[0] - other).max() > 1e-3  # the noise goes on


@pytest.mark.parametrize("stack", [1, 3])
def test_frames_stand_one_behind_the_other_and_the_first_is_repeated(stack: int) -> None:
    world, frames = tiny_world(shown=True), some_frames(5)
    env = LatentObservation(Replay(frames), world, stack=stack)
    assert env.observation_space.shape == (stack * 4 * 3,)
    reader = FrameReader(world)
    tokens = [reader(frame).reshape(-1) for frame in frames]
    for _ in range(2):  # the second episode knows nothing of the first
        seen, info = env.reset()
        assert info == {"kept": 3}
        for t in range(5):
            expected = np.concatenate([tokens[max(0, t - back)] for back in reversed(range(stack))])
            np.testing.assert_array_equal(seen, expected)
            np.testing.assert_array_equal(env.frame, frames[t])
            assert env.observation_space.contains(seen)
            if t < 4:
                seen, reward, terminated, truncated, info = env.step(STILL)
                assert (reward, terminated, truncated, info) == (t + 1, t == 3, False, {"kept": 4})


def test_rows_start_without_their_neighbors_and_can_be_told_what_came_before() -> None:
    rows = FrameStack(2, 3, spaces.Box(-9, 9, (1, 1), np.float32))

    def frames(*values: float) -> np.ndarray:
        return np.array(values, np.float32).reshape(-1, 1, 1)

    rows.start([0, 1], frames(1, 2))
    rows.push(frames(3, 4))
    before = rows.all()
    assert before.tolist() == [[1, 1, 3], [2, 2, 4]] and before.dtype == np.float32
    rows.start([1], frames(9))
    assert rows.all().tolist() == [[1, 1, 3], [9, 9, 9]] and before.tolist() == [[1, 1, 3], [2, 2, 4]]
    rows.fill(1, frames(6, 7, 8))
    assert rows.row(1).tolist() == [7, 8, 9]
    rows.fill(0, frames(2))
    assert rows.row(0).tolist() == [2, 2, 3]
    rows.fill(0, frames())
    assert rows.row(0).tolist() == [2, 2, 3]
    assert rows.space == spaces.Box(-9, 9, (3,), np.float32)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)])
def test_pixels_are_stacked_along_their_channels(shape: tuple[int, ...]) -> None:
    rows = FrameStack(1, 2, spaces.Box(0, 255, shape, np.uint8))
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, *shape), dtype=np.uint8)
    rows.start([0], first)
    rows.push(second)
    channels = 3 if len(shape) == 3 else 1
    assert rows.space == spaces.Box(0, 255, (5, 4, 2 * channels), np.uint8)
    np.testing.assert_array_equal(rows.row(0)[..., :channels].reshape(shape), first[0])
    np.testing.assert_array_equal(rows.row(0)[..., channels:].reshape(shape), second[0])


def test_each_frame_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world, counts = tiny_world(shown=True), list[int]()
    encode = world.codec.encode

    def counted(frames: torch.Tensor) -> torch.Tensor:
        counts.append(int(np.prod(frames.shape[:-3])))
        return encode(frames)

    monkeypatch.setattr(world.codec, "encode", counted)
    env = LatentObservation(Replay(some_frames(3)), world)
    env.reset()
    env.step(STILL)
    env.step(STILL)
    assert counts == [1, 1, 1]


def test_what_does_not_fit_is_refused() -> None:
    world, frames = tiny_world(), some_frames(2)
    with pytest.raises(ValueError, match=r"frames: expected shape \(16, 16, 3\), got \(8, 8, 3\)"):
        LatentObservation(Replay(frames[:, :8, :8]), world)
    with pytest.raises(ValueError, match="actions: expected continuous ones, got discrete ones"):
        LatentObservation(Replay(frames, spaces.Discrete(4)), world)
    with pytest.raises(ValueError, match="upper bounds of an action"):
        LatentObservation(Replay(frames, spaces.Box(-1.0, 2.0, (2,), np.float32)), world)
    with pytest.raises(ValueError, match="stack must be a whole number of at least 1, got 0"):
        LatentObservation(Replay(frames), world, stack=0)
    with pytest.raises(ValueError, match="training mode"):
        LatentObservation(Replay(frames), tiny_world().train())
