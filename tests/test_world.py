"""The world: what it draws it can score, steps and dreams agree, rows are independent, time is aligned."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from builders import random_actions, tiny_spec, tiny_world
from torch import Tensor

from worldflow.actions import ActionEncoder
from worldflow.codec import CodecConfig
from worldflow.flow import FlowConfig
from worldflow.heads import RewardSupport
from worldflow.types import ActionSpec, Transition
from worldflow.world import WorldConfig, WorldModel

Action = Literal["box", "discrete", "multi_discrete", "scalar"]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recording(world: WorldModel, batch: int, time: int, *, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Random frames and actions."""
    generator = rng(seed)
    shape = (batch, time + 1, *world.config.data.frame_shape)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return frames, random_actions(world.config.data.action, (batch, time), generator=generator)


def close(found: Tensor, expected: Tensor, *, relative: float) -> bool:
    return bool(((found - expected).abs() <= relative * expected.abs().clamp(min=1)).all())


@pytest.mark.parametrize(
    ("action", "temperature", "shown"), [("box", 1.0, False), ("discrete", 0.5, False), ("box", 1.0, True)]
)
def test_two_hundred_steps_are_scored_as_they_were_drawn(action: Action, temperature: float, shown: bool) -> None:
    world = tiny_world(action=action, scale=0.7, shown=shown)
    frames, actions = recording(world, 2, 3)
    seen = [frames]
    x = [*world.encode(frames, generator=rng(0)).unbind(1)]
    state = world.start(frames, actions, generator=rng(0))
    generator = rng(1)
    future = random_actions(world.config.data.action, (2, 200), generator=generator)
    steps: list[Transition] = []
    for t in range(200):
        transition, state = world.step(state, future[:, t], generator=generator, temperature=temperature)
        assert transition.frame is not None
        steps.append(transition)
        seen.append(transition.frame[:, None])
        x.append(world.flow.from_deep(transition.latent))
    rewards = torch.stack([s.reward for s in steps], 1)
    terminated = torch.stack([s.terminated for s in steps], 1)
    before = torch.zeros(2, 3)
    scored = world.log_prob_latents(
        torch.stack(x, 1),
        torch.cat((actions, future), 1),
        torch.cat((before, rewards), 1),
        torch.cat((before.bool(), terminated), 1),
        codes=world.codes(torch.cat(seen, 1)),
    )
    assert terminated.any() and not terminated.all()
    for part in ("frame", "reward", "terminated", "total"):
        drawn = torch.stack([getattr(s.log_prob, part) for s in steps], 1)
        assert drawn.std() > 0.01
        # The demand on likelihoods reported while sampling: 1e-4 relative, in float32, over 200 steps.
        assert close(getattr(scored, part)[:, 3:], drawn, relative=1e-4), part


def test_rows_with_their_own_generators_do_not_know_the_batch() -> None:
    # In float64: in float32 sums over other batch shapes differ by rounding, which random weights then magnify.
    world = tiny_world(dtype=torch.float64)
    frames, actions = recording(world, 3, 2)
    future = random_actions(world.config.data.action, (3, 5), generator=rng(3))

    def roll(rows: list[int]) -> list[Transition]:
        generators = [rng(100 + row) for row in rows]
        state = world.start(frames[rows], actions[rows], generator=generators)
        steps = []
        for t in range(5):
            transition, state = world.step(state, future[rows, t], generator=generators)
            steps.append(transition)
        return steps

    together = roll([0, 1, 2])
    for rows in ([1], [2, 0]):
        for whole, some in zip(together, roll(rows), strict=True):
            for name in (f.name for f in fields(Transition) if f.name != "log_prob"):
                found, expected = getattr(some, name), getattr(whole, name)[rows]
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(some.log_prob.total, whole.log_prob.total[rows], rtol=1e-9, atol=1e-9)


