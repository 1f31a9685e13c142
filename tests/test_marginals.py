"""A pixel's own distribution becomes normal, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worldflow.bits import bits_per_dim, dequantized
from worldflow.marginals import Marginals


def images(count: int = 200, *, pixels: int = 4, levels: int = 5) -> Tensor:
    """Every pixel with another distribution; the last is always 0."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(pixels, levels, generator=generator).square()
    weights[-1] = torch.eye(levels)[0]
    return torch.multinomial(weights, count, replacement=True, generator=generator).T.contiguous()


def fitted(*, pseudo_count: float = 1.0) -> Marginals:
    made = Marginals(4, 5)
    made.count(images(), pseudo_count=pseudo_count)
    return made


def test_mass_is_counted() -> None:
    mass = fitted(pseudo_count=0.5).mass
    for pixel in range(4):
        for level in range(5):
            count = int((images()[:, pixel] == level).sum())
            assert float(mass[pixel, level]) == pytest.approx((count + 0.5) / (200 + 2.5), rel=1e-14)


def test_log_det_is_that_of_the_jacobian() -> None:
    marginals = fitted()
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: marginals(v)[0], x)
    assert isinstance(jacobian, Tensor)
    # Diagonal and smooth inside a cell; float64.
    torch.testing.assert_close(jacobian.view(4, 4), torch.diag(jacobian.view(4, 4).diag()))
    torch.testing.assert_close(jacobian.view(4, 4).diag().log().sum(), marginals(x)[1][0], rtol=0, atol=1e-9)


def test_inverse() -> None:
    marginals = fitted()
    x = torch.rand(500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(marginals.inverse(marginals(x)[0]), x, rtol=0, atol=1e-9)
    t = torch.randn(500, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(marginals(marginals.inverse(t))[0], t, rtol=0, atol=1e-6)


def test_under_a_normal_it_is_the_histogram_of_every_pixel() -> None:
    marginals, k = fitted(), images()
    x = dequantized(k, 5, generator=torch.Generator().manual_seed(3)).double()
    t, log_det = marginals(x)
    log_prob = log_det - 0.5 * (t.square() + math.log(2 * math.pi)).sum(1)
    expected = -marginals.mass.log2()[torch.arange(4), k].mean()
    assert bits_per_dim(log_prob[None], dim=4, levels=5).mean == pytest.approx(float(expected), rel=1e-12)


def test_pixels_become_normal() -> None:
    marginals = fitted(pseudo_count=1e-6)
    x = dequantized(images(), 5, generator=torch.Generator().manual_seed(3)).double()
    t = marginals(x)[0].sort(dim=0).values
    share = torch.special.ndtr(t)
    steps = (torch.arange(200, dtype=torch.float64)[:, None] + 1) / 200
    # Kolmogorov-Smirnov over four pixels; cells hold what they held, so this is stricter than 1.95 / sqrt(200).
    assert (share - steps).abs().max() < 1.95 / math.sqrt(200)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(image, 4\), got \(2, 3\)"):
        Marginals(4, 5).count(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="pseudo_count must be above 0"):
        Marginals(4, 5).count(torch.zeros(2, 4, dtype=torch.int64), pseudo_count=0)
