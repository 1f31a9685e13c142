"""Bits per dimension against densities whose cells can be integrated by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldflow.bits import bits_per_dim, dequantized, dequantized_log_prob


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(x: Tensor) -> Tensor:
    """Log-density of a mixture of two logistics in one dimension, cut to the unit interval; and its CDF below."""
    s = [((x - m) / w, w) for m, w in ((0.3, 0.05), (0.7, 0.1))]
    logistic = [-z - 2 * torch.nn.functional.softplus(-z) - math.log(w) for z, w in s]
    return torch.stack(logistic).logsumexp(0) - math.log(2) - math.log(mass(1.0) - mass(0.0))


def mass(x: float) -> float:
    return sum(0.5 / (1 + math.exp(-(x - m) / w)) for m, w in ((0.3, 0.05), (0.7, 0.1)))


def test_a_uniform_density_takes_log2_of_the_levels() -> None:
    found = bits_per_dim(torch.zeros(3, 5, dtype=torch.float64), dim=64, levels=17)
    assert found.mean == pytest.approx(math.log2(17), rel=1e-14)
    assert found.tighter == pytest.approx(math.log2(17), rel=1e-14)
    assert found.standard_error == 0
    assert (found.images, found.draws) == (5, 3)


def test_a_histogram_takes_its_entropy() -> None:
    # Constant inside cells: the bound is exact for every draw.
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    images = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])[:, None]
    log_prob = dequantized_log_prob(
        lambda x: (4 * p[(4 * x).long()]).log().sum(1), images, 4, draws=5, generator=generator()
    )
    found = bits_per_dim(log_prob, dim=1, levels=4)
    assert found.mean == pytest.approx(1.75, rel=1e-14)
    assert found.tighter == pytest.approx(1.75, rel=1e-14)
    bits = torch.tensor([1, 1, 1, 1, 2, 2, 3, 3], dtype=torch.float64)
    assert found.standard_error == pytest.approx(float(bits.std()) / math.sqrt(8), rel=1e-12)


def test_bounds_of_a_mixture_of_logistics() -> None:
    levels, draws = 5, 4000
    images = torch.arange(levels)[:, None]
    log_prob = dequantized_log_prob(lambda x: mixture(x[:, 0]), images, levels, draws=draws, generator=generator())
    total = mass(1.0) - mass(0.0)
    exact = [-math.log2((mass((k + 1) / levels) - mass(k / levels)) / total) for k in range(levels)]
    # E_u[log2 p] of each cell by the midpoint rule: errors of a millionth at a thousand points.
    middles = (torch.arange(5000, dtype=torch.float64) + 0.5).view(levels, -1) / 5000
    bound = math.log2(levels) - mixture(middles).mean(1) / math.log(2)
    by_cell = [bits_per_dim(log_prob[:, k : k + 1], dim=1, levels=levels) for k in range(levels)]
    spread = (log_prob.double() / math.log(2)).std(0) / math.sqrt(draws)
    for k, found in enumerate(by_cell):
        # Five standard errors of the draws: false alarm once in a million.
        assert found.mean == pytest.approx(float(bound[k]), abs=5 * float(spread[k]) + 1e-5)
        weights = log_prob[:, k].double().exp()
        relative = float(weights.std() / weights.mean()) / math.sqrt(draws) / math.log(2)
        assert found.tighter == pytest.approx(exact[k], abs=5 * relative + 1e-5)
        assert found.mean > found.tighter
    assert float(bound.mean()) > sum(exact) / levels + 0.05  # the two bounds are told apart


def test_draws_stay_in_their_cells_and_fill_them() -> None:
    levels = 17
    images = torch.arange(levels).repeat(4000, 1)
    x = dequantized(images, levels, generator=generator())
    assert torch.equal((x * levels).floor().long().clamp(max=levels - 1), images) or x.max() < 1
    assert 0 <= float(x.min())
    assert float(x.max()) < 1
    u = x * levels - images
    # Means of 4000 uniform numbers, seventeen of them: five standard errors.
    assert (u.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 4000)
    assert torch.equal(dequantized(images, levels, generator=generator()), x)
    assert not torch.equal(dequantized(images, levels, generator=generator(1)), x)


def test_one_draw_has_one_bound() -> None:
    log_prob = torch.randn(1, 9, generator=generator(), dtype=torch.float64)
    found = bits_per_dim(log_prob, dim=3, levels=8)
    assert found.tighter == pytest.approx(found.mean, rel=1e-14)
    assert found.mean == pytest.approx(3 - float(log_prob.mean()) / math.log(2) / 3, rel=1e-14)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"log_prob must have shape \(draws, images\), neither of them 0, got \(3,\)"):
        bits_per_dim(torch.zeros(3), dim=1, levels=2)
    with pytest.raises(ValueError, match="dim must be at least 1 and levels at least 2, got 0 and 2"):
        bits_per_dim(torch.zeros(1, 3), dim=0, levels=2)
    with pytest.raises(ValueError, match="got 1 that are not"):
        bits_per_dim(torch.tensor([[0.0, math.nan]]), dim=1, levels=2)
    with pytest.raises(TypeError, match=r"whole numbers to be dequantized, got torch.float32"):
        dequantized(torch.zeros(3), 17, generator=None)
    with pytest.raises(ValueError, match="images of 17 levels hold 0 to 16, got -1 to 17"):
        dequantized(torch.tensor([-1, 17]), 17, generator=None)
