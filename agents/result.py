"""What a planner returns: a plan, how it was found, and what it leaves for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from worldflow.agents.rollout import check_count

if TYPE_CHECKING:
    from jaxtyping import Float64, Shaped
    from torch import Tensor

__all__ = ["Diagnostics", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How a search went.

    Args:
        best, mean: Greatest and mean value among the candidates of each iteration. Where the world is random, `best` is
            partly luck.
        num_steps: Rows that the world stepped, all in all.
        finalists: The best candidates seen, best first by the value that they had there; raw actions.
    """

    best: Float64[Tensor, "batch iteration"]
    mean: Float64[Tensor, "batch iteration"]
    num_steps: int
    finalists: Shaped[Tensor, "batch finalist time *action"]


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
        return _shift(self.actions[:, None], steps)[:, 0]

    def shift_all(self, steps: int = 1) -> Shaped[Tensor, "batch guess time *action"]:
        """As `shift`, of the plan and behind it the finalists: a `guess` of several sequences.

        Raises:
            ValueError, TypeError: As `shift`.
        """
        return _shift(torch.cat((self.actions[:, None], self.diagnostics.finalists), dim=1), steps)


def _shift(
    sequences: Shaped[Tensor, "batch guess time *action"], steps: int
) -> Shaped[Tensor, "batch guess time *action"]:
    check_count("steps", steps, minimum=0)
    horizon = sequences.shape[2]
    if steps > horizon:
        raise ValueError(f"a plan of {horizon} actions cannot be shifted by {steps}; plan anew without a guess")
    held = sequences[:, :, -1:].expand(-1, -1, steps, *sequences.shape[3:])
    return torch.cat((sequences[:, :, steps:], held), dim=2)
