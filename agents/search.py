"""What all planners share: one call of one, with the candidates that it tried and how it ends.

Candidates are float64 `(batch, candidate, block, component)` in raw units, on the CPU. A block is one action, done for
`action_repeat` steps; the last one may be cut short by the horizon.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from worldflow.agents.objectives import Objective
from worldflow.agents.proposals import Categorical, CutNormal, Proposal, check_searchable, flatten_actions, to_actions
from worldflow.agents.result import Diagnostics, Plan
from worldflow.agents.rollout import Simulator, SimulatorState, candidate_values, check_count, check_rows
from worldflow.types import ActionSpec, Generators
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped
    from torch import Tensor

__all__ = [
    "NUM_FINALISTS",
    "Search",
    "Searcher",
    "best_of",
    "check_elites",
    "check_searcher",
    "check_smoothing",
    "check_understood",
]

NUM_FINALISTS = 8
"""Best candidates that a search keeps."""

S = TypeVar("S", bound=SimulatorState)


class Searcher(Protocol[S]):
    """What every planner has."""

    @property
    def world(self) -> Simulator[S]:
        """What to plan in."""
        ...

    @property
    def action(self) -> ActionSpec:
        """What an action is."""
        ...

    @property
    def action_repeat(self) -> int:
        """Steps for which each action is done."""
        ...

    @property
    def num_samples(self) -> int:
        """Futures drawn of each candidate."""
        ...

    @property
    def max_rows(self) -> int:
        """Most rows in one call of the world."""
        ...


def check_searcher(planner: Searcher[S]) -> None:
    """Raise ValueError or TypeError unless these can be searched with."""
    check_searchable(planner.action)
    check_understood(planner.world, planner.action)
    check_count("action_repeat", planner.action_repeat)
    check_rows(planner.num_samples, planner.max_rows)


def check_elites(num_candidates: int, num_elites: int) -> None:
    """Raise TypeError or ValueError unless some, but not all, candidates are elites."""
    check_count("num_candidates", num_candidates, minimum=2)
    check_count("num_elites", num_elites)
    if num_elites >= num_candidates:
        raise ValueError(
            f"num_elites must be below num_candidates = {num_candidates}, got {num_elites}; "
            "a tenth of them is a good start"
        )


def check_smoothing(smoothing: float, initial_std: float) -> None:
    """Raise ValueError unless a distribution can begin so and move."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    if not 0 < initial_std < math.inf:
        raise ValueError(f"initial_std must be positive and finite, got {initial_std}")


def check_understood(world: object, action: ActionSpec) -> None:
    """Refuse actions that a learned world does not know; other bounds of a Box are the caller's choice.

    Raises:
        ValueError: If shape, kind or choices differ.
    """
    if not isinstance(world, WorldModel):
        return
    known = world.config.data.action
    if (action.shape, action.choices, action.first) != (known.shape, known.choices, known.first):
        raise ValueError(
            f"the world knows {_described(known)}, the planner was given {_described(action)}; "
            "plan with world.config.data.action"
        )


def _described(action: ActionSpec) -> str:
    if not action.is_discrete:
        return f"continuous actions of shape {action.shape}"
    return f"discrete actions of shape {action.shape}, {action.choices} choices from {action.first} on"


