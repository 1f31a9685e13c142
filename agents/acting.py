"""Acting for real: look at what is there, plan in the world, do the first action, look again.

    pilot = Pilot(world, CEM(world, world.config.data.action), Return(), horizon=12)
    for played in act(pilot, env, episodes=10):
        print(played.episode.rewards.sum())

The world's state follows the real frames one by one (`observe`): it is the one that `WorldModel.start` would read from
the whole episode, for the price of one frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldflow.agents.objectives import Objective
from worldflow.agents.plan import Planner
from worldflow.agents.result import Plan
from worldflow.agents.rollout import check_count
from worldflow.frames import as_tensors, observed_frame, picture, together
from worldflow.metrics import bootstrap_interval
from worldflow.state import WorldState
from worldflow.types import Episode, Generators
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym
    from jaxtyping import Shaped, UInt8

__all__ = ["Decision", "EnvironmentFailed", "Pilot", "Played", "act", "observe", "summary"]

DEFAULT_MAX_STEPS = 1000
"""Steps after which an episode is cut off, where the environment has no time limit of its own."""


@torch.no_grad()
def observe(
    world: WorldModel,
    state: WorldState,
    action: Shaped[Tensor, "batch *action"],
    frame: UInt8[Tensor, "batch row column channel"],
    *,
    generator: Generators = None,
) -> WorldState:
    """The state after one more real transition.

    Args:
        world: The world.
        state: What came before.
        action: What was done.
        frame: What was seen then.
        generator: Draws the code's noise.

    Raises:
        ValueError, TypeError: If shapes or types are wrong.
    """
    codes = world.codes(as_tensors(frame)[:, None])
    x = world.with_noise(codes, generator=generator)
    features = world.encode_actions(torch.as_tensor(action)[:, None]).to(x.dtype)
    after = world.flow(x, features, shown=codes if world.config.flow.has_shown else None, state=state).state
    assert after is not None
    return after


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One look ahead.

    Args:
        step: At which step of the episode.
        value: What the plan was thought to be worth.
        num_steps: Rows that the world stepped for it.
        seconds: How long it took.
    """

    step: int
    value: float
    num_steps: int
    seconds: float


class Pilot:
    """A policy that plans: what `act` and `worldflow.envs.collect` call with one observation after the other.

    Args:
        world: What it plans in, and what follows the real frames.
        planner: How it searches.
        objective: What it maximizes.
        horizon: Steps that it looks ahead.
        replan_every: Steps for which a plan is followed before it plans anew, at most the horizon.
        sees: Whether to also draw, of each plan, what it is expected to look like (`seen`).

    Attributes:
        decisions: Those of the current episode.
        seen: For each step of the current episode two frames, if `sees`: what was expected to be seen after it, and
            what the plan that it follows expects to see in the end.

    Raises:
        ValueError, TypeError: If a number is out of range.
    """

    def __init__(
        self,
        world: WorldModel,
        planner: Planner[WorldState],
        objective: Objective,
        *,
        horizon: int,
        replan_every: int = 1,
        sees: bool = False,
    ) -> None:
        check_count("horizon", horizon)
        check_count("replan_every", replan_every)
        if replan_every > horizon:
            raise ValueError(f"replan_every must be at most the horizon {horizon}, got {replan_every}")
        self.world, self.planner, self.objective = world, planner, objective
        self.horizon, self.replan_every, self.sees = horizon, replan_every, sees
        self.reset(np.random.default_rng(0))

    def reset(self, generator: np.random.Generator) -> None:
        """Forget the last episode; all that is drawn in the next one follows from `generator`."""
        self.decisions: list[Decision] = []
        self.seen: list[tuple[UInt8[np.ndarray, "row column channel"], UInt8[np.ndarray, "row column channel"]]] = []
        self._generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
        self._state: WorldState | None = None
        self._plan: Plan | None = None
        self._done = 0  # actions of the plan
        self._steps = 0
        self._ahead: list[np.ndarray] = []

    def __call__(
        self, observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator
    ) -> Shaped[np.ndarray, "*action"]:
        """Look at a frame, and say what to do."""
        started = time.perf_counter()
        frame = as_tensors(observed_frame(self.world.config.data, observation))[None]
        if self._state is None or self._plan is None:
            self._state = self.world.start(frame[:, None], generator=self._generator)
        else:
            last = self._plan.actions[:, self._done - 1]
            self._state = observe(self.world, self._state, last, frame, generator=self._generator)
        if self._plan is None or self._done == self.replan_every:
            guess = None if self._plan is None else self._plan.shift_all(self._done)
            self._plan = self.planner.plan(
                self._state, self.objective, self.horizon, generator=self._generator, guess=guess
            )
            self.decisions.append(
                Decision(
                    step=self._steps,
                    value=float(self._plan.value[0]),
                    num_steps=self._plan.diagnostics.num_steps,
                    seconds=time.perf_counter() - started,
                )
            )
            self._done = 0
            if self.sees:
                self._ahead = self._look_ahead(self._state, self._plan)
        if self.sees:
            self.seen.append((self._ahead[self._done], self._ahead[-1]))
        action = self._plan.actions[0, self._done].cpu().numpy()
        self._done += 1
        self._steps += 1
        return action

    def _look_ahead(self, state: WorldState, plan: Plan) -> list[np.ndarray]:
        """The frames after the steps that will be done and after the last one, in one imagined future of the plan."""
        generator = torch.Generator().manual_seed(0)  # its own: whether one looks does not change what is done
        frames = []
        for t in range(self.horizon):
            is_shown = t < self.replan_every or t == self.horizon - 1
            transition, state = self.world.step(state, plan.actions[:, t], generator=generator, decode=is_shown)
            if is_shown:
                assert transition.frame is not None
                frames.append(picture(transition.frame)[0].cpu().numpy())
        return frames


