"""Reward and termination are distributions: they sum to one, and means and samples are their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldflow.heads import TAIL_WEIGHT, RewardHead, RewardSupport, TerminationHead, symexp, symlog

SUPPORTS = {
    "no atoms": RewardSupport(low=-1.5, high=2.0, num_knots=12),
    "atoms": RewardSupport(low=-1.5, high=2.0, num_knots=12, atoms=(-1.0, 0.0, 2.5)),
    "narrow": RewardSupport(low=0.99, high=1.01, num_knots=5, atoms=(1.0,)),
    "large rewards": RewardSupport(low=-5.0, high=7.0, num_knots=32, atoms=(-100.0,)),
}


def make(support: RewardSupport, *, rows: int = 3) -> tuple[RewardHead, Tensor]:
    """A head with random weights, and states to read."""
    head = RewardHead(8, support).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return head, torch.randn(rows, 8, generator=generator, dtype=torch.float64)


@pytest.fixture(params=SUPPORTS.values(), ids=list(SUPPORTS))
def support(request: pytest.FixtureRequest) -> RewardSupport:
    return request.param


def masses(head: RewardHead, hidden: Tensor) -> Tensor:
    """Probability of each atom, `(row, atom)`."""
    columns = [head.log_prob(hidden, torch.full((len(hidden),), a).double()).exp() for a in head.support.atoms]
    return torch.stack(columns, 1) if columns else torch.zeros(len(hidden), 0, dtype=torch.float64)


def density_of_symlog(head: RewardHead, hidden: Tensor, y: Tensor) -> Tensor:
    """Density in `y = symlog(r)`, `(row, point)`."""
    states, rewards = hidden[:, None].expand(-1, len(y), -1), symexp(y).expand(len(hidden), -1)
    return (head.log_prob(states, rewards) + y.abs()).exp()  # ln|dr/dy| = ln(1 + |r|) = |y|


def line(support: RewardSupport, *, reach: float = 0.0) -> Tensor:
    """A fine line in symlog space that has the knots on it and no atom."""
    step = (support.high - support.low) / (support.num_knots - 1)
    cells = math.ceil(reach / step) + 1
    # 100 points a cell: the density is straight between knots, up to the curvature of the tail's one millionth.
    count = 100 * (support.num_knots - 1 + 2 * cells)
    edges = torch.linspace(support.low - cells * step, support.high + cells * step, count + 1, dtype=torch.float64)
    return 0.5 * (edges[1:] + edges[:-1])


@torch.no_grad()
def test_density_and_masses_sum_to_one(support: RewardSupport) -> None:
    head, hidden = make(support)
    width = support.high - support.low
    y = line(support, reach=20 * width)  # the tail's weight there is a millionth of exp(-20)
    density = density_of_symlog(head, hidden, y)
    atoms = masses(head, hidden).sum(1)
    total = density.sum(1) * (y[1] - y[0]) + atoms
    # Knots are kept in float32, 1e-7 of a hat's width beside their place on wide supports and 1e-5 on the narrow one.
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=2e-5 if width < 0.1 else 1e-6)
    if support.atoms:
        assert (atoms > 0.001).any()


@torch.no_grad()
def test_no_reward_is_impossible(support: RewardSupport) -> None:
    head, hidden = make(support)
    width, middle = support.high - support.low, (support.high + support.low) / 2
    y = torch.tensor([support.low - 1.0, support.high + 3.0], dtype=torch.float64)
    found = head.log_prob(hidden[:1].expand(2, -1), symexp(y))
    expected = math.log(TAIL_WEIGHT) - math.log(2 * width) - (y - middle).abs() / width - y.abs()
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(head.log_prob(hidden, torch.tensor([-1e9, 0.0, 1e9]).double())).all()


@torch.no_grad()
def test_mean_is_the_integral(support: RewardSupport) -> None:
    head, hidden = make(support)
    y = line(support)
    density = density_of_symlog(head, hidden, y) * (y[1] - y[0])
    atoms = torch.tensor(support.atoms, dtype=torch.float64)
    expected = (density * symexp(y)).sum(1) + masses(head, hidden) @ atoms
    # The tail, one part in a million of rewards up to the largest, is left out; hats by quadrature in 64 steps.
    scale = math.expm1(max(abs(support.low), abs(support.high)))
    torch.testing.assert_close(head.mean(hidden), expected, rtol=0, atol=1e-4 * scale)


@torch.no_grad()
def test_samples_follow_the_density(support: RewardSupport) -> None:
    head, hidden = make(support, rows=1)
    count = 20_000
    uniform = torch.rand(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = head.sample(hidden.expand(count, -1), uniform)
    atoms = torch.tensor(support.atoms, dtype=torch.float64)
    is_atom = (drawn[:, None] == atoms).any(1)
    # Atoms: each count within 4.4 standard deviations, a false alarm in 1e5.
    for value, mass in zip(atoms, masses(head, hidden)[0], strict=True):
        found = int((drawn == value).sum())
        assert abs(found - count * mass) < 4.4 * math.sqrt(count * mass * (1 - mass)) + 1
    # The rest: Kolmogorov-Smirnov in symlog space at a false-alarm rate of 1e-5.
    y = line(support)
    density = density_of_symlog(head, hidden, y)[0]
    step = float(y[1] - y[0])
    cumulative = np.concatenate(([0.0], np.cumsum(density.numpy()) * step))
    edges = np.concatenate(([float(y[0]) - step / 2], y.numpy() + step / 2))
    rest = np.sort(symlog(drawn[~is_atom]).numpy())
    theory = np.interp(rest, edges, cumulative / cumulative[-1])
    empirical = (np.arange(len(rest)) + 0.5) / len(rest)
    assert np.abs(theory - empirical).max() < math.sqrt(math.log(2 / 1e-5) / (2 * len(rest)))


@torch.no_grad()
def test_tail_samples_are_laplace() -> None:
    support = SUPPORTS["atoms"]
    head, hidden = make(support, rows=1)
    first = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    uniform = torch.stack((torch.full((99,), 1 - 1e-8, dtype=torch.float64), first, torch.zeros(99)), 1)
    y = symlog(head.sample(hidden.expand(99, -1), uniform))
    laplace = torch.distributions.Laplace(
        torch.tensor((support.low + support.high) / 2, dtype=torch.float64), support.high - support.low
    )
    torch.testing.assert_close(y, laplace.icdf(first))


def test_symlog_and_back() -> None:
    r = torch.tensor([-1e6, -3.0, -1e-4, 0.0, 1e-4, 2.0, 1e6], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(r)), r, rtol=1e-12, atol=0)
    torch.testing.assert_close(symlog(r), r.sign() * torch.log(1 + r.abs()), rtol=1e-11, atol=0)


def test_support_of_constant_and_sparse_rewards() -> None:
    constant = RewardSupport.of([np.ones(50, dtype=np.float32)])
    assert constant.atoms == (1.0,)
    assert constant.low < math.log(2) < constant.high
    sparse = np.zeros(1000, dtype=np.float32)
    sparse[::100] = 10.0
    sparse[7] = -3.0  # once is no atom
    both = RewardSupport.of([sparse[:400], sparse[400:]])
    assert both.atoms == (0.0, 10.0)
    assert both.low < -math.log(4) and both.high > math.log(11)
    smooth = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert RewardSupport.of([smooth]).atoms == ()
    many = np.repeat(np.arange(40, dtype=np.float32), np.arange(40) + 10)
    most = RewardSupport.of([many], most_atoms=5)
    assert most.atoms == (35.0, 36.0, 37.0, 38.0, 39.0)
    assert all(one.has_rewards for one in (constant, both, most, RewardSupport()))
    assert not RewardSupport.of([np.zeros(5), np.zeros(3)]).has_rewards
    assert RewardSupport.of([np.array([0.0] * 500 + [1e-3])]).has_rewards


@pytest.mark.parametrize("kind", ["constant", "sparse"])
def test_learns_rewards_that_recur(kind: str) -> None:
    rewards = np.ones(64, dtype=np.float32) * np.float32(0.1)
    if kind == "sparse":
        rewards[::8] = 7.3
    head = RewardHead(2, RewardSupport.of([rewards]))
    hidden, target = torch.zeros(64, 2), torch.from_numpy(rewards)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.3)
    loss = torch.zeros(())
    for _ in range(200):
        loss = -head.log_prob(hidden, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The best there is: the entropy of the recorded values, counted.
    share = np.unique(rewards, return_counts=True)[1] / 64
    assert abs(float(loss.detach()) + (share * np.log(share)).sum()) < 0.01
    assert abs(float(head.mean(hidden[:1]).detach()) - rewards.mean()) < 0.05


def test_atoms_are_found_whatever_the_precision() -> None:
    # Rewards are recorded in float32, environments give float64: 0.1 is the same reward in both.
    head, hidden = make(RewardSupport(atoms=(float(np.float32(0.1)),)), rows=1)
    recorded = head.log_prob(hidden, torch.tensor([0.1], dtype=torch.float32))
    given = head.log_prob(hidden, torch.tensor([0.1], dtype=torch.float64))
    assert torch.equal(recorded, given)


@torch.no_grad()
def test_termination_probabilities_sum_to_one() -> None:
    head = TerminationHead(4).double()
    assert abs(float(head.logit(torch.zeros(1, 4).double()).sigmoid()) - 1 / (1 + math.exp(3))) < 1e-7
    head.out.weight.copy_(torch.tensor([[3.0, -20.0, 0.5, 100.0]]))
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ended, went_on = (head.log_prob(hidden, torch.full((6,), value)) for value in (True, False))
    torch.testing.assert_close(torch.logaddexp(ended, went_on), torch.zeros(6).double(), rtol=0, atol=1e-12)
    expected = -F.binary_cross_entropy_with_logits(head.logit(hidden), torch.ones(6).double(), reduction="none")
    torch.testing.assert_close(ended, expected)
    assert torch.isfinite(ended).all() and torch.isfinite(went_on).all()
