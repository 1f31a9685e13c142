"""Imagined against real return: the same policies from the same starts, once in the world, once for real.

    start           the real environment is reset and a few steps are taken; all policies see the same ones
    real            the policy goes on for `horizon` steps in the environment
    imagined        the world reads the same frames and actions, and the policy goes on in the world

Returns are not discounted. Of an imagined future the expected one is counted, `sum_t prod_{s<t} (1 - p_s) r_t`, with
the means of rewards and the chances of terminations that the world predicts along the frames that it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldflow.agents.likelihood import InDistribution
from worldflow.agents.objectives import Rollout
from worldflow.agents.rollout import check_count
from worldflow.envs.display import neutral_action
from worldflow.envs.policies import Policy, start_episode, valid_action
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym
    from jaxtyping import Float64, Shaped, UInt8

__all__ = ["Hold", "PolicyReturns", "Starts", "draw_starts", "measure_returns", "real_returns"]

_TRIES = 20
"""Seeds tried for each start, where episodes end before they have begun."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Where real and imagined futures begin."""

    seeds: Sequence[int]
    frames: UInt8[np.ndarray, "start past+1 row column channel"]
    actions: Shaped[np.ndarray, "start past *action"]

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True, kw_only=True)
class PolicyReturns:
    """What one policy got from each start, summed up to each step."""

    name: str
    real: Float64[np.ndarray, "start time"]
    imagined: Float64[np.ndarray, "start time"]
    strangeness: Float64[np.ndarray, "start time"]
    """By how much imagined frames are less likely than recorded ones are on average, actions hidden, in nats per
    dimension, where they are; summed likewise."""
    is_replayed: bool
    """Whether its real actions were repeated in the world, because it sees more of the real one than frames."""

    def penalized(self, weight: float) -> Float64[np.ndarray, "start time"]:
        """The imagined return with what is unlike the recordings taken off."""
        return self.imagined - weight * self.strangeness


class Hold:
    """Does nothing: the neutral action, zero or the nearest to it.

    Args:
        space: The action space.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self._action = neutral_action(space)

    def __call__(self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> Any:
        """The same as ever."""
        return self._action


def draw_starts(
    env: gym.Env[Any, Any], policy: Policy, *, count: int, past: int, frame_shape: Sequence[int], seed: int = 0
) -> Starts:
    """Reset the real environment and take a few steps.

    Args:
        env: The environment.
        policy: Who takes them.
        count: Starts to draw.
        past: Steps to take.
        frame_shape: Row, column, channel of a frame.
        seed: Of the first one; episodes that end within the past are passed over.

    Raises:
        ValueError, TypeError: If a number is out of range, or too many episodes end within the past.
    """
    check_count("starts", count)
    check_count("past", past)
    seeds, frames, actions = [], [], []
    for number in range(seed, seed + count * _TRIES):
        generator = np.random.default_rng([number, 2])
        start_episode(policy, generator)
        observation, info = env.reset(seed=number)
        seen, done = [np.array(observation)], []
        for _ in range(past):
            done.append(valid_action(policy(observation, info, generator), env.action_space))
            observation, _, terminated, truncated, info = env.step(done[-1])
            seen.append(np.array(observation))
            if terminated or truncated:
                break
        else:
            seeds.append(number)
            frames.append(np.stack(seen).reshape(past + 1, *frame_shape))
            actions.append(np.stack(done))
        if len(seeds) == count:
            return Starts(seeds=seeds, frames=np.stack(frames), actions=np.stack(actions))
    raise ValueError(
        f"only {len(seeds)} of {count * _TRIES} episodes last for more than the {past} steps before a start; take "
        "fewer of them, or a policy that lasts longer"
    )


def measure_returns(
    name: str,
    make: Callable[[], Policy],
    world: WorldModel,
    env: gym.Env[Any, Any],
    starts: Starts,
    *,
    horizon: int,
    samples: int = 1,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> PolicyReturns:
    """Real and imagined returns of one policy.

    Args:
        name: What to call it.
        make: Gives the policy, with a memory of its own in each call.
        world: The world.
        env: The real environment.
        starts: Where to start.
        horizon: Steps to go on for.
        samples: Imagined futures of each start, whose returns are averaged.
        seed: Of the imagined futures.
        tick: Called after every real episode and every imagined step.

    Raises:
        ValueError, TypeError: If a number is out of range, or an action is not in the action space.
    """
    check_count("horizon", horizon)
    check_count("samples", samples)
    real, actions = real_returns(make(), env, starts, horizon=horizon, tick=tick)
    is_replayed = not _needs_only_frames(make(), starts, env)
    policies = None if is_replayed else [make() for _ in range(len(starts) * samples)]
    imagined, strangeness = _imagined(
        world, env, starts, policies, actions, horizon=horizon, samples=samples, seed=seed, tick=tick
    )
    return PolicyReturns(name=name, real=real, imagined=imagined, strangeness=strangeness, is_replayed=is_replayed)


def real_returns(
    policy: Policy,
    env: gym.Env[Any, Any],
    starts: Starts,
    *,
    horizon: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Float64[np.ndarray, "start time"], Shaped[np.ndarray, "start time *action"]]:
    """Returns in the real environment up to each step, and what was done; the neutral action after an end.

    The policy sees the frames before the start, too, so that it remembers them, but does not act there.

    Raises:
        ValueError: If the environment does not show what it showed before, from the same seed and actions.
    """
    space = env.action_space
    held = neutral_action(space)
    rewards = np.zeros((len(starts), horizon))
    done = np.stack([np.stack([held] * horizon)] * len(starts))
    for i, seed in enumerate(starts.seeds):
        generator = np.random.default_rng([seed, 1])
        start_episode(policy, generator)
        observation, info = env.reset(seed=seed)
        for action in starts.actions[i]:
            policy(observation, info, generator)
            observation, _, _, _, info = env.step(action)
        if not np.array_equal(np.reshape(observation, starts.frames[i, -1].shape), starts.frames[i, -1]):
            raise ValueError(
                f"the environment shows something else than before after the same actions from seed {seed}; real and "
                "imagined returns can be compared only where a seed decides everything random"
            )
        for t in range(horizon):
            done[i, t] = valid_action(policy(observation, info, generator), space)
            observation, reward, terminated, truncated, info = env.step(done[i, t])
            rewards[i, t] = float(reward)
            if terminated or truncated:
                break
        tick()
    return rewards.cumsum(axis=1), done


def _needs_only_frames(policy: Policy, starts: Starts, env: gym.Env[Any, Any]) -> bool:
    """Whether a policy acts on a frame alone: one that asks for the simulator's state says that it misses it."""
    generator = np.random.default_rng(0)
    start_episode(policy, generator)
    try:
        policy(starts.frames[0, 0].reshape(env.observation_space.shape or ()), {}, generator)
    except (ValueError, KeyError):
        return False
    return True


