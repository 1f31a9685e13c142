"""iCEM: the cross-entropy method made sample-efficient.

What it adds to `worldflow.agents.plan.CEM`:

- candidates vary with *colored* noise over time (`worldflow.agents.noise`): they push on instead of trembling;
- part of an iteration's elites stay candidates of the next one;
- so do those of the last plan, shifted, which a guess of several sequences holds (`Plan.shift_all`);
- each iteration draws fewer candidates than the one before, `decay` times;
- the distribution's mode is a candidate of the last iteration only, and what is done is the best candidate seen.

Reference:
    Pinneri, Sawant, Blaes, Achterhold, Stueckler, Rolinek and Martius 2020, "Sample-efficient Cross-Entropy Method for
    Real-time Planning", arXiv 2008.06389, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from worldflow.agents.objectives import Objective
from worldflow.agents.result import Plan
from worldflow.agents.rollout import Simulator, SimulatorState, check_count
from worldflow.agents.search import Search, best_of, check_elites, check_searcher, check_smoothing
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor

__all__ = ["ICEM"]

S = TypeVar("S", bound=SimulatorState)


@dataclass(frozen=True)
class ICEM(Generic[S]):
    """The improved cross-entropy method, for a Box as published, and for discrete actions alike.

    The counterpart of colored noise for choices is a Gaussian copula: the rank of a colored normal number picks the
    choice, so that each choice by itself is as likely as the distribution says, and choices stay a while.

    Args:
        world: What to plan in.
        action: What an action is: `world.config.data.action`.
        num_candidates: Action sequences drawn in the first iteration; later ones draw fewer, at least twice the elites.
        num_elites: Best of them that the next distribution is fitted to.
        num_iterations: How often.
        decay: By which factor fewer candidates are drawn from one iteration to the next, at least 1.
        kept_fraction: Share of the elites that stay candidates of the next iteration.
        exponent: Of the noise's power spectrum over time: 0 white, 1 pink, 2 a random walk's; 2 to 4 for what has much
            inertia.
        smoothing: Part of the old distribution that is kept, in [0, 1).
        initial_std: Standard deviation to begin with, in half widths of the bounds; a Box only.
        num_samples, max_rows, action_repeat: As in `worldflow.agents.CEM`.

    Raises:
        ValueError, TypeError: If a number is out of range, or a Box is unbounded.
    """

    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_candidates: int = 128
    num_elites: int = 16
    num_iterations: int = 4
    decay: float = 1.25
    kept_fraction: float = 0.3
    exponent: float = 2.0
    smoothing: float = 0.1
    initial_std: float = 0.5
    num_samples: int = 1
    max_rows: int = 256
    action_repeat: int = 1

    def __post_init__(self) -> None:
        check_searcher(self)
        check_elites(self.num_candidates, self.num_elites)
        check_count("num_iterations", self.num_iterations)
        check_smoothing(self.smoothing, self.initial_std)
        if not 1 <= self.decay < math.inf:
            raise ValueError(f"decay must be at least 1, got {self.decay}; 1 draws as many in each iteration")
        if not 0 <= self.kept_fraction <= 1:
            raise ValueError(f"kept_fraction must lie in [0, 1], got {self.kept_fraction}")
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
        num_kept = math.ceil(self.kept_fraction * self.num_elites)
        kept = search.first(num_kept)
        for iteration in range(self.num_iterations):
            given = [kept]
            if iteration > 0 and iteration == self.num_iterations - 1:
                given.append(proposal.mode[:, None])
            drawn = proposal.sample(self._draws(iteration), generator, exponent=self.exponent)
            candidates = torch.cat((*given, drawn), dim=1)
            elites = best_of(candidates, search.values(candidates), self.num_elites)
            proposal = proposal.fitted(elites, smoothing=self.smoothing)
            kept = elites[:, :num_kept]
        return search.finish(proposal.mode)

    def _draws(self, iteration: int) -> int:
        fewest = min(2 * self.num_elites, self.num_candidates)
        return max(math.ceil(self.num_candidates * self.decay**-iteration), fewest)
