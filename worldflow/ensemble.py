"""A probabilistic ensemble of MLPs, the usual dynamics model of state vectors, to hold worlds of vectors against.

Each member maps state and action, both standardized, to a Gaussian of the state's change, scaled to unit variance; its
log-variance is bounded softly by learned numbers. Members differ by their first weights and by the order of their
batches. Training minimizes the Gaussian NLL and stops when held-back transitions are predicted no better; each member
keeps the weights that predicted them best, and the best few members are the elites, the only ones that predict. A
trajectory is drawn by a random elite at every step (TS1).

Reference: Chua et al., 2018, "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models",
arXiv 1805.12114; Janner et al., 2019, "When to Trust Your Model", arXiv 1906.08253 (elites, held-back transitions).
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.autoregressive import LOG_2PI
from worldflow.randomness import normal

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Ensemble", "EnsembleConfig", "fit_ensemble"]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The recipe of the two papers."""

    members: int = 7
    """Networks."""
    elites: int = 5
    """Those that predict: the best on held-back transitions."""
    layers: int = 4
    """Hidden layers of a network."""
    width: int = 200
    """Units of a hidden layer."""
    batch: int = 256
    """Transitions of a step, for each member its own."""
    learning_rate: float = 1e-3
    """Of Adam, constant."""
    weight_decay: float = 5e-5
    """Of AdamW, on matrices."""
    held_back: float = 0.1
    """Share of the transitions that decide when to stop and who is an elite."""
    patience: int = 40
    """Passes over the data without progress before training stops."""
    progress: float = 0.01
    """Share by which a held-back error must fall to count as progress."""
    seed: int = 0
    """Of weights, batches and what is held back."""

    def __post_init__(self) -> None:
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites must be 1 to {self.members} of the members, got {self.elites}")
        if not 0 < self.held_back < 1:
            raise ValueError(f"held_back must be in (0, 1), got {self.held_back}")


