"""Dreams behind Stable-Baselines3: stacks across ends, penalties that are what they say, horizons that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, world_that_ends

from worldflow.envs import LearnedVectorEnv
from worldflow.envs.latent import FrameReader
from worldflow.world import WorldModel

pytest.importorskip("stable_baselines3")

from worldflow.agents.dream_envs import (
    EntropyPenalty,
    LikelihoodPenalty,
    StackedFrames,
    dream_envs,
    usual_entropy,
    usual_likelihood,
)
from worldflow.envs.sb3 import SB3VecEnv


def bare(world: WorldModel, **options: Any) -> Any:
    envs = SB3VecEnv(LearnedVectorEnv(world, num_envs=3, autoreset_mode="SameStep", **options))
    envs.seed(0)
    return envs


def some_actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_stacks_are_right_across_ends(observation: str) -> None:
    world, stack = world_that_ends(0.3, shown=True), 3
    plain, stacked = (bare(world, horizon=4, observation=observation) for _ in range(2))
    envs: Any = StackedFrames(stacked, stack)
    bank = plain.envs.contexts
    assert bank is not None
    reader = FrameReader(world)

    def past(row: int) -> list[np.ndarray]:
        frames = bank.frames[plain.reset_infos[row]["context"]].numpy()[-stack:-1]
        return [reader(frame) if observation == "latent" else frame for frame in frames]

    def joined(frames: list[np.ndarray]) -> np.ndarray:
        last = frames[-stack:]
        return np.concatenate([f.reshape(-1) for f in last]) if observation == "latent" else np.concatenate(last, -1)

    seen, got = plain.reset(), envs.reset()
    histories = [[*past(i), seen[i]] for i in range(3)]
    ended = {"terminated": 0, "truncated": 0}
    for actions in some_actions(10):
        np.testing.assert_allclose(got, [joined(h) for h in histories], atol=1e-5)
        assert got.dtype == envs.observation_space.dtype and got.shape[1:] == envs.observation_space.shape
        seen, rewards, dones, infos = plain.step(actions)
        got, same_rewards, same_dones, other = envs.step(actions)
        np.testing.assert_array_equal(rewards, same_rewards)
        np.testing.assert_array_equal(dones, same_dones)
        for i in range(3):
            if dones[i]:
                final = joined([*histories[i], infos[i]["terminal_observation"]])
                np.testing.assert_allclose(other[i]["terminal_observation"], final, atol=1e-5)
                histories[i] = [*past(i), seen[i]]
                ended["truncated" if infos[i]["TimeLimit.truncated"] else "terminated"] += 1
            else:
                histories[i].append(seen[i])
    assert min(ended.values()) > 0


def test_without_a_bank_the_first_frame_is_repeated() -> None:
    world = tiny_world(shown=True)
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    envs = StackedFrames(bare(world, observation="latent"), 3)
    envs.set_options({"frames": frames})
    got = envs.reset().reshape(3, 3, -1)
    np.testing.assert_array_equal(got[:, 0], got[:, 2])
    np.testing.assert_array_equal(got[:, 1], got[:, 2])


def test_the_entropy_penalty_is_what_it_says() -> None:
    world = world_that_ends(0.2)
    dim = world.config.flow.frame_dim
    envs, twin = EntropyPenalty(bare(world, horizon=5), 0.5, usual=0.3), bare(world, horizon=5)
    envs.reset()
    twin.reset()
    found = []
    for actions in some_actions(8):
        _, rewards, _, infos = envs.step(actions)
        _, raw, _, told = twin.step(actions)
        expected = [0.5 * max(0.0, info["entropy_frame"] / dim - 0.3) for info in told]
        np.testing.assert_allclose(rewards, raw - np.array(expected), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([info["entropy_penalty"] for info in infos], expected, rtol=1e-5)
        found += expected
    assert min(found) == 0.0 < max(found) or min(found) > 0.0


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_the_likelihood_penalty_is_what_it_says(shown: bool, observation: str) -> None:
    """Against one pass over the frames that were shown, the last action hidden."""
    world = world_that_ends(1e-9, shown=shown, codec="patch" if observation == "pixels" else "latent", noise_std=0.3)
    envs = LikelihoodPenalty(bare(world, horizon=2, observation=observation), 2.0, usual=5.0, seed=9)
    generator = torch.Generator().manual_seed(9)
    envs.reset()
    for step, actions in enumerate(some_actions(4)):
        before = envs.get_attr("state")[0]
        seen, _, dones, infos = envs.step(actions)
        assert dones.all() == (step % 2 == 1)
        shown_now = np.stack([info.get("terminal_observation", one) for info, one in zip(infos, seen, strict=True)])
        frames = torch.from_numpy(shown_now)
        codes = world.codes(frames) if observation == "pixels" else frames
        if shown or observation == "pixels":
            x = world.with_noise(codes, generator=generator)
        else:
            x = codes = world.flow.from_deep(codes)
        out = world.flow(
            x[:, None],
            torch.zeros(3, 1, world.config.flow.action_dim),
            shown=codes[:, None] if shown else None,
            hide_actions=torch.ones(3, dtype=torch.bool),
            state=before,
        )
        score = out.log_prob[:, 0].detach().double().numpy() / world.config.flow.frame_dim
        expected = 2.0 * np.maximum(0.0, 5.0 - score)
        np.testing.assert_allclose([info["likelihood_penalty"] for info in infos], expected, rtol=1e-4)
        assert expected.min() > 0


def test_what_is_usual_is_the_mean_over_the_bank() -> None:
    world = tiny_world(contexts=3)
    bank, dim = world.contexts, world.config.flow.frame_dim
    assert bank is not None
    hidden, entropies = [], []
    for draw in range(60):
        generator = torch.Generator().manual_seed(draw)
        state = world.start(bank.frames[:, :-1], bank.actions[:, :-1], generator=generator)
        transition, _ = world.step(state, bank.actions[:, -1], generator=generator)
        assert transition.entropy is not None
        entropies.append(transition.entropy.mean() / dim)
        codes = world.codes(bank.frames[:, -1:])
        x = world.with_noise(codes, generator=generator)
        hide, nothing = torch.ones(3, dtype=torch.bool), torch.zeros(3, 1, world.config.flow.action_dim)
        hidden.append(world.flow(x, nothing, hide_actions=hide, state=state).log_prob.mean().detach() / dim)
    for usual, draws in ((usual_entropy, entropies), (usual_likelihood, hidden)):
        assert abs(usual(world, bank) - float(np.mean(draws))) < 6 * float(np.std(draws))  # of one draw
    for usual in (usual_entropy, usual_likelihood):
        with pytest.raises(ValueError, match="recorded pasts of at least two frames"):
            usual(world, None)


def test_returns_are_told_without_penalties_and_horizons_change_with_the_next_episode() -> None:
    world = world_that_ends(1e-9)
    penalties: dict[str, Any] = {"entropy_penalty": 3.0, "likelihood_penalty": 1.0}
    envs, plain = (dream_envs(world, num_envs=3, horizon=4, observation="latent", **p) for p in (penalties, {}))
    envs.reset()
    plain.reset()
    told, lengths, totals, penalized = list[Any](), list[int](), list[float](), 0.0
    for step, actions in enumerate(some_actions(9)):
        _, rewards, _, infos = envs.step(actions)
        _, raw, _, _ = plain.step(actions)
        penalized += float((raw - rewards).sum())
        told += [info["episode"] for info in infos if "episode" in info]
        totals.append(float(raw[0]))
        if step == 1:
            for one in (envs, plain):
                one.set_attr("horizon", 2)
    lengths = [one["l"] for one in told[::3]]
    assert lengths == [4, 2, 2]
    returns = [sum(totals[:4]), sum(totals[4:6]), sum(totals[6:8])]
    assert [one["r"] for one in told[::3]] == pytest.approx(returns, rel=1e-4)
    assert penalized > 0


def test_what_is_wrong_is_said() -> None:
    world = tiny_world()
    for weight, usual in ((-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="finite weight of at least 0"):
            EntropyPenalty(bare(world), weight, usual=usual)
    with pytest.raises(ValueError, match="horizon must be a whole number of at least 1"):
        bare(world).set_attr("horizon", 0)
    with pytest.raises(ValueError, match="reads no text"):
        dream_envs(world, text="a red circle")
    with pytest.raises(ValueError, match="none; name a data set"):
        dream_envs(tiny_world(contexts=0), entropy_penalty=1.0)
