"""MPPI: move towards all candidates at once, each by the exponential of its value.

    x_i ~ q,   w_i = exp((V_i - max V) / temperature) / sum,   mean <- sum_i w_i x_i

The path integral's optimal distribution is `q* ~ q exp(V / temperature)`. Among normals of fixed spread the nearest to
it, by the relative entropy from `q*`, is the one around its mean, which the weights estimate; among independent choices
it is the one with its frequencies. So discrete actions are searched by the same update.

Reference:
    Williams, Wagener, Goldfain, Drews, Rehg, Boots and Theodorou 2017, "Information Theoretic MPC for Model-Based
    Reinforcement Learning", ICRA, algorithm 2, with the sampling distribution as the base one: no price of control.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from worldflow.agents.objectives import Objective
from worldflow.agents.result import Plan
from worldflow.agents.rollout import Simulator, SimulatorState, check_count
from worldflow.agents.search import Search, check_searcher, check_smoothing
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped
    from torch import Tensor

__all__ = ["MPPI"]

S = TypeVar("S", bound=SimulatorState)


@dataclass(frozen=True)
class MPPI(Generic[S]):
    """Model-predictive path-integral control.

    The plan is the last mode or the best candidate seen, whichever does better in futures drawn anew.

    Args:
        world: What to plan in.
        action: What an action is: `world.config.data.action`.
        num_candidates: Action sequences tried in each iteration.
        num_iterations: How often.
        temperature: Of the weights, in standard deviations of the candidates' values; so it needs no other number for
            rewards of another scale. Towards 0 only the best candidate counts.
        initial_std: Standard deviation of the noise to begin with, in half widths of the bounds; a Box only.
        cooling: What it is multiplied by after each iteration, in (0, 1]; 1 as published.
        exponent: Of the noise's power spectrum over time, 0 as published (`worldflow.agents.noise`).
        smoothing: Part of the old distribution that is kept, in [0, 1); 0 as published.
        num_samples, max_rows, action_repeat: As in `worldflow.agents.CEM`.

    Raises:
        ValueError, TypeError: If a number is out of range, or a Box is unbounded.
    """

    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_candidates: int = 256
    num_iterations: int = 5
    temperature: float = 0.3
    initial_std: float = 0.5
    cooling: float = 0.7
    exponent: float = 0.0
    smoothing: float = 0.1
    num_samples: int = 1
    max_rows: int = 256
    action_repeat: int = 1

    def __post_init__(self) -> None:
        check_searcher(self)
        check_count("num_candidates", self.num_candidates, minimum=2)
        check_count("num_iterations", self.num_iterations)
        check_smoothing(self.smoothing, self.initial_std)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not 0 < self.cooling <= 1:
            raise ValueError(f"cooling must lie in (0, 1], got {self.cooling}")
        if not 0 <= self.exponent < math.inf:
            raise ValueError(f"exponent must be at least 0 and finite, got {self.exponent}")

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Plan:
        """Search as `Planner.plan`; the first guess is where the first distribution has its mode."""
        search = Search(self, state, objective, horizon, generator, guess)
        proposal = search.proposal(std=self.initial_std)
        given = search.first(self.num_candidates // 2)
        for _ in range(self.num_iterations):
            drawn = proposal.sample(self.num_candidates - given.shape[1], generator, exponent=self.exponent)
            candidates = torch.cat((given, drawn), dim=1)
            weights = _weights(search.values(candidates), self.temperature)
            proposal = proposal.tilted(candidates, weights, smoothing=self.smoothing, cooling=self.cooling)
            given = proposal.mode[:, None]
        return search.finish(proposal.mode)


def _weights(values: Float64[Tensor, "batch candidate"], temperature: float) -> Float64[Tensor, "batch candidate"]:
    """Equal ones where all values are equal."""
    spread = values.std(dim=1, keepdim=True).clamp(min=1e-12)
    return ((values - values.amax(dim=1, keepdim=True)) / (temperature * spread)).softmax(dim=1)