class Ensemble(nn.Module):
    """Gaussians of the next state, one a member.

    Args:
        state_dim: Numbers of a state.
        action_dim: Numbers of an action.
        config: Sizes.

    Attributes:
        elites: Members that predict; all of them before training.
        seconds: How long it was trained, by the clock of the training.
    """

    def __init__(self, state_dim: int, action_dim: int, config: EnsembleConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [state_dim + action_dim, *[config.width] * config.layers, 2 * state_dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(sizes):
            weight, std = torch.empty(config.members, before, after), 0.5 / math.sqrt(before)
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(config.members, 1, after)))
        self.most = nn.Parameter(torch.full((state_dim,), 0.5))  # bounds of the log-variance
        self.least = nn.Parameter(torch.full((state_dim,), -10.0))
        self.register_buffer("change_mean", torch.zeros(state_dim))
        self.register_buffer("change_std", torch.ones(state_dim))
        self.change_mean: Tensor
        self.change_std: Tensor
        self.elites = torch.arange(config.members)
        self.seconds = 0.0

    def scaled(
        self, states: Float[Tensor, "member row state"], actions: Float[Tensor, "member row action"]
    ) -> tuple[Float[Tensor, "member row state"], Float[Tensor, "member row state"]]:
        """Mean and log-variance of the scaled change, each member of its own rows."""
        x = torch.cat((states, actions), dim=-1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if i == last else F.silu(x)
        mean, log_variance = x.chunk(2, dim=-1)
        log_variance = self.most - F.softplus(self.most - log_variance)
        return mean, self.least + F.softplus(log_variance - self.least)

    def forward(
        self, states: Float[Tensor, "row state"], actions: Float[Tensor, "row action"]
    ) -> tuple[Float[Tensor, "elite row state"], Float[Tensor, "elite row state"]]:
        """Mean and standard deviation of the next state, of every elite."""
        members = self.config.members
        mean, log_variance = self.scaled(states.expand(members, -1, -1), actions.expand(members, -1, -1))
        mean, log_variance = mean[self.elites], log_variance[self.elites]
        return states + self.change_mean + self.change_std * mean, self.change_std * (0.5 * log_variance).exp()

    @torch.no_grad()
    def log_prob(
        self,
        states: Float[Tensor, "row state"],
        actions: Float[Tensor, "row action"],
        following: Float[Tensor, "row state"],
        *,
        noise_std: float = 0.0,
    ) -> Float[Tensor, " row"]:
        """Log-density of the next states in nats, of the even mixture of all elites.

        Args:
            states: Standardized states.
            actions: Standardized actions.
            following: The states after them.
            noise_std: Of normal noise that was added to `following`: the mixture is convolved with it, exactly.
        """
        mean, std = self(states, actions)
        variance = std.square() + noise_std**2
        each = -0.5 * ((following - mean).square() / variance + variance.log() + LOG_2PI).sum(-1)
        return each.logsumexp(0) - math.log(len(each))

    @torch.no_grad()
    def imagine(
        self,
        states: Float[Tensor, "row state"],
        actions: Float[Tensor, "row time action"],
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "sample row time state"]:
        """Draw futures, by a random elite at every step."""
        B = len(states)
        now, made = states.repeat(num_samples, 1), []
        for t in range(actions.shape[1]):
            mean, std = self(now, actions[:, t].repeat(num_samples, 1))
            by = torch.randint(len(mean), (len(now),), generator=generator).to(now.device)
            rows = torch.arange(len(now), device=now.device)
            noise = normal(tuple(now.shape), generator, device=now.device, dtype=now.dtype)
            now = mean[by, rows] + std[by, rows] * noise
            made.append(now.unflatten(0, (num_samples, B)))
        return torch.stack(made, dim=2)


def fit_ensemble(
    states: Float[Tensor, "transition state"],
    actions: Float[Tensor, "transition action"],
    following: Float[Tensor, "transition state"],
    *,
    config: EnsembleConfig,
    minutes: float,
    clock: Callable[[], float] = time.process_time,
) -> Ensemble:
    """Train an ensemble.

    Args:
        states: Standardized states.
        actions: Standardized actions.
        following: The states after them.
        config: How.
        minutes: Most minutes to take.
        clock: Tells seconds; by default the CPU's that this process took.
    """
    begin = clock()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
        torch.manual_seed(config.seed)
        ensemble = Ensemble(states.shape[1], actions.shape[1], config)
    order = torch.randperm(len(states), generator=generator)
    back, kept = order.tensor_split([max(1, int(config.held_back * len(states)))])
    change = following - states
    ensemble.change_mean.copy_(change[kept].mean(0))
    ensemble.change_std.copy_(change[kept].std(0).clamp(min=1e-6))
    target = (change - ensemble.change_mean) / ensemble.change_std
    bounds = [ensemble.most, ensemble.least]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(ensemble.weights), "weight_decay": config.weight_decay},
            {"params": [*ensemble.biases, *bounds], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    best = copy.deepcopy(ensemble.state_dict())
    least, waited = torch.full((config.members,), math.inf), 0
    while clock() - begin < 60 * minutes and waited < config.patience:
        orders = torch.stack([kept[torch.randperm(len(kept), generator=generator)] for _ in range(config.members)])
        for index in orders.split(config.batch, dim=1):
            mean, log_variance = ensemble.scaled(states[index], actions[index])
            error = (mean - target[index]).square() * (-log_variance).exp() + log_variance
            loss = error.mean((1, 2)).sum() + 0.01 * (ensemble.most.sum() - ensemble.least.sum())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if clock() - begin >= 60 * minutes:
                break
        with torch.no_grad():
            rows = (config.members, -1, -1)
            mean, _ = ensemble.scaled(states[back].expand(rows), actions[back].expand(rows))
            error = (mean - target[back]).square().mean((1, 2))
        waited = 0 if bool((error < (1 - config.progress) * least).any()) else waited + 1
        is_better = error < least
        least = torch.where(is_better, error, least)
        for name, value in ensemble.state_dict().items():
            if value.shape[:1] == is_better.shape and name.startswith(("weights", "biases")):
                best[name][is_better] = value[is_better]
            else:
                best[name].copy_(value)
    ensemble.load_state_dict(best)
    ensemble.elites = least.argsort()[: config.elites].sort().values
    ensemble.seconds = clock() - begin
    return ensemble.eval()
