"""Objectives: what an imagined future is worth to a planner. They add up and scale: `Return() + 0.1 * Entropy()`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from worldflow.types import Transition

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64, Shaped
    from torch import Tensor

__all__ = ["Entropy", "Objective", "Return", "Rollout", "Scaled", "Sum", "Term", "steps_read"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Imagined futures: row `i` did `actions[i, t]`, and `transitions[t]` is what came of it.

    Args:
        actions: What was done.
        transitions: What came of it.
        origin: Which row of the state that was planned from each row began in.
        states: The world's states before some transitions, by `t`: those that the objective reads.
    """

    actions: Shaped[Tensor, "row time *action"]
    transitions: Sequence[Transition]
    origin: Int64[Tensor, " row"]
    states: Mapping[int, Any] = field(default_factory=dict)


class Objective(Protocol):
    """What a planner maximizes."""

    def __call__(self, rollout: Rollout, /) -> Float[Tensor, " row"]:
        """One number for each imagined future, greater is better."""
        ...


class Term(ABC):
    """An objective that can be added to others and scaled."""

    @abstractmethod
    def __call__(self, rollout: Rollout, /) -> Float[Tensor, " row"]:
        """One number for each imagined future, greater is better."""

    def steps_read(self, horizon: int) -> Collection[int]:
        """The transitions whose states before them it reads; a rollout keeps those only."""
        return ()

    def __add__(self, other: Objective) -> Sum:
        """Both, added."""
        return Sum((self, other))

    def __mul__(self, weight: float) -> Scaled:
        """The same, so many times."""
        return Scaled(self, weight)

    __rmul__ = __mul__


def steps_read(objective: Objective, horizon: int) -> Collection[int]:
    """What `Term.steps_read` says; a plain function reads no state."""
    return objective.steps_read(horizon) if isinstance(objective, Term) else ()


@dataclass(frozen=True)
class Sum(Term):
    """Several objectives, added."""

    parts: Sequence[Objective]

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row."""
        return torch.stack([part(rollout).double() for part in self.parts]).sum(dim=0)

    def steps_read(self, horizon: int) -> Collection[int]:
        """What any of them reads."""
        return {step for part in self.parts for step in steps_read(part, horizon)}


@dataclass(frozen=True)
class Scaled(Term):
    """An objective times a number."""

    part: Objective
    weight: float

    def __post_init__(self) -> None:
        _check_finite("weight", self.weight)

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row."""
        return self.weight * self.part(rollout).double()

    def steps_read(self, horizon: int) -> Collection[int]:
        """What it reads."""
        return steps_read(self.part, horizon)


@dataclass(frozen=True)
class Return(Term):
    """The discounted reward expected along an imagined future.

        value = sum_t discount^t prod_{s<t} (1 - p_s) r_t

    with `r_t` the reward's mean and `p_t` the probability that transition `t` terminates. Nothing is drawn that can be
    summed over: a future that may end counts by the chance that it has not, and the transition that ends it still pays.

    Args:
        discount: Weight of a reward one step later, in (0, 1].
    """

    discount: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row."""
        value = torch.zeros_like(rollout.transitions[0].reward_mean, dtype=torch.float64)
        weight = torch.ones_like(value)
        for transition in rollout.transitions:
            value = value + weight * transition.reward_mean
            weight = weight * self.discount * (1 - transition.termination_prob.double())
        return value


@dataclass(frozen=True)
class Entropy(Term):
    """A penalty on futures of which the world is unsure: where its predictions spread, a plan exploits its errors.

        value = -weight / T sum_t H_t / D

    with `H_t` of `Transition.entropy`: the entropy of the coming frame's tokens, each given the ones before it, in
    closed form from `sigma`, and `D` their numbers. In nats per dimension of the flow's latent, so that numbers of two
    worlds are not to be compared. All steps count alike, whether or not the future may have ended: ending early avoids
    nothing.

    Args:
        weight: Value lost per nat per dimension; negative to seek what is unsure.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_finite("weight", self.weight)

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row.

        Raises:
            ValueError: If the world's transitions tell no entropy.
        """
        spread = []
        for transition in rollout.transitions:
            if transition.entropy is None:
                raise ValueError(
                    "Entropy needs transitions that tell their entropy, which this world's do not; "
                    "plan in a WorldModel, or set Transition.entropy"
                )
            spread.append(transition.entropy.double() / transition.latent[0].numel())
        return -self.weight * torch.stack(spread).mean(dim=0)


def _check_finite(name: str, value: float) -> None:
    if not abs(value) < float("inf"):
        raise ValueError(f"{name} must be a finite number, got {value}")
