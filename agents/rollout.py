"""Rolling candidate actions through a world: many futures from each of many states, in few calls of the model.

Candidates share the past (`state.repeat`) and are rolled in latent space: no frame is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import torch

from worldflow.agents.objectives import Objective, Rollout, steps_read
from worldflow.types import Generators, Transition

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, Shaped
    from torch import Tensor

__all__ = ["Simulator", "SimulatorState", "candidate_values", "check_count", "check_rows", "rollout_values"]


class SimulatorState(Protocol):
    """A state that a search can branch: `worldflow.state.WorldState`, or that of a toy."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: slice, /) -> Self:
        """Some of the rows."""
        ...

    def repeat(self, k: int, /) -> Self:
        """Each row `k` times: `a, b -> a, a, .., b, b, ..`."""
        ...


S = TypeVar("S", bound=SimulatorState)


class Simulator(Protocol[S]):
    """What can be planned in: a `worldflow.world.WorldModel`, or anything else that steps like one."""

    def step(self, state: S, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, S]:
        """Draw the next transition of every row; `decode=False` asks for no frame."""
        ...


@torch.no_grad()
def candidate_values(
    world: Simulator[S],
    state: S,
    actions: Shaped[Tensor, "batch candidate time *action"],
    objective: Objective,
    *,
    num_samples: int = 1,
    max_rows: int = 256,
    generator: Generators = None,
) -> Float64[Tensor, "batch candidate"]:
    """What an objective says of given action sequences, the mean of `num_samples` imagined futures.

    Blocks hold whole rows of the state where they fit, else part of one row's candidates, so that how a row is cut, and
    what its own generator draws, does not depend on the other rows.

    Args:
        world: What to roll them in.
        state: Where they begin.
        actions: Raw actions.
        objective: What to value.
        num_samples: Futures of each.
        max_rows: Most rows in one call of the world.
        generator: One for all, or one per row of the state.

    Returns:
        Their values, on the CPU.

    Raises:
        ValueError, TypeError: If a number is out of range, shapes do not fit, or the objective gives NaN.
    """
    check_rows(num_samples, max_rows)
    B, N, T = actions.shape[:3]
    if len(state) != B or min(B, N, T) == 0:
        raise ValueError(
            f"actions must have shape ({len(state)}, candidate, time, ...), at least one of each, as the state has "
            f"{len(state)} rows; got {tuple(actions.shape)}"
        )
    if isinstance(generator, Sequence) and len(generator) != B:
        raise ValueError(f"expected one generator or {B}, one per row of the state, got {len(generator)}")
    values = torch.empty(B, N, dtype=torch.float64)
    rows_together = max(1, max_rows // (N * num_samples))
    candidates_together = min(N, max_rows // num_samples)
    for b in range(0, B, rows_together):
        rows = slice(b, min(b + rows_together, B))
        for n in range(0, N, candidates_together):
            block = actions[rows, n : n + candidates_together]
            branches = block.shape[1] * num_samples
            if isinstance(generator, Sequence):
                source: Generators = [g for g in generator[rows] for _ in range(branches)]
            else:
                source = generator
            origin = torch.arange(rows.start, rows.stop)
            value = rollout_values(world, state[rows], block, objective, num_samples, source, origin=origin)
            if bool(value.isnan().any()):
                raise ValueError("the objective gave NaN; check that the world was trained and its state is finite")
            values[rows, n : n + candidates_together] = value.cpu()
    return values


def rollout_values(
    world: Simulator[S],
    state: S,
    actions: Shaped[Tensor, "batch candidate time *action"],
    objective: Objective,
    num_samples: int,
    generator: Generators,
    *,
    origin: Int64[Tensor, " batch"],
) -> Float64[Tensor, "batch candidate"]:
    """As `candidate_values`, in one call of the world a step, and with gradients where the world gives some.

    Args:
        world: As there.
        state: As there.
        actions: As there.
        objective: As there.
        num_samples: As there.
        generator: One for all, or one for each future of each candidate.
        origin: Which rows of the state that is planned from these are.

    Raises:
        ValueError: If the objective does not give one number a future.
    """
    N, T = actions.shape[1:3]
    branches = N * num_samples
    branched = actions.flatten(0, 1).repeat_interleave(num_samples, dim=0)
    needed, kept, transitions = steps_read(objective, T), {}, []
    state = state.repeat(branches)
    for t in range(T):
        if t in needed:
            kept[t] = state
        transition, state = world.step(state, branched[:, t], generator=generator, decode=False)
        transitions.append(transition)
    rollout = Rollout(actions=branched, transitions=transitions, origin=origin.repeat_interleave(branches), states=kept)
    value = objective(rollout)
    if value.shape != (len(branched),):
        raise ValueError(f"the objective must give one number a row, ({len(branched)},), got {tuple(value.shape)}")
    return value.double().unflatten(0, (-1, N, num_samples)).mean(dim=-1)


def check_count(name: str, value: int, *, minimum: int = 1) -> None:
    """Raise TypeError or ValueError, which name the argument, unless it is an integer that is large enough."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_rows(num_samples: int, max_rows: int) -> None:
    """Raise TypeError or ValueError unless the samples of one candidate can be rolled together."""
    check_count("num_samples", num_samples)
    check_count("max_rows", max_rows)
    if num_samples > max_rows:
        raise ValueError(
            f"the {num_samples} samples of a candidate are rolled together and do not fit max_rows = {max_rows}; "
            "raise max_rows or lower num_samples"
        )
