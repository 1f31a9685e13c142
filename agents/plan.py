"""Planners: choose actions by looking ahead in a world, before anything is done for real.

A planner searches action sequences `a_0 .. a_{H-1}`, rolls each through the world in latent space (no frame is
decoded), and returns the one whose imagined future an objective values most:

    maximize over a:   V(a) = E[ objective(s_0, a_0, s_1, a_1, ..) ]

Only the first action or so is meant to be used; then one looks again from where one is (receding horizon), starting
from what is left of the last plan:

    plan = planner.plan(state, Return(discount=0.99), 12, generator=g)
    ...  # act with plan.actions[:, 0], observe, get the next state
    plan = planner.plan(state, Return(discount=0.99), 12, generator=g, guess=plan.shift())

`RandomShooting` draws once and takes the best. `CEM` draws again around the best, a few times over; `ICEM`
(`worldflow.agents.icem`) does so with fewer candidates that stay a while; `MPPI` (`worldflow.agents.mppi`) weighs all
of them; `Refined` (`worldflow.agents.refine`) follows the gradient of the best. All search bounded Box and discrete
actions (but for the gradient), for many environments at once, each on its own.

Reference:
    Rubinstein 1999, "The Cross-Entropy Method for Combinatorial and Continuous Optimization"; de Boer, Kroese, Mannor
    and Rubinstein 2005, "A Tutorial on the Cross-Entropy Method". As planners in a learned model: Chua, Calandra,
    McAllister and Levine 2018 (PETS), arXiv 1805.12114, section 5.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from worldflow.agents.objectives import Objective
from worldflow.agents.proposals import draw_uniform
from worldflow.agents.result import Plan
from worldflow.agents.rollout import Simulator, SimulatorState, check_count
from worldflow.agents.search import Search, best_of, check_elites, check_searcher, check_smoothing
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor

__all__ = ["CEM", "Planner", "RandomShooting"]

S = TypeVar("S", bound=SimulatorState)
S_contra = TypeVar("S_contra", bound=SimulatorState, contravariant=True)


class Planner(Protocol[S_contra]):
    """A search for good actions. It keeps nothing between calls."""

    def plan(
        self,
        state: S_contra,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Plan:
        """Search actions for every row of a state, each row on its own.

        Args:
            state: Where to plan from; it is not changed.
            objective: What to maximize.
            horizon: How many actions to look ahead.
            generator: Draws candidates and futures. With one for each row of the state, a row's plan does not depend
                on the others (but for what the world's own arithmetic makes of a batch).
            guess: Actions to start from, such as `last_plan.shift()`; or several sequences of them for each row, the
                likeliest first, such as `last_plan.shift_all()`: the others are tried, as far as the budget allows.

        Raises:
            ValueError, TypeError: If the horizon, the guess or the generators do not fit, or the objective gives NaN.
        """
        ...


# -- planners -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomShooting(Generic[S]):
    """Draw action sequences uniformly, take the best.

    It improves slowly: the nearest of `n` candidates to the optimum in `d` dimensions is some `n^(-1/d)` away. Use it
    for short horizons, few choices, or to compare with.

    Args:
        world: What to plan in.
        action: What an action is: `world.config.data.action`.
        num_candidates: Action sequences tried.
        num_samples: Futures drawn of each, whose values are averaged; more than 1 helps where the world is random.
        max_rows: Most rows stepped in one call of the world; bounds the memory. In a random world it also changes
            which numbers are drawn.
        action_repeat: Steps for which each action is done: fewer numbers to search for the same horizon. Of a guess,
            the first action of each such stretch is read.

    Raises:
        ValueError, TypeError: If a number is out of range, or a Box is unbounded.
    """

    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_candidates: int = 1024
    num_samples: int = 1
    max_rows: int = 256
    action_repeat: int = 1

    def __post_init__(self) -> None:
        check_searcher(self)
        check_count("num_candidates", self.num_candidates)

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Plan:
        """Search as `Planner.plan`; guesses are further candidates."""
        search = Search(self, state, objective, horizon, generator, guess)
        B, blocks = search.shape
        candidates = draw_uniform(self.action, (B, self.num_candidates, blocks), generator)
        if search.guesses is not None:
            candidates = torch.cat((search.guesses, candidates), dim=1)
        search.values(candidates)
        return search.finish()


@dataclass(frozen=True)
class CEM(Generic[S]):
    """The cross-entropy method: draw around a guess, fit the next guess to the best, repeat.

    Candidates of a Box are normal, cut off at the bounds; the components of discrete ones are categorical; all times
    and components are independent. After each iteration the distribution is fitted to its elites, the best candidates:

        q <- smoothing q + (1 - smoothing) fit(elites)

    mean and standard deviation of the normal, frequencies of the choices. Each iteration also tries the distribution's
    mode; the plan is the last mode or the best candidate seen, whichever does better in futures drawn anew.

    Args:
        world: What to plan in.
        action: What an action is: `world.config.data.action`.
        num_candidates: Action sequences tried in each iteration.
        num_elites: Best of them that the next distribution is fitted to.
        num_iterations: How often.
        smoothing: Part of the old distribution that is kept, in [0, 1).
        initial_std: Standard deviation to begin with, in half widths of the bounds; a Box only. (The probabilities of
            discrete actions begin uniform, or half way between that and the guess.)
        num_samples: Futures drawn of each candidate, whose values are averaged; more than 1 helps where the world is
            random.
        max_rows: Most rows stepped in one call of the world; bounds the memory. In a random world it also changes
            which numbers are drawn.
        action_repeat: Steps for which each action is done: fewer numbers to search for the same horizon. Of a guess,
            the first action of each such stretch is read.

    Raises:
        ValueError, TypeError: If a number is out of range, or a Box is unbounded.

    Reference:
        Rubinstein 1999; de Boer et al. 2005, section 4, for `smoothing`; as a planner Chua et al. 2018, arXiv
        1805.12114, algorithm 1.
    """

    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_candidates: int = 256
    num_elites: int = 32
    num_iterations: int = 5
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

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Plan:
        """Search as `Planner.plan`; the guess is where the first distribution has its mode."""
        search = Search(self, state, objective, horizon, generator, guess)
        proposal = search.proposal(std=self.initial_std)
        for iteration in range(self.num_iterations):
            given = search.first(self.num_candidates // 2) if iteration == 0 else proposal.mode[:, None]
            drawn = proposal.sample(self.num_candidates - given.shape[1], generator)
            candidates = torch.cat((given, drawn), dim=1)
            values = search.values(candidates)
            proposal = proposal.fitted(best_of(candidates, values, self.num_elites), smoothing=self.smoothing)
        return search.finish(proposal.mode)
