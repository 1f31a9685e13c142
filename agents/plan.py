"""Planners: choose actions by looking ahead in a world, before anything is done for real.

A planner searches action sequences `a_0 .. a_{H-1}`, rolls each through the world in latent space (no frame is
decoded), and returns the one whose imagined future an objective values most:

    maximize over a:   V(a) = E[ objective(s_0, a_0, s_1, a_1, ..) ]

Only the first action or so is meant to be used; then one looks again from where one is (receding horizon), starting
from what is left of the last plan:

    plan = planner.plan(state, Return(discount=0.99), 12, generator=g)
    ...  # act with plan.actions[:, 0], observe, get the next state
    plan = planner.plan(state, Return(discount=0.99), 12, generator=g, guess=plan.shift())

`RandomShooting` draws once and takes the best. `CEM` draws again around the best, a few times over. Both search bounded
Box and discrete actions, for many environments at once, each on its own.

Reference:
    Rubinstein 1999, "The Cross-Entropy Method for Combinatorial and Continuous Optimization"; de Boer, Kroese, Mannor
    and Rubinstein 2005, "A Tutorial on the Cross-Entropy Method". As planners in a learned model: Chua, Calandra,
    McAllister and Levine 2018 (PETS), arXiv 1805.12114, section 5.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from worldflow.agents.objectives import Objective
from worldflow.agents.proposals import (
    Categorical,
    CutNormal,
    Proposal,
    check_searchable,
    draw_uniform,
    flatten_actions,
    to_actions,
)
from worldflow.agents.rollout import Simulator, SimulatorState, candidate_values, check_count, check_rows
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped
    from torch import Tensor

__all__ = [
    "CEM",
    "Diagnostics",
    "Plan",
    "Planner",
    "RandomShooting",
]

S = TypeVar("S", bound=SimulatorState)
S_contra = TypeVar("S_contra", bound=SimulatorState, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How a search went.

    Args:
        best, mean: Greatest and mean value among the candidates of each iteration. Where the world is random, `best` is
            partly luck.
        num_steps: Rows that the world stepped, all in all.
    """

    best: Float64[Tensor, "batch iteration"]
    mean: Float64[Tensor, "batch iteration"]
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, for each row of a state.

    Args:
        actions: Raw actions, within their bounds, in their recorded type.
        value: What the objective says of them, in futures drawn anew after the search.
        diagnostics: How they were found.
    """

    actions: Shaped[Tensor, "batch time *action"]
    value: Float64[Tensor, " batch"]
    diagnostics: Diagnostics

    def shift(self, steps: int = 1) -> Shaped[Tensor, "batch time *action"]:
        """What is left after `steps` actions, the last one held to fill the horizon: a `guess` for the next plan.

        Raises:
            ValueError, TypeError: If `steps` is not an integer between 0 and the horizon.
        """
        check_count("steps", steps, minimum=0)
        horizon = self.actions.shape[1]
        if steps > horizon:
            raise ValueError(f"a plan of {horizon} actions cannot be shifted by {steps}; plan anew without a guess")
        held = self.actions[:, -1:].expand(-1, steps, *self.actions.shape[2:])
        return torch.cat((self.actions[:, steps:], held), dim=1)


class Planner(Protocol[S_contra]):
    """A search for good actions. It keeps nothing between calls."""

    def plan(
        self,
        state: S_contra,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch time *action"] | None = None,
    ) -> Plan:
        """Search actions for every row of a state, each row on its own.

        Args:
            state: Where to plan from; it is not changed.
            objective: What to maximize.
            horizon: How many actions to look ahead.
            generator: Draws candidates and futures. With one for each row of the state, a row's plan does not depend
                on the others (but for what the world's own arithmetic makes of a batch).
            guess: Actions to start from, such as `last_plan.shift()`.

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

    Raises:
        ValueError, TypeError: If a number is out of range, or a Box is unbounded.
    """

    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_candidates: int = 1024
    num_samples: int = 1
    max_rows: int = 256

    def __post_init__(self) -> None:
        check_searchable(self.action)
        check_count("num_candidates", self.num_candidates)
        check_rows(self.num_samples, self.max_rows)

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch time *action"] | None = None,
    ) -> Plan:
        """Search as `Planner.plan`; the guess is one more candidate."""
        check_count("horizon", horizon)
        shape = (len(state), horizon)
        candidates = draw_uniform(self.action, (len(state), self.num_candidates, horizon), generator)
        if guess is not None:
            candidates = torch.cat((flatten_actions(guess, self.action, shape)[:, None], candidates), dim=1)
        search = _Search(self.world, self.action, state, objective, self.num_samples, self.max_rows, generator)
        values = search.values(candidates)
        return search.finish([_best(candidates, values)], [values], num_candidates=candidates.shape[1])


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

    def __post_init__(self) -> None:
        check_searchable(self.action)
        check_count("num_candidates", self.num_candidates, minimum=2)
        check_count("num_elites", self.num_elites)
        check_count("num_iterations", self.num_iterations)
        check_rows(self.num_samples, self.max_rows)
        if self.num_elites >= self.num_candidates:
            raise ValueError(
                f"num_elites must be below num_candidates = {self.num_candidates}, got {self.num_elites}; "
                "a tenth of them is a good start"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {self.smoothing}")
        if not 0 < self.initial_std < math.inf:
            raise ValueError(f"initial_std must be positive and finite, got {self.initial_std}")

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch time *action"] | None = None,
    ) -> Plan:
        """Search as `Planner.plan`; the guess is where the first distribution has its mode."""
        check_count("horizon", horizon)
        shape = (len(state), horizon)
        flat = None if guess is None else flatten_actions(guess, self.action, shape)
        proposal: Proposal = (
            Categorical.around(flat, self.action, shape)
            if self.action.is_discrete
            else CutNormal.around(flat, self.action, shape, std=self.initial_std)
        )
        search = _Search(self.world, self.action, state, objective, self.num_samples, self.max_rows, generator)
        history, finest, record = [], proposal.mode, torch.full((len(state),), -math.inf, dtype=torch.float64)
        for _ in range(self.num_iterations):
            drawn = proposal.sample(self.num_candidates - 1, generator)
            candidates = torch.cat((proposal.mode[:, None], drawn), dim=1)
            values = search.values(candidates)
            history.append(values)
            elites = torch.take_along_dim(candidates, values.topk(self.num_elites).indices[..., None, None], dim=1)
            proposal = proposal.fitted(elites, smoothing=self.smoothing)
            better = values.amax(dim=1) > record
            finest = torch.where(better[:, None, None], _best(candidates, values), finest)
            record = torch.where(better, values.amax(dim=1), record)
        total = self.num_candidates * self.num_iterations
        return search.finish([proposal.mode, finest], history, num_candidates=total)


@dataclass(frozen=True)
class _Search(Generic[S]):
    """One call of a planner. Candidates are float64 `(batch, candidate, time, component)` in raw units, on the CPU."""

    world: Simulator[S]
    action: ActionSpec
    state: S
    objective: Objective
    num_samples: int
    max_rows: int
    generator: Generators

    def values(self, candidates: Tensor) -> Float64[Tensor, "batch candidate"]:
        return candidate_values(
            self.world,
            self.state,
            to_actions(candidates, self.action),
            self.objective,
            num_samples=self.num_samples,
            max_rows=self.max_rows,
            generator=self.generator,
        )

    def finish(self, finalists: list[Tensor], history: list[Tensor], *, num_candidates: int) -> Plan:
        """The better of the finalists `(batch, time, component)` in new futures: the winner of many was also lucky."""
        candidates = torch.stack(finalists, dim=1)
        values = self.values(candidates)
        B, N, T = candidates.shape[:3]
        return Plan(
            actions=to_actions(_best(candidates, values), self.action),
            value=values.amax(dim=1),
            diagnostics=Diagnostics(
                best=torch.stack([v.amax(dim=1) for v in history], dim=1),
                mean=torch.stack([v.mean(dim=1) for v in history], dim=1),
                num_steps=B * (num_candidates + N) * T * self.num_samples,
            ),
        )


def _best(candidates: Tensor, values: Tensor) -> Float64[Tensor, "batch time component"]:
    return candidates[torch.arange(len(candidates)), values.argmax(dim=1)]