@torch.no_grad()
def _imagined(
    world: WorldModel,
    env: gym.Env[Any, Any],
    starts: Starts,
    policies: Sequence[Policy] | None,
    replayed: Shaped[np.ndarray, "start time *action"],
    *,
    horizon: int,
    samples: int,
    seed: int,
    tick: Callable[[], object],
) -> tuple[Float64[np.ndarray, "start time"], Float64[np.ndarray, "start time"]]:
    """Expected returns and strangeness in the world, up to each step, the means of the samples."""
    shape = env.observation_space.shape or ()
    generator = torch.Generator().manual_seed(seed)
    state = world.start(torch.from_numpy(starts.frames), torch.from_numpy(starts.actions), generator=generator)
    state = state.repeat(samples)
    num_rows, likeness, usual = len(state), InDistribution(world), _usual_likeness(world, starts)
    frames = starts.frames.repeat(samples, axis=0)
    numbers = [np.random.default_rng([s, 1, k]) for s in starts.seeds for k in range(samples)]
    if policies is not None:
        for i, policy in enumerate(policies):
            start_episode(policy, numbers[i])
            for frame in frames[i, :-1]:
                policy(frame.reshape(shape), {}, numbers[i])
    seen = frames[:, -1]
    alive = np.ones(num_rows)
    rewards, strangeness = np.zeros((2, num_rows, horizon))
    for t in range(horizon):
        if policies is None:
            actions = replayed[:, t].repeat(samples, axis=0)
        else:
            actions = np.stack(
                [
                    valid_action(policy(seen[i].reshape(shape), {}, numbers[i]), env.action_space)
                    for i, policy in enumerate(policies)
                ]
            )
        done, before = torch.from_numpy(actions), state
        transition, state = world.step(state, done, generator=generator)
        assert transition.frame is not None
        seen = transition.frame.cpu().numpy()
        step = Rollout(
            actions=done[:, None], transitions=[transition], origin=torch.arange(num_rows), states={0: before}
        )
        rewards[:, t] = alive * transition.reward_mean.double().cpu().numpy()
        strangeness[:, t] = alive * np.maximum(0.0, usual - likeness(step).cpu().numpy())
        alive *= 1 - transition.termination_prob.double().cpu().numpy()
        tick()
    both = np.stack((rewards, strangeness)).reshape(2, len(starts), samples, horizon).mean(axis=2).cumsum(axis=-1)
    return both[0], both[1]


def _usual_likeness(world: WorldModel, starts: Starts) -> float:
    """What `InDistribution` says of the last frame of recorded pasts, or of the starts where the world has none."""
    bank = world.contexts
    frames = torch.from_numpy(starts.frames) if bank is None else bank.frames
    actions = torch.from_numpy(starts.actions) if bank is None else bank.actions
    log_prob = world.log_prob(frames, actions, hide_actions=True, generator=torch.Generator().manual_seed(0))
    return -float(world.above_floor(log_prob.frame[:, -1]).mean())
