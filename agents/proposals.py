"""Proposals: where a planner's candidate actions are drawn from, and how they close in on the best.

Candidates are float64 `(batch, candidate, time, component)` in raw units, flattened, whatever the recorded type.
Components are independent, and so are times, unless they are drawn with colored noise (`worldflow.agents.noise`); then
each number by itself is still distributed as the proposal says. A proposal is a value that gives the next one, moved
towards the best, all of them alike or each by its weight:

    q <- smoothing q + (1 - smoothing) fit(elites)         `fitted`
    q <- smoothing q + (1 - smoothing) sum_i w_i x_i       `tilted`
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worldflow.agents.noise import colored_normal
from worldflow.randomness import uniform
from worldflow.types import ActionSpec, Generators

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, Shaped

__all__ = [
    "Categorical",
    "CutNormal",
    "Proposal",
    "bounds",
    "check_searchable",
    "draw_uniform",
    "flatten_actions",
    "to_actions",
]


class Proposal(Protocol):
    """A distribution over action sequences, for each row of a batch."""

    @property
    def mode(self) -> Float64[Tensor, "batch time component"]:
        """Its likeliest sequence."""
        ...

    def sample(
        self, n: int, generator: Generators, *, exponent: float = 0.0
    ) -> Float64[Tensor, "batch candidate time component"]:
        """Draw `n` candidates; `exponent` is that of their noise over time."""
        ...

    def fitted(self, elites: Float64[Tensor, "batch elite time component"], *, smoothing: float) -> Proposal:
        """The next distribution, which keeps `smoothing` of this one."""
        ...

    def tilted(
        self,
        candidates: Float64[Tensor, "batch candidate time component"],
        weights: Float64[Tensor, "batch candidate"],
        *,
        smoothing: float,
        cooling: float,
    ) -> Proposal:
        """The next distribution, whose means or frequencies are those of weighted candidates.

        A normal's standard deviation is not fitted but multiplied by `cooling`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CutNormal:
    """Independent normals; what lies beyond a bound is moved onto it."""

    mean: Float64[Tensor, "batch time component"]
    std: Float64[Tensor, "batch time component"]
    low: Float64[Tensor, " component"]
    high: Float64[Tensor, " component"]

    @staticmethod
    def around(guess: Tensor | None, action: ActionSpec, shape: tuple[int, int], *, std: float) -> CutNormal:
        """Around a guess, or the middle of the bounds, for `shape = (batch, time)`; `std` in half widths of them."""
        low, high = bounds(action)
        mean = ((low + high) / 2).expand(*shape, -1) if guess is None else guess
        return CutNormal(mean=mean, std=(std * (high - low) / 2).expand_as(mean), low=low, high=high)

    @property
    def mode(self) -> Float64[Tensor, "batch time component"]:
        """The mean, which smoothing may have rounded over a bound."""
        return self.mean.clamp(self.low, self.high)

    def sample(
        self, n: int, generator: Generators, *, exponent: float = 0.0
    ) -> Float64[Tensor, "batch candidate time component"]:
        """Draw `n` candidates."""
        B, T, A = self.mean.shape
        noise = colored_normal((B, n, T, A), exponent, generator)
        return (self.mean[:, None] + self.std[:, None] * noise).clamp(self.low, self.high)

    def fitted(self, elites: Float64[Tensor, "batch elite time component"], *, smoothing: float) -> CutNormal:
        """Moved to the elites' mean and standard deviation."""
        mean = torch.lerp(elites.mean(dim=1), self.mean, smoothing)
        std = torch.lerp(elites.std(dim=1, correction=0), self.std, smoothing)
        return CutNormal(mean=mean, std=std, low=self.low, high=self.high)

    def tilted(
        self,
        candidates: Float64[Tensor, "batch candidate time component"],
        weights: Float64[Tensor, "batch candidate"],
        *,
        smoothing: float,
        cooling: float,
    ) -> CutNormal:
        """Moved to the candidates' weighted mean, and narrower by `cooling`."""
        mean = torch.lerp((weights[..., None, None] * candidates).sum(dim=1), self.mean, smoothing)
        return CutNormal(mean=mean, std=cooling * self.std, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """Choices, one by one; those that a component does not have, fewer than another's, get probability 0."""

    probs: Float64[Tensor, "batch time component choice"]
    choices: Int64[Tensor, " component"]
    first: Int64[Tensor, " component"]

    @staticmethod
    def around(guess: Tensor | None, action: ActionSpec, shape: tuple[int, int]) -> Categorical:
        """Uniform, or half way from that to a guess, for `shape = (batch, time)`."""
        choices, first = torch.tensor(action.choices), torch.tensor(action.first)
        exists = torch.arange(max(action.choices)) < choices[:, None]
        probs = (exists / choices[:, None]).double().expand(*shape, -1, -1)
        if guess is not None:
            probs = (probs + F.one_hot(guess.long() - first, max(action.choices))) / 2
        return Categorical(probs=probs, choices=choices, first=first)

    @property
    def mode(self) -> Float64[Tensor, "batch time component"]:
        """The likeliest choices."""
        return (self.probs.argmax(dim=-1) + self.first).double()

    def sample(
        self, n: int, generator: Generators, *, exponent: float = 0.0
    ) -> Float64[Tensor, "batch candidate time component"]:
        """Draw `n` candidates. Colored noise is a Gaussian copula: its ranks pick the choices, so that they stay."""
        B, T, A = self.probs.shape[:3]
        if exponent == 0:
            chance = uniform((B, n, T, A, 1), generator, dtype=torch.float64)
        else:
            chance = torch.special.ndtr(colored_normal((B, n, T, A), exponent, generator))[..., None]
        index = (chance >= self.probs.cumsum(dim=-1)[:, None]).sum(dim=-1)
        # The sum of all probabilities may be rounded to less than 1, and a number fall between.
        return (torch.minimum(index, self.choices - 1) + self.first).double()

    def fitted(self, elites: Float64[Tensor, "batch elite time component"], *, smoothing: float) -> Categorical:
        """Moved to the frequencies of the elites' choices."""
        alike = torch.full(elites.shape[:2], 1 / elites.shape[1], dtype=torch.float64)
        return self.tilted(elites, alike, smoothing=smoothing, cooling=1.0)

    def tilted(
        self,
        candidates: Float64[Tensor, "batch candidate time component"],
        weights: Float64[Tensor, "batch candidate"],
        *,
        smoothing: float,
        cooling: float,
    ) -> Categorical:
        """Moved to the weighted frequencies of the candidates' choices; there is nothing to cool."""
        chosen = F.one_hot(candidates.long() - self.first, self.probs.shape[-1])
        frequency = (weights[..., None, None, None] * chosen).sum(dim=1)
        probs = torch.lerp(frequency, self.probs, smoothing)
        return Categorical(probs=probs, choices=self.choices, first=self.first)


def draw_uniform(action: ActionSpec, shape: tuple[int, ...], generator: Generators) -> Float64[Tensor, "... component"]:
    """Components uniform between their bounds or over their choices."""
    chance = uniform((*shape, action.size), generator, dtype=torch.float64)
    if action.is_discrete:
        return (chance * torch.tensor(action.choices)).floor() + torch.tensor(action.first)
    low, high = bounds(action)
    return (low + chance * (high - low)).clamp(low, high)


def to_actions(flat: Float64[Tensor, "*batch component"], action: ActionSpec) -> Shaped[Tensor, "*batch action_shape"]:
    """Raw actions in their recorded type, to which the bounds are rounded too, so that none is crossed."""
    return flat.reshape(*flat.shape[:-1], *action.shape).to(getattr(torch, action.dtype))


def flatten_actions(
    actions: Shaped[Tensor, "*batch action_shape"], action: ActionSpec, batch: tuple[int, ...]
) -> Float64[Tensor, "*batch component"]:
    """The inverse of `to_actions`.

    Raises:
        ValueError: If the shape is wrong or a number is out of bounds.
    """
    actions = torch.as_tensor(actions)
    shape = (*batch, *action.shape)
    if tuple(actions.shape) != shape:
        raise ValueError(f"these actions must have shape {shape}, got {tuple(actions.shape)}")
    flat = actions.detach().cpu().double().reshape(*batch, action.size)
    if action.is_discrete:
        low = torch.tensor(action.first, dtype=torch.float64)
        high = low + torch.tensor(action.choices) - 1
        wrong = flat != flat.round()
    else:
        low, high = bounds(action)
        wrong = flat.isnan()
    wrong = wrong | (flat < low) | (flat > high)
    if bool(wrong.any()):
        raise ValueError(
            f"these actions must lie between {low.tolist()} and {high.tolist()}, got {flat[wrong][0].item():g}; "
            "clip or round them first"
        )
    return flat


def bounds(action: ActionSpec) -> tuple[Float64[Tensor, " component"], Float64[Tensor, " component"]]:
    """Bounds as the recorded type has them, which JSON and Python write with other digits."""
    dtype = getattr(torch, action.dtype)
    return torch.tensor(action.low, dtype=dtype).double(), torch.tensor(action.high, dtype=dtype).double()


def check_searchable(action: ActionSpec) -> None:
    """Refuse actions that no proposal can be made for.

    Raises:
        ValueError: If a Box is unbounded or of whole numbers.
    """
    if action.is_discrete:
        return
    if not all(map(math.isfinite, (*action.low, *action.high))):
        raise ValueError(
            f"a Box of actions must be bounded to be searched, got low {action.low} and high {action.high}; "
            "give finite bounds to search in: dataclasses.replace(world.config.data.action, low=(...), high=(...))"
        )
    if not getattr(torch, action.dtype).is_floating_point:
        raise ValueError(
            f"a Box of whole numbers ({action.dtype}) cannot be searched; describe it as choices: "
            f"ActionSpec(shape={action.shape}, dtype={action.dtype!r}, choices=(...), first=(...))"
        )
