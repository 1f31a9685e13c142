"""Objectives: what an imagined future is worth to a planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from worldflow.types import Transition

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Shaped
    from torch import Tensor

__all__ = ["Objective", "Return", "Rollout"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Imagined futures: row `i` did `actions[i, t]`, and `transitions[t]` is what came of it."""

    actions: Shaped[Tensor, "row time *action"]
    transitions: Sequence[Transition]


class Objective(Protocol):
    """What a planner maximizes."""

    def __call__(self, rollout: Rollout, /) -> Float[Tensor, " row"]:
        """One number for each imagined future, greater is better."""
        ...


@dataclass(frozen=True, kw_only=True)
class Return:
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
