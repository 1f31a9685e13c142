"""Distributions of reward and termination, read off the flow's state after a transition.

The reward's distribution has to cope with constants, sparse bonuses and several modes, and to have an exact
log-probability. It mixes, with probabilities from one softmax:

- *atoms*: values that recur exactly in the recordings (0, 1, -100 ...), each with a probability mass;
- *hats*: triangular densities at equally spaced knots in `y = symlog(r) = sign(r) ln(1 + |r|)` (Hafner et al., 2023,
  arXiv 2301.04104), a continuous form of two-hot targets: the density is piecewise linear in `y` and integrates to 1;
- *tail*: one Laplace density with a fixed small weight, so that no reward is impossible.

The log-probability of an atom is the log of its mass, that of any other value the log of a density in nats per unit of
reward: a density with respect to the counting measure on the atoms plus length elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from jaxtyping import Bool, Float

__all__ = ["RewardHead", "RewardSupport", "TerminationHead"]

TAIL_WEIGHT = 1e-6
_LEAST_MARGIN = 0.05


def symlog(r: Tensor) -> Tensor:
    """`sign(r) ln(1 + |r|)`."""
    return r.sign() * r.abs().log1p()


def symexp(y: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return y.sign() * y.abs().expm1()


@dataclass(frozen=True, kw_only=True)
class RewardSupport:
    """Where rewards may lie, learned from the recordings and saved with the weights."""

    low: float = -1.0
    """Lowest knot in symlog space."""
    high: float = 1.0
    """Highest knot in symlog space."""
    num_knots: int = 64
    """Number of hats."""
    atoms: tuple[float, ...] = ()
    """Values that have a mass of their own."""

    @property
    def has_rewards(self) -> bool:
        """Whether any reward but 0 was recorded; imported recordings without rewards have zeros."""
        return self.atoms != (0.0,) or (self.low, self.high) != (-_LEAST_MARGIN, _LEAST_MARGIN)

    @staticmethod
    def of(
        rewards: Iterable[np.ndarray], *, num_knots: int = 64, least_share: float = 0.003, most_atoms: int = 16
    ) -> RewardSupport:
        """The support that recorded rewards need.

        Args:
            rewards: Rewards of each episode.
            num_knots: Number of hats.
            least_share: Share of all transitions from which on a recurring value becomes an atom.
            most_atoms: At most so many, the most frequent ones.
        """
        values = torch.cat([torch.as_tensor(r, dtype=torch.float32).flatten() for r in rewards])
        distinct, counts = values.unique(return_counts=True)
        is_atom = (counts >= max(2, least_share * len(values))).nonzero().flatten()
        is_atom = is_atom[counts[is_atom].argsort(descending=True)[:most_atoms]]
        y = symlog(distinct)
        margin = 0.05 * float(y.max() - y.min()) + _LEAST_MARGIN
        return RewardSupport(
            low=float(y.min()) - margin,
            high=float(y.max()) + margin,
            num_knots=num_knots,
            atoms=tuple(sorted(distinct[is_atom].tolist())),
        )


class RewardHead(nn.Module):
    """Exact log-probability, mean and samples of a reward.

    Args:
        width: Channels of the state it reads.
        support: Where rewards may lie.
    """

    def __init__(self, width: int, support: RewardSupport) -> None:
        super().__init__()
        self.support = support
        self.out = nn.Linear(width, len(support.atoms) + support.num_knots)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        knots = torch.linspace(support.low, support.high, support.num_knots)
        self.register_buffer("atoms", torch.tensor(support.atoms, dtype=torch.float32), persistent=False)
        self.register_buffer("knots", knots, persistent=False)
        step = (support.high - support.low) / (support.num_knots - 1)
        # Mean reward of each hat, by quadrature over its triangle: sum of hat(t) symexp(knot + t step) dt.
        t = torch.linspace(-1, 1, 65, dtype=torch.float64)
        hat = (1 - t.abs()) / (1 - t.abs()).sum()
        means = symexp(knots.double()[:, None] + t * step) @ hat
        self.register_buffer("knot_means", means.float(), persistent=False)
        self.step = step
        self.atoms: Tensor
        self.knots: Tensor
        self.knot_means: Tensor

    def _log_weights(self, hidden: Tensor) -> Tensor:
        logits = self.out(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.log_softmax(logits, dim=-1) + math.log1p(-TAIL_WEIGHT)

    def log_prob(
        self, hidden: Float[Tensor, "*batch width"], reward: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Log of the mass of an atom, or of the density in nats per unit of reward."""
        weights = self._log_weights(hidden)
        num_atoms = len(self.atoms)
        reward = reward.to(weights.dtype)
        y = symlog(reward)
        hats = (1 - (y[..., None] - self.knots).abs() / self.step).clamp(min=0) / self.step
        scale = self.support.high - self.support.low
        middle = 0.5 * (self.support.high + self.support.low)
        tail = math.log(TAIL_WEIGHT / (2 * scale)) - (y - middle).abs() / scale
        parts = torch.where(hats > 0, weights[..., num_atoms:] + hats.clamp(min=1e-30).log(), -torch.inf)
        density = torch.logsumexp(torch.cat((parts, tail[..., None]), dim=-1), dim=-1) - reward.abs().log1p()
        if not num_atoms:
            return density
        is_atom = reward.float()[..., None] == self.atoms.float()  # rewards are recorded in float32
        mass = torch.logsumexp(torch.where(is_atom, weights[..., :num_atoms], -torch.inf), dim=-1)
        return torch.where(is_atom.any(-1), mass, density)

    def mean(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """Expected reward (the tail, one part in a million, left out)."""
        return self._log_weights(hidden).softmax(-1) @ torch.cat((self.atoms, self.knot_means)).to(hidden.dtype)

    def sample(
        self, hidden: Float[Tensor, "batch width"], uniform: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, " batch"]:
        """A reward from three uniform numbers in [0, 1) each: which part, and where in it."""
        weights = self._log_weights(hidden).exp()
        cumulative = weights.cumsum(-1)
        pick, first, second = uniform.to(weights.dtype).unbind(-1)
        index = torch.searchsorted(cumulative, pick[..., None].contiguous(), right=True)[..., 0]
        num_atoms, total = len(self.atoms), weights.shape[-1]
        knot = (index - num_atoms).clamp(0, self.support.num_knots - 1)
        y = self.knots.to(weights.dtype)[knot] + (first - second) * self.step
        reward = symexp(y)
        if num_atoms:
            atom = self.atoms.to(weights.dtype)[index.clamp(max=num_atoms - 1)]
            reward = torch.where(index < num_atoms, atom, reward)
        scale = self.support.high - self.support.low
        middle = 0.5 * (self.support.high + self.support.low)
        laplace = scale * (first - 0.5).sign() * -torch.log1p(-2 * (first - 0.5).abs().clamp(max=0.499999))
        return torch.where(index >= total, symexp(middle + laplace), reward)


class TerminationHead(nn.Module):
    """Bernoulli of the episode's end by the task's own rule.

    Args:
        width: Channels of the state it reads.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, -3.0)  # most transitions do not end an episode

    def logit(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """Log-odds of termination."""
        logit = self.out(hidden)[..., 0]
        return logit if logit.dtype == torch.float64 else logit.float()

    def log_prob(
        self, hidden: Float[Tensor, "*batch width"], terminated: Bool[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Log-probability of having ended or not, in nats."""
        logit = self.logit(hidden)
        return torch.where(terminated, F.logsigmoid(logit), F.logsigmoid(-logit))
