"""Any world as a cost that the solvers of `stable-worldmodel` minimize.

    model = Costs(world, world.config.data.action, Return())
    solver = stable_worldmodel.solver.CEMSolver(model, ...)     # or ICEM, MPPI, gradient descent, CategoricalCEM
    solver.solve({"pixels": frames})                            # uint8 (batch, past + 1, row, column, channel)

A solver hands over `info_dict`, whose entries it has repeated for its samples, `(batch, sample, ...)`, and candidates
`(batch, sample, horizon, action)`, and gets a cost for each (`stable_worldmodel.protocols.Costable` of version 0.1.1;
nothing of it is imported here).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from worldflow.agents.likelihood import GoalLikelihood
from worldflow.agents.objectives import Objective
from worldflow.agents.proposals import bounds
from worldflow.agents.rollout import Simulator, SimulatorState, candidate_values, check_rows, rollout_values
from worldflow.agents.search import check_understood
from worldflow.types import ActionSpec
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

__all__ = ["Costs"]

S = TypeVar("S", bound=SimulatorState)
STATE = "worldflow_state"
"""Entry of `info_dict` that remembers what was read of the past, for the next iteration of a solver."""


class Costs(Generic[S]):
    """Costs of action candidates: what an objective says of them, negative.

    A Box: solvers draw without bounds, so candidates are clipped to them, as the environment would. Discrete actions:
    candidates are one-hot, and the greatest number counts. Several steps side by side in a candidate's last axis
    (`action_block`) are done one after the other.

    Args:
        world: What to roll them in; with `Differentiable(world)` costs have gradients where candidates want some.
        action: What an action is: `world.config.data.action`.
        objective: What to maximize; None for the likelihood of `info_dict["goal"]`, frames `uint8 (batch, sample, time,
            row, column, channel)` of which the last counts, at the end of the horizon.
        start: The state, one row an environment, from `info_dict`. By default a learned world reads `pixels`, frames
            as `goal` is, and for more than one frame the actions between them, `action`, `(batch, sample, time, ..)`;
            where there are as many as frames, the last is not read.
        num_samples: Futures of each candidate.
        max_rows: Most rows in one call of the world, where no gradient is wanted.
        seed: All costs are drawn from it anew: the same candidates always cost the same.

    Raises:
        ValueError, TypeError: If there is no `start` for a world that is not learned, or numbers are out of range.
    """

    def __init__(
        self,
        world: Simulator[S],
        action: ActionSpec,
        objective: Objective | None = None,
        *,
        start: Callable[[Mapping[str, Any]], S] | None = None,
        num_samples: int = 1,
        max_rows: int = 256,
        seed: int = 0,
    ) -> None:
        check_rows(num_samples, max_rows)
        learned = getattr(world, "world", world)
        self._learned = learned if isinstance(learned, WorldModel) else None
        check_understood(learned, action)
        if self._learned is None and (start is None or objective is None):
            missing = "start" if start is None else "objective"
            raise ValueError(f"a world that is not a WorldModel needs {missing}: it has no frames to read")
        self.world, self.action, self.objective, self.start = world, action, objective, start
        self.num_samples, self.max_rows, self.seed = num_samples, max_rows, seed

    def get_cost(
        self, info_dict: MutableMapping[str, Any], action_candidates: Float[Tensor, "batch sample horizon action"]
    ) -> Float[Tensor, "batch sample"]:
        """The cost of each candidate.

        Args:
            info_dict: What is known; the state that was read of it is added, for the next call.
            action_candidates: Action sequences.

        Raises:
            ValueError, TypeError: If shapes or types do not fit, or an entry is missing.
        """
        actions = self._actions(action_candidates)
        if STATE not in info_dict:
            info_dict[STATE] = self._read(info_dict)
        state: S = info_dict[STATE]
        objective = self._goal(info_dict) if self.objective is None else self.objective
        generator = torch.Generator().manual_seed(self.seed)
        if action_candidates.requires_grad and torch.is_grad_enabled():
            origin = torch.arange(len(actions))
            values = rollout_values(self.world, state, actions, objective, self.num_samples, generator, origin=origin)
        else:
            values = candidate_values(
                self.world,
                state,
                actions,
                objective,
                num_samples=self.num_samples,
                max_rows=self.max_rows,
                generator=generator,
            )
        return -values.to(action_candidates)

    def criterion(
        self, info_dict: MutableMapping[str, Any], action_candidates: Float[Tensor, "batch sample horizon action"]
    ) -> Float[Tensor, "batch sample"]:
        """The same: nothing of the costs is left to be computed from `info_dict` alone."""
        return self.get_cost(info_dict, action_candidates)

    def _actions(self, candidates: Tensor) -> Shaped[Tensor, "batch sample time *action"]:
        width = self.action.feature_dim
        if candidates.dim() != 4 or candidates.shape[3] % width or candidates.shape[3] == 0:
            raise ValueError(
                f"action candidates must have shape (batch, sample, horizon, {width}) or several actions of {width} "
                f"numbers side by side, got {tuple(candidates.shape)}"
            )
        B, N = candidates.shape[:2]
        steps = candidates.reshape(B, N, -1, width)
        if self.action.is_discrete:
            parts = steps.split(list(self.action.choices), dim=-1)
            chosen = torch.stack([part.argmax(dim=-1) for part in parts], dim=-1) + torch.tensor(self.action.first)
            flat = chosen.to(candidates.device)
        else:
            low, high = (bound.to(candidates.device) for bound in bounds(self.action))
            flat = steps.double().clamp(low, high)
        return flat.reshape(*flat.shape[:3], *self.action.shape).to(getattr(torch, self.action.dtype))

    def _read(self, info_dict: Mapping[str, Any]) -> S:
        if self.start is not None:
            return self.start(info_dict)
        assert self._learned is not None
        frames = _entry(info_dict, "pixels")
        past = None
        if frames.shape[1] > 1:
            past = _entry(info_dict, "action")[:, : frames.shape[1] - 1]
            past = past.reshape(*past.shape[:2], *self.action.shape)
        generator = torch.Generator().manual_seed(self.seed)
        state: Any = self._learned.start(frames, past, generator=generator)
        return state

    def _goal(self, info_dict: Mapping[str, Any]) -> GoalLikelihood:
        assert self._learned is not None
        return GoalLikelihood(self._learned, _entry(info_dict, "goal")[:, -1], seed=self.seed)


def _entry(info_dict: Mapping[str, Any], name: str) -> Tensor:
    """An entry `(batch, sample, time, ...)`, which is the same for all samples, without them."""
    if name not in info_dict:
        raise ValueError(f"info_dict must hold {name!r}, got {sorted(map(str, info_dict))}")
    value = torch.as_tensor(info_dict[name])
    if value.dim() < 3:
        raise ValueError(f"{name!r} must have shape (batch, sample, time, ...), got {tuple(value.shape)}")
    return value[:, 0]
