"""Worlds that can be solved by hand, and planners with budgets that solve them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from worldflow.agents import CEM, ICEM, MPPI, Planner, RandomShooting, Return, Simulator, SimulatorState
from worldflow.randomness import normal
from worldflow.state import WorldState
from worldflow.types import ActionSpec, Generators, LogProb, Transition
from worldflow.world import WorldModel

__all__ = [
    "BOX",
    "FINITE",
    "MOVES",
    "PAIR",
    "PLANE",
    "STARTS",
    "UNDISCOUNTED",
    "WAIT_OR_TAKE",
    "Chain",
    "Follow",
    "Likeliest",
    "Lottery",
    "PointMass",
    "Toy",
    "Watched",
    "cem",
    "every_planner",
    "exhaustive",
    "icem",
    "mppi",
    "outcome",
    "riccati",
    "seeded",
    "shooting",
]

S = TypeVar("S", bound=SimulatorState)
BOX = ActionSpec(shape=(1,), dtype="float64", low=(-2.0,), high=(2.0,))
PLANE = ActionSpec(shape=(2,), dtype="float64", low=(-2.0, -1.5), high=(2.0, 1.0))
MOVES = ActionSpec(shape=(), dtype="int64", choices=(3,), first=(1,))
WAIT_OR_TAKE = ActionSpec(shape=(), dtype="int64", choices=(2,), first=(0,))
PAIR = ActionSpec(shape=(2,), dtype="int64", choices=(3, 2), first=(0, 1))
UNDISCOUNTED = Return(discount=1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Toy:
    """The state of a toy: numbers, row by row."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice) -> Toy:
        return Toy(self.x[index])

    def repeat(self, k: int) -> Toy:
        return Toy(self.x.repeat_interleave(k, dim=0))


def outcome(reward: Tensor, termination_prob: Tensor | None = None) -> Transition:
    """A transition of which only the expectations are looked at; what was drawn would mislead."""
    nothing = torch.full_like(reward, math.nan)
    return Transition(
        frame=None,
        reward=nothing,
        reward_mean=reward,
        terminated=torch.ones_like(reward, dtype=torch.bool),
        termination_prob=torch.zeros_like(reward) if termination_prob is None else termination_prob,
        log_prob=LogProb(frame=nothing, reward=nothing, terminated=nothing),
        latent=nothing[:, None, None],
    )


@dataclass(frozen=True)
class PointMass:
    """Linear and quadratic: `v' = v + (a + noise) / 2`, `p' = p + v' / 2`, reward `-(p'^2 + v'^2 / 10 + a^2 / 10)`."""

    noise_std: float = 0.0

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        push = action[:, 0]
        if self.noise_std > 0:
            push = push + self.noise_std * normal((len(state),), generator, dtype=torch.float64)
        speed = state.x[:, 1] + push / 2
        place = state.x[:, 0] + speed / 2
        reward = -(place**2 + speed**2 / 10 + action[:, 0] ** 2 / 10)
        return outcome(reward), Toy(torch.stack((place, speed), dim=1))


