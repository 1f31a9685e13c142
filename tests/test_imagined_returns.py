"""Imagined returns are what a naive loop through the world gives, real ones what the environment paid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from lamp import Lamp, Press, PressByState

from worldflow.agents import imagined_returns as module
from worldflow.agents.imagined_returns import Hold, draw_starts, measure_returns, real_returns
from worldflow.agents.likelihood import log_density
from worldflow.envs.policies import Random

SHAPE = (16, 16, 3)


def test_real_returns_are_what_was_paid_until_the_end() -> None:
    env = Lamp(limit=6)
    starts = draw_starts(env, Hold(env.action_space), count=3, past=2, frame_shape=SHAPE, seed=5)
    assert starts.seeds == [5, 6, 7]
    assert starts.frames.shape == (3, 3, *SHAPE)
    returns, done = real_returns(Press(0.0), env, starts, horizon=6)
    # Asked twice before the start: it begins with 0.2; four steps are left.
    np.testing.assert_allclose(returns, [[0.2, 0.5, 0.9, 1.4, 1.4, 1.4]] * 3, atol=1e-6)
    np.testing.assert_allclose(done[0, :, 0], [0.2, 0.3, 0.4, 0.5, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("kind", [Press, PressByState])
def test_imagined_returns_are_those_of_a_naive_loop(kind: type[Press], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_usual_likeness", lambda world, starts: 50.0)
    world, env, samples, horizon = world_that_ends(0.25, shown=True), Lamp(), 2, 3
    starts = draw_starts(env, Random(env.action_space), count=2, past=2, frame_shape=SHAPE)
    found = measure_returns("press", lambda: kind(0.1), world, env, starts, horizon=horizon, samples=samples, seed=3)
    assert found.is_replayed == (kind is PressByState)

    generator = torch.Generator().manual_seed(3)
    state = world.start(torch.from_numpy(starts.frames), torch.from_numpy(starts.actions), generator=generator)
    state, expected, strange = state.repeat(samples), np.zeros((4, horizon)), np.zeros((4, horizon))
    for t in range(horizon):
        action = torch.tensor([[0.3 + 0.1 * t, 0.0]] * 4, dtype=torch.float32)  # what it does after two frames of past
        before = state
        transition, state = world.step(state, action, generator=generator)
        expected[:, t] = 0.75**t * transition.reward_mean.numpy()
        x = world.flow.from_deep(transition.latent)
        with torch.no_grad():
            density = log_density(world, before, None, x, x) / world.config.flow.frame_dim + world.noise_floor
        strange[:, t] = 0.75**t * (50.0 - density.numpy())
    expected, strange = (values.reshape(2, samples, horizon).mean(1).cumsum(1) for values in (expected, strange))
    np.testing.assert_allclose(found.imagined, expected, rtol=1e-5)
    np.testing.assert_allclose(found.strangeness, strange, rtol=1e-5)
    np.testing.assert_allclose(found.real, [np.cumsum([0.3, 0.4, 0.5])] * 2, rtol=1e-5)
    np.testing.assert_allclose(found.penalized(2.0), found.imagined - 2 * found.strangeness)


class Watcher(Press):
    """Keeps what it is shown."""

    shown: list[np.ndarray] = []  # noqa: RUF012 - shared by all of them

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
        self.shown.append(observation.copy())
        return super().__call__(observation, info, generator)


def test_a_policy_sees_the_past_in_both_and_imagined_frames_in_the_world() -> None:
    world, env = tiny_world(shown=True), Lamp()
    starts = draw_starts(env, Random(env.action_space), count=1, past=2, frame_shape=SHAPE)
    Watcher.shown = []
    measure_returns("watcher", lambda: Watcher(0.0), world, env, starts, horizon=2)
    real, probe, imagined = Watcher.shown[:4], Watcher.shown[4:5], Watcher.shown[5:]
    assert len(imagined) == 4
    for k in range(3):
        assert np.array_equal(real[k], starts.frames[0, k])
        assert np.array_equal(imagined[k], starts.frames[0, k])
    assert np.array_equal(probe[0], starts.frames[0, 0])
    assert not np.array_equal(imagined[3], real[3])  # a random world draws something else than the lamp shows


def test_starts_that_cannot_be_reached_or_repeated_are_errors() -> None:
    env = Lamp(limit=2)
    with pytest.raises(ValueError, match="only 0 of 40 episodes last for more than the 3 steps"):
        draw_starts(env, Hold(env.action_space), count=2, past=3, frame_shape=SHAPE)
    env = Lamp(is_random=True)
    starts = draw_starts(env, Hold(env.action_space), count=2, past=1, frame_shape=SHAPE)
    with pytest.raises(ValueError, match="something else than before after the same actions from seed 0"):
        real_returns(Press(0.0), env, starts, horizon=2)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        measure_returns("press", lambda: Press(0.0), tiny_world(), env, starts, horizon=0)


def test_usual_are_the_last_frames_of_recorded_pasts() -> None:
    world, env = tiny_world(contexts=0), Lamp()
    starts = draw_starts(env, Random(env.action_space), count=2, past=2, frame_shape=SHAPE)
    frames, actions = torch.from_numpy(starts.frames), torch.from_numpy(starts.actions)
    generator = torch.Generator().manual_seed(0)
    expected = world.log_prob(frames, actions, hide_actions=True, generator=generator).frame[:, -1]
    found = module._usual_likeness(world, starts)
    assert found == pytest.approx(float(expected.mean()) / world.config.flow.frame_dim + world.noise_floor, rel=1e-5)