class EnvironmentFailed(RuntimeError):  # noqa: N818 - it names what happened
    """A real environment raised, which is the cause of this; the message says where, and what is kept."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One real episode, and what was thought on the way.

    Args:
        episode: What happened.
        seed: What the environment was reset with.
        decisions: What was planned.
        expected: Beside each real frame the one that was expected a step before; the first is the real one.
        ahead: Beside each real frame the one that the plan at work expects to see in its end. Both None where the pilot
            does not draw them.
        error: What the environment raised, where the episode ended so.
    """

    episode: Episode
    seed: int
    decisions: Sequence[Decision]
    expected: UInt8[np.ndarray, "time+1 row column channel"] | None = None
    ahead: UInt8[np.ndarray, "time+1 row column channel"] | None = None
    error: str | None = None


def act(
    pilot: Pilot,
    env: gym.Env[Any, Any],
    *,
    episodes: int = 1,
    seed: int = 0,
    max_steps: int | None = None,
    progress: bool = False,
) -> Iterator[Played]:
    """Play episodes in a real environment.

    Args:
        pilot: Who plans.
        env: What to act in; it is not closed.
        episodes: How many to play.
        seed: Episode `n` is played with `seed + n`, whatever came before it.
        max_steps: Steps after which an episode is cut off; by default the environment's own limit, or 1000.
        progress: Whether to show a progress bar.

    Yields:
        Episodes, each when it is over.

    Raises:
        ValueError, TypeError: If a number is out of range, or the environment's frames or actions are not the world's.
        EnvironmentFailed: If the environment raises; the steps before that have been yielded as an episode with an
            `error`, unless it was at a reset.
    """
    from worldflow.envs.observations import check_fits

    check_count("episodes", episodes)
    check_count("seed", seed, minimum=0)
    if max_steps is not None:
        check_count("max_steps", max_steps)
    check_fits(pilot.world.config.data, env)
    limits = (max_steps, None if env.spec is None else env.spec.max_episode_steps)
    limit = min((limit for limit in limits if limit is not None), default=DEFAULT_MAX_STEPS)
    return _episodes(pilot, env, episodes, seed, limit, progress=progress)