def test_the_global_generator_is_untouched_and_seeds_decide() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 2)
    before = torch.get_rng_state()
    futures = random_actions(world.config.data.action, (2, 3), generator=rng(3))
    one, same, other = (
        world.imagine(frames, actions, futures, num_samples=2, generator=rng(seed)) for seed in (1, 1, 2)
    )
    world.log_prob(frames, actions, generator=rng(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.frames, same.frames) and torch.equal(one.rewards, same.rewards)
    assert not torch.equal(one.frames, other.frames)


def test_imagining_is_stepping() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 2)
    future = random_actions(world.config.data.action, (2, 4), generator=rng(3))
    dream = world.imagine(frames, actions, future, num_samples=3, generator=rng(1))
    assert dream.frames.shape == (3, 2, 4, 16, 16, 3)
    assert dream.rewards.shape == dream.terminated.shape == dream.log_prob.total.shape == (3, 2, 4)

    generator = rng(1)
    state = world.start(frames, actions, generator=generator).repeat(3)
    for t in range(4):
        step, state = world.step(state, future[:, t].repeat_interleave(3, 0), generator=generator)
        assert step.frame is not None
        for sample in range(3):
            for row in range(2):
                at = row * 3 + sample
                # Decoding all frames at once sums in another order: at most one grey level on a rounding edge.
                difference = dream.frames[sample, row, t].int() - step.frame[at].int()
                assert difference.abs().max() <= 1
                assert close(dream.rewards[sample, row, t], step.reward[at], relative=1e-5)
                assert close(dream.reward_means[sample, row, t], step.reward_mean[at], relative=1e-5)
                assert dream.terminated[sample, row, t] == step.terminated[at]
                assert close(dream.log_prob.total[sample, row, t], step.log_prob.total[at], relative=1e-4)
    assert (dream.frames[0].int() - dream.frames[1].int()).abs().max() > 10


@pytest.mark.parametrize("action", ["box", "discrete", "multi_discrete", "scalar"])
def test_an_action_changes_what_follows_it_and_nothing_before(action: Action) -> None:
    world = tiny_world(action=action)
    frames, actions = recording(world, 1, 4)
    x = world.encode(frames, generator=rng(0))
    plain = world.log_prob_latents(x, actions, torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool))
    for t in range(4):
        changed = actions.clone()
        if action == "multi_discrete":
            changed[0, t, 0] = (actions[0, t, 0] + 1) % 3
        else:
            changed[0, t] = (actions[0, t] + 1) % 4 if action == "discrete" else actions[0, t] + 0.5
        other = world.log_prob_latents(x, changed, torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool))
        for part in ("frame", "reward", "terminated"):
            moved = (getattr(other, part) - getattr(plain, part))[0].abs()
            assert (moved[:t] == 0).all()
            assert moved[t] > 1e-6
        hidden, other_hidden = (world.log_prob_latents(x, a, hide_actions=True) for a in (actions, changed))
        assert torch.equal(hidden.frame, other_hidden.frame)


def test_outcomes_are_scored_where_they_happened() -> None:
    world = tiny_world()
    frames, actions = recording(world, 1, 4)
    x = world.encode(frames, generator=rng(0))
    rewards, terminated = torch.linspace(-1, 1, 4)[None], torch.zeros(1, 4, dtype=torch.bool)
    plain = world.log_prob_latents(x, actions, rewards, terminated)
    for t in range(4):
        mark = torch.arange(4)[None] == t
        other = world.log_prob_latents(x, actions, rewards + 0.3 * mark, terminated ^ mark)
        assert torch.equal(other.frame, plain.frame)
        assert torch.equal(other.reward != plain.reward, mark)
        assert torch.equal(other.terminated != plain.terminated, mark)
    # The frames decide too, but only up to the one that the transition led to.
    for t in range(5):
        moved = x.clone()
        moved[0, t] += 1
        other = world.log_prob_latents(moved, actions, rewards, terminated)
        for part in ("frame", "reward", "terminated"):
            difference = (getattr(other, part) - getattr(plain, part))[0].abs()
            assert (difference[: max(t - 1, 0)] == 0).all()
            assert t == 0 or difference[t - 1] > 1e-4
    nothing = world.log_prob_latents(x, actions)
    assert not nothing.reward.any() and not nothing.terminated.any()
    assert torch.equal(nothing.total, plain.frame)


