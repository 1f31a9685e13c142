"""Both rules of guidance against the Gaussians they are made from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldflow.attention import KeyValue
from worldflow.guidance import Rule, extrapolate, guided, sharpen

RULES = {"sharpen": sharpen, "extrapolate": extrapolate}
WEIGHTS = [0.0, 0.3, 1.5, 20.0]


@pytest.fixture(params=RULES.values(), ids=list(RULES))
def rule(request: pytest.FixtureRequest) -> Rule:
    return request.param


def gaussians(*, seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A hundred pairs of means and scales, half of them narrower with the condition, half wider."""
    generator = torch.Generator().manual_seed(seed)
    mu_c, mu_u, a, b = torch.randn(4, 100, generator=generator, dtype=torch.float64)
    return (mu_c, a.exp()), (mu_u, b.exp())


def test_no_weight_changes_nothing(rule: Rule) -> None:
    with_it, without = gaussians()
    mu, sigma = rule(with_it, without, 0.0)
    assert torch.equal(mu, with_it[0])
    assert torch.equal(sigma, with_it[1])


@pytest.mark.parametrize("weight", WEIGHTS)
def test_nothing_to_tell_apart_changes_nothing(rule: Rule, weight: float) -> None:
    with_it, _ = gaussians()
    mu, sigma = rule(with_it, with_it, weight)
    # 1 + w - w is 1 up to rounding of w, here 20.
    torch.testing.assert_close(mu, with_it[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(sigma, with_it[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_sharpening_is_the_product_of_gaussians(weight: float) -> None:
    (mu_c, sigma_c), (mu_u, sigma_u) = gaussians()
    narrow, wide = torch.minimum(sigma_c, sigma_u), torch.maximum(sigma_c, sigma_u)
    mu, sigma = sharpen((mu_c, narrow), (mu_u, wide), weight)
    # The logarithm of p_c^(1 + w) / p_u^w is a parabola: its curvature is a precision, its vertex the mean.
    precision = (1 + weight) / narrow.square() - weight / wide.square()
    vertex = ((1 + weight) * mu_c / narrow.square() - weight * mu_u / wide.square()) / precision
    # Precisions cancel to at worst a thousandth of their size.
    torch.testing.assert_close(sigma, precision.rsqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(mu, vertex, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_sharpening_never_widens(weight: float) -> None:
    (mu_c, sigma_c), (mu_u, sigma_u) = gaussians()
    mu, sigma = sharpen((mu_c, sigma_c), (mu_u, sigma_u), weight)
    assert (sigma > 0).all()
    assert (sigma <= sigma_c * (1 + 1e-12)).all()  # 1 + w - w may round below 1
    wider = sigma_c >= sigma_u  # the ratio is capped: nothing is narrowed, and the mean moves on in a straight line
    assert 20 < int(wider.sum()) < 80
    torch.testing.assert_close(sigma[wider], sigma_c[wider], rtol=1e-12, atol=0)
    line = mu_c + weight * (mu_c - mu_u)
    torch.testing.assert_close(mu[wider], line[wider], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_extrapolation_is_a_straight_line(weight: float) -> None:
    (mu_c, sigma_c), (mu_u, sigma_u) = gaussians()
    mu, sigma = extrapolate((mu_c, sigma_c), (mu_u, sigma_u), weight)
    torch.testing.assert_close(mu, (1 + weight) * mu_c - weight * mu_u, rtol=1e-11, atol=1e-11)
    line = (1 + weight) * sigma_c.log() - weight * sigma_u.log()
    torch.testing.assert_close(sigma.log(), line, rtol=1e-11, atol=1e-11)


def test_a_guided_map_runs_both_at_once(rule: Rule) -> None:
    calls: list[tuple[Tensor, int, int, KeyValue | None]] = []
    cache = KeyValue(keys=torch.zeros(1, 4, 1, 1, 1), values=torch.zeros(1, 4, 1, 1, 1))

    def both(x: Tensor, first: int, last: int, past: KeyValue | None) -> tuple[Tensor, Tensor, KeyValue]:
        calls.append((x, first, last, past))
        condition = torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=x.dtype)[:, None, None]
        part = x[:, first:last]
        return part + condition, (0.1 * part + condition / 4).exp(), cache

    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mu, sigma, new = guided(both, 0.7, rule=rule)(x, 1, 4, None)
    ((seen, first, last, past),) = calls
    assert torch.equal(seen, torch.cat((x, x)))
    assert (first, last, past) == (1, 4, None)
    assert new is cache
    part = x[:, 1:4]
    with_it, without = (part + 2, (0.1 * part + 0.5).exp()), (part - 1, (0.1 * part - 0.25).exp())
    expected = rule(with_it, without, 0.7)
    torch.testing.assert_close(mu, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma, expected[1], rtol=1e-12, atol=1e-12)


def test_sharpening_by_numbers() -> None:
    one, two = torch.ones(1, dtype=torch.float64), 2 * torch.ones(1, dtype=torch.float64)
    mu, sigma = sharpen((one, one), (0 * one, two), 1.0)  # s = 1/4, d = 7/4
    assert float(mu) == pytest.approx(2 / 1.75, rel=1e-15)
    assert float(sigma) == pytest.approx(math.sqrt(1 / 1.75), rel=1e-15)