def summary(played: Sequence[Played]) -> dict[str, Any]:
    """What a set of episodes comes to, in plain numbers.

    Args:
        played: Episodes; those that the environment ended by an error do not count for returns.

    Returns:
        `mean_return`; `interval`, its 95 % bootstrap interval over episodes, None for fewer than two; `returns`;
        `lengths`; `seconds_per_decision`; `model_steps_per_second`, rows that the world stepped a second of planning.
    """
    whole = [p for p in played if p.error is None]
    returns = [float(p.episode.rewards.sum(dtype=np.float64)) for p in whole]
    decisions = [d for p in played for d in p.decisions]
    seconds = sum(d.seconds for d in decisions)
    interval = None
    if len(returns) > 1:
        interval = [float(end) for end in bootstrap_interval(np.array(returns))]
    return {
        "mean_return": float(np.mean(returns)) if returns else None,
        "interval": interval,
        "returns": returns,
        "lengths": [len(p.episode) for p in whole],
        "seconds_per_decision": seconds / len(decisions) if decisions else None,
        "model_steps_per_second": sum(d.num_steps for d in decisions) / seconds if decisions else None,
    }


def _episodes(
    pilot: Pilot, env: gym.Env[Any, Any], episodes: int, seed: int, limit: int, *, progress: bool
) -> Iterator[Played]:
    with tqdm(total=episodes, desc="act", unit="episode", mininterval=0.5, disable=not progress) as bar:
        for number in range(seed, seed + episodes):
            try:
                first = env.reset(seed=number)
            except Exception as error:
                raise EnvironmentFailed(
                    f"the environment raised {type(error).__name__}: {error} at the reset of the episode with seed "
                    f"{number}; {number - seed} episodes before it are kept"
                ) from error
            played, error = _play(pilot, env, number, limit, bar, first)
            yield played
            bar.update()
            if error is not None:
                raise EnvironmentFailed(
                    f"the environment raised {played.error} at step {len(played.episode)} of the episode with seed "
                    f"{number}; {number - seed} episodes before it and its first {len(played.episode)} steps are kept"
                ) from error


def _play(
    pilot: Pilot, env: gym.Env[Any, Any], seed: int, limit: int, bar: tqdm[Any], first: tuple[Any, dict[str, Any]]
) -> tuple[Played, Exception | None]:
    """One episode from what its reset returned, and the error that ended it."""
    from worldflow.envs.policies import valid_action

    generator = np.random.default_rng([seed, 1])
    pilot.reset(generator)
    observation, info = first
    data = pilot.world.config.data
    frames, actions, rewards, terminated, truncated = [observed_frame(data, observation)], [], [], [], []
    failure = None
    for step in range(limit):
        action = valid_action(pilot(observation, info, generator), env.action_space)
        try:
            observation, reward, is_terminated, is_truncated, info = env.step(action)
        except Exception as error:
            failure = error
            break
        frames.append(observed_frame(data, observation))
        actions.append(action)
        rewards.append(float(reward))
        terminated.append(bool(is_terminated))
        truncated.append(bool(is_truncated) or (step == limit - 1 and not is_terminated))
        bar.set_postfix_str(f"step {step + 1}, return {sum(rewards):.5g}", refresh=False)
        bar.update(0)
        if terminated[-1] or truncated[-1]:
            break
    if failure is not None and truncated:
        truncated[-1] = True
    T, real = len(rewards), together(np.stack, frames)
    expected = ahead = None
    if pilot.sees:
        start = picture(real)[0]
        seen = [(start, start), *pilot.seen[:T]]
        expected = np.stack([one for one, _ in seen])
        ahead = np.stack([*[end for _, end in seen[1:]], seen[-1][1]])
    spec = pilot.world.config.data.action
    played = Played(
        episode=Episode(
            frames=real,
            actions=np.stack(actions) if actions else np.zeros((0, *spec.shape), spec.dtype),
            rewards=np.array(rewards, np.float32),
            terminated=np.array(terminated, bool),
            truncated=np.array(truncated, bool),
        ),
        seed=seed,
        decisions=tuple(pilot.decisions),
        expected=expected,
        ahead=ahead,
        error=None if failure is None else f"{type(failure).__name__}: {failure}",
    )
    return played, failure