def test_scoring_in_chunks_is_scoring() -> None:
    world = tiny_world(dtype=torch.float64)
    frames, actions = recording(world, 2, 22)
    x = world.encode(frames, generator=rng(0))
    rewards, terminated = torch.rand(2, 22, generator=rng(2)), torch.rand(2, 22, generator=rng(3)) < 0.1
    whole = world.log_prob_latents(x, actions, rewards, terminated, chunk=100)
    for chunk in (1, 5, 22, 23):
        parts = world.log_prob_latents(x, actions, rewards, terminated, chunk=chunk)
        for name in ("frame", "reward", "terminated"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_scores_of_frames_are_those_of_their_codes() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 3)
    found = world.log_prob(frames, actions, generator=rng(4))
    expected = world.log_prob_latents(world.encode(frames, generator=rng(4)), actions)
    assert torch.equal(found.frame, expected.frame)
    assert found.total.shape == (2, 3)
    assert not torch.equal(world.log_prob(frames, actions, generator=rng(5)).frame, expected.frame)


def test_steps_without_decoding_draw_the_same() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 2)
    state = world.start(frames, actions, generator=rng(0))
    seen, after = world.step(state, actions[:, 0], generator=rng(1))
    unseen, also_after = world.step(state, actions[:, 0], generator=rng(1), decode=False)
    assert seen.frame is not None and unseen.frame is None
    for name in ("reward", "terminated", "latent", "reward_mean", "termination_prob"):
        assert torch.equal(getattr(seen, name), getattr(unseen, name))
    assert torch.equal(after.deep_keys, also_after.deep_keys)
    x = world.flow.from_deep(seen.latent)
    assert torch.equal(world.codec.decode(x), seen.frame)
    shallow = world.flow.to_deep(x[:, None])[1].sum((1, 2))
    torch.testing.assert_close(seen.log_prob.frame, unseen.log_prob.frame + shallow, rtol=1e-5, atol=1e-5)


def test_temperature_scales_the_noise() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 2)
    state = world.start(frames, actions, generator=rng(0))

    def latent(seed: int, temperature: float) -> Tensor:
        return world.step(state, actions[:, 0], generator=rng(seed), temperature=temperature)[0].latent

    # Without noise every seed gives the same frame, up to the sampler's tolerance.
    torch.testing.assert_close(latent(1, 0.0), latent(2, 0.0))
    assert (latent(1, 1.0) - latent(2, 1.0)).abs().max() > 0.1


def test_outcomes_are_drawn_from_what_is_reported_and_apart() -> None:
    world = tiny_world()
    frames, actions = recording(world, 1, 2)
    count = 3000
    state = world.start(frames, actions, generator=rng(0)).repeat(count)
    step, _ = world.step(state, actions[:, 0].expand(count, -1), generator=rng(1), decode=False)
    reward, ended = step.reward - step.reward_mean, step.terminated.float() - step.termination_prob
    # Given the frame both are centered and independent: each mean within 4.4 standard errors, a false alarm in 1e5.
    for surplus in (reward, ended, reward * ended):
        assert abs(float(surplus.mean())) < 4.4 * float(surplus.std()) / count**0.5
    assert 0.01 < step.terminated.float().mean() < 0.99
    assert reward.std() > 0.5


def test_methods_agree() -> None:
    world = tiny_world(dtype=torch.float64)
    frames, actions = recording(world, 2, 2)
    state = world.start(frames, actions, generator=rng(0))
    one, other = (
        world.step(state, actions[:, 0], generator=rng(1), method=method, tolerance=1e-10)[0]
        for method in ("jacobi", "sequential")
    )
    torch.testing.assert_close(one.latent, other.latent, rtol=1e-7, atol=1e-7)


def test_one_frame_is_past_enough() -> None:
    world = tiny_world()
    frames, _ = recording(world, 2, 2)
    state = world.start(frames[:, :1], generator=rng(0))
    assert state.count.tolist() == [1, 1]
    action = random_actions(world.config.data.action, (2,), generator=rng(1))
    transition, state = world.step(state, action, generator=rng(2))
    assert state.count.tolist() == [2, 2]
    assert torch.isfinite(transition.log_prob.total).all()


