"""Gradient refinement: what a search found, improved by following the gradient of its value.

Futures drawn from fixed noise are smooth functions of the actions (`worldflow.agents.differentiable`), so the value of
a plan in them has a gradient, and Adam climbs it from the few best candidates of a search. What is gained in these
futures may be their luck: a refined candidate is kept only if it does better in fresh ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from worldflow.agents.differentiable import Differentiable
from worldflow.agents.objectives import Objective
from worldflow.agents.plan import Planner
from worldflow.agents.proposals import bounds, check_searchable, to_actions
from worldflow.agents.result import Plan
from worldflow.agents.rollout import (
    Simulator,
    SimulatorState,
    candidate_values,
    check_count,
    check_rows,
    rollout_values,
)
from worldflow.agents.search import check_understood
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped

__all__ = ["Refined"]

S = TypeVar("S", bound=SimulatorState)
BETAS, EPSILON = (0.9, 0.95), 1e-8


@dataclass(frozen=True)
class Refined(Generic[S]):
    """Another planner, whose best candidates are refined by Adam.

    Steps shrink linearly to nothing, and end at the bounds. Each candidate climbs on its own.

    Args:
        planner: What searches.
        world: What has gradients: `Differentiable(world)`, or a toy of plain torch operations.
        action: What an action is; a Box.
        num_refined: Best candidates that are refined, at most.
        num_steps: Of Adam.
        learning_rate: Of the first step, in half widths of the bounds.
        num_samples: Futures in which the value of a candidate is climbed, and then compared.
        max_rows: Most rows in one call of the world. All steps of their futures are held in memory.

    Raises:
        ValueError, TypeError: If a number is out of range, or actions are discrete: they have no gradient.

    Reference:
        Kingma and Ba 2015, arXiv 1412.6980. In a learned model: Bharadhwaj, Xie and Shkurti 2020, "Model-Predictive
        Control via Cross-Entropy and Gradient-Based Optimization", arXiv 2004.08763.
    """

    planner: Planner[S]
    world: Simulator[S]
    action: ActionSpec
    _: KW_ONLY
    num_refined: int = 4
    num_steps: int = 10
    learning_rate: float = 0.05
    num_samples: int = 1
    max_rows: int = 64

    def __post_init__(self) -> None:
        if self.action.is_discrete:
            raise ValueError(
                "discrete actions have no gradient to follow; plan with CEM, ICEM or MPPI alone, which search them"
            )
        check_searchable(self.action)
        check_understood(self.world.world if isinstance(self.world, Differentiable) else self.world, self.action)
        check_count("num_refined", self.num_refined)
        check_count("num_steps", self.num_steps)
        check_rows(self.num_samples, self.max_rows)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")

    def plan(
        self,
        state: S,
        objective: Objective,
        horizon: int,
        *,
        generator: Generators = None,
        guess: Shaped[Tensor, "batch ..."] | None = None,
    ) -> Plan:
        """Search as the planner does, then refine.

        Returns:
            The plan, of which `value` is drawn anew for what was chosen, and `diagnostics.num_steps` counts everything.

        Raises:
            ValueError, TypeError: As `Planner.plan`, and if the world gives no gradient.
        """
        found = self.planner.plan(state, objective, horizon, generator=generator, guess=guess)
        starts = torch.cat((found.actions[:, None], found.diagnostics.finalists), dim=1)[:, : self.num_refined]
        refined = self._refine(state, objective, starts, generator)
        candidates = torch.cat((starts, refined), dim=1)
        fresh = self._values(state, objective, candidates, generator)
        best = candidates[torch.arange(len(candidates)), fresh.argmax(dim=1)]
        rows = starts.shape[0] * starts.shape[1] * horizon * self.num_samples
        steps = (self.num_steps + 2) * rows + rows // starts.shape[1]
        return Plan(
            actions=best,
            value=self._values(state, objective, best[:, None], generator)[:, 0],
            diagnostics=replace(
                found.diagnostics,
                num_steps=found.diagnostics.num_steps + steps,
                finalists=torch.take_along_dim(
                    candidates,
                    fresh.argsort(dim=1, descending=True).reshape(*fresh.shape, *[1] * (candidates.dim() - 2)),
                    dim=1,
                ),
            ),
        )

    def _values(self, state: S, objective: Objective, candidates: Tensor, generator: Generators) -> Tensor:
        return candidate_values(
            self.world,
            state,
            candidates,
            objective,
            num_samples=self.num_samples,
            max_rows=self.max_rows,
            generator=generator,
        )

    def _refine(self, state: S, objective: Objective, starts: Tensor, generator: Generators) -> Tensor:
        """Refine candidates in blocks, cut as in `candidate_values`."""
        B, N = starts.shape[:2]
        low, high = bounds(self.action)
        flat = starts.double().reshape(*starts.shape[:3], self.action.size)
        width = (high - low).clamp(min=torch.finfo(torch.float64).tiny)  # a component may have no choice
        scaled = (2 * flat - low - high) / width  # [-1, 1] between the bounds
        refined = torch.empty_like(scaled)
        together = max(1, self.max_rows // (N * self.num_samples))
        part = min(N, self.max_rows // self.num_samples)
        for b in range(0, B, together):
            rows = slice(b, min(b + together, B))
            for n in range(0, N, part):
                block = scaled[rows, n : n + part]
                source = _one_each(generator, rows, block.shape[1] * self.num_samples)
                refined[rows, n : n + part] = self._climb(state[rows], objective, block, source, first_row=b)
        return to_actions(((low + high + refined * (high - low)) / 2).clamp(low, high), self.action)

    def _climb(
        self, state: S, objective: Objective, start: Tensor, generator: Generators, *, first_row: int
    ) -> Float64[Tensor, "batch candidate time component"]:
        """Adam on `[-1, 1]`, every step in the same futures."""
        low, high = bounds(self.action)
        x = start.clone()
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        origin = torch.arange(first_row, first_row + len(start))
        for step in range(1, self.num_steps + 1):
            x.requires_grad_()
            with torch.enable_grad():
                actions = to_actions((low + high + x * (high - low)) / 2, self.action)
                values = rollout_values(
                    self.world, state, actions, objective, self.num_samples, _again(generator), origin=origin
                )
                if not values.requires_grad:
                    raise ValueError(
                        "this world's futures have no gradient in the actions; give Refined a Differentiable(world), "
                        "and an objective of torch operations"
                    )
                (gradient,) = torch.autograd.grad(values.sum(), x)
            if not bool(gradient.isfinite().all()):
                raise ValueError("the objective's gradient is not finite; check that the world was trained")
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
            direction = mean / (1 - BETAS[0] ** step) / ((square / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
            rate = self.learning_rate * (1 - (step - 1) / self.num_steps)
            x = (x.detach() + rate * direction).clamp(-1, 1)
        _spend(generator)
        return x


def _one_each(generator: Generators, rows: slice, branches: int) -> Generators:
    """A generator for each future of some rows, fit to be drawn from again and again."""
    if isinstance(generator, Sequence):
        return [g for g in generator[rows] for _ in range(branches)]
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    return generator


def _again(generator: Generators) -> Generators:
    """Generators that will draw what the given ones would next, which stay where they are."""
    if isinstance(generator, Sequence):
        copies = {id(g): _copy(g) for g in generator}
        return [copies[id(g)] for g in generator]
    assert generator is not None
    return _copy(generator)


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(device=generator.device)
    copy.set_state(generator.get_state())
    return copy


def _spend(generator: Generators) -> None:
    """Move on, so that what is drawn next is not what was climbed in: jump to a seed drawn from each."""
    for g in {id(g): g for g in (generator if isinstance(generator, Sequence) else [generator])}.values():
        assert g is not None
        g.manual_seed(int(torch.randint(2**62, (), generator=g, device=g.device)))