def riccati(start: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """The best actions `(batch, time, 1)` and their value in `PointMass`, by the Riccati recursion."""
    A, B = np.array([[1.0, 0.5], [0.0, 1.0]]), np.array([[0.25], [0.5]])
    Q, R, P, gains = np.diag([1.0, 0.1]), np.array([[0.1]]), np.zeros((2, 2)), []
    for _ in range(horizon):
        M = Q + P
        K = np.linalg.solve(R + B.T @ M @ B, B.T @ M @ A)
        P = A.T @ M @ A - A.T @ M @ B @ K
        gains.insert(0, K)
    x, actions = start.numpy().T, []
    value = -np.einsum("ib,ij,jb->b", x, P, x)
    for K in gains:
        actions.append(-K @ x)
        x = A @ x + B @ actions[-1]
    return torch.from_numpy(np.stack(actions)).permute(2, 0, 1), torch.from_numpy(value)


class Chain:
    """Places 0..4, moves 1 (left), 2 (stay), 3 (right): 0.3 for being at 0, 1 for being at 4: the lure is nearer."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        place = (state.x + action - 2).clamp(0, 4)
        return outcome(0.3 * (place == 0).double() + (place == 4).double()), Toy(place)


class WaitOrTake:
    """Waiting pays 1; taking pays 3 and ends with probability `x`. Who forgets the end takes all the time."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        return outcome(1.0 + 2.0 * action, state.x * action), state


class Lock:
    """A pair of choices opens each time: `(t mod 3, 1 + (t + x) mod 2)` pays 1 for each right component."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        t, x = state.x.unbind(dim=1)
        right = (action[:, 0] == t % 3).double() + (action[:, 1] == 1 + (t + x) % 2).double()
        return outcome(right), Toy(torch.stack((t + 1, x), dim=1))


class Follow:
    """Pays `-(a - x)^2`, summed over components: each number is on its own."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        return outcome(-((action - state.x) ** 2).sum(dim=1)), state


class Lottery:
    """Pays a standard normal number, whatever is done."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        return outcome(normal((len(state),), generator, dtype=torch.float64)), state


class Watched(Generic[S]):
    """Any world, with a list of how many rows each call had."""

    def __init__(self, world: Simulator[S]) -> None:
        self.world, self.rows = world, list[int]()

    def step(self, state: S, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, S]:
        assert not decode
        assert len(action) == len(state)
        self.rows.append(len(state))
        return self.world.step(state, action, generator=generator, decode=decode)


@dataclass(frozen=True)
class Likeliest:
    """A learned world whose frames are drawn without noise."""

    world: WorldModel

    def step(
        self, state: WorldState, action: Tensor, *, generator: Generators, decode: bool
    ) -> tuple[Transition, WorldState]:
        return self.world.step(state, action, generator=generator, temperature=0.0, decode=decode)


def exhaustive(world: Simulator[Toy], state: Toy, action: ActionSpec, horizon: int) -> Tensor:
    """The greatest value of each row among all sequences of actions, all of them tried one step at a time."""
    singles = list(itertools.product(*(range(f, f + n) for f, n in zip(action.first, action.choices, strict=True))))
    best = []
    for row in range(len(state)):
        record = -math.inf
        for sequence in itertools.product(singles, repeat=horizon):
            now, total, alive = state[row : row + 1], 0.0, 1.0
            for choice in sequence:
                tried = torch.tensor(choice).reshape(1, *action.shape)
                transition, now = world.step(now, tried, generator=None, decode=False)
                total += alive * float(transition.reward_mean)
                alive *= 1 - float(transition.termination_prob)
            record = max(record, total)
        best.append(record)
    return torch.tensor(best, dtype=torch.float64)


STARTS = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.3, -0.8]], dtype=torch.float64)
FINITE = {
    "chain": (Chain(), Toy(torch.tensor([1, 2, 3])), MOVES, 5),
    "wait or take": (WaitOrTake(), Toy(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)), WAIT_OR_TAKE, 6),
    "lock": (Lock(), Toy(torch.tensor([[0, 0], [1, 0], [0, 1]])), PAIR, 3),
}


def shooting(world: Simulator[S], action: ActionSpec, **options: Any) -> Planner[S]:
    return RandomShooting(world, action, **{"num_candidates": 8192, "max_rows": 30_000, **options})


def cem(world: Simulator[S], action: ActionSpec, **options: Any) -> Planner[S]:
    return CEM(world, action, **{"num_candidates": 512, "num_elites": 50, "max_rows": 30_000, **options})


def icem(world: Simulator[S], action: ActionSpec, **options: Any) -> Planner[S]:
    return ICEM(world, action, **{"num_candidates": 512, "num_elites": 40, "max_rows": 30_000, **options})


def mppi(world: Simulator[S], action: ActionSpec, **options: Any) -> Planner[S]:
    return MPPI(world, action, **{"num_candidates": 512, "max_rows": 30_000, **options})


PLANNERS: dict[str, Callable[..., Planner[Any]]] = {"shooting": shooting, "cem": cem, "icem": icem, "mppi": mppi}
every_planner = pytest.mark.parametrize("make", PLANNERS.values(), ids=list(PLANNERS))