def test_action_features() -> None:
    box = tiny_world(action="box").actions
    raw = torch.tensor([[0.5, -0.25]])
    torch.testing.assert_close(box(raw), (raw - box.mean) / box.std)
    multi = ActionEncoder(tiny_spec(action="multi_discrete").action)
    assert multi(torch.tensor([[2, 1], [0, 2]])).tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]
    single = ActionEncoder(tiny_spec(action="discrete").action)
    assert single(torch.tensor([[3, 0]])).tolist() == [[[0, 0, 0, 1], [1, 0, 0, 0]]]
    shifted = ActionEncoder(ActionSpec(shape=(), dtype="int64", choices=(3,), first=(-1,)))
    assert shifted(torch.tensor([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_above_floor() -> None:
    world = tiny_world(noise_std=0.3)
    assert world.noise_floor == pytest.approx(np.log(0.3) + 0.5 + 0.9189385, abs=1e-6)
    frame = torch.tensor([-12 * world.noise_floor, -12 * (world.noise_floor + 0.7)])
    torch.testing.assert_close(world.above_floor(frame), torch.tensor([0.0, 0.7]), rtol=0, atol=1e-6)


def calls(world: WorldModel, frames: Tensor, actions: Tensor) -> dict[str, Any]:
    state = world.start(frames, actions, generator=rng(0))
    nan = torch.full((2, 2), torch.nan)
    return {
        r"frames must have shape \(batch, past \+ 1, row, column, channel\), got \(2, 16, 16, 3\)": (
            lambda: world.start(frames[:, 0])
        ),
        r"frames must have shape \(\.\.\., 16, 16, 3\), got \(2, 3, 8, 16, 3\)": (
            lambda: world.start(frames[:, :, :8], actions)
        ),
        "3 frames need 2 past actions, got none": lambda: world.start(frames),
        r"3 frames of 2 clips need actions \(2, 2, \.\.\.\), got \(2, 1, 2\)": (
            lambda: world.start(frames, actions[:, :1])
        ),
        r"actions must have shape \(\.\.\., 2\), got \(2, 2, 3\)": (
            lambda: world.log_prob(frames, torch.zeros(2, 2, 3))
        ),
        r"action must have shape \(2, 2\), got \(1, 2\)": lambda: world.step(state, actions[:1, 0]),
        r"action must have shape \(2, 2\), got \(2, 1, 2\)": lambda: world.step(state, actions[:, :1]),
        "actions hold NaN or infinite numbers": lambda: world.step(state, nan),
        "expected one generator or 2": lambda: world.step(state, actions[:, 0], generator=[rng(0)]),
        r"frames hold 2 pasts, actions 1 futures": lambda: world.imagine(frames, actions, actions[:1]),
        "method must be 'jacobi' or 'sequential', got 'exact'": (
            lambda: world.step(state, actions[:, 0], method="exact")  # pyright: ignore[reportArgumentType]
        ),
    }


def test_says_what_is_wrong() -> None:
    world = tiny_world()
    frames, actions = recording(world, 2, 2)
    for message, call in calls(world, frames, actions).items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"frames must be uint8, got torch\.float32"):
        world.start(frames.float(), actions)
    for value in (-1, 4):
        discrete = ActionEncoder(tiny_spec(action="discrete").action)
        with pytest.raises(ValueError, match=rf"discrete actions must lie in 0\.\.3, got {value}"):
            discrete(torch.tensor([value]))


def test_codec_and_flow_must_fit() -> None:
    data = tiny_spec()
    codec = CodecConfig(frame_shape=data.frame_shape, patch_size=8, latent_dim=3, width=8)
    with pytest.raises(
        ValueError, match=r"the codec gives \(2, 2\) tokens of 3 channels, the flow takes \(2, 2\) of 4"
    ):
        WorldConfig(data=data, codec=codec, flow=FlowConfig(latent_dim=4, grid=(2, 2)), reward=RewardSupport())