class Search(Generic[S]):
    """One call of a planner.

    Args:
        planner: Whose.
        state: Where to plan from.
        objective: What to maximize.
        horizon: How many steps to look ahead.
        generator: Draws candidates and futures.
        guess: One action sequence for each row of the state, or several.

    Attributes:
        shape: `(batch, block)`.
        guesses: The given sequences as candidates, or None.

    Raises:
        ValueError, TypeError: If the horizon or the guess does not fit.
    """

    def __init__(
        self,
        planner: Searcher[S],
        state: S,
        objective: Objective,
        horizon: int,
        generator: Generators,
        guess: Shaped[Tensor, "batch ..."] | None,
    ) -> None:
        check_count("horizon", horizon)
        self.planner, self.state, self.objective = planner, state, objective
        self.horizon, self.generator = horizon, generator
        self.shape = (len(state), -(-horizon // planner.action_repeat))
        self.guesses = None if guess is None else self._read(torch.as_tensor(guess))
        self._history: list[Tensor] = []
        self._num_steps = 0
        self._best: tuple[Tensor, Tensor] | None = None

    def first(self, at_most: int) -> Float64[Tensor, "batch candidate block component"]:
        """Candidates to begin with besides what is drawn: the guesses, or the mode of the first distribution."""
        if self.guesses is None:
            return self.proposal(std=1.0).mode[:, None]
        return self.guesses[:, : max(1, at_most)]

    def proposal(self, *, std: float) -> Proposal:
        """The distribution to begin with, around the first guess; `std` in half widths of a Box's bounds."""
        guess = None if self.guesses is None else self.guesses[:, 0]
        if self.planner.action.is_discrete:
            return Categorical.around(guess, self.planner.action, self.shape)
        return CutNormal.around(guess, self.planner.action, self.shape, std=std)

    def values(self, candidates: Tensor) -> Float64[Tensor, "batch candidate"]:
        """Value candidates as one more iteration of the search, and remember the best of all so far."""
        values = self._values(candidates)
        self._history.append(values)
        if self._best is not None:
            candidates = torch.cat((self._best[0], candidates), dim=1)
            values = torch.cat((self._best[1], values), dim=1)
        num_kept = min(NUM_FINALISTS, values.shape[1])
        self._best = (best_of(candidates, values, num_kept), values.topk(num_kept).values)
        return self._history[-1]

    def finish(self, *modes: Float64[Tensor, "batch block component"]) -> Plan:
        """The best candidate seen, or one of these, whichever does better in new futures.

        They are valued anew because the winner of many was also lucky.
        """
        assert self._best is not None
        candidates = torch.stack((*modes, self._best[0][:, 0]), dim=1)
        values = self._values(candidates)
        best = candidates[torch.arange(len(candidates)), values.argmax(dim=1)]
        return Plan(
            actions=self._steps(best[:, None])[:, 0],
            value=values.amax(dim=1),
            diagnostics=Diagnostics(
                best=torch.stack([v.amax(dim=1) for v in self._history], dim=1),
                mean=torch.stack([v.mean(dim=1) for v in self._history], dim=1),
                num_steps=self._num_steps,
                finalists=self._steps(self._best[0]),
            ),
        )

    def _steps(self, candidates: Tensor) -> Shaped[Tensor, "batch candidate time *action"]:
        """Actions of every step."""
        held = candidates.repeat_interleave(self.planner.action_repeat, dim=2)[:, :, : self.horizon]
        return to_actions(held, self.planner.action)

    def _values(self, candidates: Tensor) -> Float64[Tensor, "batch candidate"]:
        self._num_steps += candidates.shape[0] * candidates.shape[1] * self.horizon * self.planner.num_samples
        return candidate_values(
            self.planner.world,
            self.state,
            self._steps(candidates),
            self.objective,
            num_samples=self.planner.num_samples,
            max_rows=self.planner.max_rows,
            generator=self.generator,
        )

    def _read(self, guess: Tensor) -> Float64[Tensor, "batch guess block component"]:
        action, B = self.planner.action, len(self.state)
        if guess.dim() == 2 + len(action.shape):
            flat = flatten_actions(guess, action, (B, self.horizon))[:, None]
        else:
            several = guess.shape[1] if guess.dim() > 1 else 0
            flat = flatten_actions(guess, action, (B, several, self.horizon))
        if flat.shape[1] == 0:
            raise ValueError("a guess of several sequences must hold at least one; leave it out to plan without")
        return flat[:, :, :: self.planner.action_repeat]


def best_of(
    candidates: Float64[Tensor, "batch candidate block component"], values: Float64[Tensor, "batch candidate"], n: int
) -> Float64[Tensor, "batch n block component"]:
    """The `n` candidates of the greatest values, best first."""
    return torch.take_along_dim(candidates, values.topk(n).indices[..., None, None], dim=1)
