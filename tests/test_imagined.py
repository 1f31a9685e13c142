"""Imagined episodes side by side: each as if alone, in bounded memory, and never silent about what is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends
from gymnasium.error import ResetNeeded

from worldflow.envs import LearnedEnv, LearnedVectorEnv, footprint
from worldflow.envs.learned import NonFiniteError

# Sums of a batch are rounded differently (1e-7), which may move a pixel over a rounding edge.
LEVELS = 1e-3


def actions_of(num_envs: int, steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, num_envs, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "options", [{}, {"shown": True, "dtype": torch.float64}, {"guidance": 1.0}], ids=["plain", "shown", "guided"]
)
def test_a_batch_is_as_many_single_environments(options: dict[str, Any]) -> None:
    # In float32 some pixel is always on the edge between two levels, and where frames are seen again a world of random
    # weights makes much of it.
    world = world_that_ends(1e-9, **{name: value for name, value in options.items() if name != "guidance"})
    named = {name: value for name, value in options.items() if name == "guidance"}
    envs = LearnedVectorEnv(world, num_envs=4, horizon=100, **named)
    singles = [LearnedEnv(world, horizon=100, **named) for _ in range(4)]
    first, _ = envs.reset(seed=7)
    np.testing.assert_array_equal(first, [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)])
    errors = []
    for actions in actions_of(4, 50):
        observations, rewards, *_, infos = envs.step(actions)
        steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        errors.append(np.abs(observations.astype(float) - [step[0] for step in steps]))
        np.testing.assert_allclose(rewards, [step[1] for step in steps], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(infos["log_prob"], [step[4]["log_prob"] for step in steps], rtol=1e-3, atol=1e-3)
    assert np.mean(errors) < LEVELS


def test_an_environment_does_not_depend_on_the_others() -> None:
    world = world_that_ends(0.1)
    envs, others = (LearnedVectorEnv(world, num_envs=3, horizon=5, observation="latent") for _ in range(2))
    seen, same = envs.reset(seed=[1, 2, 3])[0], others.reset(seed=[9, 2, 8])[0]
    for t, actions in enumerate(actions_of(3, 20)):
        np.testing.assert_allclose(seen[1], same[1], rtol=1e-3, atol=1e-4, err_msg=str(t))
        assert not np.allclose(seen[0], same[0], atol=1e-3)
        seen = envs.step(actions)[0]
        actions[[0, 2]] *= -0.5
        same = others.step(actions)[0]


# -- memory -------------------------------------------------------------------------------------------------------


def stored_bytes(envs: LearnedVectorEnv) -> int:
    """What the state's tensors keep alive, each storage once."""
    storages = [tensor.untyped_storage() for tensor in envs.state.tensors().values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("shape", [{"window": 3}, {"window": 5, "draft": False}, {"text_dim": 6}])
def test_memory_is_bounded_by_the_window(shape: dict[str, Any]) -> None:
    envs = LearnedVectorEnv(world_that_ends(1e-9, **shape), num_envs=2, horizon=200)
    envs.reset(seed=0)
    sizes = []
    for actions in actions_of(2, 100):
        envs.step(actions)
        sizes.append(stored_bytes(envs))
    assert set(sizes) == {sizes[0]}
    frame = 16 * 16 * 3
    assert sizes[0] <= 2 * (envs.memory_bytes_per_env - frame) <= 1.1 * sizes[0]


def test_memory_grows_with_the_window_and_doubles_with_guidance() -> None:
    frame = 16 * 16 * 3
    short, long = (LearnedEnv(tiny_world(window=window)).memory_bytes_per_env - frame for window in (3, 9))
    assert 2.5 * short < long < 3 * short
    assert LearnedEnv(tiny_world(), guidance=1.0).memory_bytes_per_env - frame == 2 * short


def test_a_batch_too_large_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world()
    with pytest.raises(MemoryError, match=r"10000000000 environments needs about .* TB .*make at most \d+"):
        LearnedVectorEnv(world, num_envs=10**10)  # allocating as many generators would take hours
    each = LearnedEnv(world).memory_bytes_per_env
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 3 * each * 10)
    LearnedVectorEnv(world, num_envs=10)
    with pytest.raises(MemoryError, match="make at most 10"):
        LearnedVectorEnv(world, num_envs=11)
    monkeypatch.setattr(footprint, "available_bytes", lambda device: None)  # nobody knows
    LearnedVectorEnv(world, num_envs=11)


# -- what is no number --------------------------------------------------------------------------------------------


def poisoned(envs: LearnedVectorEnv, row: int) -> None:
    """Put NaN into what one environment remembers."""
    moment = envs.snapshot()
    moment.state.latents[row] = torch.nan
    moment.state.deep_values[row] = torch.nan
    envs.restore(moment)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("observation", ["pixels", "latent"])
def test_a_frame_that_is_no_number_is_named_and_the_others_stay(shown: bool, observation: str) -> None:
    world = world_that_ends(1e-9, shown=shown)
    envs, twins = (
        LearnedVectorEnv(world, num_envs=3, autoreset_mode="Disabled", observation=observation) for _ in "ab"
    )
    first, second, third = actions_of(3, 3)
    for one in (envs, twins):
        one.reset(seed=0)
        one.step(first)
    poisoned(envs, 1)
    with pytest.raises(NonFiniteError, match=r"environments \[1\] at their steps \[2\]; .*must be reset") as caught:
        envs.step(second)
    assert caught.value.environments == (1,) and isinstance(caught.value, FloatingPointError)
    with pytest.raises(ResetNeeded):
        envs.step(second)
    mask = np.array([False, True, False])
    envs.reset(seed=[None, 5, None], options={"reset_mask": mask})
    seen, expected = envs.step(second)[0], twins.step(second)[0]
    np.testing.assert_allclose(seen[[0, 2]].astype(float), expected[[0, 2]], rtol=1e-3, atol=1e-3)
    assert np.isfinite(envs.step(third)[0]).all()


@pytest.mark.parametrize("part", ["reward", "termination", "pixels"])
def test_any_other_part_that_is_no_number_is_told(part: str) -> None:
    world = world_that_ends(1e-9)
    env = LearnedEnv(world)
    obs, _ = env.reset(seed=0)
    layer = {
        "reward": "reward.out",
        "termination": "termination.out",
        "pixels": "codec.pieces_out",
    }[part]
    weight = world.get_parameter(f"{layer}.bias")
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"environments \[0\]"):
        env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(env.snapshot().frames[0], obs)
    with torch.no_grad():
        weight.copy_(before)
    env.reset()
    env.step(np.zeros(2, np.float32))


def test_a_frame_decoded_late_is_told() -> None:
    world = world_that_ends(1e-9)
    env = LearnedEnv(world, observation="latent", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    with torch.no_grad():
        world.get_parameter("codec.pieces_out.bias")[0] = torch.inf
    with pytest.raises(NonFiniteError, match="decoded"):
        env.render()


def test_a_past_that_is_no_number_is_told() -> None:
    world = world_that_ends(1e-9)
    envs = LearnedVectorEnv(world, num_envs=2)
    with torch.no_grad():
        world.get_parameter("codec.code_out.bias")[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"environments \[0, 1\] as they start"):
        envs.reset(seed=0)
    with torch.no_grad():
        world.get_parameter("codec.code_out.bias")[0] = 0.0
    envs.reset(seed=0)


def test_closing_twice_does_no_harm() -> None:
    world = tiny_world()
    for env in (LearnedEnv(world), LearnedVectorEnv(world, num_envs=2)):
        env.reset()
        env.close()
        env.close()
